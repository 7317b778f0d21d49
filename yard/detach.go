package yard

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"netyard/ipam"
	"netyard/kernel"
	"netyard/modes"
	"netyard/store"
)

// A DetachRequest says which attachment is to go.
type DetachRequest struct {
	NetworkID, Attachment, IfName string
	// NS is an open descriptor of the sandbox; negative when there is none.
	NS int
	// Gone: the runtime has done with the sandbox. It named it, or this is not its first word.
	Gone bool
	// Before spares an attachment that was made after this moment: the request is an old one. Zero: none is spared.
	Before time.Time
	// Endpoint spares every attachment but that one. Empty: none is spared.
	Endpoint string
}

// Detach takes an attachment away: the record now, its link in the background. An unknown one is gone.
//
// A runtime that names no sandbox may only be about to send the container a signal (nerdctl kill -s HUP, or the SIGTERM
// of nerdctl stop, whose answer should still get out). While the container's first process lives nothing is done: its
// death ends the attachment.
func (y *Yard) Detach(ctx context.Context, r DetachRequest) error {
	release, err := y.locks.hold(ctx, containerLock(r.Attachment), false)
	if err != nil {
		return err
	}
	defer release()
	e, err := y.attachment(r.Attachment, r.NetworkID, r.IfName)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if r.Endpoint != "" && e.ID != r.Endpoint {
		return nil
	}
	if !r.Before.IsZero() && e.Created.After(r.Before) || !r.Gone && y.firstProcessLives(e) {
		return nil
	}
	y.leaveSix(ctx, e)
	found, inner := false, false
	var n modes.Network
	err = y.update("endpoint deleting", func(tx store.Tx) error {
		found = false
		now, err := getEndpoint(tx, e.NetworkID, e.ID)
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		if n, err = getNetwork(tx, e.NetworkID); err != nil {
			return err
		}
		found, inner = true, y.isInner(n, now)
		return y.park(tx, n, now)
	})
	if err != nil || !found {
		return err
	}
	if err := y.withdraw(ctx, e); err != nil {
		return err
	}
	if r.NS >= 0 && inner { // first: what is in the background has the kernel's lock over all links for tens of milliseconds
		err = y.c.Kernel.Unplug(r.NS, kernel.Plug{Name: e.IfName, Alias: kernel.Alias(e.NetworkID, e.ID)})
	}
	y.finishLater(e.NetworkID, e.ID) //nolint:contextcheck // the caller does not wait for it
	y.tell(about(EndpointLeft, n, e, fmt.Sprintf("%s left network %s", owned(e), label(n))))
	if m, err := y.mode(n.Mode); err == nil {
		y.pokeSharing(m, n, e)
	}
	y.c.Changed()
	return err
}

// isInner says whether an endpoint's link is in its sandbox as a whole; of a pair the outer end is the host's, and
// takes the inner one with it.
func (y *Yard) isInner(n modes.Network, e modes.Endpoint) bool {
	m, err := y.mode(n.Mode)
	return err == nil && slices.ContainsFunc(m.Objects(n, []modes.Endpoint{e}), func(o kernel.Object) bool {
		_, ok := o.(kernel.Child)
		return ok
	})
}

// firstProcessLives says whether the process whose namespace is the sandbox is there: only a path below /proc says
// that.
func (y *Yard) firstProcessLives(e modes.Endpoint) bool {
	return strings.HasPrefix(e.Sandbox, "/proc/") && e.Phase == modes.Ready && e.Seen && !y.dead(e)
}

// park records that an endpoint is to go; its addresses are held for its container, if that has an end that netyard
// will hear of.
func (y *Yard) park(tx store.Tx, n modes.Network, e modes.Endpoint) error {
	if e.Phase == modes.Deleting {
		return nil
	}
	e.Phase, e.Turned = modes.Deleting, y.c.Now()
	if err := putEndpoint(tx, e); err != nil {
		return err
	}
	return y.settleLeases(tx, n, e)
}

// settleLeases is for an endpoint that claims its addresses no longer.
func (y *Yard) settleLeases(tx store.Tx, n modes.Network, e modes.Endpoint) error {
	if e.Attachment != "" {
		if err := dropAttachment(tx, e); err != nil {
			return err
		}
		if e.Container.Engine == Containerd && len(e.Addrs) > 0 && len(n.DHCP) == 0 {
			return putHold(tx, hold{
				NetworkID: n.ID, Attachment: e.Attachment, IfName: e.IfName, Addrs: e.Addrs, Container: e.Container, Since: y.c.Now(),
			})
		}
	}
	if err := y.releaseLeasesOf(tx, e); err != nil {
		return err
	}
	for _, a := range e.Addrs {
		if err := y.releaseLease(tx, n, a.Addr(), e.Attachment != ""); err != nil {
			return err
		}
	}
	return nil
}

