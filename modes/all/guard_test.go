package all_test

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"netyard/kernel/kerneltest"
)

// The kinds of packets, as letters: datagrams of either family, questions of ARP and of neighbour discovery, and
// advertisements of a router. Of the last three it is the tables of the receiver that tell whether it believed them.
const (
	dgram4, dgram6, arpAsk, ndAsk, advert = '4', '6', 'a', 'n', 'r'
	everyKind                             = "46anr"
)

// A wrapping is a way to send a packet.
type wrapping struct {
	name string
	// of are the kinds of packets that can be sent so, takes those that a kernel takes.
	of, takes string
	class     class
	wrap      wrap
}

type pkt = kerneltest.Packet

// A wrap makes of a packet what is sent.
type wrap func(p kerneltest.Packet, c context) []kerneltest.Packet

// A context is who sends it to whom, and a number for its fragments.
type context struct {
	me, to kerneltest.Station
	id     uint16
}

// A class is what the guards make of a wrapping.
type class int

const (
	plain    class = iota
	extended       // by extension headers, which are nothing bad
	atomic         // by the header of a fragment that is none (RFC 6946)
	tagged         // once
	wrapped        // in what a receiver may take off, and the guards do not look into
	foreign        // in what nobody takes off by himself
	tunneled       // in a packet that is the sender's own
	hidden         // the first fragment does not say what it is
)

func one(f func(p kerneltest.Packet) kerneltest.Packet) wrap {
	return func(p kerneltest.Packet, _ context) []kerneltest.Packet { return []kerneltest.Packet{f(p)} }
}

// tags puts it into VLANs, the outermost first.
func tags(pairs ...uint16) wrap {
	return one(func(p kerneltest.Packet) kerneltest.Packet {
		for i := len(pairs) - 2; i >= 0; i -= 2 {
			p = p.Tagged(pairs[i], pairs[i+1])
		}
		return p
	})
}

func behind(kind uint16, head ...byte) wrap {
	return one(func(p kerneltest.Packet) kerneltest.Packet { return p.Behind(kind, head...) })
}

// inside puts it into an IP packet of the sender's own addresses.
func inside(v6 bool, proto byte, head ...byte) wrap {
	return func(p kerneltest.Packet, c context) []kerneltest.Packet {
		if v6 {
			return []kerneltest.Packet{p.Inside(c.me.V6, c.to.V6, proto, head...)}
		}
		return []kerneltest.Packet{p.Inside(c.me.V4, c.to.V4, proto, head...)}
	}
}

const optionsFirst = "options in the first fragment"

