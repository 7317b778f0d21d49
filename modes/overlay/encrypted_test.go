package overlay_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"netyard/cluster"
	"netyard/cluster/clustertest"
	"netyard/cluster/etcd"
	"netyard/cluster/record"
	"netyard/fabric"
	"netyard/fabric/address"
	"netyard/ipam"
	"netyard/kernel"
	"netyard/kernel/core"
	"netyard/kernel/kerneltest"
	koverlay "netyard/kernel/overlay"
	"netyard/modes"
	"netyard/modes/modetest"
	"netyard/modes/overlay"
	"netyard/store"
	"netyard/yard"
	"netyard/yard/book"
	yoverlay "netyard/yard/overlay"
	"netyard/yard/plan"
	"netyard/yard/reconcile"
	"netyard/yard/repair"
)

// A cell is alone, and can encrypt: it has a WireGuard device while a network needs it, or says why it cannot.
type cell struct {
	alone
	k     *kernel.Kernel
	key   koverlay.Secret
	clear error
	// has is what the cluster has; the zero Overlay: what is asked for.
	has modes.Overlay
}

func (c cell) Host() modes.OverlayHost {
	h := c.alone.Host()
	h.Tunnel, h.Clear = netip.MustParseAddr("fd99::1"), c.clear
	return h
}

func (c cell) Find(ctx context.Context, want modes.Overlay) (modes.Overlay, error) {
	o, err := c.alone.Find(ctx, want)
	if c.has.MTU != 0 {
		o.MTU, o.Encrypted = c.has.MTU, c.has.Encrypted
	}
	return o, err
}

func (c cell) device() koverlay.WireGuard {
	return koverlay.WireGuard{
		Key: c.key, Port: 14789, MTU: c.Host().TunnelMTU(),
		Addr: netip.PrefixFrom(c.Host().Tunnel, 64),
	}
}

func (c cell) Up(modes.Overlay, modes.OverlayLink) error {
	return c.k.Ensure(context.Background(), c.device())
}
func (c cell) Down(modes.Overlay) error                  { return c.k.Remove(c.device()) }
func (c cell) Objects(modes.Overlay) (all []core.Object) { return []core.Object{c.device()} }

