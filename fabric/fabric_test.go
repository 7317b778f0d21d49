package fabric

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"netyard/cluster"
	"netyard/cluster/clustertest"
	"netyard/cluster/etcd"
	"netyard/cluster/record"
	"netyard/fabric/address"
	"netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/kernel/kerneltest"
	"netyard/kernel/nft"
	"netyard/kernel/overlay"
	"netyard/store"
)

// A host is a host of an overlay: a namespace on the LAN, and an Agent.
type host struct {
	*kerneltest.Host
	*Agent

	lan  *kerneltest.Host
	t    testing.TB
	n    int
	etcd *clustertest.Etcd
	db   *store.Store
	file string // the directory of the database
	stop func()
	// cooldown is the agent's Cooldown from the next boot on.
	cooldown time.Duration

	mu     sync.Mutex
	ports  map[string]bridge.Veth // of its endpoints
	fenced map[string]string      // as Fence was last called
}

const port = 4789

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// hosts makes hosts on one LAN, with one etcd; their agents do not run yet.
func hosts(t testing.TB, e *clustertest.Etcd, many int) (all []*host) {
	t.Helper()
	lan := kerneltest.New(t)
	lan.Sh(t, "ip link add br0 type bridge && ip link set br0 up")
	for n := 1; n <= many; n++ {
		h := &host{
			Host: lan.Peer(t, fmt.Sprint("p", n)), lan: lan, t: t, n: n, etcd: e, ports: map[string]bridge.Veth{},
		}
		lan.Sh(t, fmt.Sprintf("ip link set p%d master br0", n))
		h.Sh(t, fmt.Sprintf("ip addr add 192.0.2.%d/24 dev eth0", n))
		h.LeaveTablesOpen()
		must(t, h.LoadFirewall())
		var err error
		h.file = t.TempDir()
		h.db, err = store.Open(t.Context(), store.Config{Path: filepath.Join(h.file, "db")})
		must(t, err)
		h.boot(n)
		t.Cleanup(func() {
			h.stop()
			_ = h.db.Close()
		})
		all = append(all, h)
	}
	return all
}

// boot makes a new agent on the same database; at is the last byte of the host's address on the LAN.
func (h *host) boot(at int) {
	h.t.Helper()
	c, err := cluster.Open(etcd.Config{Endpoints: []string{h.etcd.URL}, Insecure: true})
	must(h.t, err)
	h.t.Cleanup(func() { _ = c.Close() })
	h.Agent, err = New(Config{
		Log: slog.New(slog.DiscardHandler), Client: c, Store: h.db, Kernel: h.Kernel, Port: port,
		BootID: fmt.Sprint("boot", h.n),
		Host: record.Host{
			Name: fmt.Sprint("h", h.n), VTEP: netip.AddrFrom4([4]byte{192, 0, 2, byte(at)}), MTU: 1500,
		},
		Fence: h.fence, Cooldown: h.cooldown,
	})
	must(h.t, err)
	h.stop = func() {}
}

// fence fences endpoints, as yard does.
func (h *host) fence(ctx context.Context, _ string, why map[string]string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, v := range h.ports {
		v.Fenced = why[id] != ""
		objects := []core.Object{v}
		if !v.Fenced {
			objects = append(objects, bridge.StaticPort{Link: v.Name, MAC: v.MAC})
		}
		if err := h.Ensure(ctx, objects...); err != nil {
			return err
		}
	}
	h.fenced = why
	return nil
}

// on returns the agent's state of a network.
func (h *host) on(n record.Network) *network {
	return h.Agent.network(n.ID)
}

// isFenced returns why an endpoint is fenced; empty: it is not.
func (h *host) isFenced(id string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.fenced[id]
}

// run runs the agent until stop.
func (h *host) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = h.Run(ctx)
	}()
	h.stop = func() { cancel(); <-done }
}

// member waits until the host is a member of the cluster.
func (h *host) member() {
	h.t.Helper()
	clustertest.Eventually(h.t, fmt.Sprintf("host %d is not a member", h.n),
		func() bool { return h.status().Reason == "" })
}

func (h *host) status() Status {
	h.t.Helper()
	s, err := h.Status()
	must(h.t, err)
	return s
}

// network finds a network of the cluster, or creates it.
func (h *host) network(name string, subnets ...record.Subnet) record.Network {
	h.t.Helper()
	var n record.Network
	must(h.t, retryUnreachable(h.t, func() (err error) {
		n, err = h.c.Client.CreateNetwork(h.t.Context(), record.Network{Name: name, MTU: 1450, Subnets: subnets})
		return err
	}))
	return n
}

