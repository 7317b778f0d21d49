// Package bridge is the mode of a bridge per network: the host is its gateway, what leaves takes the host's address,
// and nothing comes in uninvited. On a bridge that belongs to the host's owner it only plugs containers in.
package bridge

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"netyard/kernel"
	"netyard/kernel/beside"
	kbridge "netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/kernel/dhcp"
	"netyard/kernel/nft"
	kports "netyard/kernel/ports"
	"netyard/modes"
)

const (
	// minIPv6MTU is the least an IPv6 link must carry (RFC 8200, section 5).
	minIPv6MTU = 1280

	// settledOwner is the key under which it is kept whose the bridge is.
	settledOwner = "bridge_owner"
	ownerHost    = "host"
	settledMTU   = "mtu"
)

type mode struct{ k *kernel.Kernel }

// New makes the mode.
func New(e modes.Env) (modes.Mode, error) { return mode{e.Kernel}, nil }

// Policed says that every packet of an endpoint is bridged or routed by the host.
func (mode) Policed(modes.Network) bool { return true }

func (mode) Check(n modes.Network) error {
	for _, s := range n.Subnets {
		if s.Pool.Addr().Is6() && n.OptInt("mtu") < minIPv6MTU {
			return fmt.Errorf("%w: mtu=%d: IPv6 needs at least %d", modes.ErrOption, n.OptInt("mtu"), minIPv6MTU)
		}
		if s.Gateway.IsValid() && !s.Pool.Contains(s.Gateway.Addr()) {
			return fmt.Errorf("gateway %s is not in subnet %s", s.Gateway.Addr(), s.Pool)
		}
	}
	for _, prefix := range []string{core.VethPrefix, core.PeerPrefix, core.ShaperPrefix} {
		if name := n.Opt("bridge"); strings.HasPrefix(name, prefix) {
			return fmt.Errorf("%w: bridge=%s: names that begin with %s are netyard's own", modes.ErrOption, name, prefix)
		}
	}
	return checkGateways(n)
}

// Settle decides whose the bridge is: one that is there already and is not netyard's stays its owner's for good.
func (m mode) Settle(_ context.Context, n modes.Network) (map[string]string, error) {
	if err := m.present(n); err != nil {
		return nil, err
	}
	name := name(n)
	link, exists, err := m.k.FindLink(name)
	if err != nil || link.Alias == core.Alias(n.ID, "") {
		return nil, err
	}
	if !exists {
		return nil, m.apart(n)
	}
	if other, _, ours := core.ParseAlias(link.Alias); ours {
		return nil, fmt.Errorf("%w: bridge=%s: it is the bridge of netyard's network %s", modes.ErrOption, name, modes.Short(other))
	}
	if link.Kind != "bridge" {
		return nil, fmt.Errorf("%w: bridge=%s: that link is not a bridge but a %s", modes.ErrOption, name, link.Kind)
	}
	if mtu, given := n.Options["mtu"]; given && n.OptInt("mtu") != link.MTU {
		return nil, fmt.Errorf("%w: mtu=%s: the host's bridge %s has %d, which netyard does not change", modes.ErrOption, mtu, name, link.MTU)
	}
	for _, opt := range []string{"masquerade", "promisc"} {
		if n.Options[opt] == "true" {
			return nil, fmt.Errorf("%w: %s=true: the bridge %s is the host's, which netyard does not change", modes.ErrOption, opt, name)
		}
	}
	if err := unroutable(n); err != nil {
		return nil, err
	}
	return map[string]string{settledOwner: ownerHost, settledMTU: strconv.Itoa(link.MTU)}, nil
}

// apart refuses a subnet that the host has an address in: its routes could not tell the two apart. Only here: what is
// on record has to come up again whatever the host has got since. A subnet can be part of that of the link on which the
// host answers for it.
func (m mode) apart(n modes.Network) error {
	for _, s := range n.Subnets {
		link, other, err := m.k.Occupant(s.Pool, name(n), n.Opt("ndp_proxy"))
		if err != nil {
			return err
		}
		if link != "" && s.Gateway.IsValid() && !isolated(n, s.Pool.Addr().Is6()) {
			return fmt.Errorf("subnet %s overlaps %s on the host's link %s", s.Pool, other, link)
		}
	}
	return nil
}

