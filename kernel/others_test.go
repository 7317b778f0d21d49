package kernel_test

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"netyard/kernel/beside"
	"netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/kernel/kerneltest"
	"netyard/kernel/others"
	"netyard/kernel/ports"
)

// serve accepts TCP connections at an address of a namespace, and says who answers, until the test ends.
func serve(t *testing.T, h *kerneltest.Host, at, who string) {
	t.Helper()
	var l net.Listener
	if err := h.Do(func() (err error) { l, err = net.Listen("tcp", at); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = fmt.Fprint(c, who)
			_ = c.Close()
		}
	}()
}

// whoAnswers returns who answers at an address; empty: nobody.
func whoAnswers(h *kerneltest.Host, at string) (who string) {
	_ = h.Do(func() error {
		c, err := net.DialTimeout("tcp", at, 3*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(3 * time.Second))
		b := make([]byte, 16)
		n, err := c.Read(b)
		who = string(b[:n])
		return err
	})
	return who
}

// TestLoopbackOfOneFamily shows that a port which netyard publishes for one family leaves the other family's loopback
// to whoever publishes the same port there: Docker, whose rules translate what is for any address of the host that is
// no loopback address, and whose proxy answers on loopback.
func TestLoopbackOfOneFamily(t *testing.T) {
	t.Parallel()
	const first = 8080
	for _, c := range []struct {
		name           string
		host           netip.Addr // netyard's
		to             string
		count          uint16
		loop, port     string // Docker's
		iptables, dnat string
	}{
		{"Docker's IPv4", netip.IPv6Unspecified(), "fd00:1::2", 1, "127.0.0.1", "8080", "iptables-nft", "172.17.0.2:80"},
		{"Docker's IPv4, on ::1", netip.IPv6Loopback(), "fd00:1::2", 1, "127.0.0.1", "8080", "iptables-nft", "172.17.0.2:80"},
		{"Docker's IPv4, in a range", netip.IPv6Unspecified(), "fd00:1::2", 9, "127.0.0.1", "8082", "iptables-nft", "172.17.0.2:80"},
		{"Docker's IPv6", netip.IPv4Unspecified(), "10.1.0.2", 1, "[::1]", "8080", "ip6tables-nft", "[fd17::2]:80"},
		{"Docker's IPv6, in a range", netip.IPv4Unspecified(), "10.1.0.2", 9, "[::1]", "8082", "ip6tables-nft", "[fd17::2]:80"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			h := kerneltest.New(t)
			h.Sh(t, "ip link add docker0 type bridge && ip link set docker0 up && "+
				"ip addr add 172.17.0.1/16 dev docker0 && ip addr add fd17::1/64 dev docker0 nodad")
			exclude := "! -d 127.0.0.0/8"
			if c.iptables == "ip6tables-nft" {
				exclude = "! -d ::1/128"
			}
			h.Sh(t, fmt.Sprintf("%[1]s -t nat -N DOCKER && %[1]s -t nat -A OUTPUT %[2]s -m addrtype --dst-type LOCAL "+
				"-j DOCKER && %[1]s -t nat -A DOCKER ! -i docker0 -p tcp --dport %[3]s -j DNAT --to-destination %[4]s",
				c.iptables, exclude, c.port, c.dnat))
			if err := h.LoadFirewall(); err != nil {
				t.Fatal(err)
			}
			var wanted []core.Object
			for _, e := range (ports.Publication{
				Proto: "tcp", Host: c.host, Port: first, Count: c.count, To: netip.MustParseAddr(c.to), ToPort: first,
			}).Elements() {
				wanted = append(wanted, e)
			}
			if err := h.Ensure(t.Context(), wanted...); err != nil {
				t.Fatal(err)
			}
			serve(t, h, c.loop+":"+c.port, "Docker's proxy")
			if got := whoAnswers(h, c.loop+":"+c.port); got != "Docker's proxy" {
				t.Errorf("%s:%s: %q answers", c.loop, c.port, got)
			}
		})
	}
}

// A router is a host on which netyard turned forwarding on, with two LANs.
type router struct {
	*kerneltest.Host
	left, right *kerneltest.Host
}

