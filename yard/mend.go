package yard

import (
	"context"
	"errors"
	"time"

	"netyard/kernel"
	"netyard/modes"
)

const (
	// calm is how long the watch waits after a change for those that come with it.
	calm = 50 * time.Millisecond
	// pause is how long it waits at least between two looks: containers that come and go make many changes.
	pause = 200 * time.Millisecond
	// sweep is how often it looks without having been told of a change. Sysctls tell nobody.
	sweep = time.Minute
	// mendTime bounds the repair of one network: requests about it wait for that long at most.
	mendTime = 5 * time.Second
)

// Mend puts back what somebody took away from networks and endpoints, until ctx ends. The kernel's watcher does that for the firewall.
func (y *Yard) Mend(ctx context.Context) error {
	changes, err := y.c.Kernel.Changes(ctx)
	if err != nil {
		return err
	}
	tick := time.NewTicker(sweep)
	defer tick.Stop()
	for {
		wait := calm
		select {
		case <-ctx.Done():
			return nil
		case <-changes:
		case <-tick.C:
			wait = 0
		}
		if !sleep(ctx, wait) {
			return nil
		}
		if err := y.mend(ctx); err != nil && ctx.Err() == nil {
			y.c.Log.Error("put back what is missing", "err", err)
		}
		if !sleep(ctx, pause) {
			return nil
		}
	}
}

// sleep waits, and says whether ctx still goes on.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// mend looks at everything, and repairs the networks at fault.
func (y *Yard) mend(ctx context.Context) error {
	w, err := y.wanted()
	if err != nil {
		return err
	}
	snap, err := y.c.Kernel.LinkSnapshot()
	if err != nil {
		return err
	}
	var errs []error
	seen := map[string]bool{}
	for _, f := range snap.Faults(w.objects) {
		if f.Object < 0 || f.Lost {
			continue
		}
		if id := w.networks[f.Object].ID; !seen[id] {
			seen[id] = true
			errs = append(errs, y.mendNetwork(ctx, id))
		}
	}
	return errors.Join(errs...)
}

// mendNetwork looks again while no request can change what is wanted of the network, and makes so just what is not.
func (y *Yard) mendNetwork(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, mendTime)
	defer cancel()
	release, err := y.locks.hold(ctx, id, false)
	if err != nil {
		return err
	}
	defer release()
	n, err := y.Network(id)
	if errors.Is(err, ErrNotFound) || err == nil && n.Phase != modes.Ready {
		return nil
	}
	if err != nil {
		return err
	}
	objects, err := y.wantedOf(n)
	if err != nil {
		return err
	}
	const passes = 3 // a bridge, then what is on it, and what is missing of that
	for range passes {
		if some, err := y.mendObjects(ctx, n, objects); !some || err != nil {
			return err
		}
	}
	return nil
}

// mendObjects makes those of the objects so that are not, and says whether there were any.
func (y *Yard) mendObjects(ctx context.Context, n modes.Network, objects []kernel.Object) (some bool, err error) {
	snap, err := y.c.Kernel.LinkSnapshot()
	if err != nil {
		return false, err
	}
	var errs []error
	last := -1
	for _, f := range snap.Faults(objects) {
		if f.Object < 0 || f.Lost {
			continue
		}
		if f.Late {
			y.c.Log.Info("put into its sandbox", "network", n.ID, "fault", f.Text)
		} else {
			y.c.Log.Warn("put back", "network", n.ID, "fault", f.Text)
		}
		if f.Object != last { // one object may have several
			last = f.Object
			errs = append(errs, y.c.Kernel.Ensure(ctx, objects[last]))
		}
	}
	return last >= 0, errors.Join(errs...)
}

// wantedOf is all that a network that is there asks of the kernel.
func (y *Yard) wantedOf(n modes.Network) ([]kernel.Object, error) {
	m, err := y.mode(n.Mode)
	if err != nil {
		return nil, err
	}
	es, err := y.endpointsOf(n.ID)
	if err != nil {
		return nil, err
	}
	return m.Objects(n, joinedOf(es)), nil
}

// joinedOf are the endpoints that a sandbox has.
func joinedOf(es []modes.Endpoint) (in []modes.Endpoint) {
	for _, e := range es {
		if e.Phase == modes.Ready && e.Sandbox != "" {
			in = append(in, e)
		}
	}
	return in
}
