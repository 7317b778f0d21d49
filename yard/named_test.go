package yard_test

import (
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"sync/atomic"
	"testing"

	"netyard/ipam"
	"netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/modes"
	"netyard/modes/all"
	"netyard/modes/modetest"
	"netyard/store"
	"netyard/yard"
	"netyard/yard/book"
	"netyard/yard/repair"
	"netyard/yard/yardtest"
)

// A counted is a host whose records' reads are counted, on a kernel that counts the objects it compares.
type counted struct {
	*yard.Yard

	t      *testing.T
	kernel *yardtest.Kernel
	reads  atomic.Int64
}

func newCounted(t *testing.T) *counted {
	t.Helper()
	r := &counted{t: t, kernel: yardtest.New(modetest.Facts{
		Link: map[string]core.LinkInfo{"eth0": modetest.Ethernet(1500)},
	})}
	st, err := store.Open(t.Context(), store.Config{
		NoSync: true, Path: filepath.Join(t.TempDir(), "db"), Read: func(string, string) { r.reads.Add(1) },
	})
	must(t, err)
	t.Cleanup(func() { _ = st.Close() })
	r.kernel.OpenSandbox("/run/netns/c1")
	r.Yard = yard.New(book.Config{
		Log: slog.New(slog.DiscardHandler), Store: st, Kernel: r.kernel, Modes: all.On(modes.Env{}), BootID: "b",
		IPAM: ipam.New(ipam.Config{}), Background: func(func()) {},
	})
	n := modes.Network{ID: netID, Mode: "bridge", Subnets: []modes.Subnet{{
		Pool: netip.MustParsePrefix("10.9.0.0/16"), Gateway: netip.MustParsePrefix("10.9.0.1/16"),
	}}}
	must(t, r.CreateNetwork(t.Context(), n))
	lan := modes.Network{ID: "1a", Mode: "macvlan", Options: map[string]string{"parent": "eth0"}}
	lan.Subnets = []modes.Subnet{
		{Pool: netip.MustParsePrefix("192.0.2.0/24"), Gateway: netip.MustParsePrefix("192.0.2.1/24")},
	}
	must(t, r.CreateNetwork(t.Context(), lan))
	e := modes.Endpoint{ID: epID, NetworkID: netID, Addrs: []netip.Prefix{netip.MustParsePrefix("10.9.0.2/16")}}
	_, err = r.CreateEndpoint(t.Context(), book.Holder{Network: netID, Endpoint: epID},
		func(modes.Network) (modes.Endpoint, error) { return e, nil })
	must(t, err)
	_, _, err = r.Join(t.Context(), netID, epID, "/run/netns/c1")
	must(t, err)
	return r
}

// others records as many other endpoints, half of them on the same network.
func (r *counted) others(count int) {
	r.t.Helper()
	must(r.t, r.Config.Store.Update(func(tx store.Tx) error {
		for i := range count {
			e := modes.Endpoint{
				ID: fmt.Sprintf("%014x", 0xb000+i), NetworkID: []string{netID, "elsewhere"}[i%2],
				Phase: modes.Ready, Sandbox: fmt.Sprintf("/run/%d", i), MAC: "02:00:00:00:00:01",
			}
			if err := book.PutEndpoint(tx, e); err != nil {
				return err
			}
		}
		routed := modes.Network{ID: "2b", Mode: "bridge", Phase: modes.Ready, IPv6: true, Subnets: []modes.Subnet{
			{Pool: netip.MustParsePrefix("2001:db8::/64"), Gateway: netip.MustParsePrefix("2001:db8::1/64")},
		}, Options: map[string]string{"ndp_proxy": "eth1"}}
		if err := book.Networks.Put(tx, routed.ID, routed); err != nil {
			return err
		}
		return book.Networks.Put(tx, "elsewhere", modes.Network{ID: "elsewhere", Mode: "none", Phase: modes.Ready})
	}))
}

