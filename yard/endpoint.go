package yard

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"netyard/modes"
	"netyard/store"
	"netyard/yard/book"
	"netyard/yard/enforce"
	"netyard/yard/event"
	"netyard/yard/lease"
	"netyard/yard/overlay"
	"netyard/yard/port"
)

// CreateEndpoint records an endpoint and returns it with the MAC that it will have; the kernel is changed when it is
// joined. Dead endpoints that have its addresses are removed.
func (y *Yard) CreateEndpoint(ctx context.Context, e modes.Endpoint) (made modes.Endpoint, err error) {
	err = y.RetryWithoutDead(ctx, func(*book.LiveCheck) error {
		made, err = y.createEndpoint(ctx, e)
		return err
	})
	return made, err
}

func (y *Yard) createEndpoint(ctx context.Context, e modes.Endpoint) (modes.Endpoint, error) {
	release, err := y.Locks.Hold(ctx, e.NetworkID, true)
	if err != nil {
		return e, err
	}
	defer release()
	err = y.Update("endpoint recorded", func(tx store.Tx) error {
		n, err := book.GetNetwork(tx, e.NetworkID)
		if err != nil {
			return err
		}
		if n.Phase != modes.Ready {
			return fmt.Errorf("network %s is being created or deleted", modes.Short(n.ID))
		}
		m, err := y.Mode(n.Mode)
		if err != nil {
			return err
		}
		if err := addressesFree(tx, n, e); err != nil {
			return err
		}
		if e, err = lease.AssignLease(tx, n, e); err != nil {
			return err
		}
		switch rule := m.Traits(n).MAC; {
		case e.MAC == "":
			e.MAC = rule.Default(e)
		case rule == modes.MACNone:
			return fmt.Errorf(
				"mac-address %s: containers on a network of mode %s have no hardware address of their own",
				e.MAC, n.Mode)
		}
		old, err := book.GetEndpoint(tx, e.NetworkID, e.ID)
		if err == nil && old.Phase != modes.Deleting {
			if old.MAC == e.MAC && slices.Equal(old.Addrs, e.Addrs) {
				e = old
				return nil
			}
			return fmt.Errorf("endpoint %s: %w with a different configuration", modes.Short(e.ID), book.ErrExists)
		}
		if err != nil && !errors.Is(err, book.ErrNotFound) {
			return err
		}
		e.Phase, e.Created = modes.Ready, y.Config.Now()
		for _, a := range e.Addrs { // reconciling may have released the lease as an orphan
			if err := y.EnsureLease(tx, n, a.Addr(), e); err != nil {
				return err
			}
		}
		return book.PutEndpoint(tx, e)
	})
	return e, err
}

// addressesFree refuses an endpoint if a joined endpoint of the network has one of its addresses. An endpoint that was
// never joined does not count: its engine has forgotten it if it gives the address to another one.
func addressesFree(tx store.Tx, n modes.Network, e modes.Endpoint) error {
	for _, p := range e.Addrs {
		h, found, err := book.AddressHolder(tx, n.ID, p.Addr())
		if err != nil {
			return err
		}
		if !found || h.Endpoint == e.ID || p.Addr().IsUnspecified() {
			continue
		}
		old, err := book.GetEndpoint(tx, h.Network, h.Endpoint)
		if errors.Is(err, book.ErrNotFound) || err == nil && old.Sandbox == "" {
			continue
		}
		if err != nil {
			return err
		}
		return &book.HeldError{
			Err:     fmt.Errorf("address %s: %w by %s", p.Addr(), book.ErrInUse, book.InUseBy(tx, h)),
			Holders: []book.Holder{h},
		}
	}
	return nil
}

// Join makes the endpoint's link for a sandbox and returns what the engine has to set up inside. Joining the same
// sandbox again succeeds. Dead endpoints that have what it needs are removed.
func (y *Yard) Join(ctx context.Context, network, id, sandbox string) (n modes.Network, link modes.Link, err error) {
	err = y.RetryWithoutDead(ctx, func(*book.LiveCheck) error {
		n, link, err = y.join(ctx, network, id, sandbox)
		return err
	})
	return n, link, err
}

