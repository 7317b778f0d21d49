package driver_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"netyard/kernel/kerneltest"
	"netyard/modes"
	"netyard/yard/book"
	"netyard/yard/event"
	"netyard/yard/lease"
	"netyard/yard/reconcile"
)

// A dhcpLAN is an engine whose host has eth0 on a LAN that has a DHCP server.
type dhcpLAN struct {
	*engine
	t      *testing.T
	server *kerneltest.Host
	stop   func()
	log    kerneltest.Log
	boxes  map[string]*kerneltest.Host // sandboxes, by the last digits of the endpoint's ID
	links  map[string]string           // by the same
	iface  string                      // of the server
}

// logged reports whether a server logged a text.
func (d *dhcpLAN) logged(text string) bool { return d.log.Count(text) > 0 }

func newDHCPLAN(t *testing.T, mode string) *dhcpLAN {
	t.Helper()
	d := &dhcpLAN{
		engine: newEngine(t, mode), t: t,
		boxes: map[string]*kerneltest.Host{}, links: map[string]string{}, iface: "eth0",
	}
	d.server = d.host.Peer(t, "eth0")
	d.host.Sh(t, "sysctl -qw net.ipv6.conf.all.disable_ipv6=1")
	d.host.Sh(t, "ip addr add 192.0.2.2/24 dev eth0")
	d.server.Sh(t, "ip addr add 192.0.2.1/24 dev eth0")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = lease.KeepLeases(ctx, d.yard.Book) }()
	t.Cleanup(func() {
		cancel()
		<-done
		if t.Failed() {
			t.Logf("the servers:\n%s", d.log.String())
		}
	})
	return d
}

// dnsmasq starts a DHCP server for these addresses, which has no leases of the server before it.
func (d *dhcpLAN) dnsmasq(span string, more ...string) {
	d.t.Helper()
	if d.stop != nil {
		d.stop()
	}
	args := kerneltest.Dnsmasq(d.t, d.iface, append([]string{"--dhcp-range=" + span}, more...)...)
	d.stop = d.serve("DHCP, IP range", args...)
}

// serve runs a server on the LAN until the test ends or the returned function is called. It waits until the server logs
// the text ready.
func (d *dhcpLAN) serve(ready string, args ...string) (stop func()) {
	d.t.Helper()
	before := d.log.Count(ready)
	stop = d.server.Start(d.t, &d.log, args...)
	d.eventually(args[0]+" is ready", func() bool { return d.log.Count(ready) > before })
	return stop
}

func (d *dhcpLAN) eventually(what string, cond func() bool) {
	d.t.Helper()
	for end := time.Now().Add(time.Minute); !cond(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			d.t.Fatalf("never: %s", what)
		}
	}
}

func (d *dhcpLAN) pool(opts string) string {
	d.t.Helper()
	body := `{"AddressSpace":"netyard","Options":{"dhcp":"true"` + opts + `}}`
	return d.ok("IpamDriver.RequestPool", body)["PoolID"].(string)
}

// network returns the body of a CreateNetwork with a pool. Its gateway is the pool's token, which was the gateway in
// the answer to RequestPool.
func network(id, pool, options string) string {
	return fmt.Sprintf(`{"NetworkID":"aaaaaaaaaaaa%s","Options":{"com.docker.network.generic":{%s}},`+
		`"IPv4Data":[{"AddressSpace":"netyard","Pool":"0.0.0.0/0","Gateway":"%s/0"}]}`,
		id, options, strings.TrimPrefix(pool, "dhcp-"))
}

// requestAddress requests an address for a container of that name.
func (d *dhcpLAN) requestAddress(pool, name string) string {
	d.t.Helper()
	body := fmt.Sprintf(`{"PoolID":%q,"Options":{"com.docker.network.endpoint.name":%q}}`, pool, name)
	return d.ok("IpamDriver.RequestAddress", body)["Address"].(string)
}

