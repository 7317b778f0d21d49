package door

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"netyard/ipam"
	"netyard/yard/book"
)

// A staticAddress is an address that ipam type static gives a container. gateway is invalid if it has none.
type staticAddress struct {
	addr    netip.Prefix
	gateway netip.Addr
	// asked: it is not from the configuration, but from the runtime's parameters, so each container has its own.
	asked bool
}

// staticAddresses returns the addresses of ipam type static, as the upstream plugin chooses them: those of the
// configuration and of IP in CNI_ARGS; in place of them those of args, and in place of all those of the runtime. An
// address without a prefix length is not among them; it counts if another one brings its subnet (requestedAddrs).
func (c config) staticAddresses(env map[string]string) (all []staticAddress, err error) {
	for _, a := range c.IPAM.Addresses {
		s, err := parseStatic("ipam.addresses", a.Address, a.Gateway)
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	asked, err := prefixed(argIP, strings.Split(env[argIP], ","))
	if err != nil {
		return nil, err
	}
	all = append(all, asked...)
	for text := range strings.SplitSeq(env[argGateway], ",") {
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		gw, err := netip.ParseAddr(text)
		if err != nil {
			return nil, refuseAddress(argGateway, fmt.Sprintf("%q is not an address", text))
		}
		for i := range all {
			if all[i].addr.Contains(gw) {
				all[i].gateway = gw
			}
		}
	}
	for _, source := range []struct {
		key   string
		texts []string
	}{{"args.cni.ips", c.args().CNI.IPs}, {"runtimeConfig.ips", c.Runtime.IPs}} {
		asked, err := prefixed(source.key, source.texts)
		if err != nil {
			return nil, err
		}
		if len(asked) > 0 {
			all = asked
		}
	}
	return all, nil
}

// prefixed returns the addresses that have a prefix length.
func prefixed(key string, texts []string) (all []staticAddress, err error) {
	for _, t := range texts {
		if !strings.Contains(t, "/") {
			continue
		}
		s, err := parseStatic(key, strings.TrimSpace(t), "")
		if err != nil {
			return nil, err
		}
		s.asked = true
		all = append(all, s)
	}
	return all, nil
}

func parseStatic(key, addr, gateway string) (s staticAddress, err error) {
	if s.addr, err = netip.ParsePrefix(addr); err != nil {
		return s, refuseAddress(key, fmt.Sprintf("%q is not an address with a prefix length", addr))
	}
	if gateway == "" {
		return s, nil
	}
	if s.gateway, err = netip.ParseAddr(gateway); err != nil || !s.addr.Contains(s.gateway) {
		return s, refuseAddress(key, fmt.Sprintf("gateway %q is not an address in %s", gateway, s.addr.Masked()))
	}
	return s, nil
}

// static adds the addresses that a container gets from ipam type static. noGateway says that the host does not have the
// gateway's address, isGateway that it always has one in each subnet, the first one if none is named.
func (p *plan) static(all []staticAddress, noGateway, isGateway bool) error {
	p.isStatic = true
	for _, a := range all {
		subnet := a.addr.Masked()
		p.pools, p.fixed = append(p.pools, []netip.Prefix{subnet}), append(p.fixed, a.addr.Addr())
		p.network.Grow = p.network.Grow || a.asked
		if isGateway && !a.gateway.IsValid() && !subnet.IsSingleIP() {
			a.gateway = subnet.Addr().Next() // as of the upstream bridge plugin
		}
		if a.gateway.IsValid() {
			p.gateways[subnet] = a.gateway
		}
		same := func(s book.SubnetRequest) bool { return s.Pool.Subnet == subnet }
		if slices.ContainsFunc(p.network.Subnets, same) {
			continue
		}
		s := book.SubnetRequest{Pool: ipam.PoolRequest{Subnet: subnet}, NoGateway: true}
		if a.gateway.IsValid() && (isGateway || !a.asked) {
			s.Gateway, s.NoGateway = a.gateway, noGateway
		}
		p.network.Subnets = append(p.network.Subnets, s)
	}
	if len(p.fixed) == 0 {
		return refuse("ipam.addresses", "ipam type static needs an address with a prefix length, in addresses, "+
			"or for each container in runtimeConfig.ips, args.cni.ips or IP of CNI_ARGS")
	}
	return nil
}
