package reconcile

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"

	"netyard/kernel/core"
	"netyard/kernel/nft"
	"netyard/kernel/ports"
	"netyard/modes"
	"netyard/yard"
	"netyard/yard/book"
	"netyard/yard/enforce"
	"netyard/yard/lease"
)

// Restore makes the host match the records after a restart, a crash or a reboot, and takes away what is netyard's and
// in no record. Nothing it does disturbs a flow that goes on: what is there as it should be is left alone, and the
// ruleset is replaced in one transaction.
//
// keepStrays leaves the unknown alone: after the records were lost they are rebuilt from what is there.
func Restore(ctx context.Context, y *yard.Yard, keepStrays bool) error {
	if err := errors.Join(noteLoss(y), recall(y)); err != nil {
		return err
	}
	ns, err := y.Networks()
	if err != nil {
		return err
	}
	links, err := y.Config.Kernel.Has()
	if err != nil {
		return err
	}
	if err := collect(ctx, y); err != nil {
		return err
	}
	if err := lease.SettleOffers(y.Book); err != nil {
		return err
	}
	for _, n := range ns {
		if err := restoreNetwork(ctx, y, n, links); err != nil {
			y.Config.Log.Error("restore a network", "network", n.ID, "mode", n.Mode, "err", err)
		}
	}
	if err := enforce.Enforce(ctx, y.Book); err != nil { // what could be done is done: better closed than not started
		y.Config.Log.Error("enforce policy", "err", err)
	}
	if err := loadFirewall(y, keepStrays); err != nil || keepStrays {
		return err
	}
	return Prune(ctx, y)
}

// collect tells the kernel of every element on record before the firewall is loaded, so that a network which cannot be
// brought up is isolated all the same, and of who wants what several want, so that none of it goes with the first that
// is taken down.
func collect(ctx context.Context, y *yard.Yard) error {
	w, err := enforce.Everything(y.Book)
	if err != nil {
		return err
	}
	y.Config.Kernel.Claim(w.Objects...)
	for _, o := range w.Objects {
		if e, ok := o.(nft.Element); ok {
			if err := y.Config.Kernel.Ensure(ctx, e); err != nil {
				return err
			}
		}
	}
	return nil
}

func restoreNetwork(ctx context.Context, y *yard.Yard, n modes.Network, links map[string]bool) error {
	m, err := y.Mode(n.Mode)
	if err != nil {
		return err
	}
	if n.Phase != modes.Ready { // nobody was told that it exists, or somebody was told that it is gone
		return y.Drop(ctx, m, n)
	}
	es, err := y.EndpointsOf(n.ID)
	if err != nil {
		return err
	}
	errs := []error{y.Plan().Up(ctx, m, n)}
	for _, e := range es {
		if err := restoreEndpoint(ctx, y, m, n, e, links); err != nil {
			errs = append(errs, fmt.Errorf("endpoint %s: %w", modes.Short(e.ID), err))
		}
	}
	return errors.Join(errs...)
}

func restoreEndpoint(ctx context.Context, y *yard.Yard, m modes.Mode, n modes.Network, e modes.Endpoint, links map[string]bool) error {
	switch {
	case e.Phase == modes.Deleting:
		return y.ForgetNow(ctx, m, n, e)
	case e.Phase == modes.Pending && (e.Attachment != "" || y.Dead(e)): // its runtime takes it for failed, or the host went down
		return y.BuryNow(ctx, m, n, e)
	case e.Phase == modes.Pending: // its Join was never answered
		return y.Unjoin(m, n, e)
	case e.Sandbox == "": // its engine may be about to join it
		return nil
	case y.Dead(e):
		return y.BuryNow(ctx, m, n, e)
	}
	here := links[core.Alias(n.ID, e.ID)]
	if !here {
		free, err := y.Unplugged(m, n, e)
		if err != nil {
			return err
		}
		here = !free
	}
	if !here { // a link cannot be put back into a sandbox that is running; doctor says that it is missing
		return nil
	}
	// A crash between record and kernel leaves a sandbox with ports that it is not to have any more.
	if m.Traits(n).Publish.OnOwn && len(e.Redirects()) == 0 {
		if err := y.Config.Kernel.Remove(ports.Redirect{Endpoint: e.ID, Sandbox: e.Sandbox, NS: e.NS}); err != nil {
			return err
		}
	}
	_, err := y.Plan().Attach(ctx, m, n, e)
	return err
}

// Prune takes away what is netyard's in the kernel and in no record.
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
		y.Config.Log.Info("remove a stray", "object", s.Text)
		errs = append(errs, s.Remove())
	}
	return errors.Join(errs...)
}

// compare holds the kernel against the records. A stray has to be one twice: a network that was made and removed again
// between the two looks at the records is in neither.
func compare(y *yard.Yard) (faults []book.Finding, strays []core.Stray, err error) {
	faults, once, err := look(y)
	if err != nil || len(once) == 0 {
		return faults, nil, err
	}
	_, strays, err = look(y)
	strays = slices.DeleteFunc(strays, func(s core.Stray) bool {
		return !slices.ContainsFunc(once, func(o core.Stray) bool { return o.Text == s.Text })
	})
	return faults, strays, err
}

// look compares the kernel with the records as they were before it and as they are after: only what was wanted all the
// time can be missing, and only what was wanted at no time is a stray.
func look(y *yard.Yard) (faults []book.Finding, strays []core.Stray, err error) {
	before, err := enforce.Everything(y.Book)
	if err != nil {
		return nil, nil, err
	}
	snap, err := y.Config.Kernel.Snapshot()
	if err != nil {
		return nil, nil, err
	}
	after, err := enforce.Everything(y.Book)
	if err != nil {
		return nil, nil, err
	}
	still := map[string]core.Object{}
	for _, o := range after.Objects {
		still[o.String()] = o
	}
	for _, f := range snap.Faults(before.Objects) {
		finding := book.Finding{Kind: book.Fault, Text: f.Text}
		if f.Object >= 0 {
			was := before.Objects[f.Object]
			if !reflect.DeepEqual(still[was.String()], was) { // gone, or changed in place
				continue
			}
			finding.Network = book.Label(before.Networks[f.Object])
		}
		faults = append(faults, finding)
	}
	lost, err := y.PoliciesLost()
	if err != nil {
		return nil, nil, err
	}
	for _, s := range snap.Strays(slices.Concat(before.Objects, before.Passing, after.Objects, after.Passing)) {
		if kept := lost && s.Policy; !kept && !after.Foreign[s.Network] {
			strays = append(strays, s)
		}
	}
	return faults, strays, nil
}
