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
	"netyard/yard/source"
)

// CreateEndpoint records an endpoint and returns it with the MAC that it will have; the kernel is changed when it is
// joined. requested returns the endpoint as its door wants it on the network. Dead endpoints that have its addresses
// are removed.
func (y *Yard) CreateEndpoint(
	ctx context.Context, of book.Holder, requested func(modes.Network) (modes.Endpoint, error),
) (made modes.Endpoint, err error) {
	err = y.RetryWithoutDead(ctx, func(*book.LiveCheck) error {
		made, err = y.createEndpoint(ctx, of, requested)
		return err
	})
	return made, err
}

func (y *Yard) createEndpoint(
	ctx context.Context, of book.Holder, requested func(modes.Network) (modes.Endpoint, error),
) (e modes.Endpoint, err error) {
	h, err := y.HoldNew(ctx, of.Network, of.Endpoint)
	if err != nil {
		return e, err
	}
	defer h.Release()
	if e, err = requested(h.Network); err != nil {
		return e, err
	}
	if h.Network.Phase != modes.Ready {
		return e, fmt.Errorf("network %s is being created or deleted", book.Label(h.Network))
	}
	if err := source.CheckHost(y.Book, h.Network, e.Addrs...); err != nil {
		return e, err
	}
	err = h.Change("endpoint recorded", func(tx store.Tx, now *modes.Endpoint) error {
		*now, err = y.newEndpoint(tx, h, e)
		return err
	})
	return h.Endpoint, err
}