func wrappings() []wrapping {
	const q, ad = 0x8100, 0x88a8
	const ip6 = "6nr"
	pieces := func(size int) wrap {
		return func(p kerneltest.Packet, c context) []kerneltest.Packet { return p.Fragments(size, c.id) }
	}
	backwards := func(p kerneltest.Packet, c context) []kerneltest.Packet {
		all := p.Fragments(16, c.id)
		slices.Reverse(all)
		return all
	}
	with := func(size int, kinds ...byte) wrap {
		return func(p kerneltest.Packet, c context) []kerneltest.Packet {
			p = p.Extended(kinds...)
			if size == 0 {
				return []kerneltest.Packet{p}
			}
			return p.Fragments(size, c.id)
		}
	}
	// beyond sends a first fragment that ends between options, and behind its end what a rule may take for the rest.
	beyond := func(p kerneltest.Packet, c context) []kerneltest.Packet {
		const udp, padN = 17, 1
		all := p.Extended(kerneltest.DestOptions, kerneltest.DestOptions).Fragments(8, c.id)
		all[0].Data = append(all[0].Data, udp, 0, padN, 4, 0, 0, 0, 0, 128, 0, 128, 0, 0, 8, 0, 0)
		for _, later := range all[1:] {
			later.Data[40] = udp // no receiver looks at it (RFC 8200, section 4.5)
		}
		return all
	}
	tagOf := func(kind, tci uint16, f wrap) wrap {
		return func(p kerneltest.Packet, c context) (all []kerneltest.Packet) {
			for _, piece := range f(p, c) {
				all = append(all, piece.Tagged(kind, tci))
			}
			return all
		}
	}
	const inIP, inIPv6, gre = 4, 41, 47 // protocols (RFC 2003, RFC 4213, RFC 2784)
	const whole, options = 1 << 12, kerneltest.DestOptions
	return []wrapping{
		{"", everyKind, everyKind, plain, one(func(p kerneltest.Packet) kerneltest.Packet { return p })},
		{"VLAN 0", everyKind, everyKind, tagged, tags(q, 0)},
		{"VLAN 0 with a priority", everyKind, everyKind, tagged, tags(q, 7<<13)},
		{"VLAN 0 of 802.1ad", everyKind, everyKind, tagged, tags(ad, 0)},
		{"VLAN 0 twice", everyKind, everyKind, wrapped, tags(q, 0, q, 0)},
		{"VLAN 0 in one of 802.1ad", everyKind, everyKind, wrapped, tags(ad, 0, q, 0)},
		{"VLAN 0 of 802.1ad twice", everyKind, everyKind, wrapped, tags(ad, 0, ad, 0)},
		{"VLAN 0 of 802.1ad in one of 802.1Q", everyKind, everyKind, wrapped, tags(q, 0, ad, 0)},
		{"VLAN 0 three times", everyKind, everyKind, wrapped, tags(q, 0, q, 0, q, 0)},
		{"VLAN 5", everyKind, "", tagged, tags(q, 5)},
		{"VLAN 5 of 802.1ad", everyKind, "", tagged, tags(ad, 5)},
		{"VLAN 0 in VLAN 5", everyKind, "", wrapped, tags(q, 5, q, 0)},
		{"VLAN 5 in VLAN 0", everyKind, "", wrapped, tags(q, 0, q, 5)},
		{"VLAN 4095", everyKind, "", tagged, tags(q, 4095)},
		{"tag of type 0x9100", everyKind, "", foreign, tags(0x9100, 0)},
		{"tag of type 0x9200", everyKind, "", foreign, tags(0x9200, 0)},
		{"LLC and SNAP", everyKind, "", wrapped, one(func(p pkt) pkt { return p.SNAP(0) })},
		{"LLC and SNAP of 802.1H", everyKind, "", wrapped, one(func(p pkt) pkt { return p.SNAP(0xf8) })},
		{"LLC and SNAP in VLAN 0", everyKind, "", wrapped, one(func(p pkt) pkt { return p.SNAP(0).Tagged(q, 0) })},
		{"VLAN 0 behind SNAP", everyKind, "", wrapped, one(func(p pkt) pkt { return p.Tagged(q, 0).SNAP(0) })},
		{"PPPoE, IPv4", "4", "", foreign, behind(0x8864, 0x11, 0, 0, 0, 0, 60, 0, 0x21)},
		{"PPPoE, IPv6", ip6, "", foreign, behind(0x8864, 0x11, 0, 0, 0, 0, 80, 0, 0x57)},
		{"MPLS, IPv4", "4", "", foreign, behind(0x8847, 0, 0, 1, 64)},
		{"MPLS, IPv6", ip6, "", foreign, behind(0x8847, 0, 0, 0x21, 64)},
		{"fragments", "46", "46", plain, pieces(16)},
		{"fragments, smallest", "46", "46", plain, pieces(8)},
		{"fragments, the last first", "46", "46", plain, backwards},
		{"fragments in VLAN 0", "46", "46", tagged, tagOf(q, 0, pieces(16))},
		{"one fragment", ip6, "6", atomic, pieces(whole)},
		{"hop-by-hop options", ip6, ip6, extended, with(0, kerneltest.HopByHop)},
		{"destination options", ip6, ip6, extended, with(0, kerneltest.DestOptions)},
		{"many options", ip6, ip6, extended, with(0, kerneltest.HopByHop, options, options, options)},
		{"hop-by-hop options in VLAN 0", ip6, ip6, tagged, tagOf(q, 0, with(0, kerneltest.HopByHop))},
		{optionsFirst, "6", "6", hidden, with(24, kerneltest.DestOptions)},
		{"a fragment that ends behind options", "6", "", hidden, with(8, kerneltest.DestOptions)},
		{"a fragment that ends between options", "6", "6", hidden, with(8, options, options)},
		{"a fragment with more behind its end", "6", "6", hidden, beyond},
		{"IP in IPv4", "4", "", tunneled, inside(false, inIP)},
		{"IPv6 in IPv4", "6", "", tunneled, inside(false, inIPv6)},
		{"IPv4 in IPv6", "4", "", tunneled, inside(true, inIP)},
		{"GRE", "4", "", tunneled, inside(false, gre, 0, 0, 8, 0)},
		{"GRE in IPv6", "6", "", tunneled, inside(true, gre, 0, 0, 0x86, 0xdd)},
	}
}

// A source is whom a packet is said to be from.
type source int

const (
	own       source = iota
	others           // a neighbour's address
	elsewhere        // an address of no network here
	othersMAC        // own addresses, a neighbour's hardware address
)