// retryUnreachable repeats a call that a busy etcd may not answer in time.
func retryUnreachable(t testing.TB, f func() error) (err error) {
	t.Helper()
	clustertest.Eventually(t, "etcd does not answer", func() bool {
		err = f()
		return !errors.Is(err, etcd.ErrUnreachable)
	})
	return err
}

func subnets(second int) []record.Subnet {
	subnet := func(pool, gateway string) record.Subnet {
		return record.Subnet{
			Pool:    netip.MustParsePrefix(fmt.Sprintf(pool, second)),
			Gateway: netip.MustParseAddr(fmt.Sprintf(gateway, second)),
		}
	}
	return []record.Subnet{subnet("10.%d.0.0/16", "10.%d.0.1"), subnet("fd%d::/64", "fd%d::1")}
}

func (h *host) links(n record.Network) (br, x string) {
	return core.Name(core.BridgePrefix, n.ID), core.Name(core.VXLANPrefix, n.ID)
}

// up brings a network up on the host, as its mode does.
func (h *host) up(n record.Network) {
	h.t.Helper()
	br, x := h.links(n)
	alias := core.Alias(n.ID, "")
	mac := net.HardwareAddr{2, 0, byte(n.VNI >> 8), byte(n.VNI), 0xff, byte(h.n)}
	objects := []core.Object{
		bridge.Bridge{Name: br, Alias: alias, MTU: n.MTU, MAC: mac, IPv6: true},
		overlay.VXLAN{Name: x, Alias: alias, Master: br, VNI: n.VNI, Local: h.Local(), Port: h.Port(), MTU: n.MTU},
		nft.InterfaceIn(bridge.Bridges, br), nft.InterfaceIn(bridge.Own, br, br),
		nft.InterfaceIn(bridge.Reachable, br, br),
	}
	for _, s := range n.Subnets {
		objects = append(objects, overlay.Anycast{Link: br, Alias: alias, Addr: s.Gateway})
	}
	must(h.t, h.Ensure(h.t.Context(), objects...))
	must(h.t, h.Bind(Bound{Network: n, Link: x, Bridge: br, MAC: record.MAC(mac.String()), Alias: alias}))
}

// warm waits until the host has all its spare addresses and its own one.
func (h *host) warm(n record.Network) {
	h.t.Helper()
	clustertest.Eventually(h.t, fmt.Sprintf("host %d lacks spare addresses", h.n), func() bool {
		s := h.status().Networks[n.ID]
		return s.Warm == 2*address.MaxWarm && s.Waiting == 0 && !s.Unsure
	})
}

// release releases all addresses of an endpoint.
func (h *host) release(n record.Network, endpoint string) {
	h.t.Helper()
	own, err := h.addresses.List(n.ID)
	must(h.t, err)
	for _, o := range own {
		if o.Endpoint == endpoint {
			must(h.t, h.Release(n.ID, o.Addr))
		}
	}
}

// A container is a namespace on an overlay.
type container struct {
	*kerneltest.Host
	v4, v6 netip.Addr
}

// start starts a container with an address of each family.
func (h *host) start(n record.Network, id string, want ...netip.Addr) *container {
	h.t.Helper()
	c := &container{Host: kerneltest.New(h.t)}
	w := address.Wish{Network: n.ID, Endpoint: id}
	if len(want) > 0 {
		w.Addr = want[0]
	}
	var err error
	c.v4, err = h.Grant(h.t.Context(), w)
	must(h.t, err)
	c.v6, err = h.Grant(h.t.Context(), address.Wish{Network: n.ID, Endpoint: id, V6: true})
	must(h.t, err)
	b := c.v4.As4()
	mac := append(net.HardwareAddr{2, 0x42}, b[:]...)
	br, _ := h.links(n)
	v := bridge.Veth{
		Name: core.Name(core.VethPrefix, id), Peer: core.Name(core.PeerPrefix, id), Alias: core.Alias(n.ID, id),
		Master: br, MTU: n.MTU, MAC: mac,
	}
	h.mu.Lock()
	h.ports[id] = v
	h.mu.Unlock()
	guard := bridge.PortGuard{Port: v.Name, MAC: mac, Addrs: []netip.Addr{c.v4, c.v6}}
	objects := append([]core.Object{v, bridge.StaticPort{Link: v.Name, MAC: mac}}, guard.Objects()...)
	must(h.t, h.Ensure(h.t.Context(), objects...))
	must(h.t, h.Publish(n.ID, []netip.Addr{c.v4, c.v6}, id, record.MAC(mac.String()), "c-"+id[:4], nil))
	c.Take(h.t, h.Host, v.Peer,
		fmt.Sprintf("ip addr add %s/16 dev eth0 && ip addr add %s/64 dev eth0 nodad", c.v4, c.v6))
	return c
}

