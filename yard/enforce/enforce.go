// Package enforce makes the kernel do what policies say.
package enforce

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	kbridge "netyard/kernel/bridge"
	"netyard/kernel/core"
	kpolicy "netyard/kernel/policy"
	"netyard/modes"
	"netyard/policy"
	"netyard/store"
	"netyard/yard/book"
)

// A PolicyState is a policy and the endpoints it is about.
type PolicyState struct {
	policy.Policy

	Endpoints []policy.Endpoint
	// Change is what applying it did: created, changed, unchanged or removed.
	Change string
}

// Policies returns all policies, by name.
func Policies(y *book.Book) (states []PolicyState, err error) {
	r, err := records(y, nil)
	if err != nil {
		return nil, err
	}
	for _, p := range r.policies {
		states = append(states, r.state(p, ""))
	}
	return states, nil
}

// Policy finds one by its name.
func Policy(y *book.Book, name string) (PolicyState, error) {
	all, err := Policies(y)
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
	return PolicyState{}, book.Unknown("policy", name, names)
}

// ApplyPolicies puts policies in the place of those of the same names, all or none. dryRun only says what that would
// do.
func ApplyPolicies(ctx context.Context, y *book.Book, fresh []policy.Policy, dryRun bool) ([]PolicyState, error) {
	for _, p := range fresh {
		if err := enforceable(y, p); err != nil {
			return nil, err
		}
	}
	r, err := records(y, fresh)
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
	return states, changePolicies(ctx, y, func(tx store.Tx) error {
		for _, p := range fresh {
			if err := book.Policies.Put(tx, p.Name, p); err != nil {
				return err
			}
		}
		return nil
	})
}

// RemovePolicy takes a policy back.
func RemovePolicy(ctx context.Context, y *book.Book, name string) (PolicyState, error) {
	s, err := Policy(y, name)
	if err != nil {
		return s, err
	}
	s.Change = "removed"
	return s, changePolicies(ctx, y, func(tx store.Tx) error { return book.Policies.Delete(tx, name) })
}

// changePolicies records a change and makes it true. One that the kernel refuses is taken back.
func changePolicies(ctx context.Context, y *book.Book, change func(store.Tx) error) error {
	var before []policy.Policy
	err := y.Update("policy recorded", func(tx store.Tx) (err error) {
		if before, err = book.Policies.List(tx, ""); err != nil {
			return err
		}
		return change(tx)
	})
	if err != nil {
		return err
	}
	if err := Enforce(ctx, y); err != nil {
		return errors.Join(err, resetPolicies(context.WithoutCancel(ctx), y, before))
	}
	r, err := records(y, nil)
	if err != nil {
		return err
	}
	return kpolicy.EndFlows(y.Config.Kernel.Handle, slices.Concat(subjects(y, r)...))
}

func resetPolicies(ctx context.Context, y *book.Book, before []policy.Policy) error {
	err := y.Update("policy taken back", func(tx store.Tx) error {
		for _, name := range book.Policies.Keys(tx, "") {
			if err := book.Policies.Delete(tx, name); err != nil {
				return err
			}
		}
		for _, p := range before {
			if err := book.Policies.Put(tx, p.Name, p); err != nil {
				return err
			}
		}
		return nil
	})
	return errors.Join(err, Enforce(ctx, y))
}

// enforceable refuses a policy that names a network whose packets never come by the host's firewall.
func enforceable(y *book.Book, p policy.Policy) error {
	ns, err := y.Networks()
	if err != nil {
		return err
	}
	for _, n := range ns {
		if p.Select.Network != "" && p.Select.Network == n.Name && !policed(y, n) {
			return fmt.Errorf("%w: %s: select.network: %s is of mode %s, whose packets do not come by this host's firewall", policy.ErrPolicy, p.Name, n.Name, n.Mode)
		}
	}
	return nil
}

func policed(y *book.Book, n modes.Network) bool {
	return y.Traits(n).Policed
}

