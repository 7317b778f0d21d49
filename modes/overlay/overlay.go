// Package overlay is the mode of networks that are on several hosts: a bridge on each, and between them VXLAN, told of
// every endpoint by a cluster in etcd. Nothing is learned and nothing is flooded. What leaves the network leaves by the
// host that the container is on.
package overlay

import (
	"context"
	"errors"
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
	"netyard/kernel/nft"
	"netyard/kernel/overlay"
	"netyard/kernel/ports"
	"netyard/kernel/rule"
	"netyard/modes"
)

// What was decided when the network was created, and stays: which network of the cluster it is, and VXLAN's port: what
// keeps the network closed has to be known on a host that is in no cluster any more.
const (
	settledID        = "overlay_id"
	settledVNI       = "vni"
	settledMTU       = "mtu"
	settledEncrypted = "encrypted"
	settledPort      = "port"
)

const (
	// What VXLAN adds to a packet: Ethernet, VXLAN, UDP, and IPv4 or IPv6 (RFC 7348, section 5).
	overhead4, overhead6 = 50, 70
	minIPv6MTU           = 1280 // RFC 8200, section 5

	// usualPort is VXLAN's (RFC 7348, section 5), for networks that were made before their port was recorded.
	usualPort = 4789
)

type mode struct {
	k *kernel.Kernel
	f modes.Fabric
}

// New makes the mode.
func New(e modes.Env) (modes.Mode, error) { return mode{e.Kernel, e.Fabric}, nil }

func (m mode) Check(n modes.Network) error {
	if m.f == nil {
		return fmt.Errorf("mode overlay: %w", modes.ErrNoCluster)
	}
	if n.Opt("overlay") == "" {
		return fmt.Errorf("%w: overlay: say the network's name in the cluster, as -o overlay=blue", modes.ErrOption)
	}
	if len(n.Subnets) == 0 {
		return errors.New("mode overlay: the network has no subnet; its addresses are the cluster's, by --ipam-driver netyard-overlay --ipam-opt overlay=NAME")
	}
	for _, s := range n.Subnets {
		if !s.Gateway.IsValid() || !s.Pool.Contains(s.Gateway.Addr()) {
			return fmt.Errorf("subnet %s: its gateway has to be in it", s.Pool)
		}
	}
	if n.OptBool("encrypted") {
		if err := m.encrypts(); err != nil {
			return fmt.Errorf("%w: encrypted=true: %w", modes.ErrOption, err)
		}
	}
	return m.fits(n, n.Options["mtu"])
}

// encrypts says why the host cannot have an encrypted network.
func (m mode) encrypts() error {
	h := m.f.Host()
	if h.Clear != nil {
		return h.Clear
	}
	if inside := h.TunnelMTU(); inside < minIPv6MTU {
		return fmt.Errorf("the link to the other hosts carries %d, less what WireGuard adds: %d, and IPv6, which is inside, needs at least %d", h.MTU, inside, minIPv6MTU)
	}
	return nil
}

// fits refuses an MTU that the host's link to the others cannot carry, or IPv6 not be on.
func (m mode) fits(n modes.Network, said string) error {
	encrypted := n.OptBool("encrypted")
	most := m.most(encrypted)
	mtu := most
	if said != "" {
		mtu, _ = strconv.Atoi(said) // Resolve let only numbers in
	}
	if mtu > most {
		return fmt.Errorf("%w: mtu=%d: the link to the other hosts carries %d, less what %s: %d", modes.ErrOption, mtu, m.f.Host().MTU, adds(encrypted), most)
	}
	if _, v6 := n.Families(); v6 && mtu < minIPv6MTU {
		return fmt.Errorf("%w: mtu=%d: IPv6 needs at least %d", modes.ErrOption, mtu, minIPv6MTU)
	}
	return nil
}

// most is the largest packet that fits between the hosts.
func (m mode) most(encrypted bool) int {
	h := m.f.Host()
	switch {
	case encrypted: // inside WireGuard it is IPv6
		return h.TunnelMTU() - overhead6
	case h.VTEP.Is6():
		return h.MTU - overhead6
	}
	return h.MTU - overhead4
}