// newEndpoint returns a new endpoint with its MAC and its leases, or the one on record if it is the same.
func (y *Yard) newEndpoint(tx store.Tx, h *book.Held, e modes.Endpoint) (modes.Endpoint, error) {
	n, old := h.Network, h.Endpoint
	if err := addressesFree(tx, n, e); err != nil {
		return e, err
	}
	e, err := source.Keep(y.Book, tx, n, e)
	if err != nil {
		return e, err
	}
	again := old.ID != "" && old.Phase != modes.Deleting
	switch rule := h.Traits().MAC; {
	case e.MAC == "" && again:
		e.MAC = old.MAC
	case e.MAC != "" && rule == modes.MACNone:
		return e, fmt.Errorf(
			"mac-address %s: containers on a network of mode %s have no hardware address of their own", e.MAC, n.Mode)
	}
	if err := source.KeepMAC(y.Book, tx, n, &e); err != nil {
		return e, err
	}
	if again {
		if old.MAC == e.MAC && slices.Equal(old.Addrs, e.Addrs) {
			return old, nil
		}
		return e, fmt.Errorf("endpoint %s: %w with a different configuration", modes.Short(e.ID), book.ErrExists)
	}
	e.Phase, e.Created = modes.Ready, y.Config.Now()
	return e, nil
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

func (y *Yard) join(ctx context.Context, network, id, sandbox string) (n modes.Network, link modes.Link, err error) {
	start := y.Config.Now()
	h, err := y.Hold(ctx, network, id)
	if err != nil {
		return n, link, err
	}
	defer h.Release()
	kept, err := y.claimDevice(h)
	if err != nil {
		return n, link, err
	}
	if err := y.recordJoining(h, sandbox, kept); err != nil {
		return n, link, err
	}
	// Policies first, or there would be a moment without them.
	err = enforce.Enforce(ctx, y.Book)
	if err == nil {
		link, err = y.attach(ctx, h)
	}
	if err != nil {
		return n, link, errors.Join(y.WithLinkHolders(h, err), y.UndoJoin(h))
	}
	n, e := h.Network, h.Endpoint
	y.Config.Log.Info("endpoint joined",
		"network", n.Name, "network_id", network, "endpoint", id, "mode", n.Mode, "took", y.Config.Now().Sub(start))
	y.Tell(book.About(event.EndpointJoined, n, e, fmt.Sprintf("%s joined network %s", book.Owned(e), book.Label(n))))
	if kept != nil {
		y.Tell(book.About(event.DeviceTaken, n, e, fmt.Sprintf("%s has device %s", book.Owned(e), link.SrcName)))
	}
	y.Sharing.Wake()
	y.Config.Changed()
	return n, link, nil
}

// recordJoining records that an endpoint joins a sandbox. kept is the state of the host's device that it takes.
func (y *Yard) recordJoining(h *book.Held, sandbox string, kept map[string]string) error {
	e := h.Endpoint
	switch {
	case h.Network.Phase != modes.Ready || e.Phase == modes.Deleting:
		return fmt.Errorf("endpoint %s is being deleted", modes.Short(e.ID))
	case e.Fenced != "":
		return fmt.Errorf("endpoint %s: %s", modes.Short(e.ID), e.Fenced)
	case e.Sandbox != "" && e.Sandbox != sandbox:
		return fmt.Errorf("endpoint %s: %w by sandbox %s", modes.Short(e.ID), book.ErrInUse, e.Sandbox)
	}
	e.Phase, e.Turned, e.Sandbox, e.BootID = modes.Pending, y.Config.Now(), sandbox, y.Config.BootID
	e.Asked, e.Left = nil, ""
	if kept != nil {
		e.Kept = kept
	}
	return h.Put("endpoint joining", e)
}

// claimDevice returns the state of the host's device that the endpoint moves into its sandbox, for its return; nil if
// the endpoint moves none, or the state is on record already.
func (y *Yard) claimDevice(h *book.Held) (map[string]string, error) {
	if h.Traits().Device == "" || h.Endpoint.Kept != nil {
		return nil, nil
	}
	es, err := y.EndpointsOf(h.Network.ID)
	if err != nil {
		return nil, err
	}
	others := slices.DeleteFunc(es, func(o modes.Endpoint) bool {
		return o.ID == h.Endpoint.ID || o.Sandbox == "" && o.Kept == nil
	})
	kept, err := y.Plan().TakeDevice(h.Mode, h.Network, others)
	if err != nil {
		return nil, y.WithLinkHolders(h, err)
	}
	return kept, nil
}

func (y *Yard) attach(ctx context.Context, h *book.Held) (modes.Link, error) {
	e := h.Endpoint
	link, err := y.Plan().Attach(ctx, h.Mode, h.Network, e)
	if err == nil {
		err = lease.ApplyLease(y.Book, h.Network, e, &link)
	}
	if err == nil {
		err = y.settleRoutes(h, &link)
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
	return link, h.Attached(e)
}

// UndoJoin undoes Join: it removes the link and records the endpoint as not joined.
func (y *Yard) UndoJoin(h *book.Held) error {
	if err := y.Plan().Detach(h.Mode, h.Network, h.Endpoint); err != nil {
		return err
	}
	e := book.WithoutSandbox(h.Endpoint)
	e.Kept = nil // Detach has returned the device to the host
	return h.Put("endpoint unjoined", e)
}

// Leave records that the endpoint has left its sandbox, and withdraws its published ports: an engine does not always
// withdraw them first. The link stays until DeleteEndpoint, since the engine is about to move it back to the host.
// Leaving with an unknown endpoint succeeds.
func (y *Yard) Leave(ctx context.Context, network, id string) error {
	h, err := y.Hold(ctx, network, id)
	if errors.Is(err, book.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer h.Release()
	was := h.Endpoint
	// Before the record says that it has left: after that, a daemon that restarts does not know the sandbox any more.
	if err := y.Config.Kernel.Remove(was.Redirects()...); err != nil {
		return err
	}
	if was.Sandbox != "" {
		lease.ReleaseIPv6(ctx, y.Book, was)
	}
	if was.Phase == modes.Deleting {
		return nil
	}
	if err := h.Put("endpoint left", port.Leaving(was)); err != nil {
		return err
	}
	y.Sharing.Wake()
	if err := port.Withdraw(ctx, h, was); err != nil {
		return err
	}
	text := fmt.Sprintf("%s left network %s", book.Owned(was), book.Label(h.Network))
	y.Tell(book.About(event.EndpointLeft, h.Network, was, text))
	return nil
}

// DeleteEndpoint records the endpoint as deleting and returns. Its link is removed in the background, since that takes
// the kernel tens of milliseconds. Deleting an unknown endpoint succeeds.
func (y *Yard) DeleteEndpoint(ctx context.Context, network, id string) error {
	h, err := y.Hold(ctx, network, id)
	if errors.Is(err, book.ErrNotFound) {
		return nil
	}
	if errors.Is(err, context.DeadlineExceeded) { // an earlier request holds the lock, and the engine does not retry
		y.Late.Go(func() { y.deleteLater(context.WithoutCancel(ctx), network, id) })
	}
	if err != nil {
		return err
	}
	defer h.Release()
	was := h.Endpoint
	e := was
	e.Phase, e.Turned = modes.Deleting, y.Config.Now()
	if err := h.Put("endpoint deleting", e); err != nil {
		return err
	}
	if err := port.Withdraw(ctx, h, was); err != nil {
		return err
	}
	h.Release()
	if was.Left != "" {
		y.Config.Background(func() { handOver(y, was) }) //nolint:contextcheck // the caller does not wait for it
	}
	y.FinishLater(network, id) //nolint:contextcheck // likewise
	y.Config.Changed()
	return nil
}

// deleteLater deletes an endpoint when its lock is free. It also releases the addresses: the engine has released them
// meanwhile, which had no effect while the endpoint had them.
func (y *Yard) deleteLater(ctx context.Context, network, id string) {
	if err := y.RemoveEndpoint(ctx, network, id); err != nil {
		y.LogOf(network).Error("endpoint deletion failed", "endpoint", id, "err", err)
	}
	y.Config.Changed()
}

// FinishLater removes the link and the record of an endpoint that is Deleting, in the background. It is given IDs:
// until then, the endpoint may be gone with its network, or be made again.
func (y *Yard) FinishLater(network, id string) {
	y.Config.Background(func() {
		if err := y.finish(network, id); err != nil {
			y.LogOf(network).Error("endpoint removal failed", "endpoint", id, "err", err)
		}
	})
}

// finishTimeout bounds the removal of an endpoint in the background, which waits for requests about the endpoint and
// its network: others wait for their turn. Retry removes later what was not removed by then.
const finishTimeout = 30 * time.Second

// finish removes the link and the record of an endpoint, if it is still Deleting.
func (y *Yard) finish(network, id string) error {
	ctx, cancel := context.WithTimeout(context.Background(), finishTimeout)
	defer cancel()
	h, err := y.Hold(ctx, network, id)
	if errors.Is(err, book.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer h.Release()
	if h.Endpoint.Phase != modes.Deleting {
		return nil
	}
	return y.Forget(ctx, h)
}

// Forget removes an endpoint's link and then its record.
func (y *Yard) Forget(ctx context.Context, h *book.Held) error {
	n, e := h.Network, h.Endpoint
	y.Config.Step("before endpoint detached")
	if err := y.Plan().Detach(h.Mode, n, e); err != nil {
		return err
	}
	y.TellDeviceReturned(n, e)
	if err := y.Update("endpoint gone", func(tx store.Tx) error { return book.EraseEndpoint(tx, e) }); err != nil {
		return err
	}
	return errors.Join(overlay.ReleaseOf(y.Book, n, e), enforce.Enforce(ctx, y.Book))
}