// join joins an endpoint to a sandbox, and returns the answer and the link in it.
func (d *dhcpLAN) join(network, last string, box *kerneltest.Host) (answer map[string]any, link string) {
	d.t.Helper()
	answer = d.ok("NetworkDriver.Join", endpointOf(network, last, fmt.Sprintf(`,"SandboxKey":%q`, box.Path())))
	return answer, answer["InterfaceName"].(map[string]any)["SrcName"].(string)
}

func endpointOf(network, last, more string) string {
	return fmt.Sprintf(`{"NetworkID":"aaaaaaaaaaaa%s","EndpointID":"eeeeeeeeee%s"%s}`, network, last, more)
}

// start starts a container on network 01 as engine 29 does, and returns its address.
func (d *dhcpLAN) start(pool, last, name string) (addr string) {
	d.t.Helper()
	return d.startOn("01", pool, last, name)
}

func (d *dhcpLAN) startOn(network, pool, last, name string) (addr string) {
	d.t.Helper()
	addr = d.requestAddress(pool, name)
	d.ok("NetworkDriver.CreateEndpoint", endpointOf(network, last, fmt.Sprintf(`,"Interface":{"Address":%q}`, addr)))
	box := kerneltest.New(d.t)
	// An engine disables IPv6 in sandboxes by default.
	box.Sh(d.t, "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1")
	d.boxes[last] = box
	j, link := d.join(network, last, box)
	if j["Gateway"] != "192.0.2.1" {
		d.t.Errorf("the gateway is not the DHCP server's: %v", j)
	}
	d.links[last] = link
	box.Take(d.t, d.host, link, "ip addr add "+addr+" dev eth0", "ip route add default via 192.0.2.1")
	return addr
}

// end stops a container on network 01 as an engine does: the link returns to the host.
func (d *dhcpLAN) end(pool, last, addr string) {
	d.t.Helper()
	d.endOn("01", pool, last, addr)
}

func (d *dhcpLAN) endOn(network, pool, last, addr string) {
	d.t.Helper()
	d.ok("NetworkDriver.Leave", endpointOf(network, last, ""))
	d.boxes[last].Sh(d.t, "ip link set eth0 down && ip link set eth0 name back"+last)
	d.boxes[last].Give(d.t, d.host, "back"+last)
	d.host.Sh(d.t, "ip link set back"+last+" name "+d.links[last])
	d.ok("NetworkDriver.DeleteEndpoint", endpointOf(network, last, ""))
	at, _, _ := strings.Cut(addr, "/")
	d.ok("IpamDriver.ReleaseAddress", fmt.Sprintf(`{"PoolID":%q,"Address":%q}`, pool, at))
}

// lease returns the lease of an endpoint, or the zero lease.
func (d *dhcpLAN) lease(last string) (l lease.DHCPLease) {
	d.t.Helper()
	all, err := lease.DHCPLeases(d.yard.Book)
	if err != nil {
		d.t.Fatal(err)
	}
	for _, l := range all {
		if l.Endpoint == "eeeeeeeeee"+last {
			return l
		}
	}
	return l
}

// rename gives the first container a new name, so that netyard extends its lease from inside the sandbox with it.
func (d *dhcpLAN) rename(name string) {
	d.t.Helper()
	c := modes.Container{Engine: book.Docker, ID: "c01", Name: name}
	e, err := d.yard.Endpoint("aaaaaaaaaaaa01", "eeeeeeeeee01")
	if err == nil {
		err = reconcile.Identify(d.t.Context(), d.yard, e, c)
	}
	if err != nil {
		d.t.Fatal(err)
	}
}

