// Package bridge is the mode of a bridge per network: the host is the gateway, outgoing traffic takes the host's
// address, and incoming traffic needs a published port. To an existing bridge of the host it only attaches containers.
package bridge

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"netyard/kernel/beside"
	kbridge "netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/kernel/dhcp"
	"netyard/kernel/gso"
	kports "netyard/kernel/ports"
	"netyard/modes"
	"netyard/modes/internal/bridged"
	"netyard/modes/internal/gateway"
)

const (
	// settledOwner is the key that says whether the bridge is the host's.
	settledOwner = "bridge_owner"
	ownerHost    = "host"
	settledMTU   = "mtu"
)

type mode struct{}

// New makes the mode.
func New(modes.Env) modes.Mode { return mode{} }

// Settle decides whether the bridge is the host's: netyard never changes or removes one that existed before.
func (mode) Settle(
	_ context.Context, f modes.Facts, n modes.Network, others []modes.Network,
) (settled map[string]string, err error) {
	if n.Settled, err = settle(f, n, others); err == nil {
		err = modes.CheckBigTCP(f, n, segments(n))
	}
	return n.Settled, err
}

func settle(f modes.Facts, n modes.Network, others []modes.Network) (map[string]string, error) {
	if err := check(n); err != nil || n.Phase == modes.Ready {
		return n.Settled, err
	}
	if err := gateway.CheckHost(f, n); err != nil {
		return nil, err
	}
	link, exists, err := f.FindLink(name(n))
	switch {
	case err != nil || exists && link.Alias == core.Alias(n.ID, ""):
		return nil, err
	case exists:
		return map[string]string{settledOwner: ownerHost, settledMTU: strconv.Itoa(link.MTU)},
			checkHostBridge(n, link, others)
	}
	return nil, gateway.Free(f, n, name(n))
}

// Traits: nothing gets into an internal network, so its containers publish ports for each other only. Containers on a
// bridge of the host are members of its LAN: clients reach them by their own addresses, and there they publish ports.
func (mode) Traits(n modes.Network) modes.Traits {
	t := modes.Traits{
		MAC: modes.MACDerived, Policed: true, Isolated: !icc.Of(n), Segments: segments(n),
		Publish: modes.Publishing{
			OnHost: !n.Internal, OnOwn: n.Internal, Binds: modes.Bind.Of(n), Routed: gateway.In(n, gateway.Routed),
		},
		Gatewayless: gateway.In(n, gateway.Isolated),
		Reserved:    modes.Reservation{Option: gateway.Address.Name, Addrs: gateway.Address.Of(n)},
	}
	if n.Internal && inhibit4.Of(n) { // nobody has the gateway's address, and no route leads to it
		t.Gatewayless.V4 = true
	}
	if hostOwned(n) {
		t.HostLink, t.LAN.Port = name(n), dhcp.LANPort{Kind: "bridge", Parent: name(n)}
		t.Publish.OnHost, t.Publish.OnOwn = false, true
		return t
	}
	t.LAN.Refusal = fmt.Errorf(
		"bridge %s is netyard's own and leads to no LAN; use a bridge of the host with -o com.docker.network.bridge.name",
		name(n))
	return t
}

