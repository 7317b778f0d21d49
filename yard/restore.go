package yard

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"

	"netyard/kernel"
	"netyard/modes"
	"netyard/store"
)

// Restore makes the host match the records after a restart, a crash or a reboot, and takes away what is netyard's and
// in no record. Nothing it does disturbs a flow that goes on: what is there as it should be is left alone, and the
// ruleset is replaced in one transaction.
//
// keepStrays leaves the unknown alone: after the records were lost they are rebuilt from what is there.
func (y *Yard) Restore(ctx context.Context, keepStrays bool) error {
	if err := errors.Join(y.noteLoss(), y.recall()); err != nil {
		return err
	}
	ns, err := y.Networks()
	if err != nil {
		return err
	}
	links, err := y.c.Kernel.Has()
	if err != nil {
		return err
	}
	if err := y.collect(ctx); err != nil {
		return err
	}
	if err := y.settleOffers(); err != nil {
		return err
	}
	for _, n := range ns {
		if err := y.restoreNetwork(ctx, n, links); err != nil {
			y.c.Log.Error("restore a network", "network", n.ID, "mode", n.Mode, "err", err)
		}
	}
	if err := y.enforce(ctx); err != nil { // what could be done is done: better closed than not started
		y.c.Log.Error("enforce policy", "err", err)
	}
	if err := y.loadFirewall(keepStrays); err != nil || keepStrays { //nolint:contextcheck // nobody waits for it
		return err
	}
	return y.prune(ctx)
}

// collect tells the kernel of every element on record before the firewall is loaded, so that a network which cannot be
// brought up is isolated all the same, and of who wants what several want, so that none of it goes with the first that
// is taken down.
func (y *Yard) collect(ctx context.Context) error {
	w, err := y.wanted()
	if err != nil {
		return err
	}
	y.c.Kernel.Claim(w.objects...)
	for _, o := range w.objects {
		if e, ok := o.(kernel.Element); ok {
			if err := y.c.Kernel.Ensure(ctx, e); err != nil {
				return err
			}
		}
	}
	return nil
}

func (y *Yard) restoreNetwork(ctx context.Context, n modes.Network, links map[string]bool) error {
	m, err := y.mode(n.Mode)
	if err != nil {
		return err
	}
	if n.Phase != modes.Ready { // nobody was told that it exists, or somebody was told that it is gone
		return y.drop(ctx, m, n)
	}
	es, err := y.endpointsOf(n.ID)
	if err != nil {
		return err
	}
	errs := []error{m.Up(ctx, n)}
	for _, e := range es {
		if err := y.restoreEndpoint(ctx, m, n, e, links); err != nil {
			errs = append(errs, fmt.Errorf("endpoint %s: %w", modes.Short(e.ID), err))
		}
	}
	return errors.Join(errs...)
}

func (y *Yard) restoreEndpoint(ctx context.Context, m modes.Mode, n modes.Network, e modes.Endpoint, links map[string]bool) error {
	switch {
	case e.Phase == modes.Deleting:
		return y.forget(ctx, m, n, e)
	case e.Phase == modes.Pending && (e.Attachment != "" || y.dead(e)): // its runtime takes it for failed, or the host went down
		return y.bury(ctx, m, n, e)
	case e.Phase == modes.Pending: // its Join was never answered
		return y.unjoin(ctx, m, n, e)
	case e.Sandbox == "": // its engine may be about to join it
		return nil
	case y.dead(e):
		return y.bury(ctx, m, n, e)
	}
	here := links[kernel.Alias(n.ID, e.ID)]
	if !here {
		free, err := y.unplugged(m, n, e)
		if err != nil {
			return err
		}
		here = !free
	}
	if !here { // a link cannot be put back into a sandbox that is running; doctor says that it is missing
		return nil
	}
	// A crash between record and kernel leaves a sandbox with ports that it is not to have any more.
	if own, _ := redirects(m, n); own && len(e.Redirects()) == 0 {
		if err := y.c.Kernel.Remove(kernel.Redirect{Endpoint: e.ID, Sandbox: e.Sandbox, NS: e.NS}); err != nil {
			return err
		}
	}
	_, err := m.Attach(ctx, n, e)
	return err
}

// dead says whether an endpoint's sandbox provably is no more.
func (y *Yard) dead(e modes.Endpoint) bool {
	switch {
	case e.Sandbox == "" || e.BootID == y.c.BootID && !e.Seen:
		return false
	case e.BootID != y.c.BootID:
		return true
	case e.NS == kernel.NamespaceID{}:
		return !kernel.IsNamespace(e.Sandbox)
	}
	now, ok := kernel.NamespaceAt(e.Sandbox)
	return !ok || now != e.NS // a process of the same number, or a file of the same name, with another namespace
}

