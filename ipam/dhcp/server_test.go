package dhcp_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"netyard/ipam/dhcp"
	"netyard/kernel/core"
	kdhcp "netyard/kernel/dhcp"
	"netyard/kernel/kerneltest"
	"netyard/kernel/sandbox"
)

// A lan is a bridge with a DHCP server behind one of its ports.
type lan struct {
	*kerneltest.Host
	server *kerneltest.Host
	log    *kerneltest.Log
}

func newLAN(t *testing.T) *lan {
	t.Helper()
	l := &lan{Host: kerneltest.New(t), log: &kerneltest.Log{}}
	l.server = l.Peer(t, "port1")
	l.Sh(t, "ip link add br0 type bridge && ip link set br0 up && ip link set port1 master br0")
	l.server.Sh(t, "ip addr add 192.0.2.1/24 dev eth0")
	return l
}

// serve runs a server until the test ends or the returned function is called.
func (l *lan) serve(t *testing.T, args ...string) (stop func()) {
	t.Helper()
	t.Cleanup(func() { // after the end of the server
		if t.Failed() {
			t.Logf("%s:\n%s", args[0], l.log)
		}
	})
	return l.server.Start(t, l.log, args...)
}

// dnsmasq starts dnsmasq with more options.
func (l *lan) dnsmasq(t *testing.T, more ...string) (stop func()) {
	t.Helper()
	return l.serve(t, kerneltest.Dnsmasq(t, "eth0", more...)...)
}

// udhcpd starts BusyBox's server, which can give short leases.
func (l *lan) udhcpd(t *testing.T, start, end string, seconds int) (stop func()) {
	t.Helper()
	dir := t.TempDir()
	conf := fmt.Sprintf("start %s\nend %s\ninterface eth0\nlease_file %s/leases\npidfile %s/pid\n"+
		"min_lease 1\noption lease %d\noption subnet 255.255.255.0\noption router 192.0.2.1\n",
		start, end, dir, dir, seconds)
	if err := os.WriteFile(dir+"/conf", []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/leases", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return l.serve(t, "busybox", "udhcpd", "-f", dir+"/conf")
}

func mac(last byte) net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, 0, last} }

func (l *lan) client(t *testing.T, id dhcp.Identity) *dhcp.Client {
	t.Helper()
	w, err := kdhcp.PlugWire(l.Handle, kdhcp.LANPort{Kind: "bridge", Parent: "br0"}, id.MAC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
	})
	return &dhcp.Client{Transport: w, Identity: id, Probe: true}
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

const patience = 15 * time.Second

// stableDump returns the host's state when it no longer changes: its links need some time to come up.
func (l *lan) stableDump(t *testing.T) string {
	t.Helper()
	for last := ""; ; time.Sleep(500 * time.Millisecond) {
		now := l.Dump(t)
		if now == last {
			return now
		}
		last = now
	}
}

// unchanged waits until the host's state is as it was before.
func (l *lan) unchanged(t *testing.T, before string) {
	t.Helper()
	after := l.Dump(t)
	for end := time.Now().Add(patience); after != before && time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		after = l.Dump(t)
	}
	if after != before {
		t.Errorf("left behind:\n%s\n%s", before, after)
	}
}

// logs waits until the server has logged these texts.
func (l *lan) logs(t *testing.T, words ...string) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		missing := ""
		for _, w := range words {
			if !strings.Contains(l.log.String(), w) {
				missing = w
			}
		}
		if missing == "" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the server did not log %q:\n%s", missing, l.log)
		}
	}
}