func (y *Yard) join(ctx context.Context, network, id, sandbox string) (modes.Network, modes.Link, error) {
	start := y.Config.Now()
	release, err := y.Hold(ctx, network, id)
	if err != nil {
		return modes.Network{}, modes.Link{}, err
	}
	defer release()
	kept, err := y.claimDevice(network, id)
	if err != nil {
		return modes.Network{}, modes.Link{}, err
	}
	var n modes.Network
	var e modes.Endpoint
	err = y.Update("endpoint joining", func(tx store.Tx) (err error) {
		if n, err = book.GetNetwork(tx, network); err != nil {
			return err
		}
		if e, err = book.GetEndpoint(tx, network, id); err != nil {
			return err
		}
		if n.Phase != modes.Ready || e.Phase == modes.Deleting {
			return fmt.Errorf("endpoint %s is being deleted", modes.Short(id))
		}
		if e.Fenced != "" {
			return fmt.Errorf("endpoint %s: %s", modes.Short(id), e.Fenced)
		}
		if e.Sandbox != "" && e.Sandbox != sandbox {
			return fmt.Errorf("endpoint %s: %w by sandbox %s", modes.Short(id), book.ErrInUse, e.Sandbox)
		}
		e.Phase, e.Turned, e.Sandbox, e.BootID = modes.Pending, y.Config.Now(), sandbox, y.Config.BootID
		if kept != nil {
			e.Kept = kept
		}
		return book.PutEndpoint(tx, e)
	})
	if err != nil {
		return n, modes.Link{}, err
	}
	m, err := y.Mode(n.Mode)
	if err != nil {
		return n, modes.Link{}, err
	}
	// Policies first, or there would be a moment without them.
	link, err := modes.Link{}, enforce.Enforce(ctx, y.Book)
	if err == nil {
		link, err = y.attach(ctx, m, n, e)
	}
	if err != nil {
		return n, link, errors.Join(y.WithLinkHolders(e, err), y.UndoJoin(m, n, e))
	}
	y.Config.Log.Info("endpoint joined",
		"network", network, "endpoint", id, "mode", n.Mode, "took", y.Config.Now().Sub(start))
	y.Tell(book.About(event.EndpointJoined, n, e, fmt.Sprintf("%s joined network %s", book.Owned(e), book.Label(n))))
	if kept != nil {
		y.Tell(book.About(event.DeviceTaken, n, e, fmt.Sprintf("%s has device %s", book.Owned(e), link.SrcName)))
	}
	y.Sharing.Wake()
	y.Config.Changed()
	return n, link, nil
}

// claimDevice returns the state of the host's device that the endpoint moves into its sandbox, for its return; nil if
// the endpoint moves none, or the state is on record already.
func (y *Yard) claimDevice(network, id string) (map[string]string, error) {
	m, n, e, err := y.EndpointWithMode(network, id)
	if err != nil {
		return nil, err
	}
	if m.Traits(n).Device == "" || e.Kept != nil {
		return nil, nil
	}
	es, err := y.EndpointsOf(network)
	if err != nil {
		return nil, err
	}
	others := slices.DeleteFunc(es, func(o modes.Endpoint) bool {
		return o.ID == id || o.Sandbox == "" && o.Kept == nil
	})
	kept, err := y.Plan().TakeDevice(m, n, others)
	if err != nil {
		return nil, y.WithLinkHolders(e, err)
	}
	return kept, nil
}

func (y *Yard) attach(ctx context.Context, m modes.Mode, n modes.Network, e modes.Endpoint) (modes.Link, error) {
	link, err := y.Plan().Attach(ctx, m, n, e)
	if err == nil {
		err = lease.ApplyLease(y.Book, n, e, &link)
	}
	if err != nil {
		return link, err
	}
	y.Config.Step("after endpoint attached")
	if err := ctx.Err(); err != nil {
		return link, fmt.Errorf("join endpoint %s: %w", modes.Short(e.ID), err)
	}
	e.Phase, e.Turned, e.Joined = modes.Ready, time.Time{}, y.Config.Now()
	e.Seen = y.Config.Kernel.IsNamespace(e.Sandbox)
	return link, y.Attached(e)
}

// UndoJoin undoes Join: it removes the link and records the endpoint as not joined.
func (y *Yard) UndoJoin(m modes.Mode, n modes.Network, e modes.Endpoint) error {
	if err := y.Plan().Detach(m, n, e); err != nil {
		return err
	}
	e.Kept = nil // Detach has returned the device to the host
	return y.Update("endpoint unjoined", func(tx store.Tx) error {
		return book.PutEndpoint(tx, book.WithoutSandbox(e))
	})
}