// policyRecords are all that policies depend on, at one moment.
type policyRecords struct {
	policies  []policy.Policy
	former    map[string]policy.Policy // those of the same names as fresh ones, before them
	endpoints []policy.Endpoint
	decisions []policy.Decision
}

// records reads them, with fresh policies as if they were applied.
func records(y *book.Book, fresh []policy.Policy) (r policyRecords, err error) {
	var ns []modes.Network
	var es []modes.Endpoint
	err = y.Config.Store.View(func(tx store.Tx) error {
		if r.policies, err = book.Policies.List(tx, ""); err != nil || len(r.policies)+len(fresh) == 0 {
			return err // without policies nothing follows from the rest
		}
		if ns, err = book.Networks.List(tx, ""); err != nil {
			return err
		}
		es, err = book.Endpoints.List(tx, "")
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
	byID := map[string]modes.Network{} // of networks that policies hold for
	for _, n := range ns {
		if policed(y, n) {
			byID[n.ID] = n
		}
	}
	for _, e := range es {
		if n, ok := byID[e.NetworkID]; ok {
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
		addrs = append(addrs, core.LinkLocal(mac))
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

// Enforce makes the kernel decide as the policies on record say about the endpoints on record.
func Enforce(ctx context.Context, y *book.Book) error {
	release, err := y.Locks.Hold(ctx, enforcing, false)
	if err != nil {
		return err
	}
	defer release()
	r, err := records(y, nil)
	if err != nil {
		return err
	}
	settled, err := settled(y, r.endpoints)
	if err != nil {
		return err
	}
	return y.Config.Kernel.Enforce(ctx, kpolicy.Objects(y.Config.Kernel.Handle, slices.Concat(subjects(y, r)...)), settled...)
}

// subjects are what the kernel is to decide about, for each decision. Two endpoints with the same address cannot be
// told apart there: one that is going makes way for the other, and otherwise neither is allowed anything.
func subjects(y *book.Book, r policyRecords) [][]kpolicy.Subject {
	holders := map[netip.Addr]int{}
	for _, e := range r.endpoints {
		for _, a := range e.Addrs {
			if !e.Gone {
				holders[a]++
			}
		}
	}
	all := make([][]kpolicy.Subject, len(r.decisions))
	for i, d := range r.decisions {
		e := d.Endpoint
		port, bridge, foreign := place(y, e)
		for _, a := range e.Addrs {
			if e.Gone && holders[a] > 0 {
				continue
			}
			s := kpolicy.Subject{Port: port, Bridge: bridge, Foreign: foreign, Addr: a}
			s.In, s.Out = d.Of(a)
			if holders[a] > 1 {
				s.In, s.Out = shut(s.In), shut(s.Out)
			}
			all[i] = append(all[i], s)
		}
	}
	return all
}

func shut(a *kpolicy.Access) *kpolicy.Access {
	if a == nil {
		return nil
	}
	return &kpolicy.Access{}
}

// place is where an endpoint is plugged in.
func place(y *book.Book, e policy.Endpoint) (port, bridge string, foreign bool) {
	m := y.Config.Modes[e.Network.Mode]
	objects, _ := m.Place(e.Network, e.Endpoint)
	for _, o := range append(m.Objects(e.Network), objects...) {
		switch o := o.(type) {
		case kbridge.Veth:
			port, bridge = o.Name, o.Master
		case kbridge.HostBridge:
			foreign = true
		}
	}
	return port, bridge, foreign
}

// wantedByPolicy adds what policy asks of the kernel.
func wantedByPolicy(y *book.Book, w *Wanted) error {
	r, err := records(y, nil)
	if err != nil {
		return err
	}
	for i, subjects := range subjects(y, r) {
		e := r.decisions[i].Endpoint
		objects := kpolicy.Objects(y.Config.Kernel.Handle, subjects)
		w.Passing = append(w.Passing, objects...)
		if e.Phase != modes.Ready || e.Sandbox == "" || e.Network.Phase != modes.Ready {
			continue
		}
		for _, o := range objects {
			w.Objects, w.Networks = append(w.Objects, o), append(w.Networks, e.Network)
		}
	}
	return nil
}