// TestLANDHCP shows the life of two containers on one parent with addresses from a DHCP server.
func TestLANDHCP(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"macvlan", "ipvlan"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			kerneltest.Needs(t, mode)
			d := newDHCPLAN(t, mode)
			before := d.state()
			d.dnsmasq("192.0.2.100,192.0.2.110,255.255.255.0,120")
			pool := d.pool("")
			d.ok("NetworkDriver.CreateNetwork", network("01", pool, `"parent":"eth0","host_access":"true"`))
			web, db := d.start(pool, "01", "web"), d.start(pool, "02", "db")
			if web == db || !strings.HasPrefix(web, "192.0.2.1") || !strings.HasSuffix(web, "/24") {
				t.Fatalf("the addresses are %s and %s", web, db)
			}
			for last, addr := range map[string]string{"01": db, "02": web} {
				to, _, _ := strings.Cut(addr, "/")
				if !d.boxes[last].Pings(to, true) || !d.boxes[last].Pings("192.0.2.1", true) {
					t.Errorf("container %s does not reach %s or the LAN", last, to)
				}
			}

			d.end(pool, "02", db)
			d.eventually("the address is released", func() bool {
				return d.logged("DHCPRELEASE(eth0) " + strings.TrimSuffix(db, "/24"))
			})
			if again := d.start(pool, "02", "db"); again != db {
				t.Errorf("made again, the container has %s and had %s", again, db)
			}

			began := d.lease("01").Lease.Start
			d.rename("shop")
			d.eventually("the lease is extended from inside", func() bool {
				l := d.lease("01")
				return l.Hostname == "shop" && l.Lease.Start.After(began)
			})
			d.eventually("the server gets the name", func() bool { return d.logged("client provides name: shop") })

			d.dnsmasq("192.0.2.150,192.0.2.159,255.255.255.0,120") // does not know the leases, and answers NAK
			d.rename("store")
			d.eventually("the container has another address", func() bool {
				return strings.Contains(d.boxes["01"].Sh(t, "ip -4 addr show dev eth0"), "inet 192.0.2.15")
			})
			box := d.boxes["01"]
			if !d.logged("DHCPNAK(eth0)") || !box.Pings("192.0.2.1", true) ||
				strings.Contains(box.Sh(t, "ip -4 addr show dev eth0"), web) {
				t.Errorf("after a NAK, the container does not reach the LAN or has the old address: %s",
					box.Sh(t, "ip addr; ip route"))
			}
			d.eventually("the record has the address", func() bool { // after the kernel has it
				l := d.lease("01")
				return netip.MustParsePrefix("192.0.2.144/28").Contains(l.Lease.Addr.Addr()) && l.Tried.IsZero()
			})
			now := d.lease("01").Lease.Addr.Addr()
			d.eventually("an event has the new address", func() bool { return d.hasEvent(event.LeaseMoved, now) })
			d.eventually("an event has the lost lease", func() bool {
				p, err := netip.ParsePrefix(web)
				return err == nil && d.hasEvent(event.LeaseLost, p.Addr())
			})
			if e, err := d.yard.Endpoint("aaaaaaaaaaaa01", "eeeeeeeeee01"); err != nil || e.Addrs[0].Addr() != now {
				t.Errorf("the endpoint has %v, and the lease %s: %v", e.Addrs, now, err)
			}

			if !d.host.Pings(now.String(), true) || !box.Pings("192.0.2.2", true) {
				t.Errorf("the host does not reach the container's new address, or the container the host: %s",
					d.host.Sh(t, "ip route; ip neigh"))
			}

			d.end(pool, "01", web) // the engine knows the first address only
			d.end(pool, "02", db)
			d.eventually("the address is released", func() bool {
				return d.logged(fmt.Sprintf("DHCPRELEASE(eth0) %s", now))
			})
			d.ok("NetworkDriver.DeleteNetwork", ids)
			d.ok("IpamDriver.ReleasePool", fmt.Sprintf(`{"PoolID":%q}`, pool))
			d.eventually("no lease is left", func() bool {
				all, err := lease.DHCPLeases(d.yard.Book)
				return err == nil && len(all) == 0
			})
			d.eventually("nothing is left on the host", func() bool { return d.state() == before })
		})
	}
}

