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

// A dhcpLAN is an engine whose host has eth0 on a LAN with a DHCP server.
type dhcpLAN struct {
	*engine
	t      *testing.T
	server *kerneltest.Host
	stop   func()
	log    kerneltest.Log
	boxes  map[string]*kerneltest.Host
	links  map[string]string
	iface  string // the server's
}

func (d *dhcpLAN) said(words string) bool { return d.log.Count(words) > 0 }

func newDHCPLAN(t *testing.T, mode string) *dhcpLAN {
	t.Helper()
	d := &dhcpLAN{engine: newEngine(t, mode), t: t, boxes: map[string]*kerneltest.Host{}, links: map[string]string{}, iface: "eth0"}
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

// dnsmasq serves these addresses, with no memory of those it served before.
func (d *dhcpLAN) dnsmasq(span string, more ...string) {
	d.t.Helper()
	if d.stop != nil {
		d.stop()
	}
	d.stop = d.serve("DHCP, IP range", kerneltest.Dnsmasq(d.t, d.iface, append([]string{"--dhcp-range=" + span}, more...)...)...)
}

// serve runs a server on the LAN, which says that it is ready, until the test ends, or the returned function is called.
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
	return d.ok("IpamDriver.RequestPool", `{"AddressSpace":"netyard","Options":{"dhcp":"true"`+opts+`}}`)["PoolID"].(string)
}

// network is what an engine says of one with that pool. The pool's token is what it was told the gateway is.
func network(id, pool, options string) string {
	return fmt.Sprintf(`{"NetworkID":"aaaaaaaaaaaa%s","Options":{"com.docker.network.generic":{%s}},"IPv4Data":[{"AddressSpace":"netyard","Pool":"0.0.0.0/0","Gateway":"%s/0"}]}`,
		id, options, strings.TrimPrefix(pool, "dhcp-"))
}

func endpointOf(network, last, more string) string {
	return fmt.Sprintf(`{"NetworkID":"aaaaaaaaaaaa%s","EndpointID":"eeeeeeeeee%s"%s}`, network, last, more)
}

// start starts a container as an engine of 29 does.
func (d *dhcpLAN) start(pool, last, name string) (addr string) {
	d.t.Helper()
	return d.startOn("01", pool, last, name)
}

func (d *dhcpLAN) startOn(network, pool, last, name string) (addr string) {
	d.t.Helper()
	addr = d.ok("IpamDriver.RequestAddress", fmt.Sprintf(`{"PoolID":%q,"Options":{"com.docker.network.endpoint.name":%q}}`, pool, name))["Address"].(string)
	d.ok("NetworkDriver.CreateEndpoint", endpointOf(network, last, fmt.Sprintf(`,"Interface":{"Address":%q}`, addr)))
	box := kerneltest.New(d.t)
	box.Sh(d.t, "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1") // as engines have it where nobody asked for IPv6
	d.boxes[last] = box
	j := d.ok("NetworkDriver.Join", endpointOf(network, last, fmt.Sprintf(`,"SandboxKey":%q`, box.Path())))
	if j["Gateway"] != "192.0.2.1" {
		d.t.Errorf("the gateway is not the DHCP server's to say: %v", j)
	}
	link := j["InterfaceName"].(map[string]any)["SrcName"].(string)
	d.links[last] = link
	box.Take(d.t, d.host, link, "ip addr add "+addr+" dev eth0", "ip route add default via 192.0.2.1")
	return addr
}

// end ends it as an engine does: the link comes back to the host.
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

// lease is that of an endpoint.
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

// rename has the first container's lease extended from inside the sandbox, by a name that the server is to be told.
func (d *dhcpLAN) rename(name string) {
	d.t.Helper()
	if err := reconcile.Identify(d.yard, "aaaaaaaaaaaa01", "eeeeeeeeee01", modes.Container{Engine: book.Docker, ID: "c01", Name: name}); err != nil {
		d.t.Fatal(err)
	}
}

