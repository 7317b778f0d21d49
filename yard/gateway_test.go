package yard_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"netyard/ipam"
	"netyard/modes"
	"netyard/store"
	"netyard/yard/book"
	"netyard/yard/pool"
	"netyard/yard/reconcile"
)

// mixed makes a network that is translated in IPv4 and routed in IPv6, with two joined endpoints.
func (r *rig) mixed() (first, second string) {
	r.t.Helper()
	n := r.network()
	n.Subnets[0].Space = ""
	n.Subnets = append(n.Subnets,
		modes.Subnet{Pool: netip.MustParsePrefix("fd09::/64"), Gateway: netip.MustParsePrefix("fd09::1/64")})
	n.Options = map[string]string{"gateway_mode_ipv6": "routed"}
	if err := r.CreateNetwork(r.t.Context(), n); err != nil {
		r.t.Fatal(err)
	}
	for id, addrs := range map[string][2]string{
		epID: {"10.9.0.2/24", "fd09::2/64"}, "ffffffffffff0002": {"10.9.0.3/24", "fd09::3/64"},
	} {
		e := modes.Endpoint{
			ID: id, NetworkID: netID,
			Addrs: []netip.Prefix{netip.MustParsePrefix(addrs[0]), netip.MustParsePrefix(addrs[1])},
		}
		if _, err := r.CreateEndpoint(r.t.Context(), e); err != nil {
			r.t.Fatal(err)
		}
		if _, _, err := r.Join(r.t.Context(), netID, id, "/proc/self/ns/net"); err != nil {
			r.t.Fatal(err)
		}
	}
	return epID, "ffffffffffff0002"
}

// TestPublishRouted shows that on a routed network a port is published on the container's own address, without
// conflicts.
func TestPublishRouted(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	first, second := r.mixed()
	ask := func(host string, hostPort, port uint16) book.PortRequest {
		a := book.PortRequest{Proto: "tcp", HostPort: hostPort, ContainerPort: port}
		if host != "" {
			a.HostIP = netip.MustParseAddr(host)
		}
		return a
	}
	for _, c := range []struct {
		asks []book.PortRequest
		want string
	}{
		{[]book.PortRequest{ask("", 8080, 80)}, "0.0.0.0:8080->80/tcp [fd09::2]:80/tcp"},
		{[]book.PortRequest{ask("0.0.0.0", 8080, 80)}, "0.0.0.0:8080->80/tcp"},
		{[]book.PortRequest{ask("::", 8080, 80), ask("::", 9090, 80)}, "[fd09::2]:80/tcp"}, // once, however often
		{run("tcp", 7000, 8000, 3), "0.0.0.0:7000-7002->8000-8002/tcp [fd09::2]:8000-8002/tcp"},
	} {
		ports, err := r.Publish(t.Context(), netID, first, c.asks)
		if err != nil || texts(ports) != c.want {
			t.Errorf("%v: %q, %v; want %q", c.asks, texts(ports), err, c.want)
		}
		r.healthy(c.want)
	}
	if _, err := r.Publish(t.Context(), netID, first, []book.PortRequest{ask("::1", 8080, 80)}); err == nil ||
		!strings.Contains(err.Error(), "publish [::1]:8080:80/tcp: the network's IPv6 is routed") {
		t.Errorf("on an address of the host: %v", err)
	}

	// Two containers have one port each, and the host's is free for a third.
	want, err := r.Publish(t.Context(), netID, first, []book.PortRequest{ask("::", 80, 80), ask("", 81, 81)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Publish(t.Context(), netID, second, []book.PortRequest{
		ask("::", 80, 80), ask("0.0.0.0", 80, 80),
	}); err != nil {
		t.Error(err)
	}
	r.healthy("two containers")
	r.start()
	e, err := r.Endpoint(netID, first)
	if err != nil || texts(e.Ports) != texts(want) {
		t.Errorf("after a restart: %v, %v", texts(e.Ports), err)
	}
	found := reconcile.FoundPorts(r.Yard, e.ID, reconcile.SeenEndpoint{Sandbox: e.Sandbox, Addrs: e.Addrs})
	if texts(found) != texts(want) {
		t.Errorf("found in the kernel: %s, want %s", texts(found), texts(want))
	}
	if err := r.Leave(t.Context(), netID, first); err != nil {
		t.Fatal(err)
	}
	if dump := r.host.Dump(t); strings.Contains(dump, "fd09::2 . tcp") {
		t.Error("a port stays open when its container has left")
	}
}

// TestGatewayIsReserved shows that the address of the gateway container is only given on request, and that a network
// whose IPAM cannot reserve it is refused.
func TestGatewayIsReserved(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	n := r.network()
	n.Options = map[string]string{"gateway_address": "10.9.0.2"}
	n.Subnets[0].Space = "LocalDefault"
	before := r.host.Dump(t)
	if err := r.CreateNetwork(t.Context(), n); err == nil ||
		!strings.Contains(err.Error(), "gateway_address=10.9.0.2: it needs --ipam-driver netyard") {
		t.Errorf("with another IPAM: %v", err)
	}
	if ns, err := r.Networks(); err != nil || len(ns) > 0 || r.host.Dump(t) != before {
		t.Errorf("a refusal changed something: %v, %v", ns, err)
	}
	n.Subnets[0].Space = book.Space
	p, err := pool.RequestPool(t.Context(), r.Yard, ipam.PoolRequest{Subnet: n.Subnets[0].Pool})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pool.RequestAddress(t.Context(), r.Yard, ipam.AddressRequest{
		Pool: p.ID, Addr: n.Subnets[0].Gateway.Addr(), Gateway: true,
	}); err != nil {
		t.Fatal(err)
	}
	if err := r.CreateNetwork(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	var got []string
	for range 3 {
		a, err := pool.RequestAddress(t.Context(), r.Yard, ipam.AddressRequest{Pool: p.ID})
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, a.Addr().String())
	}
	if slices.Contains(got, "10.9.0.2") {
		t.Errorf("the gateway's address was given away: %v", got)
	}
	if a, err := pool.RequestAddress(t.Context(), r.Yard, ipam.AddressRequest{
		Pool: p.ID, Addr: netip.MustParseAddr("10.9.0.2"),
	}); err != nil || a.Addr().String() != "10.9.0.2" {
		t.Errorf("asked for by address: %v, %v", a, err)
	}
	if err := r.DeleteNetwork(t.Context(), n.ID); err != nil {
		t.Fatal(err)
	}
	err = r.Config.Store.View(func(tx store.Tx) error {
		ls, err := r.Config.IPAM.Leases(tx)
		if len(ls) > 0 {
			t.Errorf("leases are left: %v", ls)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