// TestLANDHCPRefused shows that DHCP is refused for networks on no LAN, and client IDs by MAC in modes where all
// containers have the same MAC.
func TestLANDHCPRefused(t *testing.T) {
	t.Parallel()
	refused := func(t *testing.T, mode string, cases map[string]string) {
		t.Parallel()
		kerneltest.Needs(t, mode)
		d := newDHCPLAN(t, mode)
		for options, want := range cases {
			options, opts, _ := strings.Cut(options, ";")
			pool := d.pool(opts)
			d.refused("NetworkDriver.CreateNetwork", network("01", pool, options), want)
		}
	}
	t.Run("macvlan", func(t *testing.T) {
		refused(t, "macvlan", map[string]string{
			``: "a network without a parent is on no LAN",
			`"parent":"eth0","macvlan_mode":"passthru"`: "macvlan_mode=passthru allows no second link on the parent",
		})
	})
	t.Run("ipvlan", func(t *testing.T) {
		refused(t, "ipvlan", map[string]string{
			`"parent":"eth0","ipvlan_mode":"l3"`:  "ipvlan_mode=l3 is routed by the host",
			`"parent":"eth0","ipvlan_mode":"l3s"`: "ipvlan_mode=l3s is routed by the host",
			`"parent":"eth0";,"client_id":"mac"`:  "the DHCP server could not tell them apart",
		})
	})
	t.Run("ipvlan with hardware addresses", func(t *testing.T) {
		t.Parallel()
		kerneltest.Needs(t, "ipvlan")
		d := newDHCPLAN(t, "ipvlan")
		p, err := lease.RequestDHCPPool(t.Context(), d.yard.Book, book.DHCPRequest{MACs: true})
		if err != nil {
			t.Fatal(err)
		}
		d.refused("NetworkDriver.CreateNetwork", network("01", p.ID, `"parent":"eth0"`),
			"use --ipam-driver netyard --ipam-opt dhcp=true")
	})
}

// udhcpd starts a DHCP server for these addresses, with leases of so many seconds.
func (d *dhcpLAN) udhcpd(start, end string, seconds int) (stop func()) {
	d.t.Helper()
	dir := d.t.TempDir()
	conf := fmt.Sprintf("start %s\nend %s\ninterface eth0\nlease_file %s/leases\npidfile %s/pid\n"+
		"min_lease 1\noption lease %d\noption subnet 255.255.255.0\noption router 192.0.2.1\n",
		start, end, dir, dir, seconds)
	for file, text := range map[string]string{"/conf": conf, "/leases": ""} {
		if err := os.WriteFile(dir+file, []byte(text), 0o600); err != nil {
			d.t.Fatal(err)
		}
	}
	return d.serve("started", "busybox", "udhcpd", "-f", dir+"/conf")
}

// hasEvent reports whether an event of that type has the address.
func (d *dhcpLAN) hasEvent(kind string, addr netip.Addr) bool {
	events, _ := d.yard.Events(0)
	return slices.ContainsFunc(events, func(e event.Event) bool {
		return e.Type == kind && e.Address == addr.String() && e.NetworkID != ""
	})
}

// TestLANDHCPVLAN shows that DHCP works on a VLAN link that netyard made, which is removed with the network.
func TestLANDHCPVLAN(t *testing.T) {
	t.Parallel()
	kerneltest.Needs(t, "macvlan", "vlan")
	d := newDHCPLAN(t, "macvlan")
	d.server.Sh(t, "ip addr flush dev eth0 && ip link add link eth0 name vlan50 type vlan id 50 && "+
		"ip addr add 192.0.2.1/24 dev vlan50 && ip link set vlan50 up")
	d.iface = "vlan50"
	d.dnsmasq("192.0.2.100,192.0.2.110,255.255.255.0,120")
	pool := d.pool("")
	d.ok("NetworkDriver.CreateNetwork", network("01", pool, `"parent":"eth0.50"`))
	web := d.start(pool, "01", "web")
	if !d.boxes["01"].Pings("192.0.2.1", true) {
		t.Error("the container does not reach the VLAN")
	}
	d.end(pool, "01", web)
	d.eventually("the address is released", func() bool {
		return d.logged("DHCPRELEASE(vlan50) " + strings.TrimSuffix(web, "/24"))
	})
	d.ok("NetworkDriver.DeleteNetwork", ids)
}