// TestDnsmasq shows the life of a lease with a real server, and that nothing is left on the host.
func TestDnsmasq(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	before := l.stableDump(t)
	l.dnsmasq(t, "--dhcp-range=192.0.2.100,192.0.2.200,255.255.255.0,120",
		"--dhcp-option=3,192.0.2.7", "--dhcp-option=6,192.0.2.8,192.0.2.9",
		"--dhcp-option=26,1400", "--dhcp-option=42,192.0.2.10",
		"--dhcp-option=121,198.51.100.0/24,192.0.2.11,0.0.0.0/0,192.0.2.12")
	c := l.client(t, dhcp.Identity{MAC: mac(1), ID: []byte("\x00web"), Hostname: "web", VendorClass: "test"})
	lease, err := c.Acquire(within(t, patience), dhcp.Wish{Addr: netip.MustParseAddr("192.0.2.150")})
	if err != nil {
		t.Fatal(err)
	}
	if lease.Addr.String() != "192.0.2.150/24" || lease.Server.String() != "192.0.2.1" ||
		lease.Router.String() != "192.0.2.12" || lease.MTU != 1400 ||
		fmt.Sprint(lease.DNS, lease.NTP) != "[192.0.2.8 192.0.2.9] [192.0.2.10]" ||
		fmt.Sprint(lease.Routes) != "[{198.51.100.0/24 192.0.2.11}]" {
		t.Errorf("lease %+v", lease)
	}
	if life := lease.Expires.Sub(lease.Start); life != 2*time.Minute {
		t.Errorf("the lease lasts %v", life)
	}
	l.logs(t, "client provides name: web", "vendor class: test", "DHCPACK(eth0) 192.0.2.150 02:00:00:00:00:01 web")
	c.Transport.(*kdhcp.Wire).NextHop = lease.NextHop
	if err := c.Release(within(t, patience), lease); err != nil {
		t.Error(err)
	}
	l.logs(t, "DHCPRELEASE(eth0) 192.0.2.150")
	if err := c.Transport.(*kdhcp.Wire).Close(); err != nil {
		t.Error(err)
	}
	l.unchanged(t, before)
}

// TestMacvlan shows that a client gets a lease on a macvlan link.
func TestMacvlan(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	l.Sh(t, "ip link del br0 && sysctl -qw net.ipv6.conf.port1.disable_ipv6=1") // their state changes by itself
	before := l.stableDump(t)
	l.dnsmasq(t, "--dhcp-range=192.0.2.100,192.0.2.200,255.255.255.0,120")
	w, err := kdhcp.PlugWire(l.Handle, kdhcp.LANPort{Kind: "macvlan", Parent: "port1"}, mac(1))
	if err != nil {
		t.Fatal(err)
	}
	c := &dhcp.Client{Transport: w, Identity: dhcp.Identity{MAC: mac(1)}, Probe: true}
	lease, err := c.Acquire(within(t, patience), dhcp.Wish{})
	if err != nil {
		t.Fatal(err)
	}
	w.NextHop = lease.NextHop
	if err := errors.Join(c.Release(within(t, patience), lease), w.Close()); err != nil {
		t.Error(err)
	}
	l.logs(t, "DHCPACK(eth0) 192.0.2.1", "DHCPRELEASE(eth0) 192.0.2.1")
	l.unchanged(t, before)
}

// TestConflict shows that an address that another host uses without a lease is declined, and another one acquired.
func TestConflict(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	l.udhcpd(t, "192.0.2.100", "192.0.2.101", 60)
	other := l.Peer(t, "port2")
	l.Sh(t, "ip link set port2 master br0")
	other.Sh(t, "ip addr add 192.0.2.100/24 dev eth0 && sysctl -qw net.ipv4.icmp_echo_ignore_all=1")
	other.Sh(t, "sysctl -qw net.ipv4.conf.eth0.arp_ignore=8") // does not answer while the server probes
	c := l.client(t, dhcp.Identity{MAC: mac(1)})
	answer := func(dhcp.Lease) error {
		other.Sh(t, "sysctl -qw net.ipv4.conf.eth0.arp_ignore=0")
		return nil
	}
	wish := dhcp.Wish{Addr: netip.MustParseAddr("192.0.2.100"), Offered: answer}
	lease, err := c.Acquire(within(t, patience), wish)
	if err != nil || lease.Addr.String() != "192.0.2.101/24" {
		t.Errorf("lease %v, %v", lease.Addr, err)
	}
}

