// Package repair makes the kernel match the records while the daemon runs: another program may have changed it.
package repair

import (
	"context"
	"errors"
	"time"

	"netyard/kernel/core"
	"netyard/modes"
	"netyard/wake"
	"netyard/yard"
	"netyard/yard/book"
	"netyard/yard/enforce"
)

const (
	// settleTime is how long Run waits after a change for further changes that belong to it.
	settleTime = 50 * time.Millisecond
	// pause is the least time between two checks: containers that start and stop make many changes.
	pause = 200 * time.Millisecond
	// sweepInterval is the least time between two checks of everything: changes of sysctls send no notification.
	sweepInterval = time.Minute
	// share is how many times as long as a sweep took Run waits until the next one: so it has at most a five
	// hundredth of a processor, however much there is to check. Where notifications were lost, or one may have
	// affected everything, it is urgentShare.
	share, urgentShare = 500, 10
	// repairTime bounds the repair of one network: requests about the network wait for that long at most.
	repairTime = 5 * time.Second
)

// A Watcher knows what has changed in the kernel since it was made.
type Watcher struct {
	y       *yard.Yard
	changes *core.Changes
}

// Watch returns a Watcher. It ends with ctx. Who makes it before the records are restored misses no change.
func Watch(ctx context.Context, y *yard.Yard) (*Watcher, error) {
	changes, err := y.Config.Kernel.Changes(ctx)
	return &Watcher{y, changes}, err
}

// Run repairs links, addresses and sysctls of networks and endpoints that another program has changed, until ctx ends:
// what a notification is about soon, everything else by a slow sweep. The kernel package has a watcher of its own for
// the firewall.
func (w *Watcher) Run(ctx context.Context) error {
	y, changes := w.y, w.changes
	sweep := time.NewTimer(sweepInterval)
	defer sweep.Stop()
	for {
		var due bool
		select {
		case <-ctx.Done():
			return nil
		case <-changes.Signal:
			if !wake.Sleep(ctx, settleTime) {
				return nil
			}
		case <-sweep.C:
			due = true
		}
		links, all := changes.Take()
		var err error
		wait, start := pause, time.Now()
		if due || all {
			err = All(ctx, y)
			took := time.Since(start)
			sweep.Reset(max(sweepInterval, share*took))
			if all {
				wait = max(wait, urgentShare*took)
			}
		} else {
			err = Named(ctx, y, links...)
		}
		if err != nil && ctx.Err() == nil {
			y.Config.Log.Error("repair failed", "err", err)
		}
		if !wake.Sleep(ctx, wait) {
			return nil
		}
	}
}

// All checks all networks, and repairs those with drift.
func All(ctx context.Context, y *yard.Yard) error {
	w, err := enforce.AllWanted(y.Book)
	if err != nil {
		return err
	}
	snap, err := y.Config.Kernel.LinkSnapshot()
	if err != nil {
		return err
	}
	var errs []error
	seen := map[string]bool{}
	for _, f := range snap.Faults(w.Objects) {
		if f.Object < 0 || f.Lost {
			continue
		}
		if id := w.Networks[f.Object].ID; !seen[id] {
			seen[id] = true
			errs = append(errs, repairNetwork(ctx, y, id))
		}
	}
	return errors.Join(errs...)
}

// repairNetwork checks a network again under its lock, so that no request changes its plan, and repairs the objects
// that have drifted.
func repairNetwork(ctx context.Context, y *yard.Yard, id string) error {
	ctx, cancel := context.WithTimeout(ctx, repairTime)
	defer cancel()
	h, err := y.HoldNetwork(ctx, id)
	if errors.Is(err, book.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer h.Release()
	n := h.Network
	if n.Phase != modes.Ready {
		return nil
	}
	objects, err := PlanOf(y, n)
	if err != nil {
		return err
	}
	const passes = 3 // a bridge, then its ports, then what belongs to those
	for range passes {
		if some, err := Objects(ctx, y, n, objects); !some || err != nil {
			return err
		}
	}
	return nil
}

// Objects repairs those of the objects that have drifted. some: there were any.
func Objects(ctx context.Context, y *yard.Yard, n modes.Network, objects []core.Object) (some bool, err error) {
	snap, err := y.Config.Kernel.LinkSnapshot()
	if err != nil {
		return false, err
	}
	var errs []error
	last := -1
	for _, f := range snap.Faults(objects) {
		if f.Object < 0 || f.Lost {
			continue
		}
		log := y.Config.Log.With("network", n.Name, "network_id", n.ID, "fault", f.Text)
		if f.Late {
			log.Info("link moved into its sandbox")
		} else {
			log.Warn("kernel object drifted")
		}
		if f.Object == last { // one object may have several faults
			continue
		}
		last = f.Object
		err := y.Config.Kernel.Ensure(ctx, objects[last])
		if err == nil && !f.Late {
			log.Info("kernel object repaired")
		}
		errs = append(errs, err)
	}
	return last >= 0, errors.Join(errs...)
}

// PlanOf returns the plan of a network that is ready, with its joined endpoints.
func PlanOf(y *yard.Yard, n modes.Network) ([]core.Object, error) {
	m, err := y.Mode(n.Mode)
	if err != nil {
		return nil, err
	}
	es, err := y.EndpointsOf(n.ID)
	if err != nil {
		return nil, err
	}
	return y.Plan().Objects(m, n, book.JoinedOf(es)...), nil
}
