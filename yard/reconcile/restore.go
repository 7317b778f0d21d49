package reconcile

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"

	"netyard/kernel/core"
	"netyard/kernel/nft"
	"netyard/kernel/ports"
	"netyard/modes"
	"netyard/yard"
	"netyard/yard/book"
	"netyard/yard/enforce"
	"netyard/yard/lease"
	"netyard/yard/plan"
)

// Restore makes the host match the records after a restart, a crash or a reboot, and removes strays. It interrupts no
// traffic: objects that are right already are left alone, and the ruleset is replaced in one transaction.
//
// keepStrays leaves strays alone: after the records are lost, they are rebuilt from what is in the kernel.
func Restore(ctx context.Context, y *yard.Yard, keepStrays bool) error {
	if err := errors.Join(noteLoss(y), syncKept(y)); err != nil {
		return err
	}
	ns, err := y.Networks()
	if err != nil {
		return err
	}
	was, err := lookAround(y)
	if err != nil {
		return err
	}
	if err := claimObjects(ctx, y); err != nil {
		return err
	}
	if err := lease.ReleaseOffers(y.Book); err != nil {
		return err
	}
	if err := y.IndexEndpoints(); err != nil {
		return err
	}
	for _, n := range ns {
		if err := restoreNetwork(ctx, y, n.ID, was); err != nil {
			y.Config.Log.Error("network not restored",
				"network", n.Name, "network_id", n.ID, "mode", n.Mode, "err", err)
		}
	}
	if err := enforce.Enforce(ctx, y.Book); err != nil { // goes on: traffic is blocked rather than the start refused
		y.Config.Log.Error("policy not enforced", "err", err)
	}
	if err := loadFirewall(y, keepStrays); err != nil || keepStrays {
		return err
	}
	return Prune(ctx, y)
}

// claimObjects registers the planned objects with the kernel package before the firewall is loaded. With the set
// elements, a network that cannot be brought up is isolated all the same. With the claims, an object that several
// networks share stays when the first of them is removed.
func claimObjects(ctx context.Context, y *yard.Yard) error {
	w, err := enforce.AllWanted(y.Book)
	if err != nil {
		return err
	}
	y.Config.Kernel.AddOwners(w.Objects...)
	for _, o := range w.Objects {
		if e, ok := o.(nft.Element); ok {
			if err := y.Config.Kernel.Ensure(ctx, e); err != nil {
				return err
			}
		}
	}
	return nil
}

// A found kernel is what a daemon finds when it starts.
type found struct {
	links map[string]bool // the aliases of the host's links
	snap  plan.Snapshot   // nil: elements of endpoints are not collected yet, and none is taken for intact
}

func lookAround(y *yard.Yard) (f found, err error) {
	if f.links, err = y.Config.Kernel.Has(); err != nil {
		return f, err
	}
	f.snap, err = y.Config.Kernel.LinkSnapshot()
	return f, err
}

// intact reports whether an endpoint's objects are as they are wanted, so that none has to be made. Its set elements
// are collected (claimObjects). Of an overlay's endpoints the cluster is told, too.
func (f found) intact(y *yard.Yard, h *book.Held) bool {
	if f.snap == nil || h.Traits().Cluster != nil {
		return false
	}
	return len(f.snap.Faults(y.Plan().ObjectsOf(h.Mode, h.Network, h.Endpoint))) == 0
}

// restoreNetwork finishes a creation or deletion that was interrupted, or brings up a network and its endpoints.
func restoreNetwork(ctx context.Context, y *yard.Yard, id string, was found) error {
	h, err := y.HoldNetwork(ctx, id)
	if err != nil {
		return err
	}
	defer h.Release()
	if h.Network.Phase != modes.Ready { // its creation was never answered, or its deletion was begun
		return y.Drop(ctx, h)
	}
	es, err := y.EndpointsOf(id)
	if err != nil {
		return err
	}
	errs := []error{y.Plan().Up(ctx, h.Mode, h.Network)}
	for _, e := range es {
		if err := restoreEndpoint(ctx, y, h.With(e), was); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", book.Owned(e), err))
		}
	}
	return errors.Join(errs...)
}

