package door

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"netyard/modes"
	"netyard/yard/book"
	"netyard/yard/overlay"
)

// A plan is the network that netyard makes from a configuration that names none, and what each container gets on it.
type plan struct {
	network book.NetworkRequest
	// pools are groups of subnets: a container gets one address of each group.
	pools [][]netip.Prefix
	// fixed are the addresses that ipam type static assigns to the container; isStatic: it is of that type.
	fixed    []netip.Addr
	isStatic bool
	// gateways are the routers by subnet.
	gateways map[netip.Prefix]netip.Addr
	routes   []modes.Route
	// defaultRoutes says that containers have default routes via the gateways.
	defaultRoutes bool
	dns           []string // name servers of resolvConf, or of the network
	// ownRoutes says that all routes come from the configuration, and none from the network.
	ownRoutes bool
}

// networkID returns the ID of the network that is made from the configuration of that name.
func networkID(name string) string {
	return fmt.Sprintf("%x", sha256.Sum256([]byte("netyard cni "+name)))
}

// plan returns the plan of a configuration that names no network. env are the runtime's CNI_ARGS.
func (c config) plan(t *modes.Table, env map[string]string) (p plan, err error) {
	p = plan{
		network:       book.NetworkRequest{ID: networkID(c.Name), Name: c.Name},
		gateways:      map[netip.Prefix]netip.Addr{},
		defaultRoutes: c.IsDefaultGateway,
	}
	p.network.Mode = c.mode(t)
	if p.network.Options, err = c.options(t, p.network.Mode); err != nil {
		return p, err
	}
	i := c.IPAM
	p.ownRoutes = i == nil || i.Type != "dhcp"
	if i == nil || i.Type == "" {
		p.network.NoSubnets = true
		return p, nil
	}
	_, bridged := t.CNI(p.network.Mode, "bridge")
	noGateway := bridged && !c.IsGateway && !c.IsDefaultGateway
	switch i.Type {
	case "dhcp":
		p.network.NoSubnets, p.network.DHCP = true, &book.DHCPRequest{}
	case "static":
		var all []staticAddress
		if all, err = c.staticAddresses(env); err == nil {
			err = p.static(all, noGateway, bridged && !noGateway)
		}
	default:
		err = p.hostLocal(*i, noGateway)
	}
	if err != nil {
		return p, err
	}
	if p.routes, err = parseRoutes(i.Routes); err != nil {
		return p, err
	}
	if i.ResolvConf != "" {
		raw, err := os.ReadFile(i.ResolvConf)
		if err != nil {
			return p, refuse("ipam.resolvConf", err.Error())
		}
		for line := range strings.Lines(string(raw)) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "nameserver" {
				p.dns = append(p.dns, f[1])
			}
		}
	}
	return p, nil
}

// hostLocal adds the subnets and ranges of ipam type host-local: a container gets an address from each set of them.
// noGateway says that the host does not have the gateway's address.
func (p *plan) hostLocal(i ipamConfig, noGateway bool) error {
	sets := i.Ranges
	if i.Subnet != "" {
		sets = append([][]ipamIn{{i.ipamIn}}, sets...)
	}
	for _, set := range sets {
		var group []netip.Prefix
		for _, in := range set {
			s, err := in.parse()
			if err != nil {
				return err
			}
			s.NoGateway = noGateway
			same := func(o book.SubnetRequest) bool { return o.Pool.Subnet == s.Pool.Subnet }
			if slices.ContainsFunc(p.network.Subnets, same) {
				return refuse("ipam.ranges", fmt.Sprintf("subnet %s is listed twice", s.Pool.Subnet))
			}
			p.network.Subnets = append(p.network.Subnets, s)
			p.gateways[s.Pool.Subnet] = s.Gateway
			group = append(group, s.Pool.Subnet)
		}
		if group != nil {
			p.pools = append(p.pools, group)
		}
	}
	if len(p.network.Subnets) == 0 && i.Type == "host-local" {
		return refuse("ipam.ranges", "ipam type host-local needs a subnet")
	}
	return nil
}

func (in ipamIn) parse() (s book.SubnetRequest, err error) {
	if s.Pool.Subnet, err = netip.ParsePrefix(in.Subnet); err != nil {
		return s, refuse("ipam.subnet", fmt.Sprintf("%q is not a subnet", in.Subnet))
	}
	s.Pool.Subnet = s.Pool.Subnet.Masked()
	for _, f := range []struct {
		key, text string
		to        *netip.Addr
	}{
		{"rangeStart", in.First, &s.Pool.First},
		{"rangeEnd", in.Last, &s.Pool.Last},
		{"gateway", in.Gateway, &s.Gateway},
	} {
		if f.text == "" {
			continue
		}
		if *f.to, err = netip.ParseAddr(f.text); err != nil || !s.Pool.Subnet.Contains(*f.to) {
			return s, refuse("ipam."+f.key, fmt.Sprintf("%q is not an address in %s", f.text, s.Pool.Subnet))
		}
	}
	if !s.Gateway.IsValid() && !s.Pool.Subnet.IsSingleIP() {
		s.Gateway = s.Pool.Subnet.Addr().Next() // host-local's default
	}
	return s, nil
}

// containerRoutes returns the routes of a container with these addresses: a route without a gateway goes via the first
// gateway of its family.
func (p plan) containerRoutes(addrs []netip.Prefix) (routes []modes.Route) {
	gateway := func(v4 bool) netip.Addr {
		for _, a := range addrs {
			if gw := p.gateways[a.Masked()]; gw.IsValid() && gw.Is4() == v4 {
				return gw
			}
		}
		return netip.Addr{}
	}
	for _, r := range p.routes {
		if !r.Via.IsValid() {
			r.Via = gateway(r.Dst.Addr().Is4())
		}
		routes = append(routes, r)
	}
	for _, zero := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		if gw := gateway(zero.Is4()); p.defaultRoutes && gw.IsValid() {
			routes = append(routes, modes.Route{Dst: netip.PrefixFrom(zero, 0), Via: gw})
		}
	}
	return routes
}

// planOn returns the plan for containers on an existing network, which defines the rest itself.
func (c config) planOn(n modes.Network) (p plan, err error) {
	p.gateways = map[netip.Prefix]netip.Addr{}
	for _, s := range n.Subnets {
		if s.Gateway.IsValid() {
			p.gateways[s.Pool] = s.Gateway.Addr()
		}
		if s.Space == overlay.Space { // the gateway resolves the names of all hosts' containers
			p.dns = append(p.dns, s.Gateway.Addr().String())
		}
	}
	if c.IPAM != nil {
		p.routes, err = parseRoutes(c.IPAM.Routes)
	}
	return p, err
}

func parseRoutes(rs []ipamRoute) (routes []modes.Route, err error) {
	for _, r := range rs {
		route, err := r.parse()
		if err != nil {
			return nil, err
		}
		routes = append(routes, route)
	}
	return routes, nil
}