// TestLANDHCP is the life of two containers on one parent whose addresses are a DHCP server's.
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
			d.eventually("the server has it back", func() bool { return d.said("DHCPRELEASE(eth0) " + strings.TrimSuffix(db, "/24")) })
			if again := d.start(pool, "02", "db"); again != db {
				t.Errorf("made anew, the container has %s and had %s", again, db)
			}

			began := d.lease("01").Lease.Start
			d.rename("shop")
			d.eventually("the lease is extended from inside", func() bool { l := d.lease("01"); return l.Hostname == "shop" && l.Lease.Start.After(began) })
			d.eventually("the server is told the name", func() bool { return d.said("client provides name: shop") })

			d.dnsmasq("192.0.2.150,192.0.2.159,255.255.255.0,120") // one that knows nothing of them, and refuses
			d.rename("store")
			d.eventually("the container has another address", func() bool {
				return strings.Contains(d.boxes["01"].Sh(t, "ip -4 addr show dev eth0"), "inet 192.0.2.15")
			})
			if !d.said("DHCPNAK(eth0)") || !d.boxes["01"].Pings("192.0.2.1", true) || strings.Contains(d.boxes["01"].Sh(t, "ip -4 addr show dev eth0"), web) {
				t.Errorf("not as it should be after a NAK: %s", d.boxes["01"].Sh(t, "ip addr; ip route"))
			}
			d.eventually("the record has it", func() bool {
				l := d.lease("01") // the kernel has the address first
				return netip.MustParsePrefix("192.0.2.144/28").Contains(l.Lease.Addr.Addr()) && l.Tried.IsZero()
			})
			now := d.lease("01").Lease.Addr.Addr()
			d.eventually("it is said", func() bool { return d.told(event.LeaseMoved, now) })
			d.eventually("and that the lease was lost", func() bool {
				p, err := netip.ParsePrefix(web)
				return err == nil && d.told(event.LeaseLost, p.Addr())
			})
			if e, err := d.yard.Endpoint("aaaaaaaaaaaa01", "eeeeeeeeee01"); err != nil || e.Addrs[0].Addr() != now {
				t.Errorf("the endpoint has %v, the lease is of %s: %v", e.Addrs, now, err)
			}

			if !d.host.Pings(now.String(), true) || !d.boxes["01"].Pings("192.0.2.2", true) {
				t.Errorf("the host does not reach the container's new address, or the container the host: %s", d.host.Sh(t, "ip route; ip neigh"))
			}

			d.end(pool, "01", web) // the engine knows the first address only
			d.end(pool, "02", db)
			d.eventually("the server has it back", func() bool { return d.said(fmt.Sprintf("DHCPRELEASE(eth0) %s", now)) })
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

// TestLANDHCPRefused: networks on no LAN, and what does not go with a hardware address that all containers share.
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
			`"parent":"eth0";,"client_id":"mac"`:  "the DHCP server would take them for one",
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
		d.refused("NetworkDriver.CreateNetwork", network("01", p.ID, `"parent":"eth0"`), "use --ipam-driver netyard --ipam-opt dhcp=true")
	})
}

// udhcpd serves these addresses for so many seconds.
func (d *dhcpLAN) udhcpd(start, end string, seconds int) (stop func()) {
	d.t.Helper()
	dir := d.t.TempDir()
	conf := fmt.Sprintf("start %s\nend %s\ninterface eth0\nlease_file %s/leases\npidfile %s/pid\nmin_lease 1\noption lease %d\noption subnet 255.255.255.0\noption router 192.0.2.1\n",
		start, end, dir, dir, seconds)
	for file, text := range map[string]string{"/conf": conf, "/leases": ""} {
		if err := os.WriteFile(dir+file, []byte(text), 0o600); err != nil {
			d.t.Fatal(err)
		}
	}
	return d.serve("started", "busybox", "udhcpd", "-f", dir+"/conf")
}

// told says whether there is an event of that type about an address.
func (d *dhcpLAN) told(kind string, addr netip.Addr) bool {
	some, _ := d.yard.Events(0)
	return slices.ContainsFunc(some, func(e event.Event) bool { return e.Type == kind && e.Address == addr.String() && e.NetworkID != "" })
}

