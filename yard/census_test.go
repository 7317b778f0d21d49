package yard_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"netyard/ipam"
	"netyard/kernel/core"
	"netyard/kernel/kerneltest"
	"netyard/modes"
	"netyard/yard/pool"
	"netyard/yard/reconcile"
)

// census returns the census of an engine that has the network and nothing else.
func census() reconcile.Census {
	return reconcile.Census{
		Engine:    "docker",
		Networks:  map[string]reconcile.SeenNetwork{netID: {Name: "web"}},
		Endpoints: map[string]reconcile.SeenEndpoint{},
		Pools:     map[netip.Prefix]bool{netip.MustParsePrefix("10.9.0.0/24"): true},
		Wanted:    map[string]bool{},
	}
}

// looks reconciles with censuses of the engine that are a minute apart.
func (r *rig) looks(times int, c reconcile.Census) {
	r.t.Helper()
	for range times {
		r.now = r.now.Add(time.Minute + time.Second)
		if err := reconcile.Reconcile(r.t.Context(), r.Yard, c); err != nil {
			r.t.Fatal(err)
		}
	}
}

// joined returns a rig with a network of Docker's and a container on it, whose link is in a sandbox if plugged.
func joined(t *testing.T, plugged bool) *rig {
	t.Helper()
	r := newRig(t)
	calls := r.life()
	calls[2] = nil
	n := r.network()
	n.Engine = "docker"
	for i, call := range calls[:5] {
		var err error
		if i == 2 {
			err = r.CreateNetwork(t.Context(), n)
		} else {
			err = call(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	e, err := r.Endpoint(netID, epID)
	if err != nil {
		t.Fatal(err)
	}
	who := e.Container
	who.Engine = "docker"
	if err := reconcile.Identify(t.Context(), r.Yard, e, who); err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.Join(t.Context(), netID, epID, "/proc/self/ns/net"); err != nil {
		t.Fatal(err)
	}
	if plugged {
		kerneltest.New(t).Take(t, r.host, core.Name(core.PeerPrefix, epID))
	}
	return r
}

// TestReaper shows that what an engine no longer has is removed at the second census, and not before the grace period.
func TestReaper(t *testing.T) {
	t.Parallel()
	t.Run("endpoint", func(t *testing.T) {
		r := joined(t, false)
		if err := reconcile.Reconcile(t.Context(), r.Yard, census()); err != nil { // young
			t.Fatal(err)
		}
		r.looks(1, census())
		if es, _ := r.Endpoints(); len(es) != 1 {
			t.Fatal("an endpoint was removed at the first census")
		}
		r.looks(1, census())
		if es, _ := r.Endpoints(); len(es) != 0 {
			t.Error("an endpoint that nobody has is still there")
		}
		r.healthy("after the reaper")
	})
	t.Run("endpoint that comes back", func(t *testing.T) {
		r := joined(t, false)
		known := census()
		known.Endpoints[epID] = reconcile.SeenEndpoint{
			NetworkID: netID,
			Container: modes.Container{Engine: "docker", ID: "c", Name: "web1"},
		}
		r.looks(1, census())
		r.looks(1, known)
		r.looks(1, census())
		es, _ := r.Endpoints()
		if len(es) != 1 || es[0].Container.Name != "web1" {
			t.Errorf("endpoints %+v, want one of web1", es)
		}
	})
	t.Run("endpoint with its link in a sandbox", func(t *testing.T) {
		r := joined(t, true)
		r.looks(5, census())
		if es, _ := r.Endpoints(); len(es) != 1 {
			t.Error("a running container lost its link because of a census")
		}
		r.findsWith(census(), "no container of docker has it, but a sandbox has its link", false)
	})
	t.Run("network", func(t *testing.T) {
		r := joined(t, false)
		other := r.network()
		other.ID, other.Engine, other.Subnets = "bbbbbbbbbbbb0002", "docker", nil
		if err := r.CreateNetwork(t.Context(), other); err != nil {
			t.Fatal(err)
		}
		c := census()
		c.Networks = map[string]reconcile.SeenNetwork{}
		r.looks(6, c)
		if ns, _ := r.Networks(); len(ns) != 2 {
			t.Fatal("the census of an engine that has none of the networks was believed")
		}
		r.findsWith(c, "network bbbbbbbbbbbb is not known to docker", true)
		r = joined(t, false)
		if err := r.CreateNetwork(t.Context(), other); err != nil {
			t.Fatal(err)
		}
		c.Networks[other.ID] = reconcile.SeenNetwork{Name: "other"}
		r.looks(1, c)
		if ns, _ := r.Networks(); len(ns) != 2 {
			t.Fatal("a network with an endpoint was removed")
		}
		r.findsWith(c, "endpoint eeeeeeeeeeee: no container of docker has it", true)
		r.looks(4, c)
		if left := r.leftovers(); left != "1 networks" {
			t.Errorf("left: %s", left)
		}
		r.healthy("after the reaper")
	})
	t.Run("network of another engine", func(t *testing.T) {
		r := joined(t, false)
		c := census()
		c.Engine, c.Networks = "podman", map[string]reconcile.SeenNetwork{}
		r.looks(5, c)
		if ns, _ := r.Networks(); len(ns) != 1 {
			t.Error("the census of one engine removed another's network")
		}
	})
	t.Run("lease, held address and pool", func(t *testing.T) {
		r := joined(t, false)
		c := census()
		c.Endpoints[epID] = reconcile.SeenEndpoint{NetworkID: netID}
		static := netip.MustParseAddr("10.9.0.77")
		kept := netip.MustParseAddr("10.9.0.78")
		c.Wanted[reconcile.WantedKey(netID, kept)] = true
		for _, a := range []netip.Addr{static, kept} {
			if _, err := pool.RequestAddress(t.Context(), r.Yard,
				ipam.AddressRequest{Pool: "10.9.0.0/24", Addr: a}); err != nil {
				t.Fatal(err)
			}
			if err := pool.ReleaseAddress(t.Context(), r.Yard, "10.9.0.0/24", a); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := pool.RequestAddress(t.Context(), r.Yard, ipam.AddressRequest{Pool: "10.9.0.0/24"}); err != nil {
			t.Fatal(err)
		}
		if _, err := pool.RequestPool(t.Context(), r.Yard, ipam.PoolRequest{
			Subnet: netip.MustParsePrefix("10.10.0.0/24"),
		}); err != nil {
			t.Fatal(err)
		}
		r.now = r.now.Add(10 * time.Second)
		r.findsWith(c, "pool 10.10.0.0/24 belongs to no network", true)
		r.looks(3, c)
		ls, ps, err := pool.Leases(r.Yard)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, l := range ls {
			if l.State != ipam.StateCooling {
				got = append(got, l.Addr.String()+" "+string(l.State))
			}
		}
		if want := "10.9.0.1 active, 10.9.0.2 active, 10.9.0.78 held"; strings.Join(got, ", ") != want {
			t.Errorf("leases %q, want %q", got, want)
		}
		if len(ps) != 1 {
			t.Errorf("pools %v", ps)
		}
	})
}

func (r *rig) findsWith(c reconcile.Census, want string, removable bool) {
	r.t.Helper()
	found, err := reconcile.Audit(r.t.Context(), r.Yard, []reconcile.Census{c})
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range found {
		if strings.Contains(f.Text, want) && f.Removable == removable {
			return
		}
	}
	r.t.Errorf("doctor does not say %q; it says %+v", want, found)
}