// knows waits until the host's kernel has neighbour entries for these peers.
func (h *host) knows(n record.Network, addrs ...netip.Addr) {
	h.t.Helper()
	_, x := h.links(n)
	for _, a := range addrs {
		clustertest.Eventually(h.t, fmt.Sprintf("host %d does not know %s", h.n, a), func() bool {
			out, err := h.TrySh("ip neigh show dev " + x)
			isEntry := func(line string) bool { return strings.HasPrefix(line, a.String()+" ") }
			return err == nil && slices.ContainsFunc(strings.Split(out, "\n"), isEntry)
		})
	}
}

// reach checks whether a ping gets an answer.
func reach(t *testing.T, from *kerneltest.Host, to netip.Addr, want bool) {
	t.Helper()
	if got := from.Pings(to.String(), want); got != want {
		t.Errorf("ping %s: %v, want %v", to, got, want)
	}
}

// wantNoDrift waits until the kernel has what the agent wants.
func (h *host) wantNoDrift(n record.Network) {
	h.t.Helper()
	clustertest.Eventually(h.t, fmt.Sprintf("on host %d the kernel and the agent differ", h.n), func() bool {
		snap, err := h.Snapshot()
		must(h.t, err)
		objects := h.Objects(n.ID)
		return len(objects) > 2 && len(snap.Faults(objects)) == 0
	})
}

// TestOverlay: containers on three hosts and two networks reach those of their own network only, also while etcd is
// away.
func TestOverlay(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	all := hosts(t, e, 3)
	var blue, green record.Network
	for i, h := range all {
		h.run()
		h.member()
		if i == 0 {
			blue, green = h.network("blue", subnets(20)...), h.network("green", subnets(30)...)
		}
		h.up(h.network("blue"))
		h.up(h.network("green"))
	}
	var cs []*container
	for i, h := range all {
		h.warm(blue)
		h.warm(green)
		cs = append(cs, h.start(blue, fmt.Sprintf("b%deeeeeeeeee", i)))
	}
	other := all[2].start(green, "a1eeeeeeeeee")
	for i, h := range all {
		for j, c := range cs {
			if i != j {
				h.knows(blue, c.v4, c.v6)
			}
		}
	}
	for i, from := range cs {
		for j, to := range cs {
			if i != j {
				reach(t, from.Host, to.v4, true)
				reach(t, from.Host, to.v6, true)
				reach(t, all[i].Host, to.v4, true) // from the host itself, with its own address
				reach(t, all[i].Host, to.v6, true)
			}
		}
	}
	other.Sh(t, "ip route add default via 10.30.0.1")
	reach(t, other.Host, cs[2].v4, false)
	reach(t, other.Host, cs[0].v4, false)
	for _, h := range all {
		h.wantNoDrift(blue)
	}
	checkOutage(t, e, all, blue, cs)
}

// checkOutage checks an outage of etcd: traffic goes on; new containers get spare addresses, and when none is left an
// error that says why; and the other hosts learn of everything afterwards.
func checkOutage(t *testing.T, e *clustertest.Etcd, all []*host, blue record.Network, cs []*container) {
	t.Helper()
	pinged := make(chan string, 1)
	go func() {
		out, _ := cs[0].TrySh("ping -q -i 0.02 -c 300 -W 2 " + cs[1].v4.String())
		pinged <- out
	}()
	e.Kill(t)
	clustertest.Eventually(t, "the outage is not noticed", func() bool {
		return all[0].status().Reason != "" && !all[0].status().Health.Down.IsZero()
	})
	fresh := all[0].start(blue, "b7eeeeeeeeee")
	reach(t, fresh.Host, cs[0].v4, true) // on the same host; the others learn of it later
	reach(t, cs[0].Host, cs[2].v4, true)
	count, err := 0, error(nil)
	for ; count < 50; count++ {
		_, err = all[0].Grant(t.Context(), address.Wish{Network: blue.ID, Endpoint: fmt.Sprintf("x%d", count)})
		if err != nil {
			break
		}
	}
	if count != address.MaxWarm-1 || !errors.Is(err, address.ErrNone) || !errors.Is(err, etcd.ErrUnreachable) ||
		strings.Contains(err.Error(), "\n") {
		t.Errorf("%d spare addresses were granted, and then %v", count, err)
	}
	all[0].release(blue, "x0")
	if got, err := all[0].Grant(t.Context(), address.Wish{Network: blue.ID, Endpoint: "again"}); err != nil {
		t.Errorf("an address that was released: %s, %v", got, err)
	}
	if out := <-pinged; !strings.Contains(out, "300 packets transmitted, 300 received, 0% packet loss") {
		t.Errorf("ping during an outage of etcd: %s", out)
	}
	e.Run(t)
	for _, h := range all[1:] {
		h.knows(blue, fresh.v4, fresh.v6)
	}
	reach(t, cs[1].Host, fresh.v4, true)
	reach(t, fresh.Host, cs[2].v6, true)
	for i := range count {
		all[0].release(blue, fmt.Sprint("x", i))
	}
	all[0].release(blue, "again")
	all[0].warm(blue)
}

