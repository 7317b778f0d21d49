package overlay

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"

	"netyard/kernel/core"
)

// A Underlay is the link by which a host's packets to the other hosts leave.
type Underlay struct {
	Link string
	MTU  int
	MAC  string // empty: none
}

// UnderlayOf returns the link that has an address. A routed host has its address on lo or on a dummy link, by which no
// packet leaves: for such a host it returns the link with the smallest MTU among those that lead to routers.
func UnderlayOf(k *core.Handle, a netip.Addr) (Underlay, error) {
	addrs, err := core.Retry(func() ([]netlink.Addr, error) { return k.NL.AddrList(nil, core.Family(a)) })
	if err != nil {
		return Underlay{}, fmt.Errorf("list addresses: %w", err)
	}
	for _, got := range addrs {
		if core.PrefixOf(got.IPNet).Addr() != a {
			continue
		}
		l, err := k.NL.LinkByIndex(got.LinkIndex)
		if err != nil {
			return Underlay{}, fmt.Errorf("find the link of %s: %w", a, err)
		}
		if l.Attrs().Flags&net.FlagLoopback != 0 || l.Type() == "dummy" {
			return routedUnderlay(k, l, core.Family(a))
		}
		return underlay(l), nil
	}
	return Underlay{}, fmt.Errorf("the host has no address %s", a)
}

func underlay(l netlink.Link) Underlay {
	return Underlay{Link: l.Attrs().Name, MTU: l.Attrs().MTU, MAC: l.Attrs().HardwareAddr.String()}
}

// routedUnderlay returns the link with the smallest MTU among those that lead to routers. While there is none, as at
// boot, it returns the link on that has the address, with the MTU of Ethernet.
func routedUnderlay(k *core.Handle, on netlink.Link, family int) (Underlay, error) {
	const ethernet = 1500
	routes, err := core.Retry(func() ([]netlink.Route, error) { return k.NL.RouteList(nil, family) })
	if err != nil {
		return Underlay{}, fmt.Errorf("list routes: %w", err)
	}
	best := Underlay{}
	for _, r := range routes {
		hops := r.MultiPath
		if r.Gw != nil || r.Via != nil {
			hops = append(hops, &netlink.NexthopInfo{LinkIndex: r.LinkIndex})
		}
		for _, hop := range hops {
			l, err := k.NL.LinkByIndex(hop.LinkIndex)
			if err != nil { // it went away meanwhile
				continue
			}
			u := underlay(l)
			if r.MTU > 0 {
				u.MTU = min(u.MTU, r.MTU)
			}
			if best.Link == "" || u.MTU < best.MTU {
				best = u
			}
		}
	}
	if best.Link == "" {
		return Underlay{Link: on.Attrs().Name, MTU: ethernet}, nil
	}
	return best, nil
}
