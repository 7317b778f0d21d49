package door

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"netyard/cni"
	"netyard/ipam"
	"netyard/kernel/kerneltest"
	"netyard/modes"
	"netyard/modes/all"
	"netyard/store"
	"netyard/yard"
	"netyard/yard/book"
	"netyard/yard/lease"
	"netyard/yard/own"
	yplan "netyard/yard/plan"
	"netyard/yard/reconcile"
)

// A dhcpHost is a host with eth0 on a LAN that has a DHCP server, and with the CNI door that runtimes call.
type dhcpHost struct {
	*Server
	t    *testing.T
	host *kerneltest.Host
	lan  *kerneltest.Host
	stop func()
	log  kerneltest.Log
}

// logged reports whether the DHCP server logged a text.
func (d *dhcpHost) logged(text string) bool { return d.log.Count(text) > 0 }

func newDHCPHost(t *testing.T) *dhcpHost {
	t.Helper()
	d := &dhcpHost{t: t, host: kerneltest.New(t)}
	d.lan = d.host.Peer(t, "eth0")
	d.host.Sh(t, "sysctl -qw net.ipv4.ip_forward=1 "+
		"net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1")
	d.lan.Sh(t, "ip addr add 192.0.2.1/24 dev eth0")
	if err := d.host.LoadFirewall(); err != nil {
		t.Fatal(err)
	}
	st, err := store.Open(t.Context(), store.Config{NoSync: true, Path: filepath.Join(t.TempDir(), "db")})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	y := yard.New(book.Config{
		Log: log, Store: st, Kernel: yplan.Host{Kernel: d.host.Kernel}, Handle: d.host.Handle,
		Modes: all.On(modes.Env{}), BootID: "b",
		IPAM: ipam.New(ipam.Config{}),
	})
	d.Server = &Server{Yard: y, Log: log}
	ctx, cancel := context.WithCancel(context.Background())
	var tasks errgroup.Group
	tasks.Go(func() error { return y.Run(ctx) })
	tasks.Go(func() error { return lease.KeepLeases(ctx, y.Book) })
	t.Cleanup(func() {
		cancel()
		if err := tasks.Wait(); err != nil {
			t.Error(err)
		}
		_ = st.Close()
		if t.Failed() {
			t.Logf("dnsmasq:\n%s", d.log.String())
		}
	})
	return d
}

// dnsmasq starts a DHCP server for these addresses, which has no leases of the server before it.
func (d *dhcpHost) dnsmasq(span string, more ...string) {
	d.t.Helper()
	if d.stop != nil {
		d.stop()
	}
	const ready = "DHCP, IP range"
	before := d.log.Count(ready)
	args := kerneltest.Dnsmasq(d.t, "eth0",
		append([]string{"--dhcp-option=6,192.0.2.8", "--dhcp-range=" + span}, more...)...)
	d.stop = d.lan.Start(d.t, &d.log, args...)
	d.eventually("dnsmasq is ready", func() bool { return d.log.Count(ready) > before })
}

func (d *dhcpHost) eventually(what string, cond func() bool) {
	d.t.Helper()
	for end := time.Now().Add(time.Minute); !cond(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			d.t.Fatalf("never: %s", what)
		}
	}
}

// call makes a runtime's call for a container.
func (d *dhcpHost) call(command, conf, id string, box *kerneltest.Host) (out string, err error) {
	d.t.Helper()
	netns, err := os.Open(box.Path())
	if err != nil {
		d.t.Fatal(err)
	}
	defer netns.Close()
	a, err := d.answer(d.t.Context(), cni.Request{
		Command: command, ContainerID: id, IfName: "eth0", Netns: box.Path(), Config: json.RawMessage(conf),
	}, int(netns.Fd()))
	return string(a.result), err
}

func (d *dhcpHost) do(command, conf, id string, box *kerneltest.Host) string {
	d.t.Helper()
	out, err := d.call(command, conf, id, box)
	if err != nil {
		d.t.Fatalf("%s %s: %v", command, id, err)
	}
	return out
}

// address returns the address in a result.
func (d *dhcpHost) address(result string) string {
	d.t.Helper()
	var r struct {
		IPs []struct{ Address, Gateway string }
		DNS struct{ Nameservers []string }
	}
	if err := json.Unmarshal([]byte(result), &r); err != nil || len(r.IPs) != 1 ||
		r.IPs[0].Gateway != "192.0.2.1" || fmt.Sprint(r.DNS.Nameservers) != "[192.0.2.8]" {
		d.t.Fatalf("result %s: %v", result, err)
	}
	return r.IPs[0].Address
}

func (d *dhcpHost) leases() []lease.DHCPLease {
	d.t.Helper()
	all, err := lease.DHCPLeases(d.Yard.Book)
	if err != nil {
		d.t.Fatal(err)
	}
	return all
}