// TestColdBoot: a host that starts without etcd has the peers it had before, and its status says what is missing.
func TestColdBoot(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	all := hosts(t, e, 2)
	blue := joinBlue(t, all)
	there, here := all[1].start(blue, "b1eeeeeeeeee"), all[0].start(blue, "b2eeeeeeeeee")
	all[0].knows(blue, there.v4, there.v6)
	all[1].knows(blue, here.v4, here.v6) // without it there is no answer, and etcd is down from here on
	all[0].stop()
	e.Kill(t)
	br, x := all[0].links(blue)
	all[0].Sh(t, "ip link del "+x+" && ip link set "+br+" down") // as after a boot
	all[0].boot(1)
	all[0].run()
	all[0].up(blue)
	all[0].knows(blue, there.v4, there.v6)
	all[0].wantNoDrift(blue)
	reach(t, here.Host, there.v4, true)
	if s := all[0].status(); s.Reason == "" || s.Networks[blue.ID].Peers < 4 || s.Meta.Cluster == "" {
		t.Errorf("status without etcd: %+v", s)
	}
	if got, err := all[0].Grant(t.Context(), address.Wish{Network: blue.ID, Endpoint: "b2eeeeeeeeee"}); err != nil ||
		got != here.v4 {
		t.Errorf("a container that starts again got %s, %v; it had %s", got, err, here.v4)
	}
	e.Run(t)
	all[0].member()
	all[0].warm(blue)
}

// TestAddresses: a requested address is granted once, and again after it was released, also on another host; unused and
// unknown addresses are released.
func TestAddresses(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	all := hosts(t, e, 2)
	blue := joinBlue(t, all)
	want := netip.MustParseAddr("10.20.7.7")
	request := func(h *host, endpoint string) (netip.Addr, error) {
		return h.Grant(t.Context(), address.Wish{Network: blue.ID, Endpoint: endpoint, Addr: want})
	}
	for range 2 {
		if got, err := request(all[0], "one"); err != nil || got != want {
			t.Fatalf("%s, %v", got, err)
		}
	}
	if _, err := request(all[0], "two"); !errors.Is(err, cluster.ErrTaken) {
		t.Errorf("another container: %v", err)
	}
	_, err := request(all[1], "two")
	if !errors.Is(err, cluster.ErrTaken) || !strings.Contains(err.Error(), want.String()) {
		t.Errorf("another host: %v", err)
	}
	for _, bad := range []string{"10.20.0.1", "10.20.0.0", "10.20.255.255", "10.21.0.5"} {
		w := address.Wish{Network: blue.ID, Endpoint: "bad", Addr: netip.MustParseAddr(bad)}
		if _, err := all[0].Grant(t.Context(), w); err == nil {
			t.Errorf("%s was granted", bad)
		}
	}
	must(t, all[0].Release(blue.ID, want))
	clustertest.Eventually(t, "a released address is not free", func() bool {
		_, err := request(all[1], "two")
		return err == nil
	})

	// A container moves to another host with its address.
	c := all[1].start(blue, "b4eeeeeeeeee")
	all[0].knows(blue, c.v4)
	must(t, all[1].Withdraw(blue.ID, "b4eeeeeeeeee"))
	clustertest.Eventually(t, "an address that was withdrawn is still a peer", func() bool {
		_, x := all[0].links(blue)
		return !strings.Contains(all[0].Sh(t, "ip neigh show dev "+x), c.v4.String()+" ")
	})
	all[1].release(blue, "b4eeeeeeeeee")
	moved := c.v4
	clustertest.Eventually(t, "the address is not free", func() bool {
		_, err := all[0].Grant(t.Context(), address.Wish{Network: blue.ID, Endpoint: "b5eeeeeeeeee", Addr: moved})
		return err == nil
	})
	d := all[0].start(blue, "b5eeeeeeeeee", moved)
	from := all[1].start(blue, "b6eeeeeeeeee")
	all[1].knows(blue, moved)
	all[0].knows(blue, from.v4)
	reach(t, from.Host, d.v4, true)

	// An address that is in etcd but not in the database, as after a crash, is released.
	stray := record.Address{Addr: netip.MustParseAddr("10.20.9.9"), Use: record.Warm}
	must(t, all[0].c.Client.ClaimAddresses(t.Context(), record.Member{Network: blue.ID, Host: all[0].self}, stray))
	clustertest.Eventually(t, "an address that is in no database is not released", func() bool {
		m := record.Member{Network: blue.ID, Host: all[1].self}
		return all[1].c.Client.ClaimAddresses(t.Context(), m, stray) == nil
	})

	must(t, all[0].Unbind(blue.ID))
	clustertest.Eventually(t, "a host that left still has addresses", func() bool {
		recs, err := all[1].c.Client.List(t.Context(), "addr/"+blue.ID+"/")
		must(t, err)
		isFirst := func(r record.Record) bool { return r.(*record.Address).Host == all[0].self }
		return !slices.ContainsFunc(recs, isFirst)
	})
}

