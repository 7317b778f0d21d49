package overlay_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"netyard/cluster"
	"netyard/cluster/clustertest"
	"netyard/cluster/etcd"
	"netyard/cluster/record"
	"netyard/fabric"
	"netyard/fabric/address"
	"netyard/kernel/core"
	"netyard/kernel/kerneltest"
	"netyard/modes"
	"netyard/modes/modetest"
	"netyard/modes/overlay"
	"netyard/store"
	"netyard/yard/reconcile"
)

const netA = "aaaaaaaaaaaa1111"

func subnet(pool, gateway string) modes.Subnet {
	return modes.Subnet{Pool: netip.MustParsePrefix(pool), Gateway: netip.MustParsePrefix(gateway)}
}

func network(id, name string, opts map[string]string) modes.Network {
	o := map[string]string{"overlay": name}
	for k, v := range opts {
		o[k] = v
	}
	return modes.Network{
		ID: id, Mode: "overlay", Options: o,
		Subnets: []modes.Subnet{subnet("10.20.0.0/16", "10.20.0.1/16"), subnet("fd20::/64", "fd20::1/64")},
	}
}

func endpoint(n modes.Network, id string, addrs ...netip.Addr) modes.Endpoint {
	e := modes.Endpoint{ID: id, NetworkID: n.ID}
	for _, a := range addrs {
		bits := 16
		if a.Is6() {
			bits = 64
		}
		e.Addrs = append(e.Addrs, netip.PrefixFrom(a, bits))
	}
	e.MAC = e.StableMAC().String()
	return e
}

// An alone is a cluster of one host.
type alone struct{ mtu int }

func (f alone) Find(_ context.Context, want modes.Overlay) (modes.Overlay, error) {
	want.ID, want.VNI = strings.Repeat("c", 32), 0x1234
	return want, nil
}

func (f alone) Host() modes.OverlayHost {
	return modes.OverlayHost{VTEP: netip.MustParseAddr("192.0.2.1"), Port: 4789, MTU: f.mtu}
}
func (alone) Up(modes.Overlay, modes.OverlayLink) error  { return nil }
func (alone) Down(modes.Overlay) error                   { return nil }
func (alone) Attach(modes.Overlay, modes.Endpoint) error { return nil }
func (alone) Detach(modes.Overlay, modes.Endpoint) error { return nil }
func (alone) Name(modes.Overlay, modes.Endpoint) error   { return nil }
func (alone) CheckRoom(modes.Overlay, bool) error        { return nil }
func (alone) HostOf(modes.Overlay, string) string        { return "" }
func (alone) LeavingObjects() ([]core.Object, error)     { return nil, nil }
func (alone) Objects(modes.Overlay) (none []core.Object) { return none }
func (alone) Grant(context.Context, modes.Overlay, string, netip.Addr, bool) (a netip.Addr, err error) {
	return a, nil
}
func (alone) Release(modes.Overlay, netip.Addr) error { return nil }

// in returns the cluster of a case.
func in(f modes.Fabric) func(*kerneltest.Host) modes.Fabric {
	return func(*kerneltest.Host) modes.Fabric { return f }
}

