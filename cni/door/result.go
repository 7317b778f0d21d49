package door

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"

	"netyard/yard/book"
)

// result returns what the plugin prints: the result of the plugins before it in the chain, and what was attached, in
// the configuration's version.
func result(c config, p plan, a book.Attached) (json.RawMessage, error) {
	r, err := c.prevResult()
	if err != nil {
		return nil, err
	}
	e := a.Endpoint
	if a.HostEnd != "" {
		r.Interfaces = append(r.Interfaces, &current.Interface{Name: a.HostEnd})
	}
	if e.Inside.Link != "" {
		r.Interfaces = append(r.Interfaces, &current.Interface{Name: e.IfName, Mac: e.MAC, Sandbox: e.Sandbox})
	}
	for _, addr := range e.Addrs {
		ip := &current.IPConfig{Address: ipNet(addr), Interface: current.Int(len(r.Interfaces) - 1)}
		if gw := p.gateways[addr.Masked()]; gw.IsValid() {
			ip.Gateway = gw.AsSlice()
		} else if addr == a.Lease.Addr && a.Lease.Router.IsValid() {
			ip.Gateway = a.Lease.Router.AsSlice()
		}
		r.IPs = append(r.IPs, ip)
	}
	for _, route := range e.Inside.Routes {
		out := &types.Route{Dst: ipNet(route.Dst)}
		if route.Via.IsValid() {
			out.GW = route.Via.AsSlice()
		}
		r.Routes = append(r.Routes, out)
	}
	for _, dns := range a.Lease.DNS {
		p.dns = append(p.dns, dns.String())
	}
	c.resolvers(&r.DNS, p)
	as, err := r.GetAsVersion(c.CNIVersion)
	if err != nil {
		return nil, fmt.Errorf("%w: key cniVersion: %w", errConfig, err)
	}
	raw, err := json.Marshal(as)
	if err != nil {
		return nil, fmt.Errorf("encode result: %w", err)
	}
	return raw, nil
}

// prevResult returns the result of the plugins before, or an empty one.
func (c config) prevResult() (*current.Result, error) {
	if len(c.PrevResult) == 0 || string(c.PrevResult) == "null" {
		return &current.Result{CNIVersion: current.ImplementedSpecVersion}, nil
	}
	before, err := create.Create(c.CNIVersion, c.PrevResult)
	if err != nil {
		return nil, refuse("prevResult", err.Error())
	}
	r, err := current.NewResultFromResult(before)
	if err != nil {
		return nil, refuse("prevResult", err.Error())
	}
	return r, nil
}

// resolvers sets the name servers. Those of the runtime come before those of the configuration, and these before those
// of its ipam part and those of the plan.
func (c config) resolvers(dns *types.DNS, p plan) {
	rt := c.Runtime.DNS
	switch {
	case rt != nil:
		*dns = types.DNS{Nameservers: rt.Servers, Search: rt.Searches, Options: rt.Options}
	case !c.DNS.IsEmpty():
		*dns = c.DNS
	case c.IPAM != nil && !c.IPAM.DNS.IsEmpty():
		*dns = c.IPAM.DNS
	case len(p.dns) > 0:
		dns.Nameservers = p.dns
	}
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