// dropAttachment forgets that the endpoint is its container's, unless another one is by now.
func dropAttachment(tx store.Tx, e modes.Endpoint) error {
	if e.Attachment == "" {
		return nil
	}
	key := attachmentKey(e.Attachment, e.NetworkID, e.IfName)
	id, err := attachments.Get(tx, key)
	if errors.Is(err, store.ErrNotFound) || err == nil && id != e.ID {
		return nil
	}
	if err != nil {
		return err
	}
	return attachments.Delete(tx, key)
}

// releaseLease gives back an address that nobody claims. Docker's static ones stay held for containers that are
// stopped, which it names in its census; of others there is no such list (forget).
func (y *Yard) releaseLease(tx store.Tx, n modes.Network, a netip.Addr, forget bool) error {
	if taken, err := claimed(tx, n.ID, a); err != nil || taken {
		return err
	}
	for _, s := range n.Subnets {
		if s.Space != Space || !s.Pool.Contains(a) {
			continue
		}
		p, err := y.c.IPAM.PoolOf(tx, s.Pool, n.ID)
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if err := y.c.IPAM.ReleaseAddress(tx, p.ID, a); err != nil {
			return err
		}
		l, err := y.c.IPAM.LeaseAt(tx, p.ID, a)
		if err == nil && forget && l.State == ipam.StateHeld {
			err = y.c.IPAM.Forget(tx, p.ID, a)
		}
		if err != nil && !errors.Is(err, ipam.ErrNotFound) {
			return err
		}
	}
	return nil
}

// ContainerExited ends what a container of that name has, as far as its sandbox is gone; addresses are held.
func (y *Yard) ContainerExited(ctx context.Context, attachment string) error {
	es, err := y.attachmentsOf(attachment)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range es {
		if y.dead(e) {
			errs = append(errs, y.Bury(ctx, e.NetworkID, e.ID))
		}
	}
	return errors.Join(errs...)
}

// ContainerGone is ContainerExited for a container that will not come back: its addresses are free.
func (y *Yard) ContainerGone(ctx context.Context, attachment string) error {
	if err := y.ContainerExited(ctx, attachment); err != nil {
		return err
	}
	return y.releaseHolds(func(h hold) bool { return h.Attachment == attachment })
}

// attachmentsOf are all endpoints of a container.
func (y *Yard) attachmentsOf(attachment string) (es []modes.Endpoint, err error) {
	err = y.c.Store.View(func(tx store.Tx) error {
		es, err = attachmentsOf(tx, attachment)
		return err
	})
	return es, err
}

func attachmentsOf(tx store.Tx, attachment string) (es []modes.Endpoint, err error) {
	err = attachments.Each(tx, attachment+"|", func(key, id string) error {
		network, _, _ := strings.Cut(strings.TrimPrefix(key, attachment+"|"), "|")
		e, err := getEndpoint(tx, network, id)
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		es = append(es, e)
		return err
	})
	return es, err
}

// sweep ends the attachments whose sandbox is gone, for who has no engine that would tell of it.
func (y *Yard) sweep(ctx context.Context) {
	es, err := y.Endpoints()
	if err != nil {
		y.c.Log.Error("look for dead attachments", "err", err)
		return
	}
	for _, e := range es {
		if e.Attachment == "" || e.Phase != modes.Ready || !y.dead(e) || y.c.Now().Sub(e.Created) < y.c.Grace {
			continue
		}
		if err := y.Bury(ctx, e.NetworkID, e.ID); err != nil {
			y.c.Log.Error("take an endpoint's link away", "network", e.NetworkID, "endpoint", e.ID, "err", err)
		}
	}
}

// Attachments lists the endpoints of a network that came by CNI.
func (y *Yard) Attachments(network string) (es []modes.Endpoint, err error) {
	all, err := y.endpointsOf(network)
	for _, e := range all {
		if e.Attachment != "" {
			es = append(es, e)
		}
	}
	return es, err
}

// Faults says what is wrong with an attachment, on the host and in its sandbox; nothing when it is as it was made.
func (y *Yard) Faults(r DetachRequest) ([]string, error) {
	e, err := y.attachment(r.Attachment, r.NetworkID, r.IfName)
	if err != nil {
		return nil, err
	}
	m, n, e, err := y.whole(e.NetworkID, e.ID)
	if err != nil {
		return nil, err
	}
	if e.Phase != modes.Ready {
		return []string{"it is " + y.State(e)}, nil
	}
	if id, err := y.c.Kernel.SandboxID(r.NS); err != nil || id != e.NS {
		return []string{"its sandbox is another one"}, err
	}
	snap, err := y.c.Kernel.Snapshot()
	if err != nil {
		return nil, err
	}
	var words []string
	for _, f := range snap.Faults(m.Objects(n, []modes.Endpoint{e})) {
		words = append(words, f.Text)
	}
	if e.Inside.Link == "" {
		return words, nil
	}
	inside, err := e.Inside.Faults(r.NS)
	return append(words, inside...), err
}