// TestDHCPLost shows a lease that expires since no server answers: depending on its network's on_lost, the container
// has no address until a server answers again, or its link is set down and stays so.
func TestDHCPLost(t *testing.T) {
	t.Parallel()
	kerneltest.Needs(t, "macvlan")
	d := newDHCPLAN(t, "macvlan")
	const seconds = 12 // long enough to be extended in time on a busy machine
	stop := d.udhcpd("192.0.2.100", "192.0.2.110", seconds)
	pool, strict := d.pool(""), d.pool(`,"on_lost":"down"`)
	d.ok("NetworkDriver.CreateNetwork", network("01", pool, `"parent":"eth0"`))
	d.ok("NetworkDriver.CreateNetwork", network("02", strict, `"parent":"eth0"`))
	d.start(pool, "01", "web")
	web := d.lease("01").Given
	addr := d.ok("IpamDriver.RequestAddress", fmt.Sprintf(`{"PoolID":%q,"Options":{}}`, strict))["Address"].(string)
	d.ok("NetworkDriver.CreateEndpoint", endpointOf("02", "02", fmt.Sprintf(`,"Interface":{"Address":%q}`, addr)))
	db := kerneltest.New(t)
	_, link := d.join("02", "02", db)
	db.Take(t, d.host, link, "ip addr add "+addr+" dev eth0")
	box := d.boxes["01"]
	has := func(words string) bool { return strings.Contains(box.Sh(t, "ip -4 addr show dev eth0"), words) }

	first := d.lease("01").Lease.Expires
	d.eventually("the lease is extended", func() bool { return d.lease("01").Lease.Expires.After(first) })
	if !has("inet " + web.String()) {
		t.Errorf("the address changed when the lease was extended: %s", box.Sh(t, "ip addr"))
	}
	stop()
	d.eventually("the address is removed when the lease expires", func() bool { return !has("inet ") })
	d.eventually("an event has the lost lease", func() bool { return d.hasEvent(event.LeaseLost, web) })
	d.eventually("the other container's link is down", func() bool {
		return d.lease("02").Phase == lease.DHCPDown && !strings.Contains(db.Sh(t, "ip link show eth0"), ",UP")
	})
	p, err := netip.ParsePrefix(addr)
	if err != nil {
		t.Fatal(err)
	}
	d.eventually("an event has the link that was set down", func() bool {
		return d.hasEvent(event.LeaseDown, p.Addr())
	})
	d.udhcpd("192.0.2.120", "192.0.2.130", 60)
	d.eventually("the container has an address again", func() bool { return has("inet 192.0.2.12") })
	d.eventually("an event has the new address", func() bool {
		return d.hasEvent(event.LeaseMoved, d.lease("01").Lease.Addr.Addr())
	})
	if !box.Pings("192.0.2.1", true) {
		t.Error("with its new address the container does not reach the LAN")
	}
}

// TestLANDHCPConflict shows that an address that another host uses without a lease is declined, with an event.
func TestLANDHCPConflict(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"macvlan", "ipvlan"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			kerneltest.Needs(t, mode)
			d := newDHCPLAN(t, mode)
			d.dnsmasq("192.0.2.100,192.0.2.101,255.255.255.0,120")
			d.server.Sh(t, "ip addr add 192.0.2.101/32 dev eth0")
			pool := d.pool("")
			d.ok("NetworkDriver.CreateNetwork", network("01", pool, `"parent":"eth0"`))
			body := `{"PoolID":%q,"Address":"192.0.2.101","Options":{"com.docker.network.endpoint.name":"db"}}`
			d.refused("IpamDriver.RequestAddress", fmt.Sprintf(body, pool),
				"address conflict: 192.0.2.101 is in use by")
			if !d.hasEvent(event.LeaseDeclined, netip.MustParseAddr("192.0.2.101")) {
				t.Error("no event has the declined address")
			}
			d.eventually("the address is declined", func() bool { return d.logged("DHCPDECLINE(eth0) 192.0.2.101") })
			if got := d.start(pool, "01", "web"); got != "192.0.2.100/24" {
				t.Errorf("the container has %s", got)
			}
		})
	}
}