func (s source) String() string {
	return [...]string{
		"own address", "a neighbour's address", "an address from elsewhere", "a neighbour's hardware address",
	}[s]
}

// A row is one way by which a packet may reach somebody: its frames have id in them.
type row struct {
	kind byte
	from source
	wrapping
	// group is the last octet of a reserved group address, 01:80:c2:00:00:xx, that it is sent to; or unicast, or
	// broadcast.
	group int
	to    string // host, neighbour, far
	port  uint16
	id    int
	// stranger is the address that asks, and which the receiver then knows.
	stranger netip.Addr
}

const (
	unicast, broadcast = -1, -2

	toHost, toNeighbour, toFar = "the host", "the neighbour", "another network"
)

func (r row) String() string {
	to := map[int]string{unicast: "", broadcast: " by broadcast"}[r.group]
	if r.group >= 0 {
		to = fmt.Sprintf(" by 01:80:c2:00:00:%02x", r.group)
	}
	kind := map[byte]string{
		dgram4: "IPv4", dgram6: "IPv6", arpAsk: "ARP", ndAsk: "neighbour solicitation", advert: "router advertisement",
	}[r.kind]
	return strings.TrimSpace(fmt.Sprintf("%s from %s to %s%s %s", kind, r.from, r.to, to, r.name))
}

// rows returns all rows: each encapsulation from each source; and each reserved group, with and without a tag.
func rows() (all []row) {
	for _, to := range []string{toHost, toNeighbour, toFar} {
		for _, kind := range []byte(everyKind) {
			if to == toFar && kind != dgram4 && kind != dgram6 || to == toHost && kind == advert {
				continue // what is not routed; and the host's bridges take no advertisements
			}
			for _, from := range []source{own, others, elsewhere, othersMAC} {
				if kind != dgram4 && kind != dgram6 && from != others {
					continue // it is about an address that nobody has
				}
				for i, w := range wrappings() {
					if !strings.Contains(w.of, string(kind)) {
						continue
					}
					groups := []int{unicast, broadcast}
					for group := 0; group < 16 && i < 2; group++ {
						groups = append(groups, group)
					}
					for _, group := range groups {
						all = append(all, row{kind, from, w, group, to, dataPort, 0, netip.Addr{}})
					}
				}
			}
		}
	}
	for _, kind := range []byte{dgram4, dgram6} { // what policies let in
		all = append(all, row{kind, own, wrappings()[0], unicast, toNeighbour, openPort, 0, netip.Addr{}})
	}
	return all
}

// taken says whether a kernel takes it that nobody guards. Where br_netfilter has it on the way (calls), one fragment
// arrives as none, which ndisc_rcv does not refuse, and pieces arrive cut anew. So it is with nf_conntrack_bridge
// (conntrack), but that it drops IPv6 in pieces of less than 1280 octets (br_ip6_fragment, net/ipv6/netfilter.c).
func (r row) taken(calls, conntrack bool) bool {
	takes := r.takes
	switch {
	case conntrack && (!calls || r.class == tagged) && // br_netfilter was there before, but for tags
		r.kind != dgram4 && r.to == toNeighbour && strings.Contains(r.name, "fragment"):
		takes = ""
	case (calls || conntrack) && r.class == atomic:
		takes = r.of
	case calls && !conntrack && r.class == hidden && r.name != optionsFirst && r.to == toNeighbour:
		takes = ""
	}
	switch {
	case !strings.Contains(takes, string(r.kind)):
		return false
	case r.group > 0:
		// It ends at the port: all but pauses (01), and what asks for an address, of which a port has none.
		return r.to == toHost && r.group != 1 && r.kind != ndAsk
	case r.to == toFar: // routers pass on what is sent to them
		return r.group == unicast
	}
	return true
}

// allowed says whether a site is to let it through.
func (s *site) allowed(r row) bool {
	neighbour := r.to == toNeighbour
	switch {
	case s.guard == nothing:
		return r.to != toFar
	case r.to == toFar && !s.talks, r.to == toHost && s.hostless, neighbour && s.apart:
		return false
	case r.group > 0: // not even the host is reached by a port itself
		return false
	case r.kind == advert:
		return false
	case s.closedIn && neighbour || s.closedOut:
		if slices.Contains([]class{tagged, wrapped, foreign, tunneled}, r.class) {
			return false
		}
		if r.kind == dgram4 || r.kind == dgram6 {
			return neighbour && r.port == openPort
		}
	}
	if s.guard == roles && !s.closedOut {
		return r.class != wrapped && r.class != hidden
	}
	switch {
	case r.class == tunneled: // of its own addresses, whatever is inside
		return r.from != othersMAC
	case slices.Contains([]class{plain, extended, atomic}, r.class):
		return (r.from == own || r.from != othersMAC && s.guard == hardware) && (r.class == plain || r.kind != ndAsk)
	}
	return false
}

