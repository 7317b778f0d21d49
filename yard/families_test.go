package yard_test

import (
	"net/netip"
	"path/filepath"
	"slices"
	"testing"

	"netyard/kernel/sandbox"
	"netyard/modes"
	"netyard/yard/book"
	"netyard/yard/reconcile"
)

// A pod is a container on several networks, on a kernel that records.
type pod struct {
	*world
	t     *testing.T
	addrs map[string][]netip.Prefix
}

const podSandbox = "/run/docker/netns/1"

func newPod(t *testing.T) *pod {
	t.Helper()
	w, err := newWorld(t.Context(), filepath.Join(t.TempDir(), "w"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.st.Close() })
	w.kernel.OpenSandbox(podSandbox)
	return &pod{w, t, map[string][]netip.Prefix{}}
}

// joins makes a network, whose ID is a letter, and joins the container.
func (p *pod) joins(network, mode string, subnets ...string) {
	p.t.Helper()
	n := modes.Network{ID: network, Name: network, Engine: book.Docker, Mode: mode, Options: map[string]string{}}
	if mode == "macvlan" {
		n.Options["parent"] = "eth0"
	}
	e := modes.Endpoint{ID: "e" + network, NetworkID: network, Container: modes.Container{Engine: book.Docker}}
	for _, s := range subnets {
		pool := netip.MustParsePrefix(s)
		gw := netip.PrefixFrom(pool.Addr().Next(), pool.Bits())
		n.Subnets = append(n.Subnets, modes.Subnet{Pool: pool, Space: "LocalDefault", Gateway: gw})
		e.Addrs = append(e.Addrs, netip.PrefixFrom(gw.Addr().Next(), pool.Bits()))
	}
	p.addrs[network] = e.Addrs
	if err := p.y.CreateNetwork(p.t.Context(), n); err != nil {
		p.t.Fatal(err)
	}
	if err := p.createEndpoint(p.t.Context(), e); err != nil {
		p.t.Fatal(err)
	}
	if _, _, err := p.y.Join(p.t.Context(), network, e.ID, podSandbox); err != nil {
		p.t.Fatal(err)
	}
}

// routes sets the sandbox's default routes by networks: of IPv4 and of IPv6. docker stands for one of another driver.
func (p *pod) routes(four, six string) {
	var all []sandbox.DefaultRoute
	for i, by := range []string{four, six} {
		r := sandbox.DefaultRoute{V6: i == 1}
		for _, a := range p.addrs[by] {
			r.Addrs = append(r.Addrs, a.Addr())
		}
		if by != "" {
			all = append(all, r)
		}
	}
	p.kernel.Defaults[podSandbox] = all
}

func (p *pod) publish(network string, asks []book.PortRequest) {
	p.t.Helper()
	if _, err := p.y.Publish(p.t.Context(), network, "e"+network, asks); err != nil {
		p.t.Fatal(err)
	}
}

// leaves disconnects the container from a network; the engine then changes the default routes.
func (p *pod) leaves(network string, then func()) {
	p.t.Helper()
	if err := p.y.Leave(p.t.Context(), network, "e"+network); err != nil {
		p.t.Fatal(err)
	}
	then()
	if err := p.y.DeleteEndpoint(p.t.Context(), network, "e"+network); err != nil {
		p.t.Fatal(err)
	}
}

// has compares the published ports, and the records with the kernel.
func (p *pod) has(what string, want ...string) {
	p.t.Helper()
	es, err := p.y.Endpoints()
	if err != nil {
		p.t.Fatal(err)
	}
	var got []string
	for _, e := range es {
		if len(e.Ports) > 0 {
			got = append(got, e.NetworkID+" "+texts(e.Ports))
		}
	}
	if slices.Sort(got); !slices.Equal(got, want) {
		p.t.Errorf("%s: %q, want %q", what, got, want)
	}
	found, err := reconcile.Audit(p.t.Context(), p.y, nil)
	if err != nil || len(found) > 0 {
		p.t.Errorf("%s: %v %v", what, found, err)
	}
}

