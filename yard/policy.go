package yard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"netyard/kernel"
	"netyard/modes"
	"netyard/policy"
	"netyard/store"
)

var policies = store.Bucket[policy.Policy]{Name: "policies"}

// A PolicyState is a policy and the endpoints it is about.
type PolicyState struct {
	policy.Policy

	Endpoints []policy.Endpoint
	// Change is what applying it did: created, changed, unchanged or removed.
	Change string
}

// Policies returns all policies, by name.
func (y *Yard) Policies() (states []PolicyState, err error) {
	r, err := y.records(nil)
	if err != nil {
		return nil, err
	}
	for _, p := range r.policies {
		states = append(states, r.state(p, ""))
	}
	return states, nil
}

// Policy finds one by its name.
func (y *Yard) Policy(name string) (PolicyState, error) {
	all, err := y.Policies()
	if err != nil {
		return PolicyState{}, err
	}
	names := []string{}
	for _, s := range all {
		if s.Name == name {
			return s, nil
		}
		names = append(names, s.Name)
	}
	return PolicyState{}, unknown("policy", name, names)
}

// unknown says of a name that it is none of those, and which it is nearest to.
func unknown(kind, name string, known []string) error {
	if near := modes.Nearest(name, known); near != "" {
		return fmt.Errorf("%s %q: %w; did you mean %s?", kind, name, ErrNotFound, near)
	}
	return fmt.Errorf("%s %q: %w", kind, name, ErrNotFound)
}

// ApplyPolicies puts policies in the place of those of the same names, all or none. dryRun only says what that would
// do.
func (y *Yard) ApplyPolicies(ctx context.Context, fresh []policy.Policy, dryRun bool) ([]PolicyState, error) {
	for _, p := range fresh {
		if err := y.enforceable(p); err != nil {
			return nil, err
		}
	}
	r, err := y.records(fresh)
	if err != nil {
		return nil, err
	}
	var states []PolicyState
	for _, p := range fresh {
		states = append(states, r.state(p, r.change(p)))
	}
	if dryRun {
		return states, nil
	}
	return states, y.changePolicies(ctx, func(tx store.Tx) error {
		for _, p := range fresh {
			if err := policies.Put(tx, p.Name, p); err != nil {
				return err
			}
		}
		return nil
	})
}

// RemovePolicy takes a policy back.
func (y *Yard) RemovePolicy(ctx context.Context, name string) (PolicyState, error) {
	s, err := y.Policy(name)
	if err != nil {
		return s, err
	}
	s.Change = "removed"
	return s, y.changePolicies(ctx, func(tx store.Tx) error { return policies.Delete(tx, name) })
}

// changePolicies records a change and makes it true. One that the kernel refuses is taken back.
func (y *Yard) changePolicies(ctx context.Context, change func(store.Tx) error) error {
	var before []policy.Policy
	err := y.update("policy recorded", func(tx store.Tx) (err error) {
		if before, err = policies.List(tx, ""); err != nil {
			return err
		}
		return change(tx)
	})
	if err != nil {
		return err
	}
	if err := y.enforce(ctx); err != nil {
		return errors.Join(err, y.resetPolicies(context.WithoutCancel(ctx), before))
	}
	r, err := y.records(nil)
	if err != nil {
		return err
	}
	return y.c.Kernel.EndFlows(slices.Concat(y.subjects(r)...))
}

func (y *Yard) resetPolicies(ctx context.Context, before []policy.Policy) error {
	err := y.update("policy taken back", func(tx store.Tx) error {
		for _, name := range policies.Keys(tx, "") {
			if err := policies.Delete(tx, name); err != nil {
				return err
			}
		}
		for _, p := range before {
			if err := policies.Put(tx, p.Name, p); err != nil {
				return err
			}
		}
		return nil
	})
	return errors.Join(err, y.enforce(ctx))
}

// enforceable refuses a policy that names a network whose packets never come by the host's firewall.
func (y *Yard) enforceable(p policy.Policy) error {
	ns, err := y.Networks()
	if err != nil {
		return err
	}
	for _, n := range ns {
		if p.Select.Network != "" && p.Select.Network == n.Name && !y.policed(n) {
			return fmt.Errorf("%w: %s: select.network: %s is of mode %s, whose packets do not come by this host's firewall", policy.ErrPolicy, p.Name, n.Name, n.Mode)
		}
	}
	return nil
}

func (y *Yard) policed(n modes.Network) bool {
	p, ok := y.c.Modes[n.Mode].(modes.Policed)
	return ok && p.Policed(n)
}

// policyRecords are all that policies depend on, at one moment.
type policyRecords struct {
	policies  []policy.Policy
	former    map[string]policy.Policy // those of the same names as fresh ones, before them
	endpoints []policy.Endpoint
	decisions []policy.Decision
}

