package parent

import (
	"fmt"

	"netyard/kernel/beside"
	"netyard/kernel/core"
	"netyard/kernel/lan"
	"netyard/kernel/nft"
	"netyard/kernel/ports"
	"netyard/modes"
)

// checkPorts refuses options about ports of the host that contradict each other.
func (k Kind) checkPorts(n modes.Network) error {
	if !HostPublish.Of(n) {
		for _, o := range []modes.Option{modes.Bind.Row(), modes.PublishFrom.Row()} {
			if o.Of(n) != "" {
				return o.Refuse(n, "it applies to ports of the host; add host_publish=true")
			}
		}
		return nil
	}
	if !HostAccess.Of(n) {
		return HostPublish.Row().Refuse(n, "the host does not reach the containers; add host_access=true")
	}
	if _, changed := n.Changed[modes.PublishFrom.Name]; changed {
		return modes.PublishFrom.Row().Refuse(n, "it is shared by all networks on the parent; recreate them")
	}
	if k.Returns == nil {
		return nil
	}
	if err := k.Returns(n); err != nil {
		return HostPublish.Row().Refuse(n, "%v", err)
	}
	return nil
}

// sharePorts refuses a second publish_from: all networks on a parent share the host's link there, and its sources.
func sharePorts(n, other modes.Network) error {
	if !HostPublish.Of(n) || !HostPublish.Of(other) || publishFrom(n) == publishFrom(other) {
		return nil
	}
	return fmt.Errorf("its publish_from=%s is shared by all networks on one parent with host_publish=true",
		publishFrom(other))
}

// publishFrom returns the value of publish_from as it was given.
func publishFrom(n modes.Network) string { return modes.Option(modes.PublishFrom).Of(n) }

// gate returns the objects that let forwarded traffic to published ports pass to the host's link on the parent, and
// nothing else.
func (k Kind) gate(n modes.Network) []core.Object {
	shim := k.shim(n).Name
	objects := []core.Object{
		beside.Bypass{In: shim, Network: modes.Short(n.ID)},
		beside.Bypass{Out: shim, Network: modes.Short(n.ID)},
		nft.InterfaceIn(lan.Shims, shim).For(n.ID),
	}
	if publishFrom(n) != "" {
		subnets, interfaces := modes.PublishFrom.Of(n)
		for _, el := range ports.RestrictClients(shim, subnets, interfaces) {
			objects = append(objects, el.For(n.ID))
		}
	}
	return objects
}

// hostPorts returns the objects that publish ports of an endpoint on the host.
func (k Kind) hostPorts(n modes.Network, e modes.Endpoint) (objects []core.Object) {
	for _, a := range e.Addrs {
		if elements := e.PublishedTo(a.Addr()); len(elements) > 0 {
			objects = append(objects, beside.Forwarding{IPv6: a.Addr().Is6()},
				lan.ReturnNAT{Route: lan.HostRoute{Shim: k.shim(n), Dst: a.Addr()}, Owner: e.ID})
			objects = append(objects, elements...)
		}
	}
	return objects
}

// redirects returns the objects that publish ports on an endpoint's own addresses. Traffic from its neighbours always
// passes the sandbox's rules.
func (k Kind) redirects(n modes.Network, e modes.Endpoint) []core.Object {
	objects := e.Redirects()
	for _, o := range objects {
		if r, ok := o.(ports.Redirect); ok && k.ByInput != nil && k.ByInput(n) {
			for _, el := range r.OnHost() {
				objects = append(objects, el)
			}
		}
	}
	return objects
}