// frames returns the frames of a row.
func (s *site) frames(r *row) (frames [][]byte) {
	to := map[string]*party{toHost: s.host, toNeighbour: s.victim, toFar: s.lab.far.victim}[r.to]
	mac := to.MAC
	switch {
	case r.group >= 0:
		mac = net.HardwareAddr{0x01, 0x80, 0xc2, 0, 0, byte(r.group)}
	case r.group == broadcast:
		mac = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	case r.to == toFar:
		mac = s.host.MAC
	}
	c := context{s.evil.Station, to.Station, uint16(r.id)} //nolint:gosec // fragments of old rows are gone
	for _, p := range r.wrap(s.packet(r, to), c) {
		from := s.evil.MAC
		if r.from == othersMAC {
			from = s.other.MAC
		}
		frames = append(frames, p.Frame(from, mac))
	}
	return frames
}

func (s *site) packet(r *row, to *party) kerneltest.Packet {
	v6 := r.kind != dgram4 && r.kind != arpAsk
	target := to.V4
	if v6 {
		target = to.V6
	}
	switch r.kind {
	case arpAsk, ndAsk:
		r.stranger = s.stranger(v6)
		return kerneltest.WhoHas(s.evil.MAC, r.stranger, target)
	case advert:
		b := s.stranger(true).As16()
		b[0], b[1] = 0xfe, 0x80
		r.stranger = netip.AddrFrom16(b)
		return kerneltest.Advertise(r.stranger, target)
	}
	from := map[source]map[bool]netip.Addr{
		own:       {false: s.evil.V4, true: s.evil.V6},
		others:    {false: s.other.V4, true: s.other.V6},
		elsewhere: {false: netip.MustParseAddr("198.51.100.9"), true: netip.MustParseAddr("2001:db8:bad::9")},
		othersMAC: {false: s.evil.V4, true: s.evil.V6},
	}[r.from][v6]
	return kerneltest.UDP(netip.AddrPortFrom(from, 5000), netip.AddrPortFrom(target, r.port), idText(r.id))
}

// send sends all rows, with an honest packet behind every few of them, whose arrival says that they have come as far as
// they do. They are few enough for what a processor may have before it (net.core.netdev_max_backlog, 1000 frames).
func (s *site) send(t *testing.T, all []row) {
	t.Helper()
	const few = 150
	marker := row{dgram4, own, wrappings()[0], unicast, toHost, openPort, markers, netip.Addr{}}
	at := s.host
	if s.hostless || s.closedOut {
		marker.to, at = toNeighbour, s.victim
	}
	next := 0
	for some := range slices.Chunk(all, few) {
		var frames [][]byte
		for i := range some {
			next++
			some[i].id = next
			frames = append(frames, s.frames(&some[i])...)
		}
		marker.id++
		s.evil.wire.Send(t, append(frames, s.frames(&marker)...)...)
		at.socket.drain(t, marker.id)
	}
	for _, p := range []*party{s.host, s.victim, s.lab.far.victim} {
		p.socket.drain(t, 0)
	}
}

// markers is the first id above those of rows.
const markers = 9e7

// arrived returns the rows that reached their destination.
func (s *site) arrived(t *testing.T, all []row) map[int]bool {
	t.Helper()
	parties := map[string]*party{toHost: s.host, toNeighbour: s.victim, toFar: s.lab.far.victim}
	got := map[int]bool{}
	for to, p := range parties {
		known := p.host.Sh(t, "ip neigh show nud all; ip -6 route show default")
		for _, r := range all {
			if r.to != to {
				continue
			}
			if r.stranger.IsValid() && strings.Contains(known+" ", r.stranger.String()+" ") || p.socket.got[r.id] {
				got[r.id] = true
			}
		}
	}
	return got
}

// shown says whether a packet socket sees a row's id in one piece.
func (r row) shown() bool {
	return (r.kind == dgram4 || r.kind == dgram6) && !strings.Contains(r.name, "fragment")
}

// seen returns the rows that were on the neighbour's link, whether or not its kernel accepted them.
func (s *site) seen(t *testing.T) map[int]bool {
	t.Helper()
	got := map[int]bool{}
	for _, f := range s.victim.wire.Drain(t) {
		for _, id := range idsIn(f) {
			got[id] = true
		}
	}
	return got
}