// records reads them, with fresh policies as if they were applied.
func (y *Yard) records(fresh []policy.Policy) (r policyRecords, err error) {
	var ns []modes.Network
	var es []modes.Endpoint
	err = y.c.Store.View(func(tx store.Tx) error {
		if r.policies, err = policies.List(tx, ""); err != nil || len(r.policies)+len(fresh) == 0 {
			return err // without policies nothing follows from the rest
		}
		if ns, err = networks.List(tx, ""); err != nil {
			return err
		}
		es, err = endpoints.List(tx, "")
		return err
	})
	if err != nil {
		return r, err
	}
	r.former = map[string]policy.Policy{}
	for _, p := range fresh {
		if i := slices.IndexFunc(r.policies, func(o policy.Policy) bool { return o.Name == p.Name }); i >= 0 {
			r.former[p.Name], r.policies[i] = r.policies[i], p
		} else {
			r.policies = append(r.policies, p)
		}
	}
	byID := map[string]modes.Network{}
	for _, n := range ns {
		byID[n.ID] = n
	}
	for _, e := range es {
		if n, ok := byID[e.NetworkID]; ok && y.policed(n) {
			r.endpoints = append(r.endpoints, policy.Endpoint{
				Endpoint: e, Network: n, Addrs: addrsOf(e), Gone: e.Phase == modes.Deleting,
			})
		}
	}
	r.decisions = policy.Decide(r.policies, r.endpoints)
	return r, nil
}

// addrsOf are all addresses of an endpoint, also the one it has on every link.
func addrsOf(e modes.Endpoint) (addrs []netip.Addr) {
	for _, a := range e.Addrs {
		addrs = append(addrs, a.Addr())
	}
	if mac, err := net.ParseMAC(e.MAC); err == nil && len(mac) == 6 {
		addrs = append(addrs, kernel.LinkLocal(mac))
	}
	return addrs
}

func (r policyRecords) state(p policy.Policy, change string) PolicyState {
	s := PolicyState{Policy: p, Change: change}
	for _, e := range r.endpoints {
		if p.Selected(e) && !e.Gone {
			s.Endpoints = append(s.Endpoints, e)
		}
	}
	return s
}

func (r policyRecords) change(p policy.Policy) string {
	old, ok := r.former[p.Name]
	switch {
	case !ok:
		return "created"
	case old.Equal(p):
		return "unchanged"
	}
	return "changed"
}

// enforcing is the lock that keeps an older look at the records from overtaking a newer one on the way to the kernel.
const enforcing = "policies"

// enforce makes the kernel decide as the policies on record say about the endpoints on record.
func (y *Yard) enforce(ctx context.Context) error {
	release, err := y.locks.hold(ctx, enforcing, false)
	if err != nil {
		return err
	}
	defer release()
	r, err := y.records(nil)
	if err != nil {
		return err
	}
	settled, err := y.settled(r.endpoints)
	if err != nil {
		return err
	}
	return y.c.Kernel.Enforce(ctx, y.c.Kernel.PolicyObjects(slices.Concat(y.subjects(r)...)), settled...)
}

// subjects are what the kernel is to decide about, for each decision. Two endpoints with the same address cannot be
// told apart there: one that is going makes way for the other, and otherwise neither is allowed anything.
func (y *Yard) subjects(r policyRecords) [][]kernel.Subject {
	holders := map[netip.Addr]int{}
	for _, e := range r.endpoints {
		for _, a := range e.Addrs {
			if !e.Gone {
				holders[a]++
			}
		}
	}
	all := make([][]kernel.Subject, len(r.decisions))
	for i, d := range r.decisions {
		e := d.Endpoint
		port, bridge, foreign := y.place(e)
		for _, a := range e.Addrs {
			if e.Gone && holders[a] > 0 {
				continue
			}
			s := kernel.Subject{Port: port, Bridge: bridge, Foreign: foreign, Addr: a}
			s.In, s.Out = d.Of(a)
			if holders[a] > 1 {
				s.In, s.Out = shut(s.In), shut(s.Out)
			}
			all[i] = append(all[i], s)
		}
	}
	return all
}

func shut(a *kernel.Access) *kernel.Access {
	if a == nil {
		return nil
	}
	return &kernel.Access{}
}

// place is where an endpoint is plugged in.
func (y *Yard) place(e policy.Endpoint) (port, bridge string, foreign bool) {
	for _, o := range y.c.Modes[e.Network.Mode].Objects(e.Network, []modes.Endpoint{e.Endpoint}) {
		switch o := o.(type) {
		case kernel.Veth:
			port, bridge = o.Name, o.Master
		case kernel.HostBridge:
			foreign = true
		}
	}
	return port, bridge, foreign
}

// wantedByPolicy adds what policy asks of the kernel.
func (y *Yard) wantedByPolicy(w *wanted) error {
	r, err := y.records(nil)
	if err != nil {
		return err
	}
	for i, subjects := range y.subjects(r) {
		e := r.decisions[i].Endpoint
		objects := y.c.Kernel.PolicyObjects(subjects)
		w.passing = append(w.passing, objects...)
		if e.Phase != modes.Ready || e.Sandbox == "" || e.Network.Phase != modes.Ready {
			continue
		}
		for _, o := range objects {
			w.objects, w.networks = append(w.objects, o), append(w.networks, e.Network)
		}
	}
	return nil
}