// Objects returns the bridge, its addresses, and the elements of firewall sets for it.
func (mode) Objects(n modes.Network) []core.Object {
	br, short := name(n), modes.Short(n.ID)
	if hostOwned(n) {
		return []core.Object{kbridge.HostBridge{Name: br}, beside.Bypass{In: br, Out: br, Network: short}}
	}
	link := kbridge.Bridge{
		Name: br, Alias: core.Alias(n.ID, ""), MTU: mtu(n), MAC: modes.LocalMAC(n.ID), Promisc: promisc.Of(n),
		Segments: segments(n),
	}
	var rest []core.Object
	for _, s := range n.Subnets {
		v6, isolated := s.Pool.Addr().Is6(), gateway.IsolatedAt(n, s)
		link.IPv6 = link.IPv6 || v6 && !isolated
		if s.Gateway.IsValid() && !isolated && (v6 || !inhibit4.Of(n)) {
			rest = append(rest, core.Addr{Link: br, Alias: link.Alias, Prefix: s.Gateway})
		}
	}
	if bridge.Of(n) != "" {
		rest = append(rest, beside.Bypass{In: br, Network: short}, beside.Bypass{Out: br, Network: short})
	}
	if modes.Option(modes.PublishFrom).Of(n) != "" {
		subnets, interfaces := modes.PublishFrom.Of(n)
		rest = append(rest, bridged.Owned(n, kports.RestrictClients(br, subnets, interfaces)...)...)
	}
	zone := bridged.Zone{Bridge: br, Internal: n.Internal, ICC: icc.Of(n)}
	return slices.Concat([]core.Object{link}, rest, gateway.Objects(n, br), zone.Objects(n))
}

// Place returns a veth pair with one end as a port of the bridge, and the rules and published ports of the endpoint.
func (mode) Place(n modes.Network, e modes.Endpoint) (objects []core.Object, link modes.Link) {
	if !n.Internal && !hostOwned(n) {
		objects = bridged.Forwarding(n)
	}
	v := bridged.Veth(n, e, name(n), mtu(n))
	v.Isolated, v.Segments, v.Sandbox, v.NS = !icc.Of(n), segments(n), e.Sandbox, e.NS
	v.Hairpin = hairpin.For(n, e) || len(e.Ports) > 0 && !publishesInside(n)
	g := guard(n, e, v)
	objects = append(objects, v, kbridge.StaticPort{Link: v.Name, MAC: v.MAC, Open: g.Open, Flooded: hostOwned(n)})
	limits := kbridge.Limits{Link: v.Name, Shaper: core.Name(core.ShaperPrefix, e.ID), Alias: v.Alias, MTU: v.MTU}
	limits.Ingress, limits.Egress = n.Limits(e)
	if e.Into == 0 || !limits.None() { // a new link has none to remove
		objects = append(objects, limits)
	}
	link = n.Link(e, v.Peer, v.MTU)
	link.Gateways, link.Routes = gateway.Of(n, e), routes(n, e)
	return slices.Concat(objects, g.Objects(), gateway.Proxies(n, e), ports(n, e)), link
}

// guard returns the rules for an endpoint's port. On a bridge of the host, addresses may come from the LAN, and a
// router forwards packets from anywhere: in both cases the guard checks only the hardware address.
func guard(n modes.Network, e modes.Endpoint, v kbridge.Veth) kbridge.PortGuard {
	g := e.Guard(v.Name, v.MAC)
	g.Open, g.LAN = !antispoof.For(n, e), hostOwned(n) || isRouter(n, e)
	return g
}

// ports returns the objects that publish ports of an endpoint: on the host, or on its own addresses.
func ports(n modes.Network, e modes.Endpoint) (objects []core.Object) {
	if publishesInside(n) {
		return append(e.Redirects(), e.Published()...)
	}
	for _, p := range e.Ports {
		if p.Routed {
			open := kports.OpenPort{Proto: p.Proto, Addr: p.HostIP, Port: p.HostPort, Count: p.Count}
			for _, el := range open.Elements() {
				objects = append(objects, el.For(e.ID))
			}
			objects = append(objects, answers(e, p.HostIP)...)
		}
	}
	return slices.Concat(objects, e.Published(), trustedPorts(n, e))
}

// answers returns what lets a container answer from an address by its other endpoints, one of which has its default
// route.
func answers(e modes.Endpoint, from netip.Addr) (objects []core.Object) {
	for _, id := range e.Beside {
		for _, may := range kbridge.MaySend(core.Name(core.VethPrefix, id), from) {
			objects = append(objects, may.For(e.ID))
		}
	}
	return objects
}