// adds is who makes packets larger, for people.
func adds(encrypted bool) string {
	if encrypted {
		return "VXLAN and WireGuard add"
	}
	return "VXLAN adds"
}

// Settle finds the network in the cluster, or makes it as the first of its hosts asks for it.
func (m mode) Settle(ctx context.Context, n modes.Network) (map[string]string, error) {
	if err := m.apart(n); err != nil {
		return nil, err
	}
	encrypted := n.OptBool("encrypted") // of the network as this host would make it
	want := modes.Overlay{Name: n.Opt("overlay"), Internal: n.Internal, Encrypted: encrypted, Subnets: n.Subnets, MTU: m.most(encrypted)}
	if said := n.Options["mtu"]; said != "" {
		want.MTU, _ = strconv.Atoi(said) // Resolve let only numbers in
	}
	o, err := m.f.Find(ctx, want)
	if err != nil {
		return nil, err
	}
	if said := n.Options["mtu"]; said != "" && o.MTU != want.MTU {
		return nil, fmt.Errorf("%w: mtu=%s: network %s of the cluster has %d", modes.ErrOption, said, o.Name, o.MTU)
	}
	if said := n.Opt("encrypted"); said != "" && o.Encrypted != encrypted {
		return nil, fmt.Errorf("%w: encrypted=%s: network %s of the cluster has encrypted=%t", modes.ErrOption, said, o.Name, o.Encrypted)
	}
	if o.Encrypted {
		if err := m.encrypts(); err != nil {
			return nil, fmt.Errorf("network %s of the cluster is encrypted: %w", o.Name, err)
		}
	}
	if most := m.most(o.Encrypted); o.MTU > most {
		return nil, fmt.Errorf("network %s of the cluster has MTU %d, and this host's link to the others carries %d, less what %s: %d", o.Name, o.MTU, m.f.Host().MTU, adds(o.Encrypted), most)
	}
	settled := map[string]string{
		settledID: o.ID, settledVNI: strconv.FormatUint(uint64(o.VNI), 10), settledMTU: strconv.Itoa(o.MTU),
		settledPort: strconv.Itoa(int(m.f.Host().Port)),
	}
	if o.Encrypted {
		settled[settledEncrypted] = "true"
	}
	return settled, nil
}

// apart refuses a subnet that the host has an address in: its routes could not tell the two apart.
func (m mode) apart(n modes.Network) error {
	for _, s := range n.Subnets {
		link, other, err := m.k.Occupant(s.Pool, bridge(n))
		if err != nil {
			return err
		}
		if link != "" {
			return fmt.Errorf("subnet %s overlaps %s on the host's link %s", s.Pool, other, link)
		}
	}
	return nil
}

// Share refuses a second network of this host for the same one of the cluster: a VXLAN number is one device's.
func (mode) Share(n modes.Network, others []modes.Network) error {
	for _, o := range others {
		if o.ID != n.ID && o.Mode == n.Mode && o.Settled[settledID] == n.Settled[settledID] {
			return fmt.Errorf("%w: overlay=%s: it is on this host already, as network %s", modes.ErrOption, n.Opt("overlay"), modes.Short(o.ID))
		}
	}
	return nil
}

// of is the network of the cluster that a network was found to be.
func of(n modes.Network) modes.Overlay {
	vni, _ := strconv.ParseUint(n.Settled[settledVNI], 10, 32)
	return modes.Overlay{
		ID: n.Settled[settledID], Name: n.Opt("overlay"), VNI: uint32(vni), MTU: mtu(n), Internal: n.Internal, Subnets: n.Subnets,
		Encrypted: n.Settled[settledEncrypted] == "true",
	}
}

// Claimed is the network of the cluster.
func (mode) Claimed(n modes.Network) modes.Overlay { return of(n) }

func mtu(n modes.Network) int {
	mtu, _ := strconv.Atoi(n.Settled[settledMTU])
	return mtu
}

func bridge(n modes.Network) string { return core.Name(core.BridgePrefix, n.ID) }

