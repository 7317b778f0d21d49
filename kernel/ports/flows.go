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

// syncFlows forgets what connection tracking remembers of UDP and is no longer so: a client that goes on sending from
// one port keeps a flow alive for ever, and with it the container it went to, or that there was none. It compares all
// flows with what is published; to follow each change instead would miss those that are lost on the way
// (kubernetes/kubernetes#126130).
func syncFlows(k *core.Handle) error {
	addrs, nets, err := k.HostAddrs()
	if err != nil {
		return err
	}
	nft.Of(k).Mu.Lock()
	book := newFlowBook(nft.Of(k).Wanted(), addrs, nets)
	nft.Of(k).Mu.Unlock()
	n, err := k.ForgetFlows(book, unix.AF_INET, unix.AF_INET6)
	if err != nil {
		return fmt.Errorf("forget stale UDP flows: %w", err)
	}
	if n > 0 {
		k.Log.Debug("forget stale UDP flows", "count", n)
	}
	return nil
}

// StaleFlows has the watcher look through the flows when where datagrams go has changed.
func StaleFlows(k *core.Handle, changed []nft.Element) {
	for _, e := range changed {
		if ofUDP(e) {
			StaleOf(k).Store(true)
			k.Poke()
			return
		}
	}
}

// ofUDP says whether an element publishes a port of UDP.
func ofUDP(e nft.Element) bool {
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

// FreshenFlows looks through the flows if they may be stale.
func FreshenFlows(k *core.Handle) error {
	if !StaleOf(k).Swap(false) {
		return nil
	}
	return syncFlows(k)
}

// A flowBook knows where datagrams for ports of the host go. It is the filter of flows that go elsewhere.
type flowBook struct {
	host map[netip.Addr]bool
	want map[nft.ElementID]nft.Content
	// ranges are few.
	ranges []nft.Element
	// nets are the subnets of netyard's bridges: translations to other addresses are somebody else's.
	nets []netip.Prefix
}

func newFlowBook(elements []nft.Element, host map[netip.Addr]bool, nets []netip.Prefix) *flowBook {
	b := &flowBook{host: host, nets: nets, want: map[nft.ElementID]nft.Content{}}
	for _, e := range elements {
		switch e.Set {
		case toOne4, toOne6, toAny4, toAny6:
			b.want[e.ID()] = e.Content
		case toRange4, toRange6:
			b.ranges = append(b.ranges, e)
		default: // of no port
		}
	}
	return b
}

// MatchConntrackFlow says whether a flow is to be forgotten.
func (b *flowBook) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	if f.Forward.Protocol != unix.IPPROTO_UDP {
		return false
	}
	dst, _ := netip.AddrFromSlice(f.Forward.DstIP)
	from, _ := netip.AddrFromSlice(f.Reverse.SrcIP)
	dst, from = dst.Unmap(), from.Unmap()
	if !b.host[dst] && !rule.Loop4().Contains(dst) && dst != rule.Loop6() {
		return false // it passes through
	}
	to, port, published := b.lookup(dst, f.Forward.DstPort)
	if published {
		return from != to || f.Reverse.SrcPort != port
	}
	return from != dst && slices.ContainsFunc(b.nets, func(p netip.Prefix) bool { return p.Contains(from) })
}

// lookup does what the chain publish does.
func (b *flowBook) lookup(dst netip.Addr, port uint16) (to netip.Addr, toPort uint16, ok bool) {
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

// within says whether each field of a key of address, protocol and port is within the bounds of an element.
func within(e nft.Element, key string, addr int) bool {
	for _, at := range [][2]int{{0, addr}, {addr, addr + 4}, {addr + 4, addr + 8}} {
		field := key[at[0]:at[1]]
		if field < e.Key[at[0]:at[1]] || field > e.End[at[0]:at[1]] {
			return false
		}
	}
	return true
}