func TestContract(t *testing.T) {
	t.Parallel()
	internal := network(netA, "blue", nil)
	internal.Internal = true
	v4 := network(netA, "blue", map[string]string{"masquerade": "false", "mtu": "1000"})
	v4.Subnets = v4.Subnets[:1]
	for name, n := range map[string]modes.Network{
		"both": network(netA, "blue", nil), "internal": internal, "IPv4": v4,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			modetest.Run(t, modetest.Case{
				New: overlay.New, Fabric: in(alone{1500}), Network: n,
				Endpoint: endpoint(n, "eeeeeeeeeeee0001", netip.MustParseAddr("10.20.0.7"),
					netip.MustParseAddr("fd20::7")),
				Setup: func(t *testing.T, h *kerneltest.Host) { h.Sh(t, "ip addr add 192.0.2.1/24 dev lo") },
			})
		})
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	h := kerneltest.New(t)
	h.Sh(t, "ip link add lan0 type bridge && ip addr add 10.20.9.1/24 dev lan0")
	m := modetest.On(h.Kernel, overlay.New, alone{1500})
	dump := h.Dump(t)
	noGateway := network(netA, "blue", nil)
	noGateway.Subnets[0].Gateway = netip.Prefix{}
	none := network(netA, "blue", nil)
	none.Subnets = nil
	for what, n := range map[string]modes.Network{
		"overlay: name the network":                        network(netA, "", nil),
		"mtu=1451: at most 1450 fits":                      network(netA, "blue", map[string]string{"mtu": "1451"}),
		"mtu=1279: IPv6 needs at least 1280":               network(netA, "blue", map[string]string{"mtu": "1279"}),
		"has no subnet":                                    none,
		"it needs a gateway inside it":                     noGateway,
		"10.20.0.0/16 overlaps 10.20.9.0/24 on the host's": network(netA, "blue", nil),
	} {
		_, err := m.Settle(t.Context(), n)
		if err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%v, want %q", err, what)
		}
	}
	small := modetest.On(h.Kernel, overlay.New, alone{1300})
	if _, err := small.Settle(t.Context(), network(netA, "blue", nil)); err == nil ||
		!strings.Contains(err.Error(), "IPv6 needs at least 1280") {
		t.Errorf("a link that is too small: %v", err)
	}
	lone := modetest.On(h.Kernel, overlay.New, nil)
	if _, err := lone.Settle(t.Context(), network(netA, "blue", nil)); !errors.Is(err, modes.ErrNoCluster) {
		t.Errorf("without etcd: %v", err)
	}
	if got := h.Dump(t); got != dump {
		t.Error("a refusal changed something")
	}
	h.Sh(t, "ip link del lan0")
	one, two := network(netA, "blue", nil), network("bbbbbbbbbbbb2222", "blue", nil)
	one.Settled = map[string]string{"overlay_id": strings.Repeat("c", 32)}
	dump = h.Dump(t)
	if _, err := m.Settle(t.Context(), two, one); err == nil ||
		!strings.Contains(err.Error(), "as network aaaaaaaaaaaa") {
		t.Errorf("twice on one host: %v", err)
	}
	if got := h.Dump(t); got != dump {
		t.Error("a refusal changed something")
	}
}

// A host is one of three, with an Agent and the mode on it.
type host struct {
	*kerneltest.Host
	agent *fabric.Agent
	mode  modetest.Live
}

func newHost(t *testing.T, lan *kerneltest.Host, url string, n int) *host {
	t.Helper()
	h := &host{Host: lan.Peer(t, fmt.Sprint("p", n))}
	lan.Sh(t, fmt.Sprintf("ip link set p%d master br0", n))
	h.Sh(t, fmt.Sprintf("ip addr add 192.0.2.%d/24 dev eth0 && ip route add default via 192.0.2.254", n))
	if err := h.LoadFirewall(); err != nil {
		t.Fatal(err)
	}
	st, err := store.Open(t.Context(), store.Config{NoSync: true, Path: filepath.Join(t.TempDir(), "db")})
	if err != nil {
		t.Fatal(err)
	}
	c, err := cluster.Open(etcd.Config{Endpoints: []string{url}, Insecure: true})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	h.agent, err = fabric.New(fabric.Config{
		Log: log, Client: c, Store: st, Kernel: h.Kernel, Port: 4789, BootID: fmt.Sprint("boot", n),
		Host: record.Host{Name: fmt.Sprint("h", n), VTEP: netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), MTU: 1500},
	})
	if err != nil {
		t.Fatal(err)
	}
	h.mode = modetest.On(h.Kernel, overlay.New, fabric.Modes{A: h.agent})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = h.agent.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		_, _ = c.Close(), st.Close()
	})
	clustertest.Eventually(t, "the host is no member", func() bool {
		s, err := h.agent.Status()
		return err == nil && s.Reason == ""
	})
	return h
}

