package fabric

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"netyard/cluster"
	"netyard/cluster/record"
	"netyard/fabric/address"
	"netyard/fabric/nametable"
	"netyard/kernel/core"
	"netyard/modes"
)

// Modes is the Agent as modes see it.
type Modes struct{ A *Agent }

var _ modes.Fabric = Modes{}

// Find returns the network with a name. It creates one that does not exist if want has subnets, and returns
// ErrNoOverlay otherwise.
func (m Modes) Find(ctx context.Context, want modes.Overlay) (modes.Overlay, error) {
	ask := record.Network{Name: want.Name, Internal: want.Internal}
	for _, s := range want.Subnets {
		ask.Subnets = append(ask.Subnets, record.Subnet{Pool: s.Pool, Gateway: s.Gateway.Addr()})
	}
	m.A.awaitLeft(ctx)
	there, err := m.A.c.Client.FindNetwork(ctx, want.Name)
	if isNew := err != nil; isNew {
		if !errors.Is(err, cluster.ErrNotFound) {
			return modes.Overlay{}, err
		}
		ask.MTU, ask.Encrypted = want.MTU, want.Encrypted // an existing network keeps its own
	}
	if len(want.Subnets) == 0 && err != nil {
		return modes.Overlay{}, fmt.Errorf("network %s %w", want.Name, modes.ErrNoOverlay)
	}
	if len(want.Subnets) > 0 { // otherwise there is nothing to compare
		if there, err = m.A.c.Client.CreateNetwork(ctx, ask); err != nil {
			return modes.Overlay{}, err
		}
	}
	o := modes.Overlay{
		ID: there.ID, Name: there.Name, VNI: there.VNI, MTU: there.MTU,
		Internal: there.Internal, Encrypted: there.Encrypted,
	}
	for _, s := range there.Subnets {
		o.Subnets = append(o.Subnets, modes.Subnet{Pool: s.Pool, Gateway: netip.PrefixFrom(s.Gateway, s.Pool.Bits())})
	}
	return o, nil
}

// Host returns this host as the others see it.
func (m Modes) Host() modes.OverlayHost {
	h := m.A.c.Host
	return modes.OverlayHost{
		ID: m.A.self, VTEP: h.VTEP, Port: m.A.Port(), MTU: h.MTU, Tunnel: h.Tunnel(), Clear: m.A.tunnel.Clear(),
	}
}

// Up binds a network whose links are on this host.
func (m Modes) Up(o modes.Overlay, l modes.OverlayLink) (err error) {
	n := record.Network{ID: o.ID, Name: o.Name, VNI: o.VNI, MTU: o.MTU, Internal: o.Internal, Encrypted: o.Encrypted}
	if o.Encrypted {
		if err := m.A.tunnel.Create(); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, m.A.tunnel.Bound()) }()
	}
	for _, s := range o.Subnets {
		n.Subnets = append(n.Subnets, record.Subnet{Pool: s.Pool, Gateway: s.Gateway.Addr()})
	}
	return m.A.Bind(Bound{Network: n, Link: l.VXLAN, Bridge: l.Bridge, Alias: l.Alias, MAC: record.MAC(l.MAC)})
}

// Down unbinds a network before its links are removed. One that never came up is left in etcd as well, since Find may
// have created it there.
func (m Modes) Down(o modes.Overlay) error { return m.A.Unbind(o.ID) }

// Attach publishes the addresses and names of an endpoint of this host.
func (m Modes) Attach(o modes.Overlay, e modes.Endpoint) error {
	mac := e.MAC
	if mac == "" {
		mac = e.StableMAC().String()
	}
	m.A.names.SetPlace(e.ID, nametable.Place{Network: o.ID, Sandbox: e.Sandbox})
	return m.A.Publish(o.ID, withoutPrefix(e.Addrs), e.ID, record.MAC(mac), validName(e.Container.Name), aliases(e))
}

// labelService is the label with the name of a Compose service, which is an alias of its containers.
const labelService = "com.docker.compose.service"

// aliases returns the other names of an endpoint: the requested ones, and those from its container's labels, since
// Docker and nerdctl pass a plugin no others. It leaves out those that the cluster does not accept: the container has
// its network without them.
func aliases(e modes.Endpoint) (all []string) {
	labels := e.Container.Labels
	asked := slices.Concat(e.Aliases, strings.Split(labels[modes.LabelAlias], ","), []string{labels[labelService]})
	for _, name := range asked {
		name = validName(strings.TrimSpace(name))
		if name != "" && !slices.Contains(all, name) && len(all) < record.MaxNames {
			all = append(all, name)
		}
	}
	return all
}

// validName returns a name, or nothing if the cluster does not accept it.
func validName(name string) string {
	if record.CheckName("name", name) != nil {
		return ""
	}
	return name
}

// Name changes the names of an endpoint.
func (m Modes) Name(o modes.Overlay, e modes.Endpoint) error {
	return m.A.Rename(o.ID, e.ID, validName(e.Container.Name), aliases(e))
}

// Detach withdraws the addresses and names of an endpoint.
func (m Modes) Detach(o modes.Overlay, e modes.Endpoint) error {
	m.A.names.RemovePlace(e.ID)
	return m.A.Withdraw(o.ID, e.ID)
}

// Grant gives an owner an address.
func (m Modes) Grant(ctx context.Context, o modes.Overlay, owner string, addr netip.Addr, v6 bool) (netip.Addr, error) {
	return m.A.Grant(ctx, address.Wish{Network: o.ID, Endpoint: owner, Addr: addr, V6: v6})
}

// Release returns a granted address.
func (m Modes) Release(o modes.Overlay, addr netip.Addr) error { return m.A.Release(o.ID, addr) }

// CheckRoom returns why no address of a family could be granted now.
func (m Modes) CheckRoom(o modes.Overlay, v6 bool) error { return m.A.CheckRoom(o.ID, v6) }

// HostOf returns the other host that has a container with a hardware address on a network.
func (m Modes) HostOf(o modes.Overlay, mac string) string { return m.A.HostOf(o.ID, record.MAC(mac)) }

// Objects returns what this host's kernel should have because of the other hosts.
func (m Modes) Objects(o modes.Overlay) []core.Object { return m.A.Objects(o.ID) }

// LeavingObjects returns the elements of networks that were removed from this host and not left in etcd yet.
func (m Modes) LeavingObjects() ([]core.Object, error) { return m.A.LeavingObjects() }

func withoutPrefix(ps []netip.Prefix) (all []netip.Addr) {
	for _, p := range ps {
		all = append(all, p.Addr())
	}
	return all
}