// cost repairs what changes of links were about, and returns how many records were read and objects compared.
func (r *counted) cost(links ...core.LinkID) [2]int {
	r.t.Helper()
	r.reads.Store(0)
	r.kernel.Compared = 0
	must(r.t, repair.Named(r.t.Context(), r.Yard, links...))
	return [2]int{int(r.reads.Load()), r.kernel.Compared}
}

// TestRepairNamedReads shows that what the repair after a change reads, of records and kernel, does not grow with the
// number of endpoints.
func TestRepairNamedReads(t *testing.T) {
	t.Parallel()
	cost := map[int]map[string][2]int{}
	for _, count := range []int{10, 1000} {
		r := newCounted(t)
		r.others(count)
		cost[count] = map[string][2]int{}
		for what, l := range map[string]core.LinkID{
			"an endpoint's link": {Name: core.Name(core.VethPrefix, epID), Alias: core.Alias(netID, epID)},
			"a network's link":   {Name: core.Name(core.BridgePrefix, netID), Alias: core.Alias(netID, "")},
			"a parent":           {Name: "eth0", MAC: "02:00:00:00:00:99"},
			"a proxy's link":     {Name: "eth1"},
			"a stranger's link":  {Name: "veth1", MAC: "02:00:00:00:00:98"},
			"an unknown network": {Name: "nyb-gone", Alias: core.Alias("gone", "")},
		} {
			cost[count][what] = r.cost(l)
		}
	}
	for what, few := range cost[10] {
		if many := cost[1000][what]; few != many || few[0] == 0 {
			t.Errorf("%s: with 10 endpoints %d records read and %d objects compared, with 1000 %d and %d",
				what, few[0], few[1], many[0], many[1])
		}
	}
	for what, compares := range map[string]bool{
		"an endpoint's link": true, "a network's link": true, "a parent": true, "a proxy's link": true,
		"a stranger's link": false, "an unknown network": false,
	} {
		if got := cost[10][what][1] > 0; got != compares {
			t.Errorf("%s: objects are compared: %v, want %v", what, got, compares)
		}
	}
}

// TestRepairNamed shows that the change of a link leads to the repair of what it is part of, and of nothing else.
func TestRepairNamed(t *testing.T) {
	t.Parallel()
	r := newCounted(t)
	n, err := r.Network(netID)
	must(t, err)
	objects, err := repair.PlanOf(r.Yard, n)
	must(t, err)
	drifted := func() (left int) {
		for _, o := range objects {
			if faults, _, err := r.kernel.FaultsOf([]core.Object{o}); err != nil || len(faults) > 0 {
				left++
			}
		}
		return left
	}
	if left := drifted(); left != 0 {
		t.Fatalf("%d objects differ at first", left)
	}
	br := core.LinkID{Name: core.Name(core.BridgePrefix, netID), Alias: core.Alias(netID, "")}
	for _, o := range objects {
		a, ok := o.(core.Addr)
		if !ok {
			continue
		}
		must(t, r.kernel.Remove(a))
		if drifted() != 1 {
			t.Fatalf("%s was not removed", a)
		}
		must(t, repair.Named(t.Context(), r.Yard, core.LinkID{Name: "eth0"}, core.LinkID{Name: "veth1"}))
		if drifted() != 1 {
			t.Error("the change of another link led to the repair")
		}
		must(t, repair.Named(t.Context(), r.Yard, br))
		if left := drifted(); left != 0 {
			t.Errorf("%d objects differ after the repair", left)
		}
	}
	port := core.LinkID{Name: core.Name(core.VethPrefix, epID), Alias: core.Alias(netID, epID)}
	for _, o := range objects {
		p, ok := o.(bridge.StaticPort)
		if !ok {
			continue
		}
		must(t, r.kernel.Remove(p))
		if drifted() == 0 { // it goes with its link
			continue
		}
		must(t, repair.Named(t.Context(), r.Yard, port))
		if left := drifted(); left != 0 {
			t.Errorf("%d objects of the endpoint differ after the repair", left)
		}
	}
}
