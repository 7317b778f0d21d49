package ports

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"netyard/kernel/core"
	"netyard/kernel/nft"
	"netyard/kernel/rule"
)

// syncFlows deletes the UDP flows from connection tracking that no longer match what is published. A client that goes
// on sending from one port keeps its flow alive for ever, so its datagrams would go on to the old container, or to
// none. syncFlows compares all flows with the published ports; following each change instead would miss changes that
// get lost on the way (kubernetes/kubernetes#126130).
func syncFlows(k *core.Handle) error {
	addrs, nets, err := k.HostAddrs()
	if err != nil {
		return err
	}
	stale := newFlowFilter(nft.Of(k).Wanted(), addrs, nets)
	n, err := k.ForgetFlows(stale, unix.AF_INET, unix.AF_INET6)
	if err != nil {
		return fmt.Errorf("delete stale UDP flows: %w", err)
	}
	if n > 0 {
		k.Log.Debug("stale UDP flows deleted", "count", n)
	}
	return nil
}

// MarkStaleFlows makes the watcher look for stale flows if any of the changed elements publishes a UDP port.
func MarkStaleFlows(k *core.Handle, changed []nft.Element) {
	for _, e := range changed {
		if isUDP(e) {
			StaleFlowsOf(k).Store(true)
			k.RequestCheck()
			return
		}
	}
}

// isUDP reports whether an element publishes a UDP port.
func isUDP(e nft.Element) bool {
	switch e.Set {
	case toAny4, toAny6:
		return e.Key[0] == unix.IPPROTO_UDP
	case toOne4, toRange4:
		return e.Key[net.IPv4len] == unix.IPPROTO_UDP
	case toOne6, toRange6:
		return e.Key[net.IPv6len] == unix.IPPROTO_UDP
	default:
		return false
	}
}

// DeleteStaleFlows deletes stale UDP flows if there may be any.
func DeleteStaleFlows(k *core.Handle) error {
	if !StaleFlowsOf(k).Swap(false) {
		return nil
	}
	return syncFlows(k)
}

// A flowFilter matches the flows of datagrams for ports of the host that lead elsewhere than the published ports say.
type flowFilter struct {
	host map[netip.Addr]bool
	want map[nft.ElementID]nft.Content
	// ranges are few, so a search through all of them is fast enough.
	ranges []nft.Element
	// nets are the subnets of netyard's bridges; a flow that is translated to any other address is not netyard's.
	nets []netip.Prefix
}

func newFlowFilter(elements []nft.Element, host map[netip.Addr]bool, nets []netip.Prefix) *flowFilter {
	b := &flowFilter{host: host, nets: nets, want: map[nft.ElementID]nft.Content{}}
	for _, e := range elements {
		switch e.Set {
		case toOne4, toOne6, toAny4, toAny6:
			b.want[e.ID()] = e.Content
		case toRange4, toRange6:
			b.ranges = append(b.ranges, e)
		default: // not a published port
		}
	}
	return b
}

// MatchConntrackFlow reports whether a flow is stale and has to be deleted.
func (b *flowFilter) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	if f.Forward.Protocol != unix.IPPROTO_UDP {
		return false
	}
	dst, _ := netip.AddrFromSlice(f.Forward.DstIP)
	from, _ := netip.AddrFromSlice(f.Reverse.SrcIP)
	dst, from = dst.Unmap(), from.Unmap()
	if !b.host[dst] && !rule.LoopbackAlias4().Contains(dst) && dst != rule.LoopbackAlias6() {
		return false // it is routed through the host
	}
	to, port, published := b.lookup(dst, f.Forward.DstPort)
	if published {
		return from != to || f.Reverse.SrcPort != port
	}
	return from != dst && slices.ContainsFunc(b.nets, func(p netip.Prefix) bool { return p.Contains(from) })
}

// lookup finds the target of a published port as the chain publish does.
func (b *flowFilter) lookup(dst netip.Addr, port uint16) (to netip.Addr, toPort uint16, ok bool) {
	one, anyAddr, ranges := toOne4, toAny4, toRange4
	if dst.Is6() {
		one, anyAddr, ranges = toOne6, toAny6, toRange6
	}
	key := rule.PortKey("udp", port)
	for _, id := range []nft.ElementID{{Set: one, Key: string(dst.AsSlice()) + key}, {Set: anyAddr, Key: key}} {
		if c, found := b.want[id]; found {
			size := len(dst.AsSlice())
			to, _ = netip.AddrFromSlice([]byte(c.Val[:size]))
			return to, rule.PortOf(c.Val[size:]), true
		}
	}
	full := string(dst.AsSlice()) + key
	for _, e := range b.ranges {
		if e.Set == ranges && within(e, full, len(dst.AsSlice())) {
			to, _ = netip.AddrFromSlice([]byte(e.Val))
			return to, port, true
		}
	}
	return to, 0, false
}

// within reports whether the address, protocol and port of a key each lie within the bounds of an element.
func within(e nft.Element, key string, addr int) bool {
	for _, at := range [][2]int{{0, addr}, {addr, addr + 4}, {addr + 4, addr + 8}} {
		field := key[at[0]:at[1]]
		if field < e.Key[at[0]:at[1]] || field > e.End[at[0]:at[1]] {
			return false
		}
	}
	return true
}
