package fabric

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"netyard/cluster"
	"netyard/kernel/core"
	"netyard/modes"
)

// Modes is the Agent as modes see it.
type Modes struct{ A *Agent }

var _ modes.Fabric = Modes{}

// Find is the network of a name; one with subnets is made if it is not there, and without subnets it is only looked
// for.
func (m Modes) Find(ctx context.Context, want modes.Overlay) (modes.Overlay, error) {
	ask := cluster.Network{Name: want.Name, Internal: want.Internal}
	for _, s := range want.Subnets {
		ask.Subnets = append(ask.Subnets, cluster.Subnet{Pool: s.Pool, Gateway: s.Gateway.Addr()})
	}
	m.A.awaitLeft(ctx)
	there, err := m.A.c.Client.FindNetwork(ctx, want.Name)
	if isNew := err != nil; isNew {
		if !errors.Is(err, cluster.ErrNotFound) {
			return modes.Overlay{}, err
		}
		ask.MTU, ask.Encrypted = want.MTU, want.Encrypted // of one that is there, they are that one's
	}
	if len(want.Subnets) == 0 && err != nil {
		return modes.Overlay{}, fmt.Errorf("network %s %w", want.Name, modes.ErrNoOverlay)
	}
	if len(want.Subnets) > 0 { // or nobody said what else it is to be
		if there, err = m.A.c.Client.CreateNetwork(ctx, ask); err != nil {
			return modes.Overlay{}, err
		}
	}
	o := modes.Overlay{ID: there.ID, Name: there.Name, VNI: there.VNI, MTU: there.MTU, Internal: there.Internal, Encrypted: there.Encrypted}
	for _, s := range there.Subnets {
		o.Subnets = append(o.Subnets, modes.Subnet{Pool: s.Pool, Gateway: netip.PrefixFrom(s.Gateway, s.Pool.Bits())})
	}
	return o, nil
}

// Host is this one as the others see it.
func (m Modes) Host() modes.OverlayHost {
	return modes.OverlayHost{ID: m.A.self, VTEP: m.A.c.Host.VTEP, Port: m.A.Port(), MTU: m.A.c.Host.MTU, Tunnel: m.A.c.Host.Tunnel(), Clear: m.A.tunnel.clear}
}

// Up says that a network's links are on this host.
func (m Modes) Up(o modes.Overlay, l modes.OverlayLink) error {
	n := cluster.Network{ID: o.ID, Name: o.Name, VNI: o.VNI, MTU: o.MTU, Internal: o.Internal, Encrypted: o.Encrypted}
	if o.Encrypted {
		if err := m.A.raise(); err != nil {
			return err
		}
	}
	for _, s := range o.Subnets {
		n.Subnets = append(n.Subnets, cluster.Subnet{Pool: s.Pool, Gateway: s.Gateway.Addr()})
	}
	return m.A.Bind(Bound{Network: n, Link: l.VXLAN, Bridge: l.Bridge, Alias: l.Alias, MAC: cluster.MAC(l.MAC)})
}

// Down says that they are about to go. One that never came up may still be in etcd, where it was made.
func (m Modes) Down(o modes.Overlay) error { return m.A.Unbind(o.ID) }

// Attach says that the addresses of an endpoint are here, and who it is.
func (m Modes) Attach(o modes.Overlay, e modes.Endpoint) error {
	mac := e.MAC
	if mac == "" {
		mac = e.StableMAC().String()
	}
	m.A.rolls.sit(e.ID, seat{o.ID, e.Sandbox})
	return m.A.Publish(o.ID, bare(e.Addrs), e.ID, cluster.MAC(mac), known(e.Container.Name), aliases(e))
}

// The labels of a container that say names of it: nerdctl and Docker tell a plugin of no others, and Compose's services
// are aliases.
const (
	labelAlias   = "netyard.alias"
	labelService = "com.docker.compose.service"
)

// aliases are the other names of an endpoint: those that were asked for, and those that its container's labels say.
func aliases(e modes.Endpoint) []string {
	all := slices.Clone(e.Aliases)
	for _, said := range append(strings.Split(e.Container.Labels[labelAlias], ","), e.Container.Labels[labelService]) {
		if said = known(strings.TrimSpace(said)); said != "" && !slices.Contains(all, said) && len(all) < cluster.MaxNames {
			all = append(all, said)
		}
	}
	return all
}

// known is a name as the cluster takes it: one that it does not is none.
func known(name string) string {
	if cluster.CheckName("name", name) != nil {
		return ""
	}
	return name
}

// Name says how an endpoint is called.
func (m Modes) Name(o modes.Overlay, e modes.Endpoint) error {
	return m.A.Rename(o.ID, e.ID, known(e.Container.Name), aliases(e))
}

// Detach says that they are not any more.
func (m Modes) Detach(o modes.Overlay, e modes.Endpoint) error {
	m.A.rolls.rise(e.ID)
	return m.A.Withdraw(o.ID, e.ID)
}

// Grant gives an owner an address.
func (m Modes) Grant(ctx context.Context, o modes.Overlay, owner string, addr netip.Addr, v6 bool) (netip.Addr, error) {
	return m.A.Grant(ctx, Wish{Network: o.ID, Endpoint: owner, Addr: addr, V6: v6})
}

// Release gives one back.
func (m Modes) Release(o modes.Overlay, addr netip.Addr) error { return m.A.Release(o.ID, addr) }

// Room says why no address of a family could be granted now.
func (m Modes) Room(o modes.Overlay, v6 bool) error { return m.A.Room(o.ID, v6) }

// Objects are what the other hosts make wanted in this one's kernel.
func (m Modes) Objects(o modes.Overlay) []core.Object { return m.A.Objects(o.ID) }

// Parting are the elements that networks have here which this host has left, and of which etcd has not heard that.
func (m Modes) Parting() ([]core.Object, error) { return m.A.Parting() }

func bare(ps []netip.Prefix) (all []netip.Addr) {
	for _, p := range ps {
		all = append(all, p.Addr())
	}
	return all
}