// TestLANDHCPv6 shows addresses from a DHCPv6 server, which are extended, lost and released, and addresses that
// containers configure from router advertisements.
func TestLANDHCPv6(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"macvlan", "ipvlan"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			kerneltest.Needs(t, mode)
			d := newDHCPLAN(t, mode)
			// Router advertisements come from the link-local address, which has to be ready.
			d.server.Sh(t, "ip addr add 2001:db8:7::1/64 dev eth0 nodad; for i in $(seq 200); do "+
				"ip -6 addr show dev eth0 scope link | grep inet6 | grep -qv tentative && exit; "+
				"sleep 0.1; done; exit 1")
			const four = "192.0.2.100,192.0.2.110,255.255.255.0,120"
			d.dnsmasq(four, "--dhcp-range=2001:db8:7::100,2001:db8:7::1ff,slaac,64,120", "--enable-ra")
			managed, auto := d.pool(`,"ipv6":"dhcp"`), d.pool(`,"ipv6":"slaac"`)
			d.ok("NetworkDriver.CreateNetwork", network("01", managed, `"parent":"eth0"`))
			d.ok("NetworkDriver.CreateNetwork", network("02", auto, `"parent":"eth0"`))
			web := d.start(managed, "01", "web")
			two := d.startOn("02", auto, "02", "db")
			global := func(last string) []string {
				const cut = "ip -6 -o addr show dev eth0 scope global | sed 's/.*inet6 \\([^ ]*\\).*/\\1/'"
				return strings.Fields(d.boxes[last].Sh(t, cut))
			}
			// one reports whether a container has just this one global address, and no address is tentative.
			one := func(last, prefix, suffix string) bool {
				a := global(last)
				return len(a) == 1 && strings.HasPrefix(a[0], prefix) && strings.HasSuffix(a[0], suffix) &&
					!strings.Contains(d.boxes[last].Sh(t, "ip -6 addr show dev eth0"), "tentative")
			}
			six := func() lease.Six { return d.lease("01").Six }
			d.eventually("DHCPv6 gives an address", func() bool {
				return one("01", "2001:db8:7::1", "/128") && slices.Contains(global("01"), six().Lease.Addr.String())
			})
			d.eventually("the other container configures an address", func() bool {
				return one("02", "2001:db8:7:", "/64") && !d.lease("02").Six.Lease.Addr.IsValid()
			})
			other, _, _ := strings.Cut(global("02")[0], "/")
			for what, to := range map[string]string{"the LAN": "2001:db8:7::1", "the other container": other} {
				if !d.boxes["01"].Pings(to, true) {
					t.Errorf("%s is not reached by IPv6: %s", what, d.boxes["01"].Sh(t, "ip -6 addr; ip -6 route"))
				}
			}

			first := six().Lease
			d.ahead.Add(int64(70 * time.Second)) // T1 has passed
			d.rename("shop")
			d.eventually("the lease is extended", func() bool {
				l := six().Lease
				return l.Expires.After(first.Expires) && l.Addr == first.Addr
			})
			d.eventually("by a RENEW", func() bool { return d.logged("DHCPRENEW(eth0)") })

			// The LAN is renumbered.
			d.server.Sh(t, "ip addr del 2001:db8:7::1/64 dev eth0 && ip addr add 2001:db8:8::1/64 dev eth0 nodad")
			d.dnsmasq(four, "--dhcp-range=2001:db8:8::100,2001:db8:8::1ff,64,120", "--enable-ra")
			d.ahead.Add(int64(110 * time.Second)) // T2 has passed
			d.rename("store")
			d.eventually("the container has another address", func() bool {
				a := global("01")
				return len(a) == 1 && strings.HasPrefix(a[0], "2001:db8:8::1") && a[0] == six().Lease.Addr.String()
			})
			now := six().Lease.Addr.Addr()
			d.eventually("events have both addresses", func() bool {
				return d.hasEvent(event.LeaseLost, first.Addr.Addr()) && d.hasEvent(event.LeaseMoved, now)
			})

			d.end(managed, "01", web)
			d.endOn("02", auto, "02", two)
			d.eventually("the address is released", func() bool { return d.logged("DHCPRELEASE(eth0) 00:04:") })
			d.eventually("no lease is left", func() bool {
				all, err := lease.DHCPLeases(d.yard.Book)
				return err == nil && len(all) == 0
			})
		})
	}
}