// TestReaddressed: after a host gets another address, all containers reach each other again.
func TestReaddressed(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	all := hosts(t, e, 2)
	blue := joinBlue(t, all)
	one, two := all[0].start(blue, "b1eeeeeeeeee"), all[1].start(blue, "b2eeeeeeeeee")
	all[0].knows(blue, two.v4)
	all[1].knows(blue, one.v4)
	reach(t, one.Host, two.v4, true)

	all[1].stop()
	all[1].Sh(t, "ip addr add 192.0.2.102/24 dev eth0 && ip addr del 192.0.2.2/24 dev eth0 && "+
		"ip addr add 192.0.2.102/24 dev eth0 2>/dev/null; true")
	all[1].boot(102)
	all[1].up(blue)
	all[1].run()
	all[1].member()
	all[1].knows(blue, one.v4)
	clustertest.Eventually(t, "the other host does not use the new address", func() bool {
		_, x := all[0].links(blue)
		return strings.Contains(all[0].Sh(t, "bridge fdb show dev "+x), "dst 192.0.2.102")
	})
	reach(t, one.Host, two.v4, true)
	all[0].knows(blue, two.v6)
	for _, a := range []netip.Addr{one.v4, one.v6} {
		reach(t, all[1].Host, a, true)
	}
}

// TestRepair: a repair with objects from a moment ago does not undo later changes of peers.
func TestRepair(t *testing.T) {
	t.Parallel()
	all := hosts(t, clustertest.Start(t, ""), 2)
	blue := joinBlue(t, all)
	gone := all[1].start(blue, "b1eeeeeeeeee")
	all[0].knows(blue, gone.v4)
	seen := all[0].Objects(blue.ID)
	fresh := all[1].start(blue, "b2eeeeeeeeee")
	must(t, all[1].Withdraw(blue.ID, "b1eeeeeeeeee"))
	all[0].knows(blue, fresh.v4)
	_, x := all[0].links(blue)
	forgot := func() bool { return !strings.Contains(all[0].Sh(t, "ip neigh show dev "+x), gone.v4.String()+" ") }
	clustertest.Eventually(t, "an endpoint that was withdrawn is still a peer", forgot)
	must(t, all[0].Ensure(t.Context(), seen...))
	if out := all[0].Sh(t, "ip neigh show dev "+x); !strings.Contains(out, fresh.v4.String()+" ") || !forgot() {
		t.Errorf("after a repair: %s", out)
	}
}

// TestExchanged shows that two hosts exchange their addresses, and that all containers reach each other then.
func TestExchanged(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	all := hosts(t, e, 3)
	blue := joinBlue(t, all)
	var cs []*container
	for i, h := range all {
		cs = append(cs, h.start(blue, fmt.Sprintf("b%deeeeeeeeee", i+1)))
	}
	for _, h := range all[:2] {
		h.stop()
		h.Sh(t, "ip addr flush dev eth0 scope global")
	}
	for i, h := range all[:2] { // the first cannot become a member before the second
		h.Sh(t, fmt.Sprintf("ip addr add 192.0.2.%d/24 dev eth0", 2-i))
		h.boot(2 - i)
		h.up(blue)
		h.run()
	}
	for i, h := range all {
		h.member()
		for j, c := range cs {
			if j != i {
				h.knows(blue, c.v4)
			}
		}
	}
	for i, c := range cs {
		for j, to := range cs {
			if i != j {
				clustertest.Eventually(t, fmt.Sprintf("container %d does not reach %d", i+1, j+1), func() bool {
					return c.Pings(to.v4.String(), true)
				})
			}
		}
	}
}