// unplugged says whether no sandbox has an endpoint's link, so that nobody would miss it.
func (y *Yard) unplugged(m modes.Mode, n modes.Network, e modes.Endpoint) (bool, error) {
	if y.dead(e) {
		return true, nil
	}
	for _, o := range m.Objects(n, []modes.Endpoint{e}) {
		if plugged, err := y.c.Kernel.Plugged(o); plugged || err != nil {
			return false, err
		}
	}
	return true, nil
}

// bury drops an endpoint whose engine will not speak of it again, with its leases.
func (y *Yard) bury(ctx context.Context, m modes.Mode, n modes.Network, e modes.Endpoint) error {
	if e.Phase == modes.Deleting && e.Attachment != "" { // the addresses are another one's already
		return y.forget(ctx, m, n, e)
	}
	y.c.Log.Info("drop an endpoint whose sandbox is gone", "network", n.ID, "endpoint", e.ID, "container", e.Container.Name)
	if err := m.Detach(ctx, n, e); err != nil {
		return err
	}
	y.tellGivenBack(n, e)
	err := y.update("endpoint buried", func(tx store.Tx) error {
		if err := eraseEndpoint(tx, e); err != nil {
			return err
		}
		return y.settleLeases(tx, n, e)
	})
	if err != nil {
		return err
	}
	return errors.Join(y.giveUpOf(n, e), y.enforce(ctx))
}

// prune takes away what is netyard's in the kernel and in no record.
func (y *Yard) prune(ctx context.Context) error {
	_, strays, err := y.compare()
	if err != nil {
		return err
	}
	var errs []error
	for _, s := range strays {
		if err := ctx.Err(); err != nil {
			return err
		}
		y.c.Log.Info("remove a stray", "object", s.Text)
		errs = append(errs, s.Remove())
	}
	return errors.Join(errs...)
}

// compare holds the kernel against the records. A stray has to be one twice: a network that was made and removed again
// between the two looks at the records is in neither.
func (y *Yard) compare() (faults []Finding, strays []kernel.Stray, err error) {
	faults, once, err := y.look()
	if err != nil || len(once) == 0 {
		return faults, nil, err
	}
	_, strays, err = y.look()
	strays = slices.DeleteFunc(strays, func(s kernel.Stray) bool {
		return !slices.ContainsFunc(once, func(o kernel.Stray) bool { return o.Text == s.Text })
	})
	return faults, strays, err
}

// look compares the kernel with the records as they were before it and as they are after: only what was wanted all the
// time can be missing, and only what was wanted at no time is a stray.
func (y *Yard) look() (faults []Finding, strays []kernel.Stray, err error) {
	before, err := y.wanted()
	if err != nil {
		return nil, nil, err
	}
	snap, err := y.c.Kernel.Snapshot()
	if err != nil {
		return nil, nil, err
	}
	after, err := y.wanted()
	if err != nil {
		return nil, nil, err
	}
	still := map[string]kernel.Object{}
	for _, o := range after.objects {
		still[o.String()] = o
	}
	for _, f := range snap.Faults(before.objects) {
		finding := Finding{Kind: Fault, Text: f.Text}
		if f.Object >= 0 {
			was := before.objects[f.Object]
			if !reflect.DeepEqual(still[was.String()], was) { // gone, or changed in place
				continue
			}
			finding.Network = label(before.networks[f.Object])
		}
		faults = append(faults, finding)
	}
	lost, err := y.policiesLost()
	if err != nil {
		return nil, nil, err
	}
	for _, s := range snap.Strays(slices.Concat(before.objects, before.passing, after.objects, after.passing)) {
		if kept := lost && s.Policy; !kept && !after.foreign[s.Network] {
			strays = append(strays, s)
		}
	}
	return faults, strays, nil
}

// wanted is all the records ask of the kernel.
type wanted struct {
	objects  []kernel.Object
	networks []modes.Network // of the object of the same index
	// passing are objects that are on their way in or out: there or not, neither is wrong.
	passing []kernel.Object
	// foreign are the networks of modes that this daemon does not know: what they have in the kernel is nobody's to
	// judge.
	foreign map[string]bool
}

func (y *Yard) wanted() (w wanted, err error) {
	ns, err := y.Networks()
	if err != nil {
		return w, err
	}
	w.foreign = map[string]bool{}
	for _, n := range ns {
		m, err := y.mode(n.Mode)
		if err != nil {
			w.foreign[n.ID] = true
			continue
		}
		es, err := y.endpointsOf(n.ID)
		if err != nil {
			return w, err
		}
		w.passing = append(w.passing, m.Objects(n, es)...)
		if n.Phase != modes.Ready {
			continue
		}
		for _, o := range m.Objects(n, joinedOf(es)) {
			w.objects, w.networks = append(w.objects, o), append(w.networks, n)
		}
	}
	if y.c.Fabric != nil {
		parting, err := y.c.Fabric.Parting()
		if err != nil {
			return w, err
		}
		w.passing = append(w.passing, parting...)
	}
	return w, y.wantedByPolicy(&w)
}
