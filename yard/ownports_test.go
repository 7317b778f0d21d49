package yard_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"netyard/ipam"
	"netyard/kernel/core"
	"netyard/modes"
	"netyard/modes/macvlan"
	"netyard/yard/attach"
	"netyard/yard/book"
	yown "netyard/yard/own"
	"netyard/yard/reconcile"
	"netyard/yard/repair"
)

// inside returns a rig with an internal network and a joined container on it.
func inside(t *testing.T, p place) (r *rig, n modes.Network, link modes.Link) {
	t.Helper()
	r = newRig(t)
	n = r.network()
	n.Internal = true
	n.Subnets[0].Space = "LocalDefault"
	if err := r.CreateNetwork(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	return r, n, r.joins(n.ID, epID, "10.9.0.2/24", p)
}

// joins puts an endpoint into a place, as an engine does.
func (r *rig) joins(network, id, addr string, p place) modes.Link {
	r.t.Helper()
	e := modes.Endpoint{
		ID: id, NetworkID: network, Addrs: []netip.Prefix{netip.MustParsePrefix(addr)},
		Container: modes.Container{Engine: book.Docker},
	}
	if _, err := r.CreateEndpoint(r.t.Context(), e); err != nil {
		r.t.Fatal(err)
	}
	_, link, err := r.Join(r.t.Context(), network, id, p.path)
	if err != nil {
		r.t.Fatal(err)
	}
	return link
}

func (p place) rules(t *testing.T) string {
	t.Helper()
	return p.Sh(t, "nft list ruleset")
}

func own(proto string, host, container uint16) book.PortRequest {
	return book.PortRequest{Proto: proto, HostPort: host, ContainerPort: container}
}

// TestLend shows that ports are lent to an endpoint while no engine has announced which one has the default route, and
// are withdrawn when it does.
func TestLend(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	r, n, link := inside(t, p)
	asks := []book.PortRequest{
		own("tcp", 443, 8080), own("udp", 7000, 8000), own("udp", 7001, 8001),
		own("tcp", 0, 80), own("tcp", 0, 443),
		{Proto: "tcp", HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: 1, ContainerPort: 1},
	}
	for range 2 {
		if err := r.PublishTentatively(t.Context(), n, link, epID, asks); err != nil {
			t.Fatal(err)
		}
	}
	const want = "[10.9.0.2:443->8080/tcp 10.9.0.2:80/tcp 10.9.0.2:7000-7001->8000-8001/udp]"
	has := func(when, want string) {
		t.Helper()
		if e, err := r.Endpoint(n.ID, epID); err != nil || fmt.Sprint(e.Ports) != want {
			t.Errorf("%s: the ports are %v, %v, want %s", when, e.Ports, err, want)
		}
		r.healthy(when)
	}
	has("lent", "[10.9.0.2:80/tcp 10.9.0.2:443->8080/tcp 10.9.0.2:7000-7001->8000-8001/udp]")
	if rules := p.rules(t); !strings.Contains(rules, "10.9.0.2 . tcp . 443 : 10.9.0.2 . 8080") ||
		strings.Contains(rules, ". 80 :") {
		t.Errorf("the sandbox has %s", rules)
	}
	ports := reconcile.FoundPorts(r.Yard, epID, reconcile.SeenEndpoint{
		Sandbox: p.path, Addrs: []netip.Prefix{netip.MustParsePrefix("10.9.0.2/24")},
	})
	if fmt.Sprint(ports) != strings.Replace(want, " 10.9.0.2:80/tcp", "", 1) {
		t.Errorf("found in the sandbox: %v", ports)
	}
	p.Sh(t, "nft flush ruleset")
	if found, err := reconcile.Audit(t.Context(), r.Yard, nil); err != nil || len(found) != 1 ||
		!strings.Contains(found[0].Text, "redirect of 10.9.0.2:443 to 8080/tcp") {
		t.Errorf("flushed in the sandbox, and doctor says %v, %v", found, err)
	}
	if err := repair.All(t.Context(), r.Yard); err != nil {
		t.Fatal(err)
	}
	has("mended", "[10.9.0.2:80/tcp 10.9.0.2:443->8080/tcp 10.9.0.2:7000-7001->8000-8001/udp]")
	p.Sh(t, "nft flush ruleset")
	r.start()
	has("after a restart", "[10.9.0.2:80/tcp 10.9.0.2:443->8080/tcp 10.9.0.2:7000-7001->8000-8001/udp]")

	out := r.network()
	out.ID, out.Subnets[0] = strings.Repeat("b", 64), modes.Subnet{
		Pool:    netip.MustParsePrefix("10.8.0.0/24"),
		Gateway: netip.MustParsePrefix("10.8.0.1/24"), Space: "LocalDefault",
	}
	if err := r.CreateNetwork(t.Context(), out); err != nil {
		t.Fatal(err)
	}
	second := strings.Repeat("c", 64)
	other := r.joins(out.ID, second, "10.8.0.2/24", p)
	if err := r.PublishTentatively(t.Context(), out, other, second, asks); err != nil {
		t.Fatal(err)
	}
	has("another network joined", "[10.9.0.2:80/tcp 10.9.0.2:443->8080/tcp 10.9.0.2:7000-7001->8000-8001/udp]")
	if _, err := r.Publish(t.Context(), out.ID, second, asks[:1]); err != nil {
		t.Fatal(err)
	}
	has("the default route is elsewhere", "[]")
	if rules := p.rules(t); rules != "" {
		t.Errorf("the sandbox still has %s", rules)
	}
	if err := r.PublishTentatively(t.Context(), n, link, epID, asks); err != nil {
		t.Fatal(err)
	}
	has("nothing is lent beside that", "[]")
}

// TestLANBridgePorts shows that ports of a container on a bridge of the host are on its own address, and those of a
// container that is also on another network are where its default route is, whichever it joins first.
func TestLANBridgePorts(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		lanFirst, lanGateway bool
		want                 string // the ports on the LAN and on the other network
	}{
		"lan, then web, the gateway": {lanFirst: true, want: "[] [0.0.0.0:8080->80/tcp]"},
		"web, the gateway, then lan": {want: "[] [0.0.0.0:8080->80/tcp]"},
		"lan, the gateway, then web": {lanFirst: true, lanGateway: true, want: "[192.0.2.7:8080->80/tcp] []"},
		"web, then lan, the gateway": {lanGateway: true, want: "[192.0.2.7:8080->80/tcp] []"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, p := newRig(t), newPlace(t)
			r.host.Sh(t, "ip link add lan0 type bridge && ip link set lan0 up")
			lan, web := r.network(), r.network()
			lan.Options = map[string]string{"bridge": "lan0"}
			lan.Subnets = []modes.Subnet{{Pool: netip.MustParsePrefix("192.0.2.0/24"), Space: "LocalDefault"}}
			if c.lanGateway {
				lan.Subnets[0].Gateway = netip.MustParsePrefix("192.0.2.1/24")
			}
			web.ID, web.Subnets[0].Space = strings.Repeat("b", 64), "LocalDefault"
			order := []modes.Network{web, lan}
			if c.lanFirst {
				order = []modes.Network{lan, web}
			}
			ids := map[string]string{lan.ID: epID, web.ID: strings.Repeat("c", 64)}
			asks := []book.PortRequest{own("tcp", 8080, 80)}
			for _, n := range order {
				if err := r.CreateNetwork(t.Context(), n); err != nil {
					t.Fatal(err)
				}
				addr := map[string]string{lan.ID: "192.0.2.7/24", web.ID: "10.9.0.2/24"}[n.ID]
				link := r.joins(n.ID, ids[n.ID], addr, p)
				if err := r.PublishTentatively(t.Context(), n, link, ids[n.ID], asks); err != nil {
					t.Fatal(err)
				}
			}
			gateway := web.ID
			if c.lanGateway {
				gateway = lan.ID
			}
			if _, err := r.Publish(t.Context(), gateway, ids[gateway], asks); err != nil {
				t.Fatal(err)
			}
			on, err := r.Endpoint(lan.ID, ids[lan.ID])
			if err != nil {
				t.Fatal(err)
			}
			off, err := r.Endpoint(web.ID, ids[web.ID])
			if err != nil {
				t.Fatal(err)
			}
			if got := fmt.Sprint(on.Ports, off.Ports); got != c.want {
				t.Errorf("ports %s, want %s", got, c.want)
			}
			if redirected := p.rules(t) != ""; redirected != c.lanGateway {
				t.Errorf("the sandbox has %q", p.rules(t))
			}
			r.healthy(name)
		})
	}
}