// TestFamiliesApart shows that each family is published once, by the endpoint that is its gateway, in the order in
// which engine 29 asks.
func TestFamiliesApart(t *testing.T) {
	t.Parallel()
	exact := run("tcp", 8202, 80, 1)
	t.Run("dual-stack first", func(t *testing.T) {
		t.Parallel()
		p := newPod(t)
		p.joins("d", "bridge", "10.9.0.0/24", "fd00:9::/64")
		p.routes("d", "d")
		p.publish("d", exact)
		p.has("alone", "d 0.0.0.0:8202->80/tcp [::]:8202->80/tcp")
		p.joins("f", "bridge", "10.8.0.0/24")
		p.routes("f", "d")
		p.publish("d", exact)
		p.publish("f", exact)
		p.has("another gateway for IPv4", "d [::]:8202->80/tcp", "f 0.0.0.0:8202->80/tcp")
		if err := p.y.Withdraw(t.Context(), "f", "ef"); err != nil {
			t.Fatal(err)
		}
		p.leaves("f", func() { p.routes("d", "d") })
		p.publish("d", exact)
		p.has("alone again", "d 0.0.0.0:8202->80/tcp [::]:8202->80/tcp")
	})
	t.Run("IPv4 first", func(t *testing.T) {
		t.Parallel()
		p := newPod(t)
		p.joins("f", "bridge", "10.8.0.0/24")
		p.routes("f", "")
		p.publish("f", exact)
		p.joins("d", "bridge", "10.9.0.0/24", "fd00:9::/64")
		p.routes("f", "d")
		p.publish("d", exact) // f is not asked again
		p.has("both", "d [::]:8202->80/tcp", "f 0.0.0.0:8202->80/tcp")
		if err := p.y.Withdraw(t.Context(), "d", "ed"); err != nil {
			t.Fatal(err)
		}
		p.leaves("d", func() { p.routes("f", "") })
		p.has("IPv4 alone", "f 0.0.0.0:8202->80/tcp")
	})
	t.Run("IPv6 with priority, on an address and any port", func(t *testing.T) {
		t.Parallel()
		p := newPod(t)
		asks := append(run("tcp", 0, 80, 1), book.PortRequest{
			Proto: "udp", HostPort: 53, ContainerPort: 53, HostIP: netip.MustParseAddr("127.0.0.1"),
		})
		p.joins("d", "bridge", "10.9.0.0/24", "fd00:9::/64")
		p.routes("d", "d")
		p.publish("d", asks)
		p.joins("s", "bridge", "fd00:8::/64")
		p.routes("d", "s")
		p.publish("d", asks)
		p.publish("s", asks)
		p.has("both", "d 0.0.0.0:32768->80/tcp 127.0.0.1:53->53/udp", "s [::]:32768->80/tcp")
	})
	t.Run("another driver's gateway", func(t *testing.T) {
		t.Parallel()
		p := newPod(t)
		p.joins("d", "bridge", "10.9.0.0/24", "fd00:9::/64")
		p.routes("docker", "d")
		p.kernel.Listening = []sandbox.Listener{{Proto: "tcp", Addr: netip.IPv4Unspecified(), Port: 8202}}
		p.publish("d", append(slices.Clone(exact), book.PortRequest{
			Proto: "tcp", HostPort: 8203, ContainerPort: 80, HostIP: netip.MustParseAddr("192.0.2.1"),
		}))
		p.has("IPv6 only", "d [::]:8202->80/tcp")
	})
	t.Run("own addresses", func(t *testing.T) {
		t.Parallel()
		p := newPod(t)
		p.joins("m", "macvlan", "192.0.2.0/24", "2001:db8::/64")
		p.routes("docker", "m")
		p.publish("m", exact)
		p.has("IPv6 only", "m [2001:db8::2]:8202->80/tcp")
	})
	t.Run("taken from one that is not asked again", func(t *testing.T) {
		t.Parallel()
		p := newPod(t)
		p.joins("d", "bridge", "10.9.0.0/24", "fd00:9::/64")
		p.routes("d", "")
		p.publish("d", exact)
		p.joins("e", "bridge", "10.8.0.0/24", "fd00:8::/64")
		p.routes("d", "e")
		p.publish("e", exact)
		p.has("both", "d 0.0.0.0:8202->80/tcp", "e [::]:8202->80/tcp")
	})
	t.Run("no sandbox yet", func(t *testing.T) {
		t.Parallel()
		p := newPod(t)
		p.joins("d", "bridge", "10.9.0.0/24", "fd00:9::/64")
		p.publish("d", exact)
		p.has("both", "d 0.0.0.0:8202->80/tcp [::]:8202->80/tcp")
	})
}

// TestHandOver shows that ports go to the container's new gateway when an engine that has forgotten them disconnects
// the former one, and nowhere when the container stops.
func TestHandOver(t *testing.T) {
	t.Parallel()
	asks := slices.Concat(run("tcp", 9000, 9000, 3), run("tcp", 0, 80, 1),
		[]book.PortRequest{{Proto: "udp", HostPort: 500, HostPortEnd: 510, ContainerPort: 53}})
	dual := " 0.0.0.0:9000-9002->9000-9002/tcp 0.0.0.0:32768->80/tcp [::]:9000-9002->9000-9002/tcp " +
		"[::]:32768->80/tcp 0.0.0.0:500->53/udp [::]:500->53/udp"
	four := " 0.0.0.0:9000-9002->9000-9002/tcp 0.0.0.0:32768->80/tcp 0.0.0.0:500->53/udp"
	for name, c := range map[string]struct {
		second          []string
		four, six       string // the gateways then
		meanwhile, want string
	}{
		"to a dual-stack network":            {[]string{"10.8.0.0/24", "fd00:8::/64"}, "b", "b", "", "b" + dual},
		"to one of another family":           {[]string{"10.8.0.0/24"}, "b", "", "", "b" + four},
		"the daemon was restarted meanwhile": {[]string{"10.8.0.0/24"}, "b", "", "restart", "b" + four},
		"it was found lost meanwhile":        {[]string{"10.8.0.0/24"}, "b", "", "found", "b" + four},
		"the other one is no gateway":        {[]string{"10.8.0.0/24"}, "docker", "", "", ""},
		"the container stops":                {[]string{"10.8.0.0/24"}, "", "", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPod(t)
			p.joins("a", "bridge", "10.9.0.0/24", "fd00:9::/64")
			p.joins("b", "bridge", c.second...)
			p.routes("a", "a")
			p.publish("a", asks)
			p.has("before", "a"+dual)
			p.leaves("a", func() {
				p.routes(c.four, c.six)
				var err error
				switch c.meanwhile {
				case "restart":
					err = p.restart(t.Context())
				case "found":
					err = p.y.RemoveEndpoint(t.Context(), "a", "ea")
				}
				if err != nil {
					t.Fatal(err)
				}
			})
			if c.want == "" {
				p.has("after")
			} else {
				p.has("after", c.want)
			}
		})
	}
}
