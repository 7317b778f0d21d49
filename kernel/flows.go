package kernel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// syncFlows forgets what connection tracking remembers of UDP and is no longer so: a client that goes on sending from one port
// keeps a flow alive for ever, and with it the container it went to, or that there was none. It compares all flows with what is
// published; to follow each change instead would miss those that are lost on the way (kubernetes/kubernetes#126130).
func (k *Kernel) syncFlows() error {
	addrs, nets, err := k.hostAddrs()
	if err != nil {
		return err
	}
	k.fw.mu.Lock()
	book := newFlowBook(k.fw.wanted(), addrs, nets)
	k.fw.mu.Unlock()
	n, err := k.forgetFlows(book, unix.AF_INET, unix.AF_INET6)
	if err != nil {
		return fmt.Errorf("forget stale UDP flows: %w", err)
	}
	if n > 0 {
		k.log.Debug("forget stale UDP flows", "count", n)
	}
	return nil
}

// forgetFlows makes connection tracking forget the flows of these families that a filter matches, and says how many.
func (k *Kernel) forgetFlows(filter netlink.CustomConntrackFilter, families ...netlink.InetFamily) (count uint, err error) {
	h, err := netlink.NewHandleAt(k.subscribeNS, unix.NETLINK_NETFILTER)
	if err != nil {
		return 0, fmt.Errorf("open conntrack: %w", err)
	}
	defer h.Close()
	if err := h.SetSocketTimeout(netlinkTimeout); err != nil {
		return 0, fmt.Errorf("bound conntrack's waits: %w", err)
	}
	var errs []error
	for _, family := range families {
		n, err := retry(func() (uint, error) { return h.ConntrackDeleteFilters(netlink.ConntrackTable, family, filter) })
		count += n
		errs = append(errs, err)
	}
	return count, errors.Join(errs...)
}

// staleFlows has the watcher look through the flows when where datagrams go has changed.
func (k *Kernel) staleFlows(changed []Element) {
	for _, e := range changed {
		if e.udp() {
			k.stale.Store(true)
			k.poke()
			return
		}
	}
}

// udp says whether an element publishes a port of UDP.
func (e Element) udp() bool {
	switch e.Set {
	case toAny4, toAny6:
		return e.key[0] == unix.IPPROTO_UDP
	case toOne4, toRange4:
		return e.key[net.IPv4len] == unix.IPPROTO_UDP
	case toOne6, toRange6:
		return e.key[net.IPv6len] == unix.IPPROTO_UDP
	default:
		return false
	}
}

// freshenFlows looks through the flows if they may be stale.
func (k *Kernel) freshenFlows() error {
	if !k.stale.Swap(false) {
		return nil
	}
	return k.syncFlows()
}

// A flowBook knows where datagrams for ports of the host go. It is the filter of flows that go elsewhere.
type flowBook struct {
	host map[netip.Addr]bool
	want map[elementID]content
	// ranges are few.
	ranges []Element
	// nets are the subnets of netyard's bridges: translations to other addresses are somebody else's.
	nets []netip.Prefix
}

func newFlowBook(elements []Element, host map[netip.Addr]bool, nets []netip.Prefix) *flowBook {
	b := &flowBook{host: host, nets: nets, want: map[elementID]content{}}
	for _, e := range elements {
		switch e.Set {
		case toOne4, toOne6, toAny4, toAny6:
			b.want[e.id()] = e.content
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
	if !b.host[dst] && !loop4().Contains(dst) && dst != loop6() {
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
	key := portKey("udp", port)
	for _, id := range []elementID{{one, string(dst.AsSlice()) + key}, {anyAddr, key}} {
		if c, found := b.want[id]; found {
			size := len(dst.AsSlice())
			to, _ = netip.AddrFromSlice([]byte(c.val[:size]))
			return to, portOf(c.val[size:]), true
		}
	}
	full := string(dst.AsSlice()) + key
	for _, e := range b.ranges {
		if e.Set == ranges && within(e, full, len(dst.AsSlice())) {
			to, _ = netip.AddrFromSlice([]byte(e.val))
			return to, port, true
		}
	}
	return to, 0, false
}

// within says whether each field of a key of address, protocol and port is within the bounds of an element.
func within(e Element, key string, addr int) bool {
	for _, at := range [][2]int{{0, addr}, {addr, addr + 4}, {addr + 4, addr + 8}} {
		field := key[at[0]:at[1]]
		if field < e.key[at[0]:at[1]] || field > e.end[at[0]:at[1]] {
			return false
		}
	}
	return true
}

// hostAddrs are the addresses of the host, and the subnets among them that are of netyard's bridges.
func (k *Kernel) hostAddrs() (addrs map[netip.Addr]bool, nets []netip.Prefix, err error) {
	links, err := retry(k.nl.LinkList)
	if err != nil {
		return nil, nil, fmt.Errorf("list links: %w", err)
	}
	own := map[int]bool{}
	for _, l := range links {
		_, _, own[l.Attrs().Index] = ParseAlias(l.Attrs().Alias)
	}
	all, err := retry(func() ([]netlink.Addr, error) { return k.nl.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, nil, fmt.Errorf("list addresses: %w", err)
	}
	addrs = map[netip.Addr]bool{}
	for _, a := range all {
		p := prefixOf(a.IPNet)
		addrs[p.Addr()] = true
		if own[a.LinkIndex] {
			nets = append(nets, p.Masked())
		}
	}
	return addrs, nets, nil
}
