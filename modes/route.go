package modes

import (
	"fmt"
	"net/netip"
	"strings"
)

// A Route is a static route in the sandbox; with an invalid Via, Dst is on the link.
type Route struct {
	Dst netip.Prefix
	Via netip.Addr
}

// String writes the route as the option routes does: 10.9.0.0/16@192.168.1.3.
func (r Route) String() string {
	if !r.Via.IsValid() {
		return r.Dst.String()
	}
	return fmt.Sprintf("%s@%s", r.Dst, r.Via)
}

// parseRoute reads what String writes. It refuses a default route, since engines choose the network that has it.
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
	r.Via, err = netip.ParseAddr(via)
	return r, err == nil && r.Via.Zone() == "" && r.Via.Is4() == dst.Addr().Is4() && !r.Via.IsUnspecified()
}

// Families says for each family whether the network has a subnet.
func (n Network) Families() (v4, v6 bool) {
	for _, s := range n.Subnets {
		v4, v6 = v4 || s.Pool.Addr().Is4(), v6 || s.Pool.Addr().Is6()
	}
	return v4, v6
}