// TestOpenedPorts shows that a container's ports are open on a routed network wherever its default route is, and that
// it may answer by its other network; whichever it joins first, and also when the default route moves.
func TestOpenedPorts(t *testing.T) {
	t.Parallel()
	for name, first := range map[string]bool{"routed first": true, "routed last": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, p := newRig(t), newPlace(t)
			web, routed := r.network(), r.network()
			web.Subnets[0].Space = "LocalDefault"
			routed.ID, routed.Options = strings.Repeat("b", 64), map[string]string{"gateway_mode_ipv4": "routed"}
			routed.Subnets = []modes.Subnet{{
				Pool: netip.MustParsePrefix("10.8.0.0/24"), Gateway: netip.MustParsePrefix("10.8.0.1/24"),
				Space: "LocalDefault",
			}}
			routedID := strings.Repeat("c", 64)
			asks := []book.PortRequest{
				own("tcp", 8080, 80),
				{Proto: "tcp", HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: 1, ContainerPort: 1},
			}
			order := []modes.Network{web, routed}
			if first {
				order = []modes.Network{routed, web}
			}
			for _, n := range order {
				if err := r.CreateNetwork(t.Context(), n); err != nil {
					t.Fatal(err)
				}
				id, addr := epID, "10.9.0.2/24"
				if n.ID == routed.ID {
					id, addr = routedID, "10.8.0.2/24"
				}
				link := r.joins(n.ID, id, addr, p)
				if err := r.PublishTentatively(t.Context(), n, link, id, asks); err != nil {
					t.Fatal(err)
				}
			}
			open := func(when, want string) {
				t.Helper()
				e, err := r.Endpoint(routed.ID, routedID)
				if err != nil || fmt.Sprint(e.Ports) != want {
					t.Errorf("%s: the open ports are %v, %v, want %s", when, e.Ports, err, want)
				}
				set := r.host.Sh(t, "nft list set bridge netyard addrs4; nft list set inet netyard open4")
				veth := core.Name(core.VethPrefix, epID)
				if strings.Contains(set, fmt.Sprintf("%q . 10.8.0.2", veth)) != (want != "[]") {
					t.Errorf("%s: the guard has %s", when, set)
				}
				r.healthy(when)
			}
			if _, err := r.Publish(t.Context(), web.ID, epID, asks); err != nil {
				t.Fatal(err)
			}
			open("the default route is elsewhere", "[10.8.0.2:80/tcp]")
			r.start()
			open("after a restart", "[10.8.0.2:80/tcp]")
			if err := r.Withdraw(t.Context(), web.ID, epID); err != nil {
				t.Fatal(err)
			}
			if _, err := r.Publish(t.Context(), routed.ID, routedID, asks[:1]); err != nil {
				t.Fatal(err)
			}
			open("the default route is here", "[10.8.0.2:80/tcp]")
			if err := r.Withdraw(t.Context(), routed.ID, routedID); err != nil {
				t.Fatal(err)
			}
			open("the default route is elsewhere again", "[10.8.0.2:80/tcp]")
			if err := r.Leave(t.Context(), routed.ID, routedID); err != nil {
				t.Fatal(err)
			}
			open("it left", "[]")
		})
	}
}

