// Package overlay is the mode of networks that span hosts: each has a bridge, and VXLAN connects them. The hosts learn
// of endpoints from a cluster in etcd; nothing is learned from traffic, and nothing is flooded. Traffic to the outside
// leaves by the container's own host.
package overlay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"

	kbridge "netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/kernel/overlay"
	"netyard/kernel/ports"
	"netyard/modes"
	"netyard/modes/internal/bridged"
)

// What is decided when the network is created, and stays. VXLAN's port is among it, since a host that has left the
// cluster still keeps the network closed.
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

	// usualPort is VXLAN's (RFC 7348, section 5), for networks that were made before their port was recorded.
	usualPort = 4789
)

type mode struct{ fabric modes.Fabric }

// New makes the mode.
func New(e modes.Env) modes.Mode { return mode{e.Fabric} }

func (mode) Options() []modes.Option {
	return []modes.Option{encrypted.Row(), name.Row(), modes.IfacePrefix.Row(), modes.Masquerade.Row(), modes.MTU.Row()}
}

// Settle finds the network in the cluster, or creates it there as its first host asks for it.
func (m mode) Settle(
	ctx context.Context, f modes.Facts, n modes.Network, others []modes.Network,
) (map[string]string, error) {
	if err := m.check(n); err != nil || n.Phase == modes.Ready {
		return n.Settled, err
	}
	for _, s := range n.Subnets {
		if err := bridged.CheckFree(f, s, bridged.Name(n)); err != nil {
			return nil, err
		}
	}
	o, err := m.find(ctx, n)
	if err != nil {
		return nil, err
	}
	for _, other := range others { // the kernel allows one device per VNI
		if other.ID != n.ID && other.Mode == n.Mode && other.Settled[settledID] == o.ID {
			return nil, name.Row().Refuse(n, "it is on this host already, as network %s", modes.Short(other.ID))
		}
	}
	settled := map[string]string{
		settledID: o.ID, settledVNI: strconv.FormatUint(uint64(o.VNI), 10), settledMTU: strconv.Itoa(o.MTU),
		settledPort: strconv.Itoa(int(m.fabric.Host().Port)),
	}
	if o.Encrypted {
		settled[settledEncrypted] = "true"
	}
	return settled, nil
}

func (m mode) check(n modes.Network) error {
	if m.fabric == nil {
		return fmt.Errorf("mode overlay: %w", modes.ErrNoCluster)
	}
	if name.Of(n) == "" {
		return modes.Refuse("overlay: name the network in the cluster, as -o overlay=blue")
	}
	if len(n.Subnets) == 0 {
		return errors.New("mode overlay: the network has no subnet: " +
			"add --ipam-driver netyard-overlay --ipam-opt overlay=NAME")
	}
	for _, s := range n.Subnets {
		if !s.Gateway.IsValid() || !s.Pool.Contains(s.Gateway.Addr()) {
			return fmt.Errorf("subnet %s: it needs a gateway inside it", s.Pool)
		}
	}
	if encrypted.Of(n) {
		if err := m.encrypts(); err != nil {
			return modes.Refuse("encrypted=true: %w", err)
		}
	}
	return m.fits(n)
}

// encrypts says why the host cannot have an encrypted network.
func (m mode) encrypts() error {
	h := m.fabric.Host()
	if h.Clear != nil {
		return h.Clear
	}
	if inside := h.TunnelMTU(); inside < modes.MinIPv6MTU {
		return fmt.Errorf(
			"the link to the other hosts carries %d, which leaves %d inside WireGuard; IPv6 needs at least %d",
			h.MTU, inside, modes.MinIPv6MTU)
	}
	return nil
}

// fits refuses an MTU that is too large for the host's link to the others, or too small for IPv6.
func (m mode) fits(n modes.Network) error {
	mtu, most := m.wanted(n), m.most(encrypted.Of(n))
	if mtu > most {
		return modes.MTURefusal(mtu, "at most %d fits: the link's MTU %d less %s",
			most, m.fabric.Host().MTU, headers(encrypted.Of(n)))
	}
	return n.CheckMTU(mtu)
}

// wanted returns the MTU with which this host would create a network.
func (m mode) wanted(n modes.Network) int {
	if n.Options[modes.MTU.Name] != "" {
		return modes.MTU.Of(n)
	}
	return m.most(encrypted.Of(n))
}

// most returns the largest MTU of a network that fits between the hosts; inside: within WireGuard.
func (m mode) most(inside bool) int {
	h := m.fabric.Host()
	switch {
	case inside: // WireGuard, which is IPv6
		return h.TunnelMTU() - overhead6
	case h.VTEP.Is6():
		return h.MTU - overhead6
	}
	return h.MTU - overhead4
}

// headers names what encapsulation adds to a packet.
func headers(inside bool) string {
	if inside {
		return "the VXLAN and WireGuard headers"
	}
	return "the VXLAN header"
}