// TestLANDHCPVLAN: on a VLAN's link, which is netyard's own, and goes with the network.
func TestLANDHCPVLAN(t *testing.T) {
	t.Parallel()
	kerneltest.Needs(t, "macvlan", "vlan")
	d := newDHCPLAN(t, "macvlan")
	d.server.Sh(t, "ip addr flush dev eth0 && ip link add link eth0 name vlan50 type vlan id 50 && ip addr add 192.0.2.1/24 dev vlan50 && ip link set vlan50 up")
	d.iface = "vlan50"
	d.dnsmasq("192.0.2.100,192.0.2.110,255.255.255.0,120")
	pool := d.pool("")
	d.ok("NetworkDriver.CreateNetwork", network("01", pool, `"parent":"eth0.50"`))
	web := d.start(pool, "01", "web")
	if !d.boxes["01"].Pings("192.0.2.1", true) {
		t.Error("the container does not reach the VLAN")
	}
	d.end(pool, "01", web)
	d.eventually("the server has it back", func() bool { return d.said("DHCPRELEASE(vlan50) " + strings.TrimSuffix(web, "/24")) })
	d.ok("NetworkDriver.DeleteNetwork", ids)
}

// TestDHCPLost: when no server answers until the time has run out, a container has no address until one does, or its
// link is taken down for good, as its network has it.
func TestDHCPLost(t *testing.T) {
	t.Parallel()
	kerneltest.Needs(t, "macvlan")
	d := newDHCPLAN(t, "macvlan")
	const seconds = 12 // not lost on a busy machine before it is extended
	stop := d.udhcpd("192.0.2.100", "192.0.2.110", seconds)
	pool, strict := d.pool(""), d.pool(`,"on_lost":"down"`)
	d.ok("NetworkDriver.CreateNetwork", network("01", pool, `"parent":"eth0"`))
	d.ok("NetworkDriver.CreateNetwork", network("02", strict, `"parent":"eth0"`))
	d.start(pool, "01", "web")
	web := d.lease("01").Given
	addr := d.ok("IpamDriver.RequestAddress", fmt.Sprintf(`{"PoolID":%q,"Options":{}}`, strict))["Address"].(string)
	ep := `{"NetworkID":"aaaaaaaaaaaa02","EndpointID":"eeeeeeeeee02"%s}`
	d.ok("NetworkDriver.CreateEndpoint", fmt.Sprintf(ep, fmt.Sprintf(`,"Interface":{"Address":%q}`, addr)))
	db := kerneltest.New(t)
	link := d.ok("NetworkDriver.Join", fmt.Sprintf(ep, fmt.Sprintf(`,"SandboxKey":%q`, db.Path())))["InterfaceName"].(map[string]any)["SrcName"].(string)
	db.Take(t, d.host, link, "ip addr add "+addr+" dev eth0")
	box := d.boxes["01"]
	has := func(words string) bool { return strings.Contains(box.Sh(t, "ip -4 addr show dev eth0"), words) }

	first := d.lease("01").Lease.Expires
	d.eventually("the lease is extended", func() bool { return d.lease("01").Lease.Expires.After(first) })
	if !has("inet " + web.String()) {
		t.Errorf("the address changed when the lease was extended: %s", box.Sh(t, "ip addr"))
	}
	stop()
	d.eventually("the address is gone when the time has run out", func() bool { return !has("inet ") })
	d.eventually("it is said", func() bool { return d.told(event.LeaseLost, web) })
	d.eventually("the other's link is down", func() bool {
		return d.lease("02").Phase == lease.DHCPDown && !strings.Contains(db.Sh(t, "ip link show eth0"), ",UP")
	})
	p, err := netip.ParsePrefix(addr)
	if err != nil {
		t.Fatal(err)
	}
	d.eventually("it is said that the link was taken down", func() bool { return d.told(event.LeaseDown, p.Addr()) })
	d.udhcpd("192.0.2.120", "192.0.2.130", 60)
	d.eventually("it has an address again", func() bool { return has("inet 192.0.2.12") })
	d.eventually("that is said too", func() bool { return d.told(event.LeaseMoved, d.lease("01").Lease.Addr.Addr()) })
	if !box.Pings("192.0.2.1", true) {
		t.Error("with its new address the container does not reach the LAN")
	}
}