// mtu is what the links of a network carry. A port with less than a host's bridge has would lower the bridge's.
func mtu(n modes.Network) int {
	if i, err := strconv.Atoi(n.Settled[settledMTU]); err == nil {
		return i
	}
	return n.OptInt("mtu")
}

func hostOwned(n modes.Network) bool { return n.Settled[settledOwner] == ownerHost }

func name(n modes.Network) string {
	if b := n.Opt("bridge"); b != "" {
		return b
	}
	return core.Name(core.BridgePrefix, n.ID)
}

func (m mode) Up(ctx context.Context, n modes.Network) error {
	return m.k.Ensure(ctx, networkObjects(n)...)
}

func (m mode) Down(_ context.Context, n modes.Network) error { return m.k.Remove(networkObjects(n)...) }

func (m mode) Attach(ctx context.Context, n modes.Network, e modes.Endpoint) (modes.Link, error) {
	if err := m.k.Ensure(ctx, endpointObjects(n, e)...); err != nil {
		return modes.Link{}, err
	}
	l := modes.Link{
		SrcName: peer(e), DstPrefix: n.Opt("iface_prefix"), MTU: mtu(n), Gateways: gateways(n, e),
		Routes: routes(n, e),
	}
	if e.IfName != "" {
		l.DstPrefix, l.DstName = strings.TrimRight(e.IfName, "0123456789"), e.IfName
	}
	return l, nil
}

func (m mode) Detach(_ context.Context, n modes.Network, e modes.Endpoint) error {
	return m.k.Remove(slices.Concat(ports(n, e), guard(n, e).Objects(), proxies(n, e), []core.Object{limits(n, e), veth(n, e)})...) // the queues go with the link
}

func (mode) Objects(n modes.Network, es []modes.Endpoint) []core.Object {
	objects := networkObjects(n)
	for _, e := range es {
		objects = append(objects, endpointObjects(n, e)...)
	}
	return objects
}

// endpointObjects are the link and, while anybody is there who needs it, forwarding: not with the network already,
// since at boot an engine that starts after netyard and finds forwarding on would not guard its own networks (moby,
// FORWARD policy DROP).
func endpointObjects(n modes.Network, e modes.Endpoint) []core.Object {
	var objects []core.Object
	if !n.Internal && !hostOwned(n) {
		objects = forwarding(n)
	}
	objects = append(objects, veth(n, e), static(n, e))
	if l := limits(n, e); e.Into == 0 || !l.None() { // a link that is just being made has none to take away
		objects = append(objects, l)
	}
	return slices.Concat(objects, guard(n, e).Objects(), proxies(n, e), ports(n, e))
}

// guard binds an endpoint's port to what the endpoint was given. On a bridge of the host's owner addresses may come
// from the LAN, and what a container passes on that the others go out by is from anywhere, so there it is the hardware
// address alone.
func guard(n modes.Network, e modes.Endpoint) kbridge.PortGuard {
	v := veth(n, e)
	g := e.Guard(v.Name, v.MAC)
	g.Open, g.LAN = n.EndpointOpt(e, "antispoof") != "true", hostOwned(n) || isRouter(n, e)
	return g
}

// static says what the bridge learns from an endpoint's port: nothing, if it is bound to its hardware address.
func static(n modes.Network, e modes.Endpoint) kbridge.StaticPort {
	g := guard(n, e)
	return kbridge.StaticPort{Link: g.Port, MAC: g.MAC, Open: g.Open, Flooded: hostOwned(n)}
}

func limits(n modes.Network, e modes.Endpoint) kbridge.Limits {
	l := kbridge.Limits{
		Link: core.Name(core.VethPrefix, e.ID), Shaper: core.Name(core.ShaperPrefix, e.ID), Alias: core.Alias(n.ID, e.ID), MTU: mtu(n),
	}
	l.Ingress, l.Egress = n.Limits(e)
	return l
}

// ports are the elements that give ports of the host to an endpoint.
func ports(n modes.Network, e modes.Endpoint) (objects []core.Object) {
	if n.Internal {
		objects = e.Redirects()
	}
	for _, p := range e.Ports {
		if p.Routed && !n.Internal {
			for _, el := range (kports.OpenPort{Proto: p.Proto, Addr: p.HostIP, Port: p.HostPort, Count: p.Count}).Elements() {
				objects = append(objects, el.For(e.ID))
			}
		}
	}
	return append(objects, e.Published()...)
}