// TestLendRefusals shows which ports of a container's own address are refused.
func TestLendRefusals(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	r, n, _ := inside(t, p)
	for want, asks := range map[string][]book.PortRequest{
		"publish 443:9090/tcp: in use: port 443/tcp of the container is asked for twice":                                                                       {own("tcp", 443, 8080), own("tcp", 443, 9090)},
		"publish 10.0.0.1:443:8080/tcp: 10.0.0.1 is not an address of the container; network aaaaaaaaaaaa publishes ports on the container's address 10.9.0.2": {{Proto: "tcp", HostIP: netip.MustParseAddr("10.0.0.1"), HostPort: 443, ContainerPort: 8080}},
		"publish [::]:443:8080/tcp: the container has no address of a family that the port is published on":                                                    {{Proto: "tcp", HostIP: netip.IPv6Unspecified(), HostPort: 443, ContainerPort: 8080}},
	} {
		if _, err := r.Publish(t.Context(), n.ID, epID, asks); err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
	if rules := p.rules(t); rules != "" {
		t.Errorf("a refusal left %s", rules)
	}
	first := book.PortRequest{Proto: "tcp", HostPort: 443, HostPortEnd: 445, ContainerPort: 8080}
	ports, err := r.Publish(t.Context(), n.ID, epID, []book.PortRequest{first, own("tcp", 443, 9090)})
	if err != nil || fmt.Sprint(ports) != "[10.9.0.2:443->9090/tcp 10.9.0.2:444->8080/tcp]" {
		t.Errorf("the first of a range that is free: %v, %v", ports, err)
	}
}

// TestOwnPortsCrash kills the daemon at every step of publishing and of leaving. After a restart the sandbox has the
// ports on record; when the engine, which got no answer, deletes the endpoint, it has none.
func TestOwnPortsCrash(t *testing.T) {
	t.Parallel()
	for name, call := range map[string]func(r *rig, n modes.Network) error{
		"publish": func(r *rig, n modes.Network) error {
			_, err := r.Publish(context.Background(), n.ID, epID, []book.PortRequest{own("tcp", 443, 8080)})
			return err
		},
		"withdraw": func(r *rig, n modes.Network) error { return r.Withdraw(context.Background(), n.ID, epID) },
		"leave":    func(r *rig, n modes.Network) error { return r.Leave(context.Background(), n.ID, epID) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for at := 1; ; at++ {
				p := newPlace(t)
				r, n, link := inside(t, p)
				p.Take(t, r.host, link.SrcName)
				if name != "publish" {
					asks := []book.PortRequest{own("tcp", 443, 8080)}
					if _, err := r.Publish(t.Context(), n.ID, epID, asks); err != nil {
						t.Fatal(err)
					}
				}
				steps, err := r.pull(at, func() error { return call(r, n) })
				if err != nil && !errors.Is(err, errPulled) {
					t.Fatal(err)
				}
				r.start()
				e, err := r.Endpoint(n.ID, epID)
				if err != nil {
					t.Fatal(err)
				}
				if rules := p.rules(t); strings.Contains(rules, "443") != (len(e.Ports) > 0) {
					t.Errorf("pulled at %v: on record are %v, and the sandbox has %q", steps, e.Ports, rules)
				}
				r.healthy(fmt.Sprint("pulled at ", steps))
				if err := r.DeleteEndpoint(t.Context(), n.ID, epID); err != nil {
					t.Fatal(err)
				}
				if rules := p.rules(t); rules != "" {
					t.Errorf("pulled at %v: the sandbox is left with %s", steps, rules)
				}
				if len(steps) < at {
					break
				}
			}
		})
	}
}

