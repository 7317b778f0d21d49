// Package host is the mode of containers that share the host's addresses: the ports they listen on become the host's,
// and their traffic leaves with the host's address. It is not the host's network namespace, which no driver can give.
// With device=, the network's one container gets a network card of the host instead.
package host

import (
	"context"
	"errors"
	"fmt"
	"slices"

	kbridge "netyard/kernel/bridge"
	"netyard/kernel/core"
	kdevice "netyard/kernel/device"
	"netyard/modes"
	"netyard/modes/internal/bridged"
)

type mode struct{}

// New makes the mode.
func New(modes.Env) modes.Mode { return mode{} }

func (mode) Options() []modes.Option {
	return []modes.Option{
		device.Row(), exclude.Row(), include.Row(), strict.Row(), modes.IfacePrefix.Row(), modes.MTU.Row(),
	}
}

// Settle decides nothing. It refuses a card that no container can have when the network is created, not only when a
// container starts.
func (mode) Settle(_ context.Context, f modes.Facts, n modes.Network, _ []modes.Network) (map[string]string, error) {
	if err := check(n); err != nil || n.Phase == modes.Ready {
		return n.Settled, err
	}
	if dev := device.Of(n); dev != "" {
		if _, err := f.Device(dev); err != nil {
			return nil, modes.Refuse("device=%s: %w", dev, err)
		}
		return nil, nil
	}
	for _, s := range n.Subnets {
		if err := bridged.CheckFree(f, s, bridged.Name(n)); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

func check(n modes.Network) error {
	if strict.Of(n) {
		return strict.Row().Refuse(n,
			"no network driver can put a container into the host's network namespace; use docker run --network host")
	}
	if dev := device.Of(n); dev != "" {
		for _, name := range []string{exclude.Name, include.Name, modes.MTU.Name} {
			if v, given := n.Options[name]; given {
				return modes.Refuse("%s=%s contradicts device=%s: the container has the whole card",
					name, v, dev)
			}
		}
		return nil
	}
	if n.Internal {
		return modes.Refuse("--internal contradicts mode host, whose containers share the host's addresses")
	}
	if len(n.Subnets) == 0 {
		return errors.New("mode host needs a subnet for the link between host and containers: omit --ipam-driver null")
	}
	for _, s := range n.Subnets {
		if !s.Gateway.IsValid() || !s.Pool.Contains(s.Gateway.Addr()) {
			return fmt.Errorf("subnet %s has no gateway: mode host needs an address of the host in it", s.Pool)
		}
	}
	return n.CheckMTU(modes.MTU.Of(n))
}

// Traits returns those of a card, whose traffic does not pass the host's firewall and whose container publishes ports
// on its own addresses, or those of containers that share the host's addresses.
func (mode) Traits(n modes.Network) modes.Traits {
	if dev := device.Of(n); dev != "" {
		return modes.Traits{MAC: modes.MACAsIs, Device: dev, Publish: modes.Publishing{OnOwn: true}}
	}
	return modes.Traits{
		MAC: modes.MACDerived, Policed: true, Publish: modes.Publishing{OnHost: true},
		Sharing: &modes.PortSharing{Include: include.Of(n), Exclude: exclude.Of(n)},
	}
}

// Objects returns a private bridge for the host and the network's containers, and NAT that gives their traffic the
// host's address. The containers reach each other, as programs of one host do.
func (mode) Objects(n modes.Network) []core.Object {
	if device.Of(n) != "" {
		return nil
	}
	bridge := kbridge.Bridge{
		Name: bridged.Name(n), Alias: core.Alias(n.ID, ""), MTU: modes.MTU.Of(n), MAC: modes.LocalMAC(n.ID),
	}
	_, bridge.IPv6 = n.Families()
	objects := []core.Object{bridge}
	for _, s := range n.Subnets {
		objects = append(objects, core.Addr{Link: bridge.Name, Alias: bridge.Alias, Prefix: s.Gateway})
		objects = append(objects, bridged.NAT(n, s)...)
	}
	return append(objects, bridged.Zone{Bridge: bridge.Name, ICC: true}.Objects(n)...)
}

// Place returns the card, or a veth pair with one end as a port of the bridge, in hairpin mode, since a container also
// reaches its own ports by the host's address.
func (mode) Place(n modes.Network, e modes.Endpoint) ([]core.Object, modes.Link) {
	if dev := device.Of(n); dev != "" {
		card := kdevice.Device{Name: dev, Network: n.ID, Endpoint: e.ID, Sandbox: e.Sandbox, NS: e.NS}
		card.Was, card.Noted = e.NotedDevice()
		link := n.Link(e, dev, 0)
		link.Gateways = n.Gateways(e)
		return append(e.Redirects(), card), link
	}
	link := n.Link(e, core.Name(core.PeerPrefix, e.ID), modes.MTU.Of(n))
	link.Gateways = n.Gateways(e)
	e.Into = 0 // the link is created on the host, and moved into the sandbox
	v := bridged.Veth(n, e, bridged.Name(n), link.MTU)
	v.Hairpin = true
	return slices.Concat(bridged.Forwarding(n), bridged.Port(e, v), e.Published()), link
}