func newRouter(t *testing.T) *router {
	t.Helper()
	h := kerneltest.New(t)
	r := &router{h, h.Peer(t, "left"), h.Peer(t, "right")}
	h.Sh(t, "sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0")
	for i, lan := range []*kerneltest.Host{r.left, r.right} {
		name := []string{"left", "right"}[i]
		h.Sh(t, fmt.Sprintf("ip addr add 10.1.%d.1/24 dev %s && ip addr add fd01:%d::1/64 dev %[2]s nodad", i, name, i))
		lan.Sh(t, fmt.Sprintf("ip addr add 10.1.%d.2/24 dev eth0 && ip addr add fd01:%[1]d::2/64 dev eth0 nodad && "+
			"ip route add default via 10.1.%[1]d.1 && ip route add default via fd01:%[1]d::1", i))
	}
	if err := h.LoadFirewall(); err != nil {
		t.Fatal(err)
	}
	h.Watched(t)
	for _, f := range []beside.Forwarding{{}, {IPv6: true}} {
		if err := h.Ensure(t.Context(), f); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// guest makes a namespace with addresses 10.5.N.2 and fd05:N::2 behind a link of the host, whose other address of each
// subnet is the router.
func (r *router) guest(t *testing.T, link string, n int) *kerneltest.Host {
	t.Helper()
	g := r.Peer(t, link)
	g.Sh(t, fmt.Sprintf("ip addr add 10.5.%[1]d.2/24 dev eth0 && ip addr add fd05:%[1]d::2/64 dev eth0 nodad && "+
		"ip route add default via 10.5.%[1]d.1 && ip route add default via fd05:%[1]d::1", n))
	return g
}

// addresses gives a bridge the routers' addresses of a guest.
func (r *router) addresses(t *testing.T, bridge string, n int) {
	t.Helper()
	r.Sh(t, fmt.Sprintf("ip addr add 10.5.%d.1/24 dev %s && ip addr add fd05:%[1]d::1/64 dev %[2]s nodad && "+
		"ip link set %[2]s up", n, bridge))
}

// TestForwardingForOthers shows that networks of other programs are reached, and reach the LAN, where netyard turned
// forwarding on, whatever their names, and that the host does not become a router between its LANs.
func TestForwardingForOthers(t *testing.T) {
	t.Parallel()
	r := newRouter(t)
	guests := map[string]*kerneltest.Host{}
	for i, kind := range []string{"web0", "mynet0", "vms", "hostlan"} {
		guests[kind] = r.guest(t, "port"+kind, i)
		r.Sh(t, fmt.Sprintf("ip link add %[1]s type bridge && ip link set port%[1]s master %[1]s", kind))
		r.addresses(t, kind, i)
	}
	r.Sh(t, "ip tuntap add vnet0 mode tap && ip link set vnet0 master vms up")
	r.Sh(t, "ip link add link left name card type macvlan && ip link set card master hostlan up")
	ptp := r.guest(t, "vethptp", 7)
	guests["a point-to-point link"] = ptp
	ptp.Sh(t, "ip addr flush dev eth0 scope global && ip addr add 10.5.7.2/32 dev eth0 && "+
		"ip addr add fd05:7::2/128 dev eth0 nodad && ip route replace 10.5.7.1 dev eth0 && "+
		"ip route replace default via 10.5.7.1 && ip route replace fd05:7::1 dev eth0 && "+
		"ip route replace default via fd05:7::1 dev eth0")
	r.Sh(t, "ip addr add 10.5.7.1/32 dev vethptp && ip addr add fd05:7::1/128 dev vethptp nodad && "+
		"ip route add 10.5.7.2/32 dev vethptp && ip route add fd05:7::2/128 dev vethptp")
	eventually(t, "the links are known", func() bool {
		have := r.Sh(t, "nft list set inet netyard others")
		return !slices.ContainsFunc([]string{"web0", "mynet0", "vms", "vethptp"}, func(name string) bool {
			return !strings.Contains(have, `"`+name+`"`)
		})
	})
	for kind, g := range guests {
		passes := kind != "hostlan"
		for _, way := range []struct {
			from *kerneltest.Host
			to   string
		}{
			{g, "10.1.1.2"},
			{g, "fd01:1::2"},
			{r.right, "10.5." + guestNumber(kind) + ".2"},
			{r.right, "fd05:" + guestNumber(kind) + "::2"},
		} {
			if way.from.Pings(way.to, passes) != passes {
				t.Errorf("%s: a ping of %s: want %v", kind, way.to, passes)
			}
		}
	}
	for _, to := range []string{"10.1.1.2", "fd01:1::2"} {
		if r.left.Pings(to, false) {
			t.Errorf("the host is a router between its LANs: %s", to)
		}
	}
	refused, err := others.Refusals(r.Handle)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []others.Refusal{
		{In: "left", Out: "right"}, {In: "left", Out: "right", IPv6: true}, {In: "hostlan", Out: "right"},
	} {
		if !slices.Contains(refused, want) {
			t.Errorf("%q is missing among %q", want, refused)
		}
	}
	if slices.ContainsFunc(refused, func(f others.Refusal) bool { return f.In == "web0" || f.Out == "web0" }) {
		t.Errorf("what passed is refused: %q", refused)
	}
}

func guestNumber(kind string) string {
	return map[string]string{"web0": "0", "mynet0": "1", "vms": "2", "hostlan": "3", "a point-to-point link": "7"}[kind]
}

// TestForwardingWantedByOthers shows that the host forwards for everybody once another program turns forwarding on,
// although netyard had done so before; each family by itself.
func TestForwardingWantedByOthers(t *testing.T) {
	t.Parallel()
	for _, setting := range []string{"net.ipv4.ip_forward", "net.ipv4.conf.all.forwarding"} {
		t.Run(setting, func(t *testing.T) {
			t.Parallel()
			r := newRouter(t)
			if r.left.Pings("10.1.1.2", false) || r.left.Pings("fd01:1::2", false) {
				t.Fatal("the host is a router before anybody wants it")
			}
			r.Sh(t, "sysctl -n "+setting) // reading is not wanting
			r.Sh(t, "sysctl -qw net.ipv4.conf.left.forwarding=1")
			if r.left.Pings("10.1.1.2", false) {
				t.Fatal("the host is a router by another setting")
			}
			r.Sh(t, "sysctl -qw "+setting+"=1")
			if !r.left.Pings("10.1.1.2", true) {
				t.Error("IPv4 is not forwarded")
			}
			if r.left.Pings("fd01:1::2", false) {
				t.Error("IPv6 is forwarded, and nobody wants it")
			}
			r.Sh(t, "sysctl -qw net.ipv6.conf.all.forwarding=1")
			if !r.left.Pings("fd01:1::2", true) {
				t.Error("IPv6 is not forwarded")
			}
			if refused, err := others.Refusals(r.Handle); err != nil || len(refused) > 0 {
				t.Errorf("refused: %q, %v", refused, err)
			}
		})
	}
	t.Run("turned off", func(t *testing.T) {
		t.Parallel()
		r := newRouter(t)
		r.Sh(t, "sysctl -qw net.ipv4.ip_forward=0")
		if err := r.Ensure(t.Context(), beside.Forwarding{}); err != nil { // as the repair does
			t.Fatal(err)
		}
		if r.left.Pings("10.1.1.2", false) {
			t.Error("the host is a router, and nobody wanted it")
		}
	})
}

// TestEnginesWord shows that a bridge which an engine names is another manager's, whatever its name, also after a
// restart of the daemon and before the engine answers, and that the host's way to its LAN is none.
func TestEnginesWord(t *testing.T) {
	t.Parallel()
	h := kerneltest.New(t)
	h.Peer(t, "port")
	h.Sh(t, "for b in web0 lan0 other; do ip link add $b type bridge && ip link set $b up; done; "+
		"ip link set port master lan0 && ip addr add 192.0.2.2/24 dev lan0 && ip route add default via 192.0.2.1")
	others.NameBridges(h.Handle, "docker", []string{"web0", "lan0", "gone"})
	foreign := func() string {
		return strings.Join(strings.Fields(h.Sh(t, "nft list set inet netyard "+string(bridge.Foreign))), " ")
	}
	for _, when := range []string{"at first", "after a restart"} {
		if err := h.LoadFirewall(); err != nil {
			t.Fatal(err)
		}
		if got := foreign(); !strings.Contains(got, `elements = { "web0" }`) {
			t.Errorf("%s: %s", when, got)
		}
		h.Reopen(t)
	}
	if err := h.LoadFirewall(); err != nil {
		t.Fatal(err)
	}
	h.Watched(t)
	others.NameBridges(h.Handle, "docker", []string{"other"})
	eventually(t, "the engine's new word counts", func() bool {
		return strings.Contains(foreign(), `elements = { "other" }`)
	})
}