// Leave records that the endpoint has left its sandbox, and withdraws its published ports: an engine does not always
// withdraw them first. The link stays until DeleteEndpoint, since the engine is about to move it back to the host.
// Leaving with an unknown endpoint succeeds.
func (y *Yard) Leave(ctx context.Context, network, id string) error {
	release, err := y.Hold(ctx, network, id)
	if err != nil {
		return err
	}
	defer release()
	if err := port.RemoveRedirects(y.Book, network, id); err != nil {
		return err
	}
	if e, err := y.Endpoint(network, id); err == nil && e.Sandbox != "" {
		lease.ReleaseIPv6(ctx, y.Book, e)
	}
	var was modes.Endpoint
	err = y.Update("endpoint left", func(tx store.Tx) error {
		e, err := book.GetEndpoint(tx, network, id)
		if errors.Is(err, book.ErrNotFound) || err == nil && e.Phase == modes.Deleting {
			return nil
		}
		if err != nil {
			return err
		}
		was = e
		return book.PutEndpoint(tx, book.WithoutSandbox(e))
	})
	if err != nil || was.ID == "" {
		return err
	}
	y.Sharing.Wake()
	if err := port.Withdraw(ctx, y.Book, was); err != nil {
		return err
	}
	if n, err := y.Network(network); err == nil {
		text := fmt.Sprintf("%s left network %s", book.Owned(was), book.Label(n))
		y.Tell(book.About(event.EndpointLeft, n, was, text))
	}
	return nil
}

// DeleteEndpoint records the endpoint as deleting and returns. Its link is removed in the background, since that takes
// the kernel tens of milliseconds. Deleting an unknown endpoint succeeds.
func (y *Yard) DeleteEndpoint(ctx context.Context, network, id string) error {
	was, found, err := y.recordDeleting(ctx, network, id)
	if errors.Is(err, context.DeadlineExceeded) { // an earlier request holds the lock, and the engine does not retry
		y.Late.Go(func() { y.deleteLater(context.WithoutCancel(ctx), network, id) })
	}
	if err != nil || !found {
		return err
	}
	if err := port.Withdraw(ctx, y.Book, was); err != nil {
		return err
	}
	y.FinishLater(network, id) //nolint:contextcheck // the caller does not wait for it
	y.Config.Changed()
	return nil
}

// deleteLater deletes an endpoint when its lock is free. It also releases the addresses: the engine has released them
// meanwhile, which had no effect while the endpoint had them.
func (y *Yard) deleteLater(ctx context.Context, network, id string) {
	if err := y.RemoveEndpoint(ctx, network, id); err != nil {
		y.Config.Log.Error("deletion of a busy endpoint failed", "network", network, "endpoint", id, "err", err)
	}
	y.Config.Changed()
}

// FinishLater removes the link and the record of an endpoint that is Deleting, in the background.
func (y *Yard) FinishLater(network, id string) {
	y.Config.Background(func() {
		if err := y.finish(network, id); err != nil {
			y.Config.Log.Error("endpoint removal failed", "network", network, "endpoint", id, "err", err)
		}
	})
}

// recordDeleting records an endpoint as deleting.
func (y *Yard) recordDeleting(ctx context.Context, network, id string) (e modes.Endpoint, found bool, err error) {
	release, err := y.Hold(ctx, network, id)
	if err != nil {
		return e, false, err
	}
	defer release()
	err = y.Update("endpoint deleting", func(tx store.Tx) error {
		e, err = book.GetEndpoint(tx, network, id)
		if errors.Is(err, book.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		found = true
		e.Phase, e.Turned = modes.Deleting, y.Config.Now()
		return book.PutEndpoint(tx, e)
	})
	return e, found, err
}

// finish removes the link and the record of an endpoint that is Deleting.
func (y *Yard) finish(network, id string) error {
	ctx := context.Background() // nobody waits for this
	release, err := y.Hold(ctx, network, id)
	if err != nil {
		return err
	}
	defer release()
	return y.FinishLocked(ctx, network, id)
}

// FinishLocked does the work of FinishLater now. The caller holds the locks.
func (y *Yard) FinishLocked(ctx context.Context, network, id string) error {
	m, n, e, err := y.EndpointWithMode(network, id)
	if errors.Is(err, book.ErrNotFound) || err == nil && e.Phase != modes.Deleting {
		return nil // it was deleted with its network, or made again
	}
	if err != nil {
		return err
	}
	return y.ForgetLocked(ctx, m, n, e)
}

// ForgetLocked removes an endpoint's link and then its record.
func (y *Yard) ForgetLocked(ctx context.Context, m modes.Mode, n modes.Network, e modes.Endpoint) error {
	y.Config.Step("before endpoint detached")
	if err := y.Plan().Detach(m, n, e); err != nil {
		return err
	}
	y.TellDeviceReturned(n, e)
	if err := y.Update("endpoint gone", func(tx store.Tx) error { return book.EraseEndpoint(tx, e) }); err != nil {
		return err
	}
	return errors.Join(overlay.ReleaseOf(y.Book, n, e), enforce.Enforce(ctx, y.Book))
}