// publishesInside says whether a table in the container's sandbox publishes its ports.
func publishesInside(n modes.Network) bool { return n.Internal || hostOwned(n) }

// mtu returns the MTU of a network's links. On a bridge of the host it is the bridge's, which a port with a smaller one
// would lower.
func mtu(n modes.Network) int {
	if i, err := strconv.Atoi(n.Settled[settledMTU]); err == nil {
		return i
	}
	return modes.MTU.Of(n)
}

// segments says how large the segments of a network may be. What leaves it is routed by the host, and on a bridge of
// the host goes out by the bridge's other ports.
func segments(n modes.Network) gso.Want {
	want := gso.Want{Big: modes.BigTCP.Of(n) != "false"}
	if want.Big && hostOwned(n) {
		want.Routed, want.Link = true, name(n)
	} else if want.Big {
		want.Routed = !n.Internal
	}
	return want
}

func hostOwned(n modes.Network) bool { return n.Settled[settledOwner] == ownerHost }

func name(n modes.Network) string {
	if b := bridge.Of(n); b != "" {
		return b
	}
	return bridged.Name(n)
}

// isRouter says whether an endpoint is the gateway, or the next hop of a route.
func isRouter(n modes.Network, e modes.Endpoint) bool {
	return gateway.Is(n, e) || slices.ContainsFunc(staticRoutes.Of(n), func(r modes.Route) bool { return e.Has(r.Via) })
}

// routes returns the static routes of an endpoint: those of its families, without those that lead to itself, which an
// engine could not add.
func routes(n modes.Network, e modes.Endpoint) []modes.Route {
	return slices.DeleteFunc(staticRoutes.Of(n), func(r modes.Route) bool {
		return e.Has(r.Via) || !e.Address(r.Dst.Addr().Is4()).IsValid()
	})
}

// check refuses options that contradict each other.
func check(n modes.Network) error {
	if err := n.CheckMTU(modes.MTU.Of(n)); err != nil {
		return err
	}
	if err := n.CheckGateways(); err != nil {
		return err
	}
	for _, prefix := range []string{core.VethPrefix, core.PeerPrefix, core.ShaperPrefix} {
		if strings.HasPrefix(bridge.Of(n), prefix) {
			return bridge.Row().Refuse(n, "names that begin with %s are netyard's own", prefix)
		}
	}
	for _, r := range staticRoutes.Of(n) {
		if r.Via.IsValid() && !n.Contains(r.Via) {
			return staticRoutes.Row().Refuse(n, "%s is in no subnet of the network", r.Via)
		}
	}
	return gateway.Check(n, icc.Of(n))
}

// checkHostBridge refuses options that would change a bridge of the host.
func checkHostBridge(n modes.Network, link core.LinkInfo, others []modes.Network) error {
	other, _, ours := core.ParseAlias(link.Alias)
	owner := modes.Short(other)
	remove := ""
	if at := slices.IndexFunc(others, func(o modes.Network) bool { return o.ID == other && o.Name != "" }); at >= 0 {
		owner = others[at].Name
		remove = "; if nothing needs that network, remove it: " + others[at].RemoveCommand()
	}
	_, sized := n.Options[modes.MTU.Name]
	otherMTU := sized && modes.MTU.Of(n) != link.MTU
	err := n.Refuse(
		bridge.Row().If(ours, "it is the bridge of netyard's network %s%s", owner, remove),
		bridge.Row().If(link.Kind != "bridge", "that link is not a bridge but a %s", link.Kind),
		modes.MTU.Row().If(otherMTU, "the host's bridge %s has %d, which netyard does not change", name(n), link.MTU),
	)
	for _, o := range []modes.BoolOption{modes.Masquerade, promisc} {
		if err == nil && n.Options[o.Name] == "true" {
			err = o.Row().Refuse(n, "the bridge %s is the host's, which netyard does not change", name(n))
		}
	}
	if err != nil {
		return err
	}
	return gateway.CheckHostBridge(n, name(n))
}
