package all_test

import (
	gocontext "context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/kernel/kerneltest"
	"netyard/kernel/nft"
	"netyard/kernel/policy"
	"netyard/modes"
	"netyard/modes/all"
	"netyard/modes/modetest"
)

const (
	// dataPort takes what rows send, openPort what a policy lets in.
	dataPort, openPort = 7777, 7000
	udp                = 17
	// outAddr4 and outAddr6 are addresses of the host that are on none of its bridges.
	outAddr4, outAddr6 = "203.0.113.2", "2001:db8:113::2"
	// patience is for what has to come; nothing is waited for that must not.
	patience = 30 * time.Second
)

// A party is who sends frames, or gets them.
type party struct {
	kerneltest.Station
	host *kerneltest.Host
	// link is where its frames come by, in its namespace.
	link string
	// port is its link's other end, on the host.
	port string
	// socket is what its programs get, wire what a packet socket on its link sees.
	socket *socket
	wire   *kerneltest.Wire
}

// A guardLab is a host with an outside, and with a network far that others are kept apart from.
type guardLab struct {
	host   *kerneltest.Host
	socket *socket
	// outside is another host, behind eth-out.
	outside *kerneltest.Host
	far     *site
	// calls: br_netfilter takes all that is bridged to the chains for what is routed; conntrack: this kernel has
	// nf_conntrack_bridge.
	calls, conntrack bool
	// numbers are given to networks.
	numbers int
}

func newGuardLab(t testing.TB, calls bool) *guardLab {
	t.Helper()
	l := &guardLab{host: kerneltest.New(t), calls: calls}
	l.host.Sh(t, fmt.Sprintf("for f in ip ip6; do sysctl -qw net.bridge.bridge-nf-call-${f}tables=%d; done",
		map[bool]int{true: 1}[calls]))
	_, err := l.host.TrySh("nft 'add table bridge probe; add chain bridge probe c; " +
		"add rule bridge probe c ct state new; delete table bridge probe'")
	l.conntrack = err == nil
	out := l.host.Peer(t, "eth-out")
	l.outside = out
	l.host.Sh(t, "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1; "+
		"ip addr add "+outAddr4+"/24 dev eth-out && ip addr add "+outAddr6+"/64 dev eth-out nodad && "+
		"ip route add default via 203.0.113.1 && ip -6 route add default via 2001:db8:113::1")
	out.Sh(t, "ip addr add 203.0.113.1/24 dev eth0 && ip addr add 2001:db8:113::1/64 dev eth0 nodad")
	if err := l.host.LoadFirewall(); err != nil {
		t.Fatal(err)
	}
	l.socket = listen(t, l.host)
	l.far = l.site(t, siteSpec{name: "far", mode: "bridge"})
	v := l.far.victim // the host has not to ask for it, and so nothing waits
	l.host.Sh(t, fmt.Sprintf("for a in %s %s; do ip neigh replace $a lladdr %s dev %s nud permanent; done",
		v.V4, v.V6, v.MAC, l.far.bridge))
	return l
}

// A siteSpec is a network, and what holds for the containers on it.
type siteSpec struct {
	name, mode string
	opts       map[string]string
	internal   bool
	guard      guardKind
	// closedIn: the neighbour gets nothing but UDP at openPort; closedOut: that is all that the sender may send.
	closedIn, closedOut bool
	// apart: neighbours do not reach each other.
	apart bool
	// hostless: its containers do not reach the host.
	hostless bool
	// aware: the host's owner's bridge knows VLANs, as it is with a trunk on it.
	aware bool
	// evilOnly: the options are of the sender's endpoint alone.
	evilOnly bool
	// talks: it may talk to the far network.
	talks bool
}

// A guardKind is what a container's frames are bound to.
type guardKind int

const (
	addresses guardKind = iota // its own
	hardware                   // its own hardware address
	roles                      // antispoof=false: it plays no router
	nothing                    // no network of netyard's: what a kernel takes when nobody guards it
)

// A site is such a network: evil sends, victim is its neighbour, other is whom evil plays.
type site struct {
	siteSpec
	t                         testing.TB
	lab                       *guardLab
	number                    int
	mode                      modetest.Live
	network                   modes.Network
	bridge                    string
	evil, other, victim, host *party
	// strangers counts addresses that were given to nobody.
	strangers int
}