// find returns the network of the cluster, and refuses one that differs from what was requested.
func (m mode) find(ctx context.Context, n modes.Network) (o modes.Overlay, err error) {
	o, err = m.fabric.Find(ctx, modes.Overlay{
		Name: name.Of(n), Internal: n.Internal, Encrypted: encrypted.Of(n), Subnets: n.Subnets, MTU: m.wanted(n),
	})
	if err != nil {
		return o, err
	}
	if n.Options[modes.MTU.Name] != "" && o.MTU != m.wanted(n) {
		return o, modes.MTU.Row().Refuse(n, "network %s of the cluster has %d", o.Name, o.MTU)
	}
	if modes.Option(encrypted).Of(n) != "" && o.Encrypted != encrypted.Of(n) {
		return o, encrypted.Row().Refuse(n, "network %s of the cluster has encrypted=%t", o.Name, o.Encrypted)
	}
	if o.Encrypted {
		if err := m.encrypts(); err != nil {
			return o, fmt.Errorf("network %s of the cluster is encrypted: %w", o.Name, err)
		}
	}
	if most := m.most(o.Encrypted); o.MTU > most {
		return o, fmt.Errorf(
			"network %s of the cluster has MTU %d, but on this host at most %d fits: the link's MTU %d less %s",
			o.Name, o.MTU, most, m.fabric.Host().MTU, headers(o.Encrypted))
	}
	return o, nil
}

// of returns the cluster's network that a network belongs to, from what was decided when it was created.
func of(n modes.Network) modes.Overlay {
	vni, _ := strconv.ParseUint(n.Settled[settledVNI], 10, 32)
	return modes.Overlay{
		ID: n.Settled[settledID], Name: name.Of(n), VNI: uint32(vni), MTU: mtu(n), Internal: n.Internal,
		Subnets: n.Subnets, Encrypted: n.Settled[settledEncrypted] == "true",
	}
}

func mtu(n modes.Network) int {
	mtu, _ := strconv.Atoi(n.Settled[settledMTU])
	return mtu
}

// Traits says that policies apply, since all traffic to a container passes its port of the bridge, and that ports are
// published on the container's host.
func (mode) Traits(n modes.Network) modes.Traits {
	o := of(n)
	return modes.Traits{MAC: modes.MACDerived, Policed: true, Publish: modes.Publishing{OnHost: true}, Cluster: &o}
}

// mac returns the MAC of the bridge. It differs between hosts, since hosts reach containers on other hosts by it. It
// stays when the host's address changes, since containers know it as their gateway's.
func mac(o modes.Overlay, host modes.OverlayHost) net.HardwareAddr {
	return modes.LocalMAC(o.ID + host.ID)
}

// closed returns the elements that drop frames of the network that did not come from its VXLAN device, and all incoming
// ones; of an encrypted network also all in clear text. The Fabric opens it for the other members.
func (m mode) closed(n modes.Network) []core.Object {
	o := of(n)
	if o.ID == "" {
		return nil
	}
	elements := overlay.CloseElements
	if o.Encrypted {
		elements = overlay.EncryptElements
	}
	return bridged.Owned(n, elements(m.port(n), o.VNI)...)
}

// port returns the VXLAN port at the time when the network was created.
func (m mode) port(n modes.Network) uint16 {
	if port, err := strconv.ParseUint(n.Settled[settledPort], 10, 16); err == nil {
		return uint16(port)
	}
	if m.fabric != nil {
		return m.fabric.Host().Port
	}
	return usualPort
}

// Objects returns first the elements that keep the network closed, so that they exist before anything can leak. A host
// that has left the cluster knows only the names of the links, to remove them.
func (m mode) Objects(n modes.Network) []core.Object {
	o, alias := of(n), core.Alias(n.ID, "")
	bridge := kbridge.Bridge{Name: bridged.Name(n), Alias: alias}
	vxlan := overlay.VXLAN{Name: core.Name(core.VXLANPrefix, n.ID), Alias: alias}
	if m.fabric == nil || o.ID == "" {
		return append(m.closed(n), bridge, vxlan)
	}
	host := m.fabric.Host()
	_, bridge.IPv6 = n.Families()
	bridge.MTU, bridge.MAC = o.MTU, mac(o, host)
	vxlan.Master, vxlan.VNI, vxlan.Local, vxlan.Port, vxlan.MTU = bridge.Name, o.VNI, host.VTEP, host.Port, o.MTU
	if o.Encrypted {
		vxlan.Local = host.Tunnel
	}
	objects := append(m.closed(n), bridge)
	for _, s := range n.Subnets {
		objects = append(objects, overlay.Anycast{Link: bridge.Name, Alias: alias, Addr: s.Gateway.Addr()})
		names := ports.RedirectPort(s.Gateway.Addr(), modes.DNSPort, modes.NamesPort)
		objects = append(objects, bridged.Owned(n, names...)...)
		if !n.Internal && modes.Masquerade.Of(n) {
			objects = append(objects, bridged.NAT(n, s)...)
		}
	}
	zone := bridged.Zone{Bridge: bridge.Name, Internal: n.Internal, ICC: true}
	return slices.Concat(objects, []core.Object{vxlan}, zone.Objects(n))
}

// Place always guards the port, since the other hosts trust what comes from this one. A fenced endpoint is no port of
// the bridge and has no published ports, since its address belongs to another host.
func (mode) Place(n modes.Network, e modes.Endpoint) (objects []core.Object, link modes.Link) {
	if !n.Internal {
		objects = bridged.Forwarding(n)
	}
	v := bridged.Veth(n, e, bridged.Name(n), mtu(n))
	v.Hairpin, v.Fenced = len(e.Ports) > 0, e.Fenced != ""
	objects = append(objects, bridged.Port(e, v)...)
	if !v.Fenced {
		objects = append(objects, e.Published()...)
	}
	link = n.Link(e, v.Peer, v.MTU)
	link.Gateways = n.Gateways(e)
	return objects, link
}