// Publishes: containers on a bridge of the host's owner are on the LAN themselves.
func (mode) Publishes(n modes.Network) error {
	if hostOwned(n) {
		return fmt.Errorf("containers on the host's bridge %s have addresses of its LAN, and ports of their own", name(n))
	}
	return nil
}

// LAN: only a bridge of the host's owner leads anywhere.
func (mode) LAN(n modes.Network) (dhcp.LANPort, error) {
	if !hostOwned(n) {
		return dhcp.LANPort{}, fmt.Errorf("bridge %s is netyard's own and leads to no LAN; name one of the host's with -o com.docker.network.bridge.name", name(n))
	}
	return dhcp.LANPort{Kind: "bridge", Parent: name(n)}, nil
}

// Redirects: nothing gets into an internal network, so its containers' ports are for each other.
func (mode) Redirects(n modes.Network) bool { return n.Internal && !hostOwned(n) }

// Both: not even by the host.
func (mode) Both(modes.Network) bool { return false }

func (mode) Binds(n modes.Network) []netip.Addr { return n.OptAddrs("bind") }

// MAC is the same whenever the address comes back.
func (mode) MAC(_ modes.Network, e modes.Endpoint) string { return e.StableMAC().String() }

func networkObjects(n modes.Network) []core.Object {
	br := name(n)
	if hostOwned(n) {
		return []core.Object{kbridge.HostBridge{Name: br}, beside.Bypass{In: br, Out: br, Network: modes.Short(n.ID)}}
	}
	var objects []core.Object
	bridge := kbridge.Bridge{Name: br, Alias: core.Alias(n.ID, ""), MTU: mtu(n), MAC: modes.LocalMAC(n.ID), Promisc: n.OptBool("promisc")}
	var rest []core.Object
	for _, s := range n.Subnets {
		bridge.IPv6 = bridge.IPv6 || s.Pool.Addr().Is6() && !isolated(n, true)
		if hostHas(n, s) {
			rest = append(rest, core.Addr{Link: br, Alias: bridge.Alias, Prefix: s.Gateway})
		}
		rest = append(rest, leaveAs(n, s)...)
	}
	objects = append(append(objects, bridge), rest...)
	if n.Opt("bridge") != "" {
		objects = append(objects, beside.Bypass{In: br, Network: modes.Short(n.ID)}, beside.Bypass{Out: br, Network: modes.Short(n.ID)})
	}
	objects = append(objects, nft.InterfaceIn(kbridge.Bridges, br).For(n.ID), nft.InterfaceIn(kbridge.Own, br, br).For(n.ID))
	if n.Opt("publish_from") != "" {
		subnets, interfaces := n.OptSources("publish_from")
		for _, el := range kports.ClosedBut(br, subnets, interfaces) {
			objects = append(objects, el.For(n.ID))
		}
	}
	objects = append(objects, gatewayObjects(n)...)
	if n.Internal {
		objects = append(objects, nft.InterfaceIn(kbridge.Internal, br).For(n.ID))
	}
	if n.OptBool("icc") {
		objects = append(objects, nft.InterfaceIn(kbridge.Talk, br, br).For(n.ID))
	}
	return objects
}

func forwarding(n modes.Network) (objects []core.Object) {
	v4, v6 := n.Families()
	if v4 {
		objects = append(objects, beside.Forwarding{})
	}
	if v6 {
		objects = append(objects, beside.Forwarding{IPv6: true})
	}
	return objects
}

// peer is the name of the inner end while it waits to be moved in; one that is made inside has its name from the
// beginning.
func peer(e modes.Endpoint) string {
	if e.Into > 0 {
		return e.IfName
	}
	return core.Name(core.PeerPrefix, e.ID)
}

func veth(n modes.Network, e modes.Endpoint) kbridge.Veth {
	mac, err := net.ParseMAC(e.MAC)
	if err != nil {
		mac = modes.LocalMAC(e.ID)
	}
	return kbridge.Veth{
		Name: core.Name(core.VethPrefix, e.ID), Peer: peer(e), PeerNS: e.Into, Alias: core.Alias(n.ID, e.ID),
		Master: name(n), MTU: mtu(n), MAC: mac, Isolated: !n.OptBool("icc"), Hairpin: len(e.Ports) > 0 && !n.Internal,
	}
}