// TestAttachOwnPorts shows that an attachment has its ports when the runtime gets its answer, on the interface with the
// default route.
func TestAttachOwnPorts(t *testing.T) {
	t.Parallel()
	r, p := newRig(t), newPlace(t)
	r.host.Peer(t, "lan0")
	r.with("macvlan", macvlan.New)
	made := func(name, subnet string) modes.Network {
		n, err := yown.CreateNetwork(t.Context(), r.Yard, book.NetworkRequest{
			Name: name, Mode: "macvlan", Options: map[string]string{"parent": "lan0"},
			Subnets: []book.SubnetRequest{subnetOf(subnet)},
		})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	lan, other := made("lan", "192.0.2.0/24"), made("other", "198.51.100.0/24")
	asked, second := p.request(lan, "c1"), p.request(other, "c1")
	asked.Ports, second.Ports = []book.PortRequest{own("tcp", 443, 8080)}, []book.PortRequest{own("tcp", 443, 8080)}
	second.IfName = "eth1"
	for range 2 {
		for _, one := range []book.AttachRequest{second, asked} {
			if _, err := attach.Attach(t.Context(), r.Yard, one); err != nil {
				t.Fatal(err)
			}
		}
	}
	if rules := p.rules(t); strings.Count(rules, ". tcp . 443 : 192.0.2.") != 1 ||
		strings.Contains(rules, "198.51.100.") {
		t.Errorf("the sandbox has %s", rules)
	}
	r.healthy("attached")
	for _, end := range []attach.DetachRequest{
		p.end(lan, "c1"), {NetworkID: other.ID, Attachment: "c1", IfName: "eth1", NS: p.NS(), Gone: true},
	} {
		if err := attach.Detach(t.Context(), r.Yard, end); err != nil {
			t.Fatal(err)
		}
	}
	if rules := p.rules(t); rules != "" {
		t.Errorf("left in the sandbox: %s", rules)
	}
}

func subnetOf(subnet string) book.SubnetRequest {
	return book.SubnetRequest{Pool: ipam.PoolRequest{Subnet: netip.MustParsePrefix(subnet)}}
}
