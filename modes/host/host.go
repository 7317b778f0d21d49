// Package host is the mode of containers that share the host's addresses: what they listen on, the host listens on, and
// what leaves them leaves as the host's. It is not the host's network namespace, which no driver can give. With device=
// the one container of the network gets a whole card of the host instead.
package host

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"netyard/kernel"
	"netyard/kernel/bridge"
	"netyard/kernel/core"
	kdevice "netyard/kernel/device"
	"netyard/modes"
)

// keptDevice is the key under which it is kept what the card was like.
const keptDevice = "device"

type mode struct{ k *kernel.Kernel }

// New makes the mode.
func New(e modes.Env) (modes.Mode, error) { return mode{e.Kernel}, nil }

// device is the card that the network is about; empty for one that shares the host's addresses.
func device(n modes.Network) string { return n.Opt("device") }

func (mode) Check(n modes.Network) error {
	if n.OptBool("strict") {
		return fmt.Errorf("%w: strict=true: no network driver can put a container into the host's network namespace; use docker run --network host", modes.ErrOption)
	}
	if dev := device(n); dev != "" {
		for _, name := range []string{"exclude", "include", "mtu"} {
			if v, said := n.Options[name]; said {
				return fmt.Errorf("%w: %s=%s contradicts device=%s: the container has the whole card to itself", modes.ErrOption, name, v, dev)
			}
		}
		return nil
	}
	if n.Internal {
		return fmt.Errorf("%w: --internal contradicts mode host, whose containers share the host's addresses", modes.ErrOption)
	}
	return checkLink(n)
}

// Settle only looks: a card that cannot be had is refused when somebody is there to read it.
func (m mode) Settle(_ context.Context, n modes.Network) (map[string]string, error) {
	if dev := device(n); dev != "" {
		if _, err := kdevice.StateOf(m.k.Handle, dev); err != nil {
			return nil, fmt.Errorf("%w: device=%s: %w", modes.ErrOption, dev, err)
		}
		return nil, nil
	}
	for _, s := range n.Subnets {
		if link, other, err := m.k.Occupant(s.Pool, bridgeOf(n)); err != nil {
			return nil, err
		} else if link != "" {
			return nil, fmt.Errorf("subnet %s overlaps %s on the host's link %s", s.Pool, other, link)
		}
	}
	return nil, nil
}

func (m mode) Up(ctx context.Context, n modes.Network) error {
	return m.k.Ensure(ctx, networkObjects(n)...)
}

func (m mode) Down(_ context.Context, n modes.Network) error { return m.k.Remove(networkObjects(n)...) }

func (m mode) Attach(ctx context.Context, n modes.Network, e modes.Endpoint) (modes.Link, error) {
	if err := m.k.Ensure(ctx, endpointObjects(n, e)...); err != nil {
		return modes.Link{}, err
	}
	l := modes.Link{SrcName: device(n), DstPrefix: n.Opt("iface_prefix"), Gateways: gateways(n, e)}
	if l.SrcName == "" {
		l.SrcName, l.MTU = core.Name(core.PeerPrefix, e.ID), n.OptInt("mtu")
	}
	if e.IfName != "" {
		l.DstPrefix, l.DstName = strings.TrimRight(e.IfName, "0123456789"), e.IfName
	}
	return l, nil
}

func (m mode) Detach(_ context.Context, n modes.Network, e modes.Endpoint) error {
	if device(n) != "" {
		return m.k.Remove(card(n, e))
	}
	return m.k.Remove(slices.Concat(e.Published(), guard(n, e), []core.Object{veth(n, e)})...)
}

func (mode) Objects(n modes.Network, es []modes.Endpoint) []core.Object {
	objects := networkObjects(n)
	for _, e := range es {
		objects = append(objects, endpointObjects(n, e)...)
	}
	return objects
}

func networkObjects(n modes.Network) []core.Object {
	if device(n) != "" {
		return nil
	}
	return linkObjects(n)
}

func endpointObjects(n modes.Network, e modes.Endpoint) []core.Object {
	if device(n) != "" {
		return []core.Object{card(n, e)}
	}
	v := veth(n, e)
	return slices.Concat(forwarding(n), []core.Object{v, bridge.StaticPort{Link: v.Name, MAC: v.MAC}}, guard(n, e), e.Published())
}

// MAC is derived from the address, as that of a bridge's containers; a card has its own.
func (mode) MAC(n modes.Network, e modes.Endpoint) string {
	if device(n) != "" {
		return ""
	}
	return e.StableMAC().String()
}

// Policed: what shares the host's addresses comes by the host's firewall. A card's packets do not.
func (mode) Policed(n modes.Network) bool { return device(n) == "" }

// Publishes: a container with a card has the ports of its own addresses. One that shares the host's needs none
// published, see Shares.
func (mode) Publishes(n modes.Network) error {
	if dev := device(n); dev != "" {
		return fmt.Errorf("a container with the card %s has addresses and ports of its own", dev)
	}
	return nil
}

func (mode) Binds(modes.Network) []netip.Addr { return nil }

// Keep notes what the card is like, and refuses one that another container has.
func (m mode) Keep(_ context.Context, n modes.Network, _ modes.Endpoint, others []modes.Endpoint) (map[string]string, error) {
	dev := device(n)
	if dev == "" {
		return nil, nil
	}
	if len(others) > 0 {
		who := "endpoint " + modes.Short(others[0].ID)
		if name := others[0].Container.Name; name != "" {
			who = "container " + name
		}
		return nil, fmt.Errorf("take device %s: %s has it", dev, who)
	}
	st, err := kdevice.StateOf(m.k.Handle, dev)
	if err != nil {
		return nil, fmt.Errorf("take device %s: %w", dev, err)
	}
	text, err := json.Marshal(st)
	if err != nil {
		return nil, fmt.Errorf("note what device %s is like: %w", dev, err)
	}
	return map[string]string{keptDevice: string(text)}, nil
}

// card is the object of an endpoint that has one.
func card(n modes.Network, e modes.Endpoint) kdevice.Device {
	d := kdevice.Device{Name: device(n), Network: n.ID, Endpoint: e.ID, Sandbox: e.Sandbox}
	if text := e.Kept[keptDevice]; text != "" {
		d.Noted = json.Unmarshal([]byte(text), &d.Was) == nil
	}
	return d
}
