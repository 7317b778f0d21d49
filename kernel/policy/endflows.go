package policy

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"netyard/kernel/core"
)

// EndFlows deletes the conntrack entries of connections that policy does not allow: as long as they exist, their
// packets pass as replies. The next packet of such a connection counts as a new one, and policy decides about it.
func EndFlows(k *core.Handle, subjects []Subject) error {
	if len(subjects) == 0 {
		return nil
	}
	host, _, err := k.HostAddrs()
	if err != nil {
		return err
	}
	ends := flowEnds{host: host, by: map[netip.Addr]Subject{}}
	for _, s := range subjects {
		ends.by[s.Addr] = s
	}
	if _, err := k.ForgetFlows(ends, unix.AF_INET, unix.AF_INET6); err != nil {
		return fmt.Errorf("delete connections that policy does not allow: %w", err)
	}
	return nil
}

// flowEnds matches the connections that are to end.
type flowEnds struct {
	host map[netip.Addr]bool // no policy applies to what the host sends
	by   map[netip.Addr]Subject
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f flowEnds) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	from, ok1 := netip.AddrFromSlice(flow.Forward.SrcIP)
	to, ok2 := netip.AddrFromSlice(flow.Reverse.SrcIP) // the real destination, after translation
	if !ok1 || !ok2 {
		return false
	}
	from, to = from.Unmap(), to.Unmap()
	proto, port := flow.Forward.Protocol, flow.Reverse.SrcPort
	out, in := f.by[from].Out, f.by[to].In
	return out != nil && !out.allows(to, proto, port) || in != nil && !f.host[from] && !in.allows(from, proto, port)
}

func (a Access) allows(other netip.Addr, proto uint8, port uint16) bool {
	return slices.ContainsFunc(a.Allow, func(p Allowance) bool {
		return p.First.Compare(other) <= 0 && other.Compare(p.Last) <= 0 &&
			p.FirstProto <= proto && proto <= p.LastProto && p.FirstPort <= port && port <= p.LastPort
	})
}
