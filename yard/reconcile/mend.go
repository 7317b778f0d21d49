package reconcile

import (
	"context"
	"errors"
	"time"

	"netyard/kernel/core"
	"netyard/modes"
	"netyard/yard"
	"netyard/yard/book"
	"netyard/yard/enforce"
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

// Mend puts back what somebody took away from networks and endpoints, until ctx ends. The kernel's watcher does that
// for the firewall.
func Mend(ctx context.Context, y *yard.Yard) error {
	changes, err := y.Config.Kernel.Changes(ctx)
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
		if !book.Sleep(ctx, wait) {
			return nil
		}
		if err := MendOnce(ctx, y); err != nil && ctx.Err() == nil {
			y.Config.Log.Error("put back what is missing", "err", err)
		}
		if !book.Sleep(ctx, pause) {
			return nil
		}
	}
}

// MendOnce looks at everything, and repairs the networks at fault.
func MendOnce(ctx context.Context, y *yard.Yard) error {
	w, err := enforce.Everything(y.Book)
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
			errs = append(errs, mendNetwork(ctx, y, id))
		}
	}
	return errors.Join(errs...)
}

// mendNetwork looks again while no request can change what is wanted of the network, and makes so just what is not.
func mendNetwork(ctx context.Context, y *yard.Yard, id string) error {
	ctx, cancel := context.WithTimeout(ctx, mendTime)
	defer cancel()
	release, err := y.Locks.Hold(ctx, id, false)
	if err != nil {
		return err
	}
	defer release()
	n, err := y.Network(id)
	if errors.Is(err, book.ErrNotFound) || err == nil && n.Phase != modes.Ready {
		return nil
	}
	if err != nil {
		return err
	}
	objects, err := WantedOf(y, n)
	if err != nil {
		return err
	}
	const passes = 3 // a bridge, then what is on it, and what is missing of that
	for range passes {
		if some, err := MendObjects(ctx, y, n, objects); !some || err != nil {
			return err
		}
	}
	return nil
}

// MendObjects makes those of the objects so that are not, and says whether there were any.
func MendObjects(ctx context.Context, y *yard.Yard, n modes.Network, objects []core.Object) (some bool, err error) {
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
		if f.Late {
			y.Config.Log.Info("put into its sandbox", "network", n.ID, "fault", f.Text)
		} else {
			y.Config.Log.Warn("put back", "network", n.ID, "fault", f.Text)
		}
		if f.Object != last { // one object may have several
			last = f.Object
			errs = append(errs, y.Config.Kernel.Ensure(ctx, objects[last]))
		}
	}
	return last >= 0, errors.Join(errs...)
}

// WantedOf is all that a network that is there asks of the kernel.
func WantedOf(y *yard.Yard, n modes.Network) ([]core.Object, error) {
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
