package yard_test

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"netyard/modes"
	"netyard/policy"
	"netyard/yard/book"
	"netyard/yard/enforce"
	"netyard/yard/pool"
	"netyard/yard/reconcile"
)

func parsed(t *testing.T, text string) []policy.Policy {
	t.Helper()
	ps, err := policy.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return ps
}

const appPolicy = `
name: app
select: {container: app}
ingress: {allow: [{ports: 80}]}
egress: {}
`

func (r *rig) apply(text string) {
	r.t.Helper()
	if _, err := enforce.ApplyPolicies(r.t.Context(), r.Book, parsed(r.t, text), false); err != nil {
		r.t.Fatal(err)
	}
}

// sets returns the elements of policy sets, a line each, as nft lists them.
func (r *rig) sets() string {
	r.t.Helper()
	return r.host.Sh(r.t, "for s in closed_in4 closed_out4 allow_in4 allow_out4; "+
		"do echo $s $(nft list set inet netyard $s | grep -v 'type\\|flags\\|table\\|set ' | "+
		"tr -d '{}\\n\\t' | sed 's/elements = //'); done")
}

// TestPolicyFollows shows that an endpoint is closed until its container is known, then follows the policy, also over a
// restart of the daemon, and is open again when the policy is removed.
func TestPolicyFollows(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(appPolicy)
	calls := r.life()
	for _, call := range calls[:6] {
		if err := call(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	want := func(when, in string) {
		t.Helper()
		got := strings.Join(strings.Fields(r.sets()), " ")
		if want := "closed_in4 10.9.0.2 closed_out4 10.9.0.2 allow_in4 " + in + "allow_out4"; got != want {
			t.Errorf("%s: the kernel has %q, want %q", when, got, want)
		}
		r.healthy(when)
	}
	const allowed = "10.9.0.2 . 0.0.0.0/0 . tcp . 80 "
	want("nobody knows yet", "")
	r.start()
	want("nobody knows yet, after a restart", "")
	who := census()
	who.Endpoints[epID] = reconcile.SeenEndpoint{
		NetworkID: netID,
		Container: modes.Container{Engine: "docker", ID: "c1", Name: "app", Labels: map[string]string{}},
	}
	r.looks(1, who)
	want("it is the app", allowed)
	r.start()
	want("after a restart", allowed)
	who.Endpoints[epID] = reconcile.SeenEndpoint{
		NetworkID: netID,
		Container: modes.Container{Engine: "docker", ID: "c1", Name: "renamed", Labels: map[string]string{}},
	}
	r.looks(1, who)
	if got := r.sets(); strings.Contains(got, "10.9.0.2") {
		t.Errorf("it is called otherwise now: %s", got)
	}
	r.apply(strings.Replace(appPolicy, "container: app", `labels: {tier: "*"}`, 1))
	if got := r.sets(); strings.Contains(got, "10.9.0.2") {
		t.Errorf("it has no such label: %s", got)
	}
	r.apply(strings.Replace(appPolicy, "container: app", "container: ren*", 1))
	want("by pattern", allowed)
	if err := errors.Join(r.Leave(t.Context(), netID, epID), r.DeleteEndpoint(t.Context(), netID, epID),
		pool.ReleaseAddress(t.Context(), r.Yard, "10.9.0.0/24", netip.MustParseAddr("10.9.0.2"))); err != nil {
		t.Fatal(err)
	}
	if got := r.sets(); strings.Contains(got, "10.9.0.2") {
		t.Errorf("the endpoint is gone: %s", got)
	}
	if _, err := enforce.RemovePolicy(t.Context(), r.Book, "app"); err != nil {
		t.Fatal(err)
	}
	if _, err := enforce.RemovePolicy(t.Context(), r.Book, "app"); !errors.Is(err, book.ErrNotFound) {
		t.Errorf("removed twice: %v", err)
	}
	r.healthy("at the end")
}

// TestPolicyCrash kills the daemon while policies change, and shows that records and kernel agree afterwards, on the
// old or the new ones.
func TestPolicyCrash(t *testing.T) {
	t.Parallel()
	for at := 1; ; at++ {
		r := newRig(t)
		for _, call := range r.life()[:6] {
			if err := call(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		_, err := r.pull(at, func() error {
			_, err := enforce.ApplyPolicies(t.Context(), r.Book, parsed(t, appPolicy), false)
			return err
		})
		r.start()
		r.healthy("started again")
		if err == nil {
			if at < 3 {
				t.Errorf("applying a policy has %d steps only", at-1)
			}
			return
		}
	}
}

// TestPolicyRolledBack shows that a policy which cannot be loaded into the kernel is not on record either, and that the
// former one stays in force.
func TestPolicyRolledBack(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, call := range r.life()[:6] {
		if err := call(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	r.apply(appPolicy)
	before := r.sets()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	ps := parsed(t, "name: b\negress: {}")
	if _, err := enforce.ApplyPolicies(ctx, r.Book, ps, false); !errors.Is(err, context.Canceled) {
		t.Errorf("applied in no time: %v", err)
	}
	if ps, err := enforce.Policies(r.Book); err != nil || len(ps) != 1 {
		t.Errorf("%v %v", ps, err)
	}
	if got := r.sets(); got != before {
		t.Errorf("a refused policy is in the kernel:\n%s\n%s", before, got)
	}
	r.healthy("after the refusal")
}