// TestDHCP shows the life of containers with addresses from a DHCP server, on a bridge that netyard did not make and on
// macvlan.
func TestDHCP(t *testing.T) {
	t.Parallel()
	for name, conf := range map[string]string{
		"bridge":  `{"cniVersion":"1.0.0","name":"lan","type":"netyard","bridge":"br-lan","ipam":{"type":"dhcp"}}`,
		"macvlan": `{"cniVersion":"1.0.0","name":"lan","type":"netyard","master":"eth0","ipam":{"type":"dhcp"}}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDHCPHost(t)
			if name == "bridge" {
				d.host.Sh(t, "ip link add br-lan type bridge && ip link set br-lan up && "+
					"ip link set eth0 master br-lan")
			}
			links := func() string { // without forwarding entries, which a bridge learns and forgets
				return d.host.Sh(t, "ip -br link | cut -d@ -f1 | cut -d' ' -f1 | sort; ip route")
			}
			before := links()
			box, other := kerneltest.New(t), kerneltest.New(t)
			_, err := d.call("ADD", conf, "c1", box)
			if err == nil || !strings.Contains(err.Error(), "no DHCP server answered within 7s") {
				t.Fatalf("without a server: %v", err)
			}
			d.dnsmasq("192.0.2.100,192.0.2.110,255.255.255.0,120")
			one := d.address(d.do("ADD", conf, "c1", box))
			const named = `{"cniVersion":"1.0.0","name":"other","type":"netyard","network":"lan"}` // the same network
			two := d.address(d.do("ADD", named, "c2", other))
			to, _, _ := strings.Cut(two, "/")
			if one == two || !box.Pings(to, true) || !box.Pings("192.0.2.1", true) {
				t.Errorf("c1 with %s does not reach the LAN, or c2 with %s", one, two)
			}
			if got := box.Sh(t, "ip -4 addr show dev eth0; ip route"); !strings.Contains(got, one) ||
				!strings.Contains(got, "default via 192.0.2.1") {
				t.Errorf("in the sandbox: %s", got)
			}
			d.do("CHECK", conf, "c1", box)
			if again := d.address(d.do("ADD", conf, "c1", box)); again != one { // the runtime missed the first answer
				t.Errorf("after a second ADD the container has %s, and had %s", again, one)
			}
			d.do("CHECK", conf, "c1", box)

			d.dnsmasq("192.0.2.150,192.0.2.159,255.255.255.0,120") // does not know the leases, and answers NAK
			n, err := own.NetworkNamed(d.Yard, "lan")
			if err != nil {
				t.Fatal(err)
			}
			es, err := d.Yard.Attachments(n.ID)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range es {
				if e.Attachment == "c1" && e.Phase == modes.Ready { // netyard renews the lease with a new name
					web := modes.Container{Engine: book.CNI, ID: "c1", Name: "web"}
					if err := reconcile.Identify(t.Context(), d.Yard, e, web); err != nil {
						t.Fatal(err)
					}
				}
			}
			d.eventually("the container has another address", func() bool {
				return strings.Contains(box.Sh(t, "ip -4 addr show dev eth0"), "inet 192.0.2.15")
			})
			d.eventually("CHECK expects the new address", func() bool {
				_, err := d.call("CHECK", conf, "c1", box)
				return err == nil
			})

			for range 2 {
				d.do("DEL", conf, "c1", box)
				d.do("DEL", named, "c2", other)
			}
			d.eventually("the address is released", func() bool { return d.logged("DHCPRELEASE(eth0) 192.0.2.15") })
			d.eventually("no lease is left", func() bool { return len(d.leases()) == 0 })
			if _, err := own.RemoveNetwork(t.Context(), d.Yard, "lan"); err != nil {
				t.Fatal(err)
			}
			d.eventually("nothing is left on the host", func() bool { return links() == before })
		})
	}
}

// TestDHCPRouterOutside shows that a container with a /32 reaches its router, and what is behind that.
func TestDHCPRouterOutside(t *testing.T) {
	t.Parallel()
	kerneltest.Needs(t, "macvlan")
	d := newDHCPHost(t)
	d.lan.Sh(t, "ip addr add 198.51.100.7/32 dev lo && ip addr add 203.0.113.7/32 dev lo")
	d.dnsmasq("192.0.2.100,192.0.2.110,255.255.255.0,120", "--dhcp-option=1,255.255.255.255",
		"--dhcp-option=121,0.0.0.0/0,192.0.2.1,198.51.100.0/24,192.0.2.1")
	const conf = `{"cniVersion":"1.0.0","name":"lan","type":"netyard","master":"eth0","ipam":{"type":"dhcp"}}`
	box := kerneltest.New(t)
	if got := d.address(d.do("ADD", conf, "c1", box)); !strings.HasSuffix(got, "/32") {
		t.Errorf("the container has %s", got)
	}
	for _, to := range []string{"192.0.2.1", "198.51.100.7", "203.0.113.7"} {
		if !box.Pings(to, true) {
			t.Errorf("the container does not reach %s: %s", to, box.Sh(t, "ip route"))
		}
	}
	d.do("CHECK", conf, "c1", box)
	d.do("DEL", conf, "c1", box)
}

// TestParentDown shows that a container of CNI starts on a parent that is down, as at boot, and is on the LAN when the
// parent is.
func TestParentDown(t *testing.T) {
	t.Parallel()
	kerneltest.Needs(t, "macvlan")
	d := newDHCPHost(t)
	const conf = `{"cniVersion":"1.0.0","name":"lan","type":"netyard","master":"eth0",` +
		`"ipam":{"type":"host-local","subnet":"192.0.2.0/24","rangeStart":"192.0.2.9","routes":[{"dst":"0.0.0.0/0"}]}}`
	d.host.Sh(t, "ip link set eth0 down")
	box := kerneltest.New(t)
	d.do("ADD", conf, "c1", box)
	_, err := d.call("CHECK", conf, "c1", box)
	if err == nil || !strings.Contains(err.Error(), "parent eth0 is down") {
		t.Errorf("CHECK with the parent down: %v", err)
	}
	d.host.Sh(t, "ip link set eth0 up")
	if !box.Pings("192.0.2.1", true) {
		t.Errorf("the container is not on the LAN: %s", box.Sh(t, "ip addr; ip route"))
	}
	d.do("CHECK", conf, "c1", box)
	d.do("DEL", conf, "c1", box)
}