// mac is the bridge's own on each host: by it the hosts reach containers elsewhere. It stays when the host's address
// changes: its containers know it as their gateway's.
func (m mode) mac(n modes.Network) net.HardwareAddr {
	return modes.LocalMAC(n.Settled[settledID] + m.f.Host().ID)
}

func (m mode) link(n modes.Network) modes.OverlayLink {
	return modes.OverlayLink{
		Bridge: bridge(n), VXLAN: core.Name(core.VXLANPrefix, n.ID), Alias: core.Alias(n.ID, ""), MAC: m.mac(n).String(),
	}
}

// Up lets nothing in before the Fabric has said from whom: frames of a number are let in only from its hosts.
func (m mode) Up(ctx context.Context, n modes.Network) error {
	if err := m.k.Ensure(ctx, m.closed(n)...); err != nil { // before there is anything that could leak
		return err
	}
	if m.f == nil {
		return fmt.Errorf("network %s: %w", n.Opt("overlay"), modes.ErrNoCluster)
	}
	if err := m.k.Ensure(ctx, m.networkObjects(n)...); err != nil {
		return err
	}
	return m.f.Up(of(n), m.link(n))
}

func (m mode) Down(_ context.Context, n modes.Network) error {
	var err error
	if m.f == nil || n.Settled[settledID] == "" {
		err = m.k.Remove(m.ownLinks(n)...)
	} else {
		err = errors.Join(m.f.Down(of(n)), m.k.Remove(m.networkObjects(n)...))
	}
	if err != nil { // something may still be there
		return err
	}
	return m.k.Remove(m.closed(n)...)
}

// closed has no frame of the network leave but those that its VXLAN device made, and none come in; those of an
// encrypted one also not in clear. Whom it is open for says the Fabric.
func (m mode) closed(n modes.Network) (objects []core.Object) {
	o := of(n)
	if o.ID == "" {
		return nil
	}
	elements := overlay.Closed
	if o.Encrypted {
		elements = overlay.Encrypted
	}
	for _, e := range elements(m.port(n), o.VNI) {
		objects = append(objects, e.For(n.ID))
	}
	return objects
}

// port is the one that VXLAN had when the network was made.
func (m mode) port(n modes.Network) uint16 {
	if port, err := strconv.ParseUint(n.Settled[settledPort], 10, 16); err == nil {
		return uint16(port)
	}
	if m.f != nil {
		return m.f.Host().Port
	}
	return usualPort
}

func (m mode) Attach(ctx context.Context, n modes.Network, e modes.Endpoint) (modes.Link, error) {
	if m.f == nil {
		return modes.Link{}, fmt.Errorf("network %s: %w", n.Opt("overlay"), modes.ErrNoCluster)
	}
	if err := m.k.Ensure(ctx, endpointObjects(n, e)...); err != nil {
		return modes.Link{}, err
	}
	if e.Fenced == "" {
		if err := m.f.Attach(of(n), e); err != nil {
			return modes.Link{}, err
		}
	}
	l := modes.Link{SrcName: peer(e), DstPrefix: n.Opt("iface_prefix"), MTU: mtu(n), Gateways: n.Gateways(e)}
	if e.IfName != "" {
		l.DstPrefix, l.DstName = strings.TrimRight(e.IfName, "0123456789"), e.IfName
	}
	return l, nil
}

func (m mode) Detach(_ context.Context, n modes.Network, e modes.Endpoint) error {
	var err error
	if m.f != nil && n.Settled[settledID] != "" {
		err = m.f.Detach(of(n), e)
	}
	return errors.Join(err, m.k.Remove(slices.Concat(e.Published(), guard(n, e), []core.Object{veth(n, e)})...))
}

func (m mode) Objects(n modes.Network, es []modes.Endpoint) []core.Object {
	if m.f == nil {
		return append(m.closed(n), m.ownLinks(n)...)
	}
	objects := slices.Concat(m.closed(n), m.networkObjects(n), m.f.Objects(of(n)))
	for _, e := range es {
		objects = append(objects, endpointObjects(n, e)...)
	}
	return objects
}