// TestDHCPChanged shows that a container of Docker's is after each renewal as a new one would be: router, routes and
// MTU; and that doctor names what was changed since.
func TestDHCPChanged(t *testing.T) {
	t.Parallel()
	kerneltest.Needs(t, "macvlan")
	d := newDHCPLAN(t, "macvlan")
	serve := func(options ...string) {
		t.Helper()
		for i, o := range options {
			options[i] = "--dhcp-option=" + o
		}
		d.dnsmasq("192.0.2.100,192.0.2.110,255.255.255.0,1h", options...)
	}
	serve("3,192.0.2.1", "26,1400")
	pool := d.pool("")
	d.ok("NetworkDriver.CreateNetwork", network("01", pool, `"parent":"eth0"`))
	web := d.start(pool, "01", "web")
	box, addr := d.boxes["01"], strings.TrimSuffix(web, "/24")
	box.Sh(t, "ip route add 10.7.0.0/16 via 192.0.2.7") // the container's own
	const own, link = "10.7.0.0/16 via 192.0.2.7 dev eth0", "192.0.2.0/24 dev eth0 proto kernel scope link src "
	has := func(mtu string, routes ...string) {
		t.Helper()
		slices.Sort(routes)
		want := strings.Join(routes, "\n") + "\nmtu " + mtu
		now := func() string {
			return box.Sh(t, "ip route | sed 's/ *$//' | sort; ip -o link show eth0 | grep -o 'mtu [0-9]*'")
		}
		if got := now(); got != want {
			t.Errorf("the container has\n%s\nwant\n%s", got, want)
		}
	}
	renew := func(name string) {
		t.Helper()
		began := d.lease("01").Lease.Start
		d.rename(name)
		d.eventually("the lease is renewed", func() bool { return d.lease("01").Lease.Start.After(began) })
	}
	has("1400", "default via 192.0.2.1 dev eth0", own, link+addr)

	serve("121,0.0.0.0/0,192.0.2.2,198.51.100.0/24,192.0.2.3,203.0.113.0/24,0.0.0.0", "26,1300")
	renew("a")
	has("1300", "default via 192.0.2.2 dev eth0", "198.51.100.0/24 via 192.0.2.3 dev eth0",
		"203.0.113.0/24 dev eth0 scope link", own, link+addr)
	serve("121,10.9.9.9/32,0.0.0.0,0.0.0.0/0,10.9.9.9")
	renew("b")
	has("1500", "default via 10.9.9.9 dev eth0", "10.9.9.9 dev eth0 scope link", own, link+addr)
	serve("3")
	renew("c")
	has("1500", own, link+addr)
	serve("3,192.0.2.1", "26,1400")
	renew("e")
	has("1400", "default via 192.0.2.1 dev eth0", own, link+addr)

	d.ahead.Store(int64(2 * book.Young))
	found := func() (all string) {
		fs, err := lease.AuditLeases(d.yard.Book)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range fs {
			all += f.Text + "\n"
		}
		return all
	}
	if got := found(); got != "" {
		t.Errorf("doctor finds where all is well: %s", got)
	}
	box.Sh(t, "ip link set eth0 mtu 1350; ip route replace default via 192.0.2.4")
	if got := found(); !strings.Contains(got, "link eth0 has MTU 1350 in the sandbox instead of 1400") ||
		!strings.Contains(got, "route 0.0.0.0/0 via 192.0.2.1 is missing in the sandbox") {
		t.Errorf("doctor does not find what was changed: %s", got)
	}
	d.end(pool, "01", web)
}