// TestEncryptedContract runs the contract with a real WireGuard device.
func TestEncryptedContract(t *testing.T) {
	t.Parallel()
	kerneltest.NeedsWireGuard(t)
	key, err := koverlay.NewSecret()
	must(t, err)
	n := network(netA, "red", map[string]string{"encrypted": "true"})
	modetest.Run(t, modetest.Case{
		New:     overlay.New,
		Fabric:  func(h *kerneltest.Host) modes.Fabric { return cell{alone: alone{1500}, k: h.Kernel, key: key} },
		Network: n, Endpoint: endpoint(n, "eeeeeeeeeeee0001", netip.MustParseAddr("10.20.0.7"),
			netip.MustParseAddr("fd20::7")),
		Setup: func(t *testing.T, h *kerneltest.Host) { h.Sh(t, "ip addr add 192.0.2.1/24 dev lo") },
	})
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestEncryptedRefused: by name, and before anything changes.
func TestEncryptedRefused(t *testing.T) {
	t.Parallel()
	h := kerneltest.New(t)
	before := h.Dump(t)
	yes, no := map[string]string{"encrypted": "true"}, map[string]string{"encrypted": "false"}
	plain, secret := modes.Overlay{MTU: 1450}, modes.Overlay{MTU: 1370, Encrypted: true}
	none := errors.New("this kernel has no WireGuard")
	v4 := network(netA, "red", yes)
	v4.Subnets = v4.Subnets[:1]
	for _, c := range []struct {
		f    cell
		n    modes.Network
		want string // empty: it is taken
		mtu  string
	}{
		{cell{alone: alone{1500}}, network(netA, "red", yes), "", "1370"},
		{cell{alone: alone{1500}}, network(netA, "red", nil), "", "1450"},
		{cell{alone: alone{1500}, has: secret}, network(netA, "red", nil), "", "1370"},
		{cell{alone: alone{1500}, has: secret}, network(netA, "red", yes), "", "1370"},
		{cell{alone: alone{1500}, has: plain, clear: none}, network(netA, "red", nil), "", "1450"},
		{cell{alone: alone{1500}, clear: none}, network(netA, "red", yes), "encrypted=true: this kernel has no WireGuard", ""},
		{cell{alone: alone{1500}, has: secret, clear: none}, network(netA, "red", nil), "network red of the cluster is encrypted: this kernel has no WireGuard", ""},
		{cell{alone: alone{1500}, has: secret}, network(netA, "red", no), "encrypted=false: network red of the cluster has encrypted=true", ""},
		{cell{alone: alone{1500}, has: plain}, network(netA, "red", yes), "encrypted=true: network red of the cluster has encrypted=false", ""},
		{cell{alone: alone{1500}}, network(netA, "red", map[string]string{"encrypted": "true", "mtu": "1371"}), "mtu=1371: at most 1370 fits: the link's MTU 1500 less the VXLAN and WireGuard headers", ""},
		{cell{alone: alone{1480}, has: secret}, network(netA, "red", nil), "network red of the cluster has MTU 1370, but on this host at most 1350 fits: the link's MTU 1480 less the VXLAN and WireGuard headers", ""},
		{cell{alone: alone{1339}}, v4, "the link to the other hosts carries 1339, which leaves 1279 inside WireGuard; IPv6 needs at least 1280", ""},
	} {
		settled, err := modetest.On(h.Kernel, overlay.New, c.f).Settle(t.Context(), c.n)
		switch {
		case c.want == "" && (err != nil || settled["mtu"] != c.mtu):
			t.Errorf("%+v: MTU %s, %v; want %s", c.n.Options, settled["mtu"], err, c.mtu)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%+v: %v, want %q", c.n.Options, err, c.want)
		}
	}
	if after := h.Dump(t); after != before {
		t.Errorf("a refusal changed something:\n%s", after)
	}
}

// A station is a host with all of a daemon but its doors.
type station struct {
	*host
	t      *testing.T
	n      int
	v6     bool
	st     *store.Store
	client *cluster.Client
	*yard.Yard
	stop func()
}

func newStation(t *testing.T, lan *kerneltest.Host, n int, v6 bool) *station {
	t.Helper()
	s := &station{host: &host{Host: lan.Peer(t, fmt.Sprint("p", n))}, t: t, n: n, v6: v6}
	lan.Sh(t, fmt.Sprintf("ip link set p%d master br0", n))
	// There is a way for what is to go by the tunnel and does not.
	s.Sh(t, fmt.Sprintf("ip addr add 192.0.2.%d/24 dev eth0 && ip addr add 2001:db8::%[1]d/64 dev eth0 nodad && "+
		"ip -6 route add default via 2001:db8::fe && ip route add default via 192.0.2.254", n))
	s.Sh(t, "ip -6 neigh add 2001:db8::fe lladdr 02:00:00:00:00:fe dev eth0 nud permanent && "+
		"ip neigh add 192.0.2.254 lladdr 02:00:00:00:00:fe dev eth0 nud permanent")
	var err error
	s.st, err = store.Open(t.Context(), store.Config{NoSync: true, Path: filepath.Join(t.TempDir(), "db")})
	must(t, err)
	t.Cleanup(func() {
		if s.stop != nil {
			s.stop()
		}
		_ = s.st.Close()
	})
	return s
}

func (s *station) vtep() netip.Addr {
	if s.v6 {
		return netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", s.n))
	}
	return netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", s.n))
}

// start starts what a daemon runs. Without repairs, what is removed from the kernel does not come back.
func (s *station) start(url string, repairs bool) {
	s.t.Helper()
	s.LeaveTablesOpen()
	var err error
	s.client, err = cluster.Open(etcd.Config{Endpoints: []string{url}, Insecure: true})
	must(s.t, err)
	log := slog.New(slog.DiscardHandler)
	s.agent, err = fabric.New(fabric.Config{
		Log: log, Client: s.client, Store: s.st, Kernel: s.Kernel, Port: 4789, BootID: fmt.Sprint("boot", s.n),
		Host: record.Host{Name: fmt.Sprint("h", s.n), VTEP: s.vtep(), MTU: 1500},
	})
	must(s.t, err)
	f := fabric.Modes{A: s.agent}
	s.mode = modetest.On(s.Kernel, overlay.New, f)
	s.Yard = yard.New(book.Config{
		Log: log, Store: s.st, Kernel: plan.Host{Kernel: s.Kernel}, Handle: s.Handle,
		BootID: fmt.Sprint("boot", s.n),
		IPAM:   ipam.New(ipam.Config{}), Fabric: f,
		Modes: map[string]modes.Mode{"overlay": s.mode.Mode}, Background: func(f func()) { f() },
	})
	must(s.t, reconcile.Restore(s.t.Context(), s.Yard, false))
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	runs := []func(context.Context) error{s.agent.Run}
	if repairs {
		w, err := repair.Watch(ctx, s.Yard)
		must(s.t, err)
		runs = append(runs, w.Run)
	}
	for _, run := range runs {
		all.Add(1)
		go func() {
			defer all.Done()
			_ = run(ctx)
		}()
	}
	s.stop = func() {
		cancel()
		all.Wait()
		_ = s.client.Close()
		s.stop = nil
	}
	reason := ""
	defer func() {
		if reason != "" {
			s.t.Logf("host %d is no member: %s", s.n, reason)
		}
	}()
	clustertest.Eventually(s.t, "the host is no member", func() bool {
		status, err := s.agent.Status()
		if reason = status.Reason; err != nil {
			reason = err.Error()
		}
		return reason == ""
	})
}

// restart starts it again after the daemon has died; what it made in the kernel is still there.
func (s *station) restart(url string, repairs bool) {
	s.t.Helper()
	if s.stop != nil {
		s.stop()
	}
	s.Reopen(s.t)
	s.start(url, repairs)
}

// on makes a network and a container on it.
func (s *station) on(n modes.Network, id string) (c *kerneltest.Host, e modes.Endpoint) {
	s.t.Helper()
	for i := range n.Subnets {
		n.Subnets[i].Space = yoverlay.Space
	}
	must(s.t, s.CreateNetwork(s.t.Context(), n))
	n, err := s.Network(n.ID)
	must(s.t, err)
	var addrs []netip.Addr
	for _, v6 := range []bool{false, true} {
		clustertest.Eventually(s.t, "no address", func() bool {
			a, err := s.agent.Grant(s.t.Context(), address.Wish{Network: n.Settled["overlay_id"], Endpoint: id, V6: v6})
			if err == nil {
				addrs = append(addrs, a)
			}
			return err == nil
		})
	}
	e = endpoint(n, id, addrs...)
	of := book.Holder{Network: n.ID, Endpoint: id}
	_, err = s.CreateEndpoint(s.t.Context(), of, func(modes.Network) (modes.Endpoint, error) { return e, nil })
	must(s.t, err)
	c = kerneltest.New(s.t)
	_, link, err := s.Join(s.t.Context(), n.ID, e.ID, c.Path())
	must(s.t, err)
	c.Take(s.t, s.Host, link.SrcName, "ip link set eth0 mtu "+fmt.Sprint(link.MTU),
		"ip addr add "+e.Addrs[0].String()+" dev eth0", "ip addr add "+e.Addrs[1].String()+" dev eth0 nodad")
	return c, e
}

// A wiretap counts what is on the wire between hosts.
type wiretap struct {
	mu sync.Mutex
	// sealed are WireGuard's packets, plain frames of the network of the number open, which is in clear.
	sealed, plain int
	open          uint32
	// others are neither, nor about the wire itself.
	others [][]byte
}

// mark is in every packet that containers send.
const mark = "nyard-in-clear\xff\x00"

func (w *wiretap) see(frame []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	const eth, arp, ip4, ip6, udp, icmp6, firstND = 14, 0x0806, 0x0800, 0x86dd, 17, 58, 133
	var proto byte
	var rest []byte
	switch binary.BigEndian.Uint16(frame[eth-2:]) {
	case arp:
		return
	case ip4:
		proto, rest = frame[eth+9], frame[eth+int(frame[eth]&0xf)*4:]
	case ip6:
		proto, rest = frame[eth+6], frame[eth+40:]
		if proto == 0 { // a host says which groups it listens to
			proto, rest = rest[0], rest[8:]
		}
	}
	switch {
	case proto == icmp6 && (rest[0] >= firstND) && !bytes.Contains(frame, []byte(mark)):
		return
	case proto == udp && binary.BigEndian.Uint16(rest[2:]) == fabric.WireGuardPort &&
		!bytes.Contains(frame, []byte(mark)):
		w.sealed++
	case proto == udp && binary.BigEndian.Uint16(rest[2:]) == 4789 && w.open != 0 &&
		binary.BigEndian.Uint32(rest[12:])>>8 == w.open:
		w.plain++
	default:
		w.others = append(w.others, bytes.Clone(frame))
	}
}

// quiet fails the test if something was to be read on the wire, and says how many packets were not.
func (w *wiretap) quiet(t *testing.T, when string, taps ...*kerneltest.Sniffer) int {
	t.Helper()
	for _, s := range taps {
		s.Look()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := len(w.others); n > 0 {
		t.Errorf("%s: %d packets in clear, the first: %x", when, n, w.others[0])
	}
	w.others = nil
	return w.sealed
}

// pinged returns how many of count pings, each with the mark, were answered.
func pinged(t *testing.T, c *kerneltest.Host, to netip.Addr, count int, flags string) (back int) {
	t.Helper()
	out, _ := c.TrySh(fmt.Sprintf("ping -q -c %d -p %x %s %s", count, mark, flags, to))
	at := strings.Index(out, "packets transmitted, ")
	if at < 0 {
		t.Fatalf("ping %s: %s", to, out)
	}
	if _, err := fmt.Sscanf(out[at:], "packets transmitted, %d received", &back); err != nil {
		t.Fatalf("ping %s: %s", to, out)
	}
	return back
}

// TestEncryptedHosts: between containers of two hosts nothing is to be read on the wire, over thousands of packets: not
// before there is a session of WireGuard's, not when the device is taken away, not while no daemon runs, and not while
// a key becomes another.
func TestEncryptedHosts(t *testing.T) {
	t.Parallel()
	kerneltest.NeedsWireGuard(t)
	for _, v6 := range []bool{false, true} {
		t.Run(map[bool]string{false: "over IPv4", true: "over IPv6"}[v6], func(t *testing.T) {
			t.Parallel()
			newPair(t, v6).test()
		})
	}
}

// A pair is two hosts with a container each, and who listens on the wire between them.
type pair struct {
	t        *testing.T
	etcd     *clustertest.Etcd
	lan      *kerneltest.Host
	one, two *station
	c1, c2   *kerneltest.Host
	e1, e2   modes.Endpoint
	tap      *wiretap
	taps     []*kerneltest.Sniffer
}

const redOne, redTwo = "100000000000", "200000000000"

func newPair(t *testing.T, v6 bool) *pair {
	t.Helper()
	p := &pair{t: t, etcd: clustertest.Start(t, ""), tap: &wiretap{}}
	lan := kerneltest.New(t)
	p.lan = lan
	lan.Sh(t, "ip link add br0 type bridge mcast_snooping 0 && ip link set br0 up")
	p.one, p.two = newStation(t, lan, 1, v6), newStation(t, lan, 2, v6)
	p.one.start(p.etcd.URL, false)
	p.two.start(p.etcd.URL, false)
	p.taps = []*kerneltest.Sniffer{lan.Sniff(t, "p1", p.tap.see), lan.Sniff(t, "p2", p.tap.see)}
	return p
}

func (p *pair) quiet(when string) int {
	p.t.Helper()
	return p.tap.quiet(p.t, when, p.taps...)
}

// to returns the address by which the first container reaches the second.
func (p *pair) to() netip.Addr { return p.e2.Addrs[0].Addr() }

// through waits until the containers reach each other.
func (p *pair) through(when string) {
	p.t.Helper()
	clustertest.Eventually(p.t, when+": the containers do not reach each other", func() bool {
		return pinged(p.t, p.c1, p.to(), 1, "-W 1") == 1 && pinged(p.t, p.c2, p.e1.Addrs[1].Addr(), 1, "-W 1") == 1
	})
	p.quiet(when)
}

// lost: of some pings none comes back, neither a container's nor the host's.
func (p *pair) lost(when string) {
	p.t.Helper()
	back := pinged(p.t, p.c1, p.to(), 5, "-i 0.1 -W 1") + pinged(p.t, p.one.Host, p.to(), 2, "-i 0.1 -W 1")
	if back != 0 {
		p.t.Errorf("%s: %d pings came back", when, back)
	}
	p.quiet(when)
}

func (p *pair) test() {
	t := p.t
	t.Helper()
	p.begin()
	p.much()
	p.rotate("near")
	p.cross()
	p.one.stop()
	p.through("while no daemon runs")
	p.one.Sh(t, "ip link del nyt-overlay")
	p.lost("after the device was deleted, while no daemon runs")
	p.one.restart(p.etcd.URL, true)
	p.through("when a daemon has started again")
	p.one.Sh(t, "ip link del nyt-overlay")
	p.through("when the device was deleted, and a daemon runs")
	p.beside()
	for _, s := range []*station{p.one, p.two} {
		if found, err := reconcile.Audit(t.Context(), s.Yard, nil); err != nil || len(found) > 0 {
			t.Errorf("doctor on host %d: %v, %v", s.n, found, err)
		}
	}
	p.keyless()
	p.forget()
	p.gone(p.one, redOne, p.e1)
	p.gone(p.two, redTwo, p.e2)
}

// begin makes the network and a container on each host. The second does not hear the first at first.
func (p *pair) begin() {
	t := p.t
	t.Helper()
	p.c1, p.e1 = p.one.on(network(redOne, "red", map[string]string{"encrypted": "true"}), "e10000000000")
	p.two.Sh(t, "nft add table inet block; nft 'add chain inet block in { type filter hook input priority -10; }'; "+
		"nft add rule inet block in udp dport 14789 drop")
	p.c2, p.e2 = p.two.on(network(redTwo, "red", nil), "e20000000000") // who says nothing gets the cluster's
	n, err := p.two.Network(redTwo)
	must(t, err)
	if n.Settled["encrypted"] != "true" || n.Settled["mtu"] != fmt.Sprint(p.mtu()) {
		t.Errorf("the second host's network is settled as %v", n.Settled)
	}
	before := p.quiet("before anything is sent")
	clustertest.Eventually(t, "the first host does not try", func() bool {
		p.lost("before there is a session")
		return p.quiet("before there is a session") > before
	})
	p.two.Sh(t, "nft delete table inet block")
	p.through("at first")
}

func (p *pair) mtu() int { return map[bool]int{false: 1370, true: 1350}[p.one.v6] }

// much: thousands of packets, and some that are as large as can be.
func (p *pair) much() {
	t := p.t
	t.Helper()
	const header = 28
	pings := map[bool]int{false: 1500, true: 250}[p.one.v6] // and as many answers
	size := p.mtu() - header
	if pinged(t, p.c1, p.to(), 3, fmt.Sprint("-W 5 -M do -s ", size)) == 0 ||
		pinged(t, p.c1, p.to(), 1, fmt.Sprint("-W 1 -M do -s ", size+1)) != 0 {
		t.Errorf("the largest packet that fits is not of %d bytes", p.mtu())
	}
	at := p.quiet("full packets")
	back := pinged(t, p.c1, p.to(), pings, "-f")
	sealed := (p.quiet("many packets") - at) / len(p.taps)
	t.Logf("%d of %d pings came back; on the wire %d packets of WireGuard's, none in clear", back, pings, sealed)
	if sealed < back*2 || back == 0 {
		t.Errorf("%d of %d pings came back, by %d packets", back, pings, sealed)
	}
}

// cross: hosts that are far from each other ask each other for keys before they hear that they are asked. They agree
// before WireGuard asks for the second time, as it would each time.
func (p *pair) cross() {
	t := p.t
	t.Helper()
	ports := []string{"p1", "p2"}
	for _, port := range ports {
		p.lan.Sh(t, "tc qdisc add dev "+port+" root netem delay 50ms")
	}
	const rekey = 5 * time.Second // REKEY_TIMEOUT
	var took []time.Duration
	for len(took) < 3 && (len(took) == 0 || took[len(took)-1] > rekey) { // a machine may be as slow as that once
		took = append(took, p.rotate("far"))
	}
	if took[len(took)-1] > rekey {
		t.Errorf("hosts that ask each other for keys agreed when WireGuard asked again, after %s", took)
	}
	for _, port := range ports {
		p.lan.Sh(t, "tc qdisc del dev "+port+" root")
	}
}

// rotate: another key costs little, and nothing is in clear meanwhile. It says when the hosts had agreed.
func (p *pair) rotate(where string) time.Duration {
	t := p.t
	t.Helper()
	was := p.one.key(t)
	const pings = 300
	back := make(chan int, 1)
	go func() { back <- pinged(t, p.c1, p.to(), pings, "-i 0.01 -W 2") }()
	start := time.Now()
	now, err := p.one.agent.RotateKey(t.Context())
	turned := time.Now()
	got := <-back
	must(t, err)
	if now == was || p.one.key(t) != now {
		t.Errorf("the key was %s, is to be %s and is %s", was, now, p.one.key(t))
	}
	p.through("with another key")
	agreed := p.one.WireGuardPeer(t).LastHandshakeTime.Sub(turned)
	t.Logf("%s hosts: a key became another in %s, and they agreed %s later; of %d pings, one each 10 ms, %d were lost",
		where, turned.Sub(start), agreed, pings, pings-got)
	return agreed
}

// beside: a network in clear is beside it, as before, and who listens sees that one.
func (p *pair) beside() {
	t := p.t
	t.Helper()
	green := func(id string) modes.Network {
		n := network(id, "green", nil)
		n.Subnets = []modes.Subnet{subnet("10.30.0.0/16", "10.30.0.1/16"), subnet("fd30::/64", "fd30::1/64")}
		return n
	}
	const one, two = "300000000000", "400000000000"
	c, _ := p.one.on(green(one), "e30000000000")
	n, err := p.one.Network(one)
	must(t, err)
	vni, err := strconv.ParseUint(n.Settled["vni"], 10, 32)
	must(t, err)
	p.tap.mu.Lock()
	p.tap.open = uint32(vni)
	p.tap.mu.Unlock()
	_, e := p.two.on(green(two), "e40000000000")
	clustertest.Eventually(t, "a network in clear is not reached",
		func() bool { return pinged(t, c, e.Addrs[0].Addr(), 1, "-W 1") == 1 })
	p.through("with a network in clear beside it")
	if c.Sh(t, "ip route add default via 10.30.0.1"); c.Pings(p.to().String(), false) {
		t.Error("one network reaches another")
	}
	p.tap.mu.Lock()
	defer p.tap.mu.Unlock()
	if p.tap.plain == 0 {
		t.Error("who listens hears nothing of a network in clear")
	}
}

// keyless: a host that cannot encrypt is no peer, and is named.
func (p *pair) keyless() {
	t := p.t
	t.Helper()
	n, err := p.one.Network(redOne)
	must(t, err)
	old := record.Host{ID: strings.Repeat("f", 32), Name: "old", VTEP: netip.MustParseAddr("192.0.2.99"), MTU: 1500}
	if p.one.v6 {
		old.VTEP = netip.MustParseAddr("2001:db8::99")
	}
	m := record.Member{Network: n.Settled["overlay_id"], Host: old.ID}
	must(t, p.one.client.Join(t.Context(), old))
	must(t, p.one.client.JoinNetwork(t.Context(), m))
	must(t, p.one.client.ClaimAddresses(t.Context(), m, record.Address{
		Addr: netip.MustParseAddr("10.20.9.9"), Use: record.Endpoint, Endpoint: "e9", MAC: "02:42:0a:14:09:09",
	}))
	clustertest.Eventually(t, "a host that cannot encrypt is not named", func() bool {
		s, err := p.one.agent.Status()
		on := s.Networks[m.Network]
		return err == nil && slices.Equal(on.Left, []string{"old"}) &&
			strings.Contains(on.Refused[netip.MustParseAddr("10.20.9.9")], "its host old cannot encrypt")
	})
	if peers := p.one.peers(t, redOne); len(peers) != 1 {
		t.Errorf("peers of the WireGuard device: %v", peers)
	}
}

// forget: a host that was taken out is no peer of anybody's device, and nobody one of its own.
func (p *pair) forget() {
	t := p.t
	t.Helper()
	_, err := p.one.agent.Forget(t.Context(), "h2")
	must(t, err)
	for s, id := range map[*station]string{p.one: redOne, p.two: redTwo} {
		clustertest.Eventually(t, fmt.Sprintf("host %d has a peer", s.n), func() bool {
			snap, err := s.LinkSnapshot()
			must(t, err)
			peers := s.peers(t, id)
			return len(peers) == 0 && len(snap.Faults([]core.Object{koverlay.WireGuardPeers{All: peers}})) == 0
		})
	}
	p.lost("with a host that was taken out")
}

// peers returns the peers that the host's WireGuard device should have.
func (s *station) peers(t *testing.T, id string) []koverlay.WireGuardPeer {
	t.Helper()
	n, err := s.Network(id)
	must(t, err)
	for _, o := range s.mode.Objects(n) {
		if p, ok := o.(koverlay.WireGuardPeers); ok {
			return p.All
		}
	}
	t.Fatal("there are no peers of a WireGuard device")
	return nil
}

// key returns the host's public key in etcd.
func (s *station) key(t *testing.T) record.PublicKey {
	t.Helper()
	all, err := s.client.Members(t.Context())
	must(t, err)
	for _, m := range all {
		if m.Name == fmt.Sprint("h", s.n) {
			return m.WireGuard
		}
	}
	return ""
}

// gone: with the last encrypted network all of it goes.
func (p *pair) gone(s *station, id string, e modes.Endpoint) {
	t := p.t
	t.Helper()
	must(t, s.Leave(t.Context(), id, e.ID))
	must(t, s.DeleteEndpoint(t.Context(), id, e.ID))
	must(t, s.DeleteNetwork(t.Context(), id))
	out := s.Sh(t, "ip -o link | grep -e nyt- -e "+id[:11]+" || true; "+
		"nft list set inet netyard encrypted | grep elements || true; ip -6 route | grep nyt || true")
	if out != "" {
		t.Errorf("host %d: left: %s", s.n, out)
	}
}
