package yard_test

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"netyard/kernel/core"
	"netyard/modes"
	"netyard/store"
	"netyard/yard/book"
	"netyard/yard/reconcile"
)

// TestRefusedCreate shows that refusing a network removes nothing of another one.
func TestRefusedCreate(t *testing.T) {
	t.Parallel()
	r := r6(t)
	twin := r.network()
	twin.ID = "bbbbbbbbbbbb0002"
	twin.Subnets[0].Space = ""
	if err := r.CreateNetwork(t.Context(), twin); err == nil || !strings.Contains(err.Error(), "overlaps") {
		t.Errorf("a second network of the same subnet: %v", err)
	}
	twin.Subnets, twin.Options = nil, map[string]string{"bridge": core.Name(core.BridgePrefix, netID)}
	if err := r.CreateNetwork(t.Context(), twin); err == nil {
		t.Error("a second network on the same bridge")
	}
	r.healthy("after the refusals")
	if ns, _ := r.Networks(); len(ns) != 1 {
		t.Errorf("%d networks", len(ns))
	}
}

// TestRestartBesideOverlap shows that a network is brought up again, isolated as before, when the host has got an
// address in its subnet meanwhile.
func TestRestartBesideOverlap(t *testing.T) {
	t.Parallel()
	r := r6(t)
	r.host.Sh(t, "ip link add lan0 type bridge && ip link set lan0 up && ip addr add 10.9.0.77/16 dev lan0")
	r.start()
	r.healthy("after a restart")
	if rules := r.host.Sh(t, "nft list set inet netyard bridges"); !strings.Contains(rules, "nyb-aaaaaaaaaaa") {
		t.Errorf("the network is not isolated: %s", rules)
	}
}

// TestGCBesideCreates shows that objects which are created during gc are not strays.
func TestGCBesideCreates(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			removed, err := reconcile.GC(t.Context(), r.Yard, nil, false)
			if err != nil || len(removed) > 0 {
				t.Errorf("gc removed %+v: %v", removed, err)
				return
			}
		}
	})
	var creators sync.WaitGroup
	for w := range 4 {
		creators.Go(func() {
			for i := range 10 {
				n := modes.Network{ID: fmt.Sprintf("%02d%02daaaaaaaa", w, i), Mode: "bridge", Subnets: []modes.Subnet{{
					Pool:    netip.MustParsePrefix(fmt.Sprintf("10.%d.%d.0/24", w, i)),
					Gateway: netip.MustParsePrefix(fmt.Sprintf("10.%d.%d.1/24", w, i)),
				}}}
				if err := r.CreateNetwork(t.Context(), n); err != nil {
					t.Error(err)
				}
				if i%3 == 0 {
					if err := r.DeleteNetwork(t.Context(), n.ID); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	creators.Wait()
	close(stop)
	wg.Wait()
	r.healthy("at the end")
}

// TestModeNotOffered shows that a disabled mode keeps its networks, and gets no new ones.
func TestModeNotOffered(t *testing.T) {
	t.Parallel()
	r := r6(t)
	r.Config.Offered = []string{"none"}
	n := r.network()
	n.ID = "bbbbbbbbbbbb0002"
	if err := r.CreateNetwork(t.Context(), n); err == nil || !strings.Contains(err.Error(), "mode=bridge") {
		t.Errorf("create: %v", err)
	}
	before := r.host.Dump(t)
	r.Config.Modes = map[string]modes.Mode{} // a mode that this program does not even know
	if err := reconcile.Prune(t.Context(), r.Yard); err != nil {
		t.Fatal(err)
	}
	after := r.host.Dump(t)
	if !strings.Contains(after, "nyb-aaaaaaaaaaa") || !strings.Contains(after, "nyv-eeeeeeeeeee") {
		t.Errorf("links of an unknown mode were pruned:\n%s\n%s", before, after)
	}
}

// TestStuck shows that a change which failed half-way is reported and retried.
func TestStuck(t *testing.T) {
	t.Parallel()
	r := r6(t)
	err := r.st.Update(func(tx store.Tx) error {
		e, err := book.GetEndpoint(tx, netID, epID)
		if err != nil {
			return err
		}
		e.Phase, e.Turned = modes.Deleting, r.now
		return book.PutEndpoint(tx, e)
	})
	if err != nil {
		t.Fatal(err)
	}
	r.now = r.now.Add(10 * time.Second)
	r.finds("endpoint eeeeeeeeeeee is stuck deleting")
	r.now = r.now.Add(time.Minute)
	r.Retry(t.Context())
	if es, _ := r.Endpoints(); len(es) != 0 {
		t.Error("it is still stuck")
	}
	r.healthy("after the retry")
}
