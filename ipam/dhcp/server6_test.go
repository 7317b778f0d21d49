package dhcp_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"netyard/ipam/dhcp"
	"netyard/kernel/core"
	kdhcp "netyard/kernel/dhcp"
	"netyard/kernel/kerneltest"
)

// prepare6 gives the server an address, and waits until its link-local address, which router advertisements come from,
// is ready.
func (l *lan) prepare6(t *testing.T) {
	t.Helper()
	l.server.Sh(t, "ip addr add 2001:db8:7::1/64 dev eth0 nodad; for i in $(seq 200); do "+
		"ip -6 addr show dev eth0 scope link | grep inet6 | grep -qv tentative && exit; sleep 0.1; done; exit 1")
}

// inside returns a container on the LAN, and its link, on which netyard has enabled IPv6.
func (l *lan) inside(t *testing.T, last byte, auto bool) (*kerneltest.Host, *kdhcp.SandboxLink) {
	t.Helper()
	box := kerneltest.New(t)
	port := "six" + string('a'+rune(last))
	l.Sh(t, "ip link add "+port+" type veth peer name inner address "+mac(last).String())
	l.Sh(t, "ip link set "+port+" master br0 up")
	box.Sh(t, "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1") // as engines leave it
	box.Take(t, l.Host, "inner")
	s, err := kdhcp.OpenSandboxLink(box.Path(), core.NamespaceID{}, "", mac(last))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	if !s.IsUp() {
		t.Error("the link is up, but IsUp returns false")
	}
	if err := s.EnableIPv6(auto, true); err != nil {
		t.Fatal(err)
	}
	return box, s
}

func (l *lan) client6(t *testing.T, s *kdhcp.SandboxLink, last byte) *dhcp.Client6 {
	t.Helper()
	socket, err := s.Socket6(within(t, patience))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = socket.Close() })
	return &dhcp.Client6{
		Transport6: socket, Hostname: "web",
		DUID: append([]byte{0, 3, 0, 1}, mac(last)...), IAID: [4]byte{1, 2, 3, last},
	}
}

// TestDHCPv6 shows the life of a DHCPv6 lease with a real server.
func TestDHCPv6(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	l.prepare6(t)
	stop := l.dnsmasq(t, "--dhcp-range=2001:db8:7::100,2001:db8:7::101,64,120", "--enable-ra",
		"--dhcp-option=option6:dns-server,[2001:db8:7::8]")
	box, s := l.inside(t, 1, false)
	c := l.client6(t, s, 1)
	lease, err := c.Acquire(within(t, patience), netip.MustParseAddr("2001:db8:7::101"))
	if err != nil {
		t.Fatal(err)
	}
	if lease.Addr.String() != "2001:db8:7::101/128" || !lease.Server.Is6() ||
		len(lease.DNS) != 1 || lease.DNS[0].String() != "2001:db8:7::8" ||
		lease.Expires.Sub(lease.Start) != 2*time.Minute ||
		!lease.Renew.Before(lease.Rebind) || !lease.Rebind.Before(lease.Expires) {
		t.Errorf("lease %+v", lease)
	}
	if err := s.SetAddr6(within(t, patience), lease.Addr, time.Minute, 2*time.Minute); err != nil {
		t.Fatal(err)
	}
	if !box.Pings("2001:db8:7::1", true) {
		t.Errorf("the container does not reach the LAN: %s", box.Sh(t, "ip -6 addr; ip -6 route"))
	}
	if got := box.Sh(t, "ip -6 addr show dev eth0 scope global"); strings.Count(got, "inet6") != 1 {
		t.Errorf("the link has another address than that of the lease: %s", got)
	}
	for range 2 { // RENEW, and REBIND
		lease, err = c.Extend(within(t, patience), lease)
		if err != nil || lease.Addr.Addr().String() != "2001:db8:7::101" {
			t.Fatalf("extended: %v, %v", lease.Addr, err)
		}
		lease.Rebind, lease.Renew = time.Now(), time.Now()
	}
	l.logs(t, "DHCPSOLICIT(eth0)", "DHCPREQUEST(eth0)", "DHCPRENEW(eth0)", "DHCPREBIND(eth0)",
		"client provides name: web")

	two, other := l.inside(t, 2, false) // another host uses the address that the server will give
	l.server.Sh(t, "ip addr add 2001:db8:7::100/128 dev eth0 nodad")
	d := l.client6(t, other, 2)
	got, err := d.Acquire(within(t, patience), netip.Addr{})
	if err != nil {
		t.Fatal(err)
	}
	err = other.SetAddr6(within(t, patience), got.Addr, time.Minute, time.Minute)
	if !errors.Is(err, kdhcp.ErrDuplicate) {
		t.Errorf("an address that another host uses: %v; %s", err, two.Sh(t, "ip -6 addr"))
	}
	if err := errors.Join(other.RemoveAddr6(got.Addr), d.Decline(within(t, patience), got)); err != nil {
		t.Error(err)
	}
	l.logs(t, "DHCPDECLINE(eth0)")
	if _, err := d.Extend(within(t, patience), got); !errors.Is(err, dhcp.ErrRefused) {
		t.Errorf("extend a declined lease: %v", err)
	}
	if err := c.Release(within(t, patience), lease); err != nil {
		t.Error(err)
	}
	l.logs(t, "DHCPRELEASE(eth0)")
	if err := s.RemoveAddr6(lease.Addr); err != nil {
		t.Error(err)
	}
	stop()
	if _, err := c.Acquire(within(t, 2*time.Second), netip.Addr{}); !errors.Is(err, dhcp.ErrNoServer) {
		t.Errorf("without a server: %v", err)
	}
}

// TestSLAAC shows that a link configures an address from a prefix that a router advertises.
func TestSLAAC(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	l.prepare6(t)
	l.dnsmasq(t, "--dhcp-range=2001:db8:7::,ra-only", "--enable-ra")
	box, _ := l.inside(t, 1, true)
	made := func() bool {
		addrs := box.Sh(t, "ip -6 addr show dev eth0")
		return strings.Contains(addrs, "2001:db8:7::ff:fe00:1/64") && !strings.Contains(addrs, "tentative")
	}
	for end := time.Now().Add(patience); !made(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no address was configured: %s", box.Sh(t, "ip -6 addr"))
		}
	}
	if !box.Pings("2001:db8:7::1", true) {
		t.Errorf("the container does not reach the LAN: %s", box.Sh(t, "ip -6 addr; ip -6 route"))
	}
}