// MAC is the same whenever the address comes back.
func (mode) MAC(_ modes.Network, e modes.Endpoint) string { return e.StableMAC().String() }

// Policed: what gets to a container of this host comes by its port, wherever it is from.
func (mode) Policed(modes.Network) bool { return true }

// Publishes: ports are published on the host that the container is on.
func (mode) Publishes(modes.Network) error { return nil }

// Binds: on all of its addresses, unless -p names one.
func (mode) Binds(modes.Network) []netip.Addr { return nil }

// ownLinks are the links alone, to be taken away by a host that is in no cluster any more.
func (mode) ownLinks(n modes.Network) []core.Object {
	alias := core.Alias(n.ID, "")
	return []core.Object{kbridge.Bridge{Name: bridge(n), Alias: alias}, overlay.VXLAN{Name: core.Name(core.VXLANPrefix, n.ID), Alias: alias}}
}

func (m mode) networkObjects(n modes.Network) []core.Object {
	br, l, host := bridge(n), m.link(n), m.f.Host()
	local := host.VTEP
	if of(n).Encrypted {
		local = host.Tunnel
	}
	b := kbridge.Bridge{Name: br, Alias: l.Alias, MTU: mtu(n), MAC: m.mac(n)}
	var rest []core.Object
	for _, s := range n.Subnets {
		v6 := s.Pool.Addr().Is6()
		b.IPv6 = b.IPv6 || v6
		rest = append(rest, overlay.Anycast{Link: br, Alias: l.Alias, Addr: s.Gateway.Addr()})
		for _, e := range ports.AnswerAt(s.Gateway.Addr(), modes.DNSPort, modes.NamesPort) {
			rest = append(rest, e.For(n.ID))
		}
		if !n.Internal && n.OptBool("masquerade") {
			rest = append(rest, nft.SubnetIn(natSet(v6), s.Pool).For(n.ID))
		}
	}
	rest = append(rest,
		overlay.VXLAN{Name: l.VXLAN, Alias: l.Alias, Master: br, VNI: of(n).VNI, Local: local, Port: host.Port, MTU: mtu(n)},
		nft.InterfaceIn(kbridge.Bridges, br).For(n.ID), nft.InterfaceIn(kbridge.Own, br, br).For(n.ID), nft.InterfaceIn(kbridge.Talk, br, br).For(n.ID))
	if n.Internal {
		rest = append(rest, nft.InterfaceIn(kbridge.Internal, br).For(n.ID))
	}
	return append([]core.Object{b}, rest...)
}

func natSet(v6 bool) rule.SetName {
	if v6 {
		return kbridge.NAT6
	}
	return kbridge.NAT4
}

// endpointObjects are, as of a bridge network, the link and forwarding while anybody needs it; and the port learns
// nothing. One that is fenced has neither a port nor ports: its address is another host's.
func endpointObjects(n modes.Network, e modes.Endpoint) (objects []core.Object) {
	if !n.Internal {
		v4, v6 := n.Families()
		if v4 {
			objects = append(objects, beside.Forwarding{})
		}
		if v6 {
			objects = append(objects, beside.Forwarding{IPv6: true})
		}
	}
	v := veth(n, e)
	if v.Fenced {
		return slices.Concat(objects, []core.Object{v}, guard(n, e))
	}
	return slices.Concat(objects, []core.Object{v, kbridge.StaticPort{Link: v.Name, MAC: v.MAC}}, guard(n, e), e.Published())
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
		mac = e.StableMAC()
	}
	return kbridge.Veth{
		Name: core.Name(core.VethPrefix, e.ID), Peer: peer(e), PeerNS: e.Into, Alias: core.Alias(n.ID, e.ID),
		Master: bridge(n), MTU: mtu(n), MAC: mac, Hairpin: len(e.Ports) > 0, Fenced: e.Fenced != "",
	}
}

// guard binds the port to what the endpoint was given. There is no way around it: the other hosts believe what comes
// from this one.
func guard(n modes.Network, e modes.Endpoint) []core.Object {
	v := veth(n, e)
	return e.Guard(v.Name, v.MAC).Objects()
}
