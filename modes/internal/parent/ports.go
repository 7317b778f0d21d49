package parent

import (
	"fmt"
	"net/netip"

	"netyard/kernel/beside"
	"netyard/kernel/core"
	"netyard/kernel/lan"
	"netyard/kernel/nft"
	"netyard/kernel/ports"
	"netyard/modes"
)

// Publishes has nothing against any network of the kind: ports are published on the containers' own addresses.
func (m Mode) Publishes(modes.Network) error { return nil }

// hostPublish says whether ports of the host lead to a network's containers as well.
func hostPublish(n modes.Network) bool { return n.OptBool("host_publish") }

// Binds are the addresses of the host that ports are on as well.
func (m Mode) Binds(n modes.Network) []netip.Addr { return n.OptAddrs("bind") }

// Redirects says so of all networks: what is for a container does not come by the host.
func (m Mode) Redirects(modes.Network) bool { return true }

// Both is for the network to say.
func (m Mode) Both(n modes.Network) bool { return hostPublish(n) }

// checkPorts refuses what cannot be said of the host's ports.
func (m Mode) checkPorts(n modes.Network) error {
	bad := func(option, why string) error {
		return fmt.Errorf("%w: %s=%s: %s", modes.ErrOption, option, n.Opt(option), why)
	}
	if !hostPublish(n) {
		for _, option := range []string{"bind", "publish_from"} {
			if n.Opt(option) != "" {
				return bad(option, "it is about ports of the host; say host_publish=true too")
			}
		}
		return nil
	}
	if !hostAccess(n) {
		return bad("host_publish", "the host does not reach the containers; say host_access=true too")
	}
	if _, changed := n.Changed["publish_from"]; changed {
		return bad("publish_from", "all networks on the parent have it in common; make them anew")
	}
	if m.Kind.Returns == nil {
		return nil
	}
	if err := m.Kind.Returns(n); err != nil {
		return bad("host_publish", err.Error())
	}
	return nil
}

// sharePorts: the host's link on a parent is that of all networks there, and so is who gets through to it.
func sharePorts(n, other modes.Network) error {
	if !hostPublish(n) || !hostPublish(other) || n.Opt("publish_from") == other.Opt("publish_from") {
		return nil
	}
	return fmt.Errorf("its publish_from=%s is that of all networks on one parent with host_publish=true", other.Opt("publish_from"))
}

// gate lets published ports, and nothing else that is not the host's own, through to the host's link on the parent.
func (m Mode) gate(n modes.Network) []core.Object {
	shim := m.shim(n).Name
	objects := []core.Object{
		beside.Bypass{In: shim, Network: modes.Short(n.ID)},
		beside.Bypass{Out: shim, Network: modes.Short(n.ID)},
		nft.InterfaceIn(lan.Shims, shim).For(n.ID),
	}
	if n.Opt("publish_from") != "" {
		subnets, interfaces := n.OptSources("publish_from")
		for _, el := range ports.ClosedBut(shim, subnets, interfaces) {
			objects = append(objects, el.For(n.ID))
		}
	}
	return objects
}

// hostPorts give ports of the host to an endpoint.
func (m Mode) hostPorts(n modes.Network, e modes.Endpoint) (objects []core.Object) {
	for _, a := range e.Addrs {
		if elements := e.PublishedTo(a.Addr()); len(elements) > 0 {
			objects = append(objects, beside.Forwarding{IPv6: a.Addr().Is6()},
				lan.Return{Route: lan.HostRoute{Shim: m.shim(n), Dst: a.Addr()}, Owner: e.ID})
			objects = append(objects, elements...)
		}
	}
	return objects
}

// redirects are the ports of an endpoint's own address. Its neighbours' packets come by the sandbox's rules in any
// case.
func (m Mode) redirects(n modes.Network, e modes.Endpoint) []core.Object {
	objects := e.Redirects()
	for _, o := range objects {
		if r, ok := o.(ports.Redirect); ok && m.Kind.ByInput != nil && m.Kind.ByInput(n) {
			for _, el := range r.OnHost() {
				objects = append(objects, el)
			}
		}
	}
	return objects
}