// site makes a network by its mode, and its containers.
func (l *guardLab) site(t testing.TB, spec siteSpec) *site {
	t.Helper()
	l.numbers++
	s := &site{siteSpec: spec, t: t, lab: l, number: l.numbers}
	s.up()
	s.evil = s.member(2)
	s.other, s.victim = s.member(3), s.member(4)
	s.host = &party{host: l.host, link: s.bridge, socket: l.socket, wire: kerneltest.NewWire(t, l.host, s.bridge)}
	s.host.Station = kerneltest.Station{MAC: macOf(t, l.host, s.bridge), V4: s.v4(1), V6: s.v6(1)}
	if spec.hostless {
		s.host.V4, s.host.V6 = netip.MustParseAddr(outAddr4), netip.MustParseAddr(outAddr6)
	}
	if !spec.hostless {
		answersTo(t, l.host, s.host.V6)
	}
	s.enforce()
	return s
}

// answersTo waits until an IPv6 address is in use: that is when the link's carrier has been seen.
func answersTo(t testing.TB, h *kerneltest.Host, a netip.Addr) {
	t.Helper()
	h.Sh(t, fmt.Sprintf("for i in $(seq 1500); do ip -6 route show table local | grep -q '^local %s ' && exit; "+
		"sleep 0.02; done; exit 1", a))
}

func (s *site) v4(last int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(100 + s.number), 0, byte(last)})
}

func (s *site) v6(last int) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("fd%02d::%x", s.number, last))
}

// stranger returns an address of the network that nobody has, another one each time.
func (s *site) stranger(v6 bool) netip.Addr {
	const first, most = 1 << 8, 1 << 15
	s.strangers++
	n := first + s.strangers%most
	if v6 {
		return s.v6(n)
	}
	return netip.AddrFrom4([4]byte{10, byte(100 + s.number), byte(n >> 8), byte(n)})
}

// up makes the network, or a bridge that is none of netyard's.
func (s *site) up() {
	l := s.lab
	s.t.Helper()
	own := fmt.Sprintf("own%d", s.number)
	if s.guard == nothing || s.guard == hardware { // a bridge of the host's owner
		l.host.Sh(s.t, fmt.Sprintf("ip link add %[1]s type bridge && ip addr add %[2]s/16 dev %[1]s && "+
			"ip addr add %[3]s/64 dev %[1]s nodad && ip link set %[1]s up", own, s.v4(1), s.v6(1)))
		s.bridge = own
	}
	if s.aware {
		if _, err := l.host.TrySh("ip link set " + own + " type bridge vlan_filtering 1"); err != nil {
			s.t.Skip("this kernel has no bridges that filter VLANs")
		}
	}
	if s.guard == nothing {
		return
	}
	opts := map[string]string{}
	if !s.evilOnly {
		maps.Copy(opts, s.opts)
	}
	if s.guard == hardware {
		opts["bridge"] = own
	}
	subnet := func(a netip.Addr, bits int) modes.Subnet {
		p := netip.PrefixFrom(a, bits)
		return modes.Subnet{Pool: p.Masked(), Gateway: p}
	}
	s.network = modes.Network{
		ID: fmt.Sprintf("%011d%s", s.number, "abcdef"), Mode: s.siteSpec.mode, Options: opts, Internal: s.internal,
		Subnets: []modes.Subnet{subnet(s.v4(1), 16), subnet(s.v6(1), 64)},
	}
	var err error
	s.mode = modetest.On(l.host.Kernel, all.Modes()[s.siteSpec.mode], alone{})
	if s.network.Settled, err = s.mode.Settle(s.t.Context(), s.network); err != nil {
		s.t.Fatal(err)
	}
	if err := s.mode.Up(s.t.Context(), s.network); err != nil {
		s.t.Fatal(err)
	}
	if s.bridge == "" {
		s.bridge = core.Name(core.BridgePrefix, s.network.ID)
	}
	if s.talks {
		pair := nft.InterfaceIn(bridge.Reachable, s.bridge, l.far.bridge)
		if err := l.host.Ensure(s.t.Context(), pair.For(s.network.ID)); err != nil {
			s.t.Fatal(err)
		}
	}
}

// member starts a container: it does with the link what an engine does.
func (s *site) member(last int) *party {
	l := s.lab
	s.t.Helper()
	p := &party{link: "eth0", Station: kerneltest.Station{V4: s.v4(last), V6: s.v6(last)}}
	if s.guard == nothing {
		p.port = fmt.Sprintf("p%d-%d", s.number, last)
		p.host = l.host.Peer(s.t, p.port)
		l.host.Sh(s.t, "ip link set "+p.port+" master "+s.bridge)
	} else {
		e := modes.Endpoint{ID: fmt.Sprintf("%05d%06d%s", s.number, last, "fedcba"), NetworkID: s.network.ID}
		e.Addrs = []netip.Prefix{netip.PrefixFrom(p.V4, 16), netip.PrefixFrom(p.V6, 64)}
		if s.evilOnly && s.evil == nil {
			e.Options = s.opts
		}
		link, err := s.mode.Attach(s.t.Context(), s.network, e)
		if err != nil {
			s.t.Fatal(err)
		}
		p.host, p.port = kerneltest.New(s.t), core.Name(core.VethPrefix, e.ID)
		p.host.Take(s.t, l.host, link.SrcName)
	}
	p.host.Sh(s.t, "sysctl -qw net.ipv6.conf.eth0.accept_ra=1")
	p.host.Sh(s.t, fmt.Sprintf("ip addr add %s/16 dev eth0 && ip addr add %s/64 dev eth0 nodad", p.V4, p.V6))
	answersTo(s.t, p.host, p.V6)
	p.MAC = macOf(s.t, p.host, "eth0")
	p.socket, p.wire = listen(s.t, p.host), kerneltest.NewWire(s.t, p.host, "eth0")
	return p
}