// TestNoLease shows the errors without a server, without a free address, and with another address than the required
// one.
func TestNoLease(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	c := l.client(t, dhcp.Identity{MAC: mac(1)})
	if _, err := c.Acquire(within(t, time.Second), dhcp.Wish{}); !errors.Is(err, dhcp.ErrNoServer) {
		t.Errorf("without a server: %v", err)
	}
	l.udhcpd(t, "192.0.2.100", "192.0.2.100", 60)
	if _, err := c.Acquire(within(t, patience), dhcp.Wish{}); err != nil {
		t.Fatal(err)
	}
	other := l.client(t, dhcp.Identity{MAC: mac(2)})
	if _, err := other.Acquire(within(t, 4*time.Second), dhcp.Wish{}); !errors.Is(err, dhcp.ErrNoServer) {
		t.Errorf("no free address: %v", err)
	}
	wish := dhcp.Wish{Addr: netip.MustParseAddr("192.0.2.200"), Must: true}
	if _, err := c.Acquire(within(t, patience), wish); !errors.Is(err, dhcp.ErrOtherAddress) {
		t.Errorf("another address: %v", err)
	}
}

// TestSandbox shows that a lease is renewed from inside a container, and refused by a server that does not know it.
func TestSandbox(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	const seconds = 12
	stop := l.udhcpd(t, "192.0.2.100", "192.0.2.101", seconds)
	c := l.client(t, dhcp.Identity{MAC: mac(1)})
	lease, err := c.Acquire(within(t, patience), dhcp.Wish{})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Transport.(*kdhcp.Wire).Close(); err != nil {
		t.Fatal(err)
	}
	box := kerneltest.New(t)
	l.Sh(t, "ip link add port3 type veth peer name inner address "+mac(1).String())
	l.Sh(t, "ip link set port3 master br0 up")
	box.Take(t, l.Host, "inner", "ip addr add "+lease.Addr.String()+" dev eth0")
	s, err := kdhcp.OpenSandboxLink(box.Path(), core.NamespaceID{}, "", mac(1))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	socket, err := s.Socket()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	c = &dhcp.Client{Transport: socket, Identity: c.Identity}
	for range 3 {
		time.Sleep(time.Until(lease.Renew))
		if lease, err = c.Extend(within(t, patience), lease); err != nil {
			t.Fatal(err)
		}
	}
	lease.Rebind = time.Now() // every server is asked
	if lease, err = c.Extend(within(t, patience), lease); err != nil {
		t.Fatal(err)
	}
	stop()
	if _, err := c.Extend(within(t, time.Second), lease); !errors.Is(err, dhcp.ErrNoServer) {
		t.Errorf("without a server: %v", err)
	}
	l.dnsmasq(t, "--dhcp-range=192.0.2.150,192.0.2.160,255.255.255.0,120") // udhcpd would not answer
	if _, err := c.Extend(within(t, patience), lease); !errors.Is(err, dhcp.ErrRefused) {
		t.Errorf("a server that does not know the lease: %v", err)
	}
	wire, err := s.Wire()
	if err != nil {
		t.Fatal(err)
	}
	defer wire.Close()
	c.Transport = wire
	fresh, err := c.Acquire(within(t, patience), dhcp.Wish{Addr: lease.Addr.Addr()})
	if err != nil {
		t.Fatal(err)
	}
	everywhere := sandbox.Route{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: fresh.Router}
	was := sandbox.Plug{Addrs: []netip.Prefix{lease.Addr}, Routes: []sandbox.Route{everywhere}}
	is := sandbox.Plug{Addrs: []netip.Prefix{fresh.Addr}, Routes: []sandbox.Route{everywhere}}
	if err := s.Readdress(was, is); err != nil {
		t.Fatal(err)
	}
	got := box.Sh(t, "ip -4 -o addr show dev eth0; ip route; ping -c 1 -W 5 192.0.2.1 >/dev/null && echo reached")
	for _, want := range []string{fresh.Addr.String(), "default via 192.0.2.1", "reached"} {
		if !strings.Contains(got, want) || strings.Contains(got, lease.Addr.Addr().String()+"/") {
			t.Errorf("the sandbox has no %s, or still the old address: %s", want, got)
		}
	}
}
