// Package enforce makes the kernel enforce policies.
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

// A PolicyState is a policy with the endpoints it selects.
type PolicyState struct {
	policy.Policy

	Endpoints []policy.Endpoint
	// Change is the effect of applying or removing it: created, changed, unchanged or removed.
	Change string
}

// Policies returns all policies, by name.
func Policies(y *book.Book) (states []PolicyState, err error) {
	r, err := readRecords(y, nil)
	if err != nil {
		return nil, err
	}
	for _, p := range r.policies {
		states = append(states, r.state(p, ""))
	}
	return states, nil
}

// Policy returns the policy of a name.
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

// ApplyPolicies creates policies, or replaces those of the same names: all or none. With dryRun it only returns what
// would change.
func ApplyPolicies(ctx context.Context, y *book.Book, fresh []policy.Policy, dryRun bool) ([]PolicyState, error) {
	for _, p := range fresh {
		if err := enforceable(y, p); err != nil {
			return nil, err
		}
	}
	r, err := readRecords(y, fresh)
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

// RemovePolicy removes a policy.
func RemovePolicy(ctx context.Context, y *book.Book, name string) (PolicyState, error) {
	s, err := Policy(y, name)
	if err != nil {
		return s, err
	}
	s.Change = "removed"
	return s, changePolicies(ctx, y, func(tx store.Tx) error { return book.Policies.Delete(tx, name) })
}

// changePolicies records a change and enforces it. If the kernel refuses it, the former policies are restored.
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
	r, err := readRecords(y, nil)
	if err != nil {
		return err
	}
	return y.Config.Kernel.EndFlows(slices.Concat(subjects(y, r)...))
}

// resetPolicies records the former policies again, and enforces them.
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

// enforceable refuses a policy that selects a network whose packets do not pass the host's firewall.
func enforceable(y *book.Book, p policy.Policy) error {
	ns, err := y.Networks()
	if err != nil {
		return err
	}
	for _, n := range ns {
		if p.Select.Network != "" && p.Select.Network == n.Name && !policed(y, n) {
			return fmt.Errorf(
				"%w: %s: select.network: %s is of mode %s, whose packets do not pass this host's firewall",
				policy.ErrPolicy, p.Name, n.Name, n.Mode)
		}
	}
	return nil
}

func policed(y *book.Book, n modes.Network) bool {
	return y.Traits(n).Policed
}

// policyRecords are the policies and all that they depend on, at one moment.
type policyRecords struct {
	policies  []policy.Policy
	former    map[string]policy.Policy // the recorded policies that fresh ones replace, by name
	endpoints []policy.Endpoint
	decisions []policy.Decision
}

// readRecords reads the records as if the fresh policies were applied.
func readRecords(y *book.Book, fresh []policy.Policy) (r policyRecords, err error) {
	var ns []modes.Network
	var es []modes.Endpoint
	err = y.Config.Store.View(func(tx store.Tx) error {
		if r.policies, err = book.Policies.List(tx, ""); err != nil || len(r.policies)+len(fresh) == 0 {
			return err // without policies the rest is not needed
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
	byID := map[string]modes.Network{} // the networks that policies apply to
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

// addrsOf returns all addresses of an endpoint, also its IPv6 link-local address.
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

// enforcing is the name of the lock that serializes Enforce: without it, older records could reach the kernel after
// newer ones.
const enforcing = "policies"

// Enforce makes the kernel enforce the policies on record for the endpoints on record.
func Enforce(ctx context.Context, y *book.Book) error {
	release, err := y.Locks.Hold(ctx, enforcing, false)
	if err != nil {
		return err
	}
	defer release()
	r, err := readRecords(y, nil)
	if err != nil {
		return err
	}
	decided, err := decidedAddrs(y, r.endpoints)
	if err != nil {
		return err
	}
	objects := y.Config.Kernel.PolicyObjects(slices.Concat(subjects(y, r)...))
	return y.Config.Kernel.Enforce(ctx, objects, decided...)
}

// subjects returns the addresses that the kernel enforces policies for, by decision. The kernel cannot tell apart two
// endpoints with the same address: if one of them is being deleted it is left out, otherwise both are denied all that
// a policy restricts.
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
				s.In, s.Out = denyAll(s.In), denyAll(s.Out)
			}
			all[i] = append(all[i], s)
		}
	}
	return all
}

// denyAll returns an access that allows nothing; nil, which allows everything, stays nil: no policy restricts it.
func denyAll(a *kpolicy.Access) *kpolicy.Access {
	if a == nil {
		return nil
	}
	return &kpolicy.Access{}
}

// place returns the bridge port of an endpoint and its bridge; foreign: the bridge is not netyard's own.
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

// wantedByPolicy adds the objects that policies want in the kernel.
func wantedByPolicy(y *book.Book, w *Wanted) error {
	r, err := readRecords(y, nil)
	if err != nil {
		return err
	}
	for i, subjects := range subjects(y, r) {
		e := r.decisions[i].Endpoint
		joined := book.Joined(e.Endpoint) && e.Network.Phase == modes.Ready
		w.add(&e.Network, joined, y.Config.Kernel.PolicyObjects(subjects)...)
	}
	return nil
}