// forget makes room for the next site: the tables of neighbours are the whole kernel's, and bounded.
func (s *site) forget(t *testing.T) {
	t.Helper()
	for _, p := range []*party{s.host, s.victim} {
		clear(p.socket.got)
		p.host.Sh(t, "ip neigh flush all; ip -6 route flush default proto ra")
	}
	clear(s.lab.far.victim.socket.got)
}

func sites() []siteSpec {
	type options = map[string]string
	isolated := func(more ...string) options {
		o := options{"gateway_mode_ipv4": "isolated", "gateway_mode_ipv6": "isolated"}
		for _, name := range more {
			o[name] = "false"
		}
		return o
	}
	unbound := options{"antispoof": "false"}
	routed := options{"gateway_mode_ipv4": "routed", "gateway_mode_ipv6": "routed"}
	const lan = "a bridge of the host's owner"
	all := []siteSpec{
		{name: "no network of netyard's", guard: nothing},
		{name: "plain"},
		{name: "that may talk to the other", talks: true},
		{name: "limited", opts: options{"egress_rate": "10gbit"}},
		{name: "antispoof=false", opts: unbound, guard: roles},
		{name: "antispoof=false for the sender", opts: unbound, evilOnly: true, guard: roles},
		{name: "antispoof=false, that may talk to the other", opts: unbound, guard: roles, talks: true},
		{name: "isolated", opts: isolated(), internal: true, hostless: true},
		{name: "isolated, antispoof=false", opts: isolated("antispoof"), internal: true, hostless: true, guard: roles},
		{name: "internal", internal: true},
		{name: "icc=false", opts: options{"icc": "false"}, apart: true},
		{name: "icc=false, antispoof=false", opts: options{"icc": "false", "antispoof": "false"}, apart: true, guard: roles},
		{name: "routed", opts: routed},
		{name: "closed neighbour", closedIn: true},
		{name: "closed neighbour, antispoof=false", opts: unbound, guard: roles, closedIn: true},
		{name: "closed sender", closedOut: true},
		{name: "closed sender, antispoof=false", opts: unbound, guard: roles, closedOut: true},
		{name: lan, guard: hardware},
		{name: lan + ", closed neighbour", guard: hardware, closedIn: true},
		{name: lan + ", aware of VLANs", guard: hardware, aware: true},
		{name: lan + ", aware of VLANs, closed neighbour", guard: hardware, aware: true, closedIn: true},
		{name: "host", mode: "host"},
		{name: "overlay", mode: "overlay", opts: options{"overlay": "blue"}},
	}
	for i := range all {
		if all[i].mode == "" {
			all[i].mode = "bridge"
		}
	}
	return all
}

// TestGuard runs the table of all ways by which a container's frames could reach the host, a neighbour or another
// network: nothing arrives that must not, and everything that must does. On a bridge without a guard, everything
// arrives that a kernel accepts, so that every row can fail.
func TestGuard(t *testing.T) {
	for _, calls := range []bool{false, true} {
		t.Run(fmt.Sprintf("br_netfilter=%v", calls), func(t *testing.T) {
			l := newGuardLab(t, calls)
			for _, spec := range sites() {
				if spec.guard == hardware && spec.closedIn && !calls && !l.conntrack {
					continue // netyard refuses: a bridge of the host's owner it does not change
				}
				t.Run(spec.name, func(t *testing.T) { l.site(t, spec).try(t, rows()) })
			}
		})
	}
}

func (s *site) try(t *testing.T, all []row) {
	t.Helper()
	s.send(t, all)
	arrived, seen := s.arrived(t, all), s.seen(t)
	var bad []string
	honest := 0
	for _, r := range all {
		allowed := s.allowed(r)
		want := allowed && r.taken(s.lab.calls || (s.closedIn || s.closedOut) && !s.lab.conntrack, s.lab.conntrack)
		if want && r.class == plain && r.from == own && r.group == unicast {
			honest++
		}
		if arrived[r.id] != want {
			bad = append(bad, fmt.Sprintf("arrived: %v, want %v: %s", arrived[r.id], want, r))
		}
		if r.to == toNeighbour && r.shown() && seen[r.id] != (allowed && r.group <= 0) {
			bad = append(bad, fmt.Sprintf("on the neighbour's link: %v, want %v: %s", seen[r.id], !seen[r.id], r))
		}
	}
	if honest == 0 {
		t.Error("nothing honest is among the rows")
	}
	const most = 60
	for _, line := range bad[:min(most, len(bad))] {
		t.Error(line)
	}
	if len(bad) > most {
		t.Errorf("and %d rows more", len(bad)-most)
	}
	s.forget(t)
}