// up makes a network as yard does.
func (h *host) up(t *testing.T, n modes.Network) modes.Network {
	t.Helper()
	var err error
	n.Settled, err = h.mode.Settle(t.Context(), n)
	if err == nil {
		err = h.mode.Up(t.Context(), n)
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// run starts a container with addresses of the cluster's.
func (h *host) run(
	t *testing.T, n modes.Network, id string, ports ...modes.Port,
) (c *kerneltest.Host, e modes.Endpoint) {
	t.Helper()
	var addrs []netip.Addr
	for _, v6 := range []bool{false, true} {
		var a netip.Addr
		clustertest.Eventually(t, "no address", func() bool {
			got, err := h.agent.Grant(t.Context(), address.Wish{Network: n.Settled["overlay_id"], Endpoint: id, V6: v6})
			a = got
			return err == nil
		})
		addrs = append(addrs, a)
	}
	e = endpoint(n, id, addrs...)
	e.Ports = ports
	link, err := h.mode.Attach(t.Context(), n, e)
	if err != nil {
		t.Fatal(err)
	}
	c = kerneltest.New(t)
	c.Take(t, h.Host, link.SrcName, "ip link set eth0 mtu "+fmt.Sprint(link.MTU),
		"ip addr add "+e.Addrs[0].String()+" dev eth0", "ip addr add "+e.Addrs[1].String()+" dev eth0 nodad")
	for _, gw := range link.Gateways {
		c.Sh(t, "ip route add default via "+gw.String())
	}
	return c, e
}

// TestThreeHosts: as a user sees it: containers reach each other, the outside and published ports; another overlay is
// not reached.
func TestThreeHosts(t *testing.T) {
	t.Parallel()
	etcd := clustertest.Start(t, "")
	lan := kerneltest.New(t)
	lan.Sh(t, "ip link add br0 type bridge && ip link set br0 up && ip addr add 192.0.2.254/24 dev br0")
	var hosts []*host
	var cs []*kerneltest.Host
	var es []modes.Endpoint
	var ns []modes.Network
	for i := range 3 {
		h := newHost(t, lan, etcd.URL, i+1)
		n := h.up(t, network(fmt.Sprintf("%d00000000000", i+1), "blue", nil))
		var ports []modes.Port
		if i == 0 {
			ports = []modes.Port{
				{Proto: "tcp", HostIP: netip.IPv4Unspecified(), HostPort: 8080, ContainerPort: 80, Count: 1},
			}
		}
		c, e := h.run(t, n, fmt.Sprintf("e%d0000000000", i+1), ports...)
		hosts, cs, es, ns = append(hosts, h), append(cs, c), append(es, e), append(ns, n)
	}
	if ns[0].Settled["overlay_id"] != ns[2].Settled["overlay_id"] || ns[0].Settled["vni"] != ns[2].Settled["vni"] {
		t.Fatalf("three networks: %v", ns)
	}
	for i, c := range cs {
		for j, e := range es {
			for _, a := range e.Addrs {
				if i != j && !c.Pings(a.Addr().String(), true) {
					t.Errorf("container %d does not reach %s", i+1, a)
				}
			}
		}
		if !c.Pings("192.0.2.254", true) { // the outside has no route back
			t.Errorf("container %d does not get out", i+1)
		}
	}
	if lan.Sh(t, "ip route add 10.20.0.0/16 via 192.0.2.1"); lan.Pings(es[0].Addrs[0].Addr().String(), false) {
		t.Error("the outside reaches a container")
	}
	published(t, cs[0],
		map[string]*kerneltest.Host{"the outside": lan, "another host": hosts[1].Host, "a container elsewhere": cs[2]})
	green := network("900000000000", "green", nil)
	green.Subnets = []modes.Subnet{subnet("10.30.0.0/16", "10.30.0.1/16"), subnet("fd30::/64", "fd30::1/64")}
	other, _ := hosts[2].run(t, hosts[2].up(t, green), "e90000000000")
	for _, e := range es {
		if other.Pings(e.Addrs[0].Addr().String(), false) {
			t.Errorf("another overlay reaches %s", e.Addrs[0])
		}
	}
	second := network("800000000000", "blue", nil)
	second.Subnets = second.Subnets[:1]
	if _, err := hosts[2].mode.Settle(t.Context(), second); err == nil {
		t.Error("a network that differs is taken for the cluster's")
	}
	for i, h := range hosts {
		if err := h.mode.Detach(ns[i], es[i]); err != nil {
			t.Error(err)
		}
		if err := h.mode.Down(ns[i]); err != nil {
			t.Error(err)
		}
	}
	out := hosts[0].Sh(t, "ip -o link | grep -c 'ny[bxv]-' || true; nft list ruleset | grep -c 192.0.2.2 || true")
	if out != "0\n0" {
		t.Errorf("left: %s", out)
	}
}

// published: who connects to the host's port gets to the container.
func published(t *testing.T, c *kerneltest.Host, clients map[string]*kerneltest.Host) {
	t.Helper()
	var l net.Listener
	if err := c.Do(func() (err error) {
		l, err = (&net.ListenConfig{}).Listen(t.Context(), "tcp", ":80")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_ = conn.Close()
		}
	}()
	for from, h := range clients {
		clustertest.Eventually(t, from+" does not reach a published port", func() bool {
			return h.Do(func() error {
				conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(t.Context(), "tcp", "192.0.2.1:8080")
				if err == nil {
					err = conn.Close()
				}
				return err
			}) == nil
		})
	}
}

// TestClosedWithoutCluster: a host whose configuration has no etcd any more keeps its networks closed, also one that
// was made before the port was recorded.
func TestClosedWithoutCluster(t *testing.T) {
	t.Parallel()
	h := kerneltest.New(t)
	h.Sh(t, "ip addr add 192.0.2.1/24 dev lo")
	m := modetest.On(h.Kernel, overlay.New, nil)
	must(t, h.LoadFirewall())
	n := network(netA, "blue", nil)
	n.Settled = map[string]string{"overlay_id": "x", "vni": "4660", "mtu": "1450"}
	for range 2 {
		if err := m.Up(t.Context(), n); !errors.Is(err, modes.ErrNoCluster) {
			t.Errorf("without etcd: %v", err)
		}
		out := h.Sh(t, "nft list set inet netyard vnis; nft list set inet netyard vxlan_ports")
		if !strings.Contains(out, "0x1234") || !strings.Contains(out, "4789") {
			t.Errorf("it is not closed: %s", out)
		}
		n.Settled["port"] = "4789"
	}
	snap, err := h.Snapshot()
	must(t, err)
	for _, s := range snap.Strays(m.Objects(n)) {
		t.Errorf("what keeps it closed is wanted by nobody: %s", s.Text)
	}
	must(t, m.Down(n))
	if out := h.Sh(t, "nft list ruleset | grep -c -e 0x1234 -e 4789 || true"); out != "0" {
		t.Errorf("left: %s", out)
	}
}

// TestLeftIsNoStray: what keeps a network closed that this host has left, while etcd is away, is in nobody's way:
// neither the doctor nor a cleaning names it.
func TestLeftIsNoStray(t *testing.T) {
	t.Parallel()
	etcd := clustertest.Start(t, "")
	lan := kerneltest.New(t)
	lan.Sh(t, "ip link add br0 type bridge mcast_snooping 0 && ip link set br0 up")
	s := newStation(t, lan, 1, false)
	s.start(etcd.URL, true)
	n := network(redOne, "red", nil)
	_, e := s.on(n, "e10000000000")
	etcd.Cut()
	must(t, s.Leave(t.Context(), n.ID, e.ID))
	must(t, s.DeleteEndpoint(t.Context(), n.ID, e.ID))
	must(t, s.DeleteNetwork(t.Context(), n.ID))
	numbers := func() string { return s.Sh(t, "nft list set inet netyard vnis | grep elements || true") }
	if numbers() == "" {
		t.Error("the network is open although the others take this host for a member")
	}
	if found, err := reconcile.Audit(t.Context(), s.Yard, nil); err != nil || len(found) > 0 {
		t.Errorf("doctor: %v, %v", found, err)
	}
	etcd.Mend()
	clustertest.Eventually(t, "it stays closed", func() bool { return numbers() == "" })
}