// enforce closes who is to be closed.
func (s *site) enforce() {
	s.t.Helper()
	access := func(closed bool, others ...netip.Addr) *policy.Access {
		if !closed {
			return nil
		}
		a := &policy.Access{}
		for _, o := range others {
			a.Allow = append(a.Allow, policy.Allowance{
				First: o, Last: o, FirstProto: udp, LastProto: udp, FirstPort: openPort, LastPort: openPort,
			})
		}
		return a
	}
	var subjects []policy.Subject
	add := func(p, peer *party, in, out bool) {
		subject := policy.Subject{Port: p.port, Bridge: s.bridge, Foreign: s.guard == hardware}
		for own, other := range map[netip.Addr]netip.Addr{p.V4: peer.V4, p.V6: peer.V6} {
			subject.Addr, subject.In, subject.Out = own, access(in, other), access(out, other)
			subjects = append(subjects, subject)
		}
		subject.Addr, subject.In, subject.Out = p.Local(), access(in), access(out)
		subjects = append(subjects, subject)
	}
	if s.closedIn {
		add(s.victim, s.evil, true, false)
	}
	if s.closedOut {
		add(s.evil, s.victim, false, true)
	}
	if err := s.lab.host.Enforce(s.t.Context(), policy.Objects(s.lab.host.Handle, subjects)); err != nil {
		s.t.Fatal(err)
	}
}

// An alone is a cluster of this host only.
type alone struct{ modes.Fabric }

func (alone) Find(_ gocontext.Context, want modes.Overlay) (modes.Overlay, error) {
	want.ID, want.VNI = strings.Repeat("c", 32), 0x1234
	return want, nil
}

func (alone) Host() modes.OverlayHost {
	return modes.OverlayHost{VTEP: netip.MustParseAddr(outAddr4), Port: 4789, MTU: 1500}
}
func (alone) Up(modes.Overlay, modes.OverlayLink) error  { return nil }
func (alone) Attach(modes.Overlay, modes.Endpoint) error { return nil }
func (alone) Objects(modes.Overlay) (none []core.Object) { return none }

func macOf(t testing.TB, h *kerneltest.Host, link string) net.HardwareAddr {
	t.Helper()
	mac, err := net.ParseMAC(h.Sh(t, "ip -o link show "+link+" | grep -o 'ether [^ ]*' | cut -d' ' -f2"))
	if err != nil {
		t.Fatal(err)
	}
	return mac
}

// A socket is a program's: it has the ids of what came to one of the ports.
type socket struct {
	conns []*net.UDPConn
	got   map[int]bool
}

func listen(t testing.TB, h *kerneltest.Host) *socket {
	t.Helper()
	s := &socket{got: map[int]bool{}}
	for _, port := range []int{dataPort, openPort} {
		err := h.Do(func() error {
			c, err := net.ListenUDP("udp", &net.UDPAddr{Port: port})
			if err == nil {
				s.conns = append(s.conns, c)
				t.Cleanup(func() { _ = c.Close() })
				err = kerneltest.Roomy(c)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// drain reads what is there, and waits for id if it is to come.
func (s *socket) drain(t testing.TB, id int) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		for _, c := range s.conns {
			pending, err := kerneltest.Pending(c)
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range pending {
				for _, got := range idsIn(p) {
					s.got[got] = true
				}
			}
		}
		if id == 0 || s.got[id] {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("packet %d did not come", id)
		}
	}
}

// idText returns the payload that tells which row a packet is of.
func idText(id int) []byte { return []byte(fmt.Sprintf("<%08d>", id)) }

func idsIn(b []byte) (ids []int) {
	for _, m := range regexp.MustCompile(`<(\d{8})>`).FindAllSubmatch(b, -1) {
		id, _ := strconv.Atoi(string(m[1]))
		ids = append(ids, id)
	}
	return ids
}
