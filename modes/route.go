package modes

import (
	"fmt"
	"net/netip"
	"strings"
)

// The values of the options gateway_mode_ipv4 and gateway_mode_ipv6.
const (
	GatewayNAT      = "nat"
	GatewayRouted   = "routed"
	GatewayIsolated = "isolated"
)

// A Route is one static route inside the sandbox; an invalid Via means that Dst is on the link.
type Route struct {
	Dst netip.Prefix
	Via netip.Addr
}

// String is how the option routes says it: 10.9.0.0/16@192.168.1.3.
func (r Route) String() string {
	if !r.Via.IsValid() {
		return r.Dst.String()
	}
	return fmt.Sprintf("%s@%s", r.Dst, r.Via)
}

// parseRoute reads what String writes. A default route is none: engines choose among networks which one has it.
func parseRoute(text string) (r Route, ok bool) {
	subnet, via, hop := strings.Cut(text, "@")
	dst, err := netip.ParsePrefix(subnet)
	if err != nil || dst.Bits() == 0 {
		return r, false
	}
	r.Dst = dst.Masked()
	if !hop {
		return r, true
	}
	if r.Via, err = netip.ParseAddr(via); err != nil || r.Via.Zone() != "" || r.Via.Is4() != dst.Addr().Is4() || r.Via.IsUnspecified() {
		return r, false
	}
	return r, true
}

// OptRoutes is Opt for Routes.
func (n Network) OptRoutes(name string) (all []Route) {
	for one := range strings.SplitSeq(n.Opt(name), ",") {
		if r, ok := parseRoute(one); ok {
			all = append(all, r)
		}
	}
	return all
}

// OptAddr is Opt for Addr4 and Addr6; invalid when there is none.
func (n Network) OptAddr(name string) netip.Addr {
	a, _ := netip.ParseAddr(n.Opt(name)) // Resolve let only addresses in
	return a
}

// ByFamily is the name of the option of a pair that is of a family: egress and IPv6 are egress_ipv6.
func ByFamily(name string, v6 bool) string {
	if v6 {
		return name + "_ipv6"
	}
	return name + "_ipv4"
}

// Families are the families that a network has subnets of.
func (n Network) Families() (v4, v6 bool) {
	for _, s := range n.Subnets {
		v4, v6 = v4 || s.Pool.Addr().Is4(), v6 || s.Pool.Addr().Is6()
	}
	return v4, v6
}