// restoreEndpoint finishes an interrupted request for an endpoint, or repairs the endpoint if its link exists.
func restoreEndpoint(ctx context.Context, y *yard.Yard, h *book.Held, was found) error {
	n, e := h.Network, h.Endpoint
	switch {
	case e.Phase == modes.Deleting:
		return y.Forget(ctx, h)
	case e.Phase == modes.Pending && (e.Attachment != "" || y.Dead(e)):
		// Its runtime regards the request as failed, or the host was rebooted.
		return y.Remove(ctx, h)
	case e.Phase == modes.Pending: // its Join was never answered
		return y.UndoJoin(h)
	case e.Sandbox == "": // its engine may be about to join it
		return nil
	case y.Dead(e):
		return y.Remove(ctx, h)
	}
	here := was.links[core.Alias(n.ID, e.ID)]
	if !here {
		free, err := y.Unplugged(h.Mode, n, e)
		if err != nil {
			return err
		}
		here = !free
	}
	if !here { // netyard cannot put a new link into a running sandbox; doctor reports it as missing
		return nil
	}
	// After a crash between record and kernel, a sandbox may still redirect ports that were withdrawn.
	if h.Traits().Publish.OnOwn && len(e.Redirects()) == 0 {
		if err := y.Config.Kernel.Remove(ports.Redirect{Endpoint: e.ID, Sandbox: e.Sandbox, NS: e.NS}); err != nil {
			return err
		}
	}
	if was.intact(y, h) {
		return nil
	}
	_, err := y.Plan().Attach(ctx, h.Mode, n, e)
	return err
}

// Prune removes strays from the kernel.
func Prune(ctx context.Context, y *yard.Yard) error {
	_, strays, err := compare(y)
	if err != nil {
		return err
	}
	var errs []error
	for _, s := range strays {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := s.Remove()
		if err == nil {
			y.Config.Log.Info("stray removed", "object", s.Text)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// compare compares the kernel with the records. A stray must be found twice: a network that is created and deleted
// between the two readings of the records is in neither.
func compare(y *yard.Yard) (faults []book.Finding, strays []core.Stray, err error) {
	faults, once, err := compareOnce(y)
	if err != nil || len(once) == 0 {
		return faults, nil, err
	}
	_, strays, err = compareOnce(y)
	strays = slices.DeleteFunc(strays, func(s core.Stray) bool {
		return !slices.ContainsFunc(once, func(o core.Stray) bool { return o.Text == s.Text })
	})
	return faults, strays, err
}

// compareOnce compares the kernel with the records as they are before and after the snapshot. Only what was wanted both
// times can be missing, and only what was wanted neither time is a stray.
func compareOnce(y *yard.Yard) (faults []book.Finding, strays []core.Stray, err error) {
	revision := y.Config.Store.Revision()
	before, err := enforce.AllWanted(y.Book)
	if err != nil {
		return nil, nil, err
	}
	snap, err := y.Config.Kernel.Snapshot()
	if err != nil {
		return nil, nil, err
	}
	after, known := before, slices.Concat(before.Objects, before.MayExist)
	if y.Config.Fabric != nil || y.Config.Store.Revision() != revision {
		if after, err = enforce.AllWanted(y.Book); err != nil {
			return nil, nil, err
		}
		known = slices.Concat(known, after.Objects, after.MayExist)
	}
	still := stillWanted(after)
	for _, f := range snap.Faults(before.Objects) {
		finding := book.Finding{Kind: book.Fault, Text: f.Text}
		if f.Object >= 0 {
			if !still(before.Objects[f.Object]) {
				continue
			}
			finding.Network = book.Label(*before.Networks[f.Object])
		}
		faults = append(faults, finding)
	}
	lost, err := y.PoliciesLost()
	if err != nil {
		return nil, nil, err
	}
	for _, s := range snap.Strays(known) {
		if kept := lost && s.Policy; !kept && !after.Foreign[s.Network] {
			strays = append(strays, s)
		}
	}
	return faults, strays, nil
}

// stillWanted returns a function that reports whether an object is wanted as it is, and not gone or changed in place. A
// host without faults, which has many objects, never asks.
func stillWanted(w enforce.Wanted) func(core.Object) bool {
	byName := sync.OnceValue(func() map[string]core.Object {
		all := map[string]core.Object{}
		for _, o := range w.Objects {
			all[o.String()] = o
		}
		return all
	})
	return func(o core.Object) bool { return reflect.DeepEqual(byName()[o.String()], o) }
}
