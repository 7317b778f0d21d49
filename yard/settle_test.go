package yard_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"netyard/modes"
	"netyard/modes/macvlan"
)

// An interrupted mode has something done while it settles a network, the first time.
type interrupted struct {
	modes.Mode

	by *func()
}

func (m interrupted) Settle(
	ctx context.Context, f modes.Facts, n modes.Network, others []modes.Network,
) (map[string]string, error) {
	settled, err := m.Mode.Settle(ctx, f, n, others)
	if by := *m.by; by != nil {
		*m.by = nil
		by()
	}
	return settled, err
}

// TestSettledBeside shows that of two conflicting networks only one is created, also when both are created at the same
// time.
func TestSettledBeside(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.host.Peer(t, "lan0")
	var by func()
	r.Config.Modes["macvlan"] = interrupted{macvlan.New(modes.Env{}), &by}
	of := func(id string) modes.Network {
		return modes.Network{
			ID: id, Mode: "macvlan",
			Options: map[string]string{"parent": "lan0", "macvlan_mode": "passthru"},
		}
	}
	var other error
	by = func() { other = r.CreateNetwork(t.Context(), of("bbbbbbbbbbbb2222")) }
	err := r.CreateNetwork(t.Context(), of("aaaaaaaaaaaa1111"))
	if other != nil || err == nil || !strings.Contains(err.Error(), "requires exclusive use of the parent") {
		t.Errorf("the first: %v; the second: %v", err, other)
	}
	ns, err := r.Networks()
	if err != nil || len(ns) != 1 || ns[0].ID != "bbbbbbbbbbbb2222" {
		t.Errorf("on record: %v, %v", ns, err)
	}
	// The other one is there already, and is created anew as one that is in the way.
	if err := r.DeleteNetwork(t.Context(), "bbbbbbbbbbbb2222"); err != nil {
		t.Fatal(err)
	}
	harmless := of("bbbbbbbbbbbb2222")
	harmless.Options = map[string]string{"parent": "lan0"}
	by = nil
	if err := r.CreateNetwork(t.Context(), harmless); err != nil {
		t.Fatal(err)
	}
	by = func() {
		other = errors.Join(r.DeleteNetwork(t.Context(), "bbbbbbbbbbbb2222"),
			r.CreateNetwork(t.Context(), of("bbbbbbbbbbbb2222")))
	}
	shared := of("aaaaaaaaaaaa1111")
	shared.Options = map[string]string{"parent": "lan0"}
	err = r.CreateNetwork(t.Context(), shared)
	if other != nil || err == nil || !strings.Contains(err.Error(), "requires exclusive use of the parent") {
		t.Errorf("beside one that was created anew: %v; that one: %v", err, other)
	}
	by = func() { other = r.CreateNetwork(t.Context(), modes.Network{ID: "cccccccccccc3333", Mode: "bridge"}) }
	alone := modes.Network{ID: "dddddddddddd4444", Mode: "macvlan"}
	if err := r.CreateNetwork(t.Context(), alone); err != nil || other != nil {
		t.Errorf("beside a network that is in nobody's way: %v, %v", err, other)
	}
}