// TestLANDHCPConflict: an address that somebody has without the server's leave is declined, and that is said.
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
			d.refused("IpamDriver.RequestAddress", fmt.Sprintf(`{"PoolID":%q,"Address":"192.0.2.101","Options":{"com.docker.network.endpoint.name":"db"}}`, pool),
				"somebody else uses the address 192.0.2.101")
			if !d.told(event.LeaseDeclined, netip.MustParseAddr("192.0.2.101")) {
				t.Error("nobody is told")
			}
			d.eventually("the server is told", func() bool { return d.said("DHCPDECLINE(eth0) 192.0.2.101") })
			if got := d.start(pool, "01", "web"); got != "192.0.2.100/24" {
				t.Errorf("the container has %s", got)
			}
		})
	}
}

// TestLANDHCPSix: addresses of a DHCPv6 server's, extended, lost and given back, and those that containers make
// themselves.
func TestLANDHCPSix(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"macvlan", "ipvlan"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			kerneltest.Needs(t, mode)
			d := newDHCPLAN(t, mode)
			d.server.Sh(t, "ip addr add 2001:db8:7::1/64 dev eth0 nodad; "+ // and the address that a router advertises itself by
				"for i in $(seq 200); do ip -6 addr show dev eth0 scope link | grep inet6 | grep -qv tentative && exit; sleep 0.1; done; exit 1")
			const four = "192.0.2.100,192.0.2.110,255.255.255.0,120"
			d.dnsmasq(four, "--dhcp-range=2001:db8:7::100,2001:db8:7::1ff,slaac,64,120", "--enable-ra")
			managed, auto := d.pool(`,"ipv6":"dhcp"`), d.pool(`,"ipv6":"slaac"`)
			d.ok("NetworkDriver.CreateNetwork", network("01", managed, `"parent":"eth0"`))
			d.ok("NetworkDriver.CreateNetwork", network("02", auto, `"parent":"eth0"`))
			web := d.start(managed, "01", "web")
			two := d.startOn("02", auto, "02", "db")
			global := func(last string) []string {
				return strings.Fields(d.boxes[last].Sh(t, "ip -6 -o addr show dev eth0 scope global | sed 's/.*inet6 \\([^ ]*\\).*/\\1/'"))
			}
			six := func() lease.Six { return d.lease("01").Six }
			d.eventually("DHCPv6 gives an address", func() bool {
				a := global("01")
				return len(a) == 1 && a[0] == six().Lease.Addr.String() && strings.HasPrefix(a[0], "2001:db8:7::1") && strings.HasSuffix(a[0], "/128") &&
					!strings.Contains(d.boxes["01"].Sh(t, "ip -6 addr show dev eth0"), "tentative")
			})
			d.eventually("the other makes itself one", func() bool {
				a := global("02")
				return len(a) == 1 && strings.HasPrefix(a[0], "2001:db8:7:") && strings.HasSuffix(a[0], "/64") && !d.lease("02").Six.Lease.Addr.IsValid() &&
					!strings.Contains(d.boxes["02"].Sh(t, "ip -6 addr show dev eth0"), "tentative")
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
			d.eventually("it is extended", func() bool { l := six().Lease; return l.Expires.After(first.Expires) && l.Addr == first.Addr })
			d.eventually("by a RENEW", func() bool { return d.said("DHCPRENEW(eth0)") })

			d.server.Sh(t, "ip addr del 2001:db8:7::1/64 dev eth0 && ip addr add 2001:db8:8::1/64 dev eth0 nodad")
			d.dnsmasq(four, "--dhcp-range=2001:db8:8::100,2001:db8:8::1ff,64,120", "--enable-ra") // for the LAN is numbered anew
			d.ahead.Add(int64(110 * time.Second))                                                 // T2 has passed
			d.rename("store")
			d.eventually("it has another address", func() bool {
				a := global("01")
				return len(a) == 1 && strings.HasPrefix(a[0], "2001:db8:8::1") && a[0] == six().Lease.Addr.String()
			})
			now := six().Lease.Addr.Addr()
			d.eventually("that is said", func() bool { return d.told(event.LeaseLost, first.Addr.Addr()) && d.told(event.LeaseMoved, now) })

			d.end(managed, "01", web)
			d.endOn("02", auto, "02", two)
			d.eventually("the server has it back", func() bool { return d.said("DHCPRELEASE(eth0) 00:04:") })
			d.eventually("no lease is left", func() bool {
				all, err := lease.DHCPLeases(d.yard.Book)
				return err == nil && len(all) == 0
			})
		})
	}
}
