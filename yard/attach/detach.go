package attach

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"netyard/kernel/core"
	"netyard/kernel/lan"
	"netyard/kernel/sandbox"
	"netyard/modes"
	"netyard/store"
	"netyard/yard"
	"netyard/yard/book"
	"netyard/yard/event"
	"netyard/yard/lease"
	"netyard/yard/port"
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
func Detach(ctx context.Context, y *yard.Yard, r DetachRequest) error {
	release, err := y.Locks.Hold(ctx, book.ContainerLock(r.Attachment), false)
	if err != nil {
		return err
	}
	defer release()
	e, err := y.Attachment(r.Attachment, r.NetworkID, r.IfName)
	if errors.Is(err, book.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if r.Endpoint != "" && e.ID != r.Endpoint {
		return nil
	}
	if !r.Before.IsZero() && e.Created.After(r.Before) || !r.Gone && firstProcessLives(y, e) {
		return nil
	}
	lease.LeaveSix(ctx, y.Book, e)
	found, inner := false, false
	var n modes.Network
	err = y.Update("endpoint deleting", func(tx store.Tx) error {
		found = false
		now, err := book.GetEndpoint(tx, e.NetworkID, e.ID)
		if errors.Is(err, book.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		if n, err = book.GetNetwork(tx, e.NetworkID); err != nil {
			return err
		}
		found, inner = true, isInner(y, n, now)
		return park(y, tx, n, now)
	})
	if err != nil || !found {
		return err
	}
	if err := port.Withdraw(ctx, y.Book, e); err != nil {
		return err
	}
	if r.NS >= 0 && inner { // first: what is in the background has the kernel's lock over all links for tens of milliseconds
		err = sandbox.Unplug(r.NS, sandbox.Plug{Name: e.IfName, Alias: core.Alias(e.NetworkID, e.ID)})
	}
	y.FinishLater(e.NetworkID, e.ID) //nolint:contextcheck // the caller does not wait for it
	y.Tell(book.About(event.EndpointLeft, n, e, fmt.Sprintf("%s left network %s", book.Owned(e), book.Label(n))))
	if m, err := y.Mode(n.Mode); err == nil {
		pokeSharing(y, m, n, e)
	}
	y.Config.Changed()
	return err
}

// isInner says whether an endpoint's link is in its sandbox as a whole; of a pair the outer end is the host's, and
// takes the inner one with it.
func isInner(y *yard.Yard, n modes.Network, e modes.Endpoint) bool {
	m, err := y.Mode(n.Mode)
	if err != nil {
		return false
	}
	objects, _ := m.Place(n, e)
	return slices.ContainsFunc(objects, func(o core.Object) bool {
		_, ok := o.(lan.Child)
		return ok
	})
}

// firstProcessLives says whether the process whose namespace is the sandbox is there: only a path below /proc says
// that.
func firstProcessLives(y *yard.Yard, e modes.Endpoint) bool {
	return strings.HasPrefix(e.Sandbox, "/proc/") && e.Phase == modes.Ready && e.Seen && !y.Dead(e)
}

// park records that an endpoint is to go; its addresses are held for its container, if that has an end that netyard
// will hear of.
func park(y *yard.Yard, tx store.Tx, n modes.Network, e modes.Endpoint) error {
	if e.Phase == modes.Deleting {
		return nil
	}
	e.Phase, e.Turned = modes.Deleting, y.Config.Now()
	if err := book.PutEndpoint(tx, e); err != nil {
		return err
	}
	return y.SettleLeases(tx, n, e)
}

// ContainerExited ends what a container of that name has, as far as its sandbox is gone; addresses are held.
func ContainerExited(ctx context.Context, y *yard.Yard, attachment string) error {
	es, err := y.AttachmentsOf(attachment)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range es {
		if y.Dead(e) {
			errs = append(errs, y.Bury(ctx, e.NetworkID, e.ID))
		}
	}
	return errors.Join(errs...)
}

// ContainerGone is ContainerExited for a container that will not come back: its addresses are free.
func ContainerGone(ctx context.Context, y *yard.Yard, attachment string) error {
	if err := ContainerExited(ctx, y, attachment); err != nil {
		return err
	}
	return y.ReleaseHolds(func(h book.Hold) bool { return h.Attachment == attachment })
}

// Faults says what is wrong with an attachment, on the host and in its sandbox; nothing when it is as it was made.
func Faults(y *yard.Yard, r DetachRequest) ([]string, error) {
	e, err := y.Attachment(r.Attachment, r.NetworkID, r.IfName)
	if err != nil {
		return nil, err
	}
	m, n, e, err := y.Whole(e.NetworkID, e.ID)
	if err != nil {
		return nil, err
	}
	if e.Phase != modes.Ready {
		return []string{"it is " + y.State(e)}, nil
	}
	if id, err := y.Config.Kernel.SandboxID(r.NS); err != nil || id != e.NS {
		return []string{"its sandbox is another one"}, err
	}
	snap, err := y.Config.Kernel.Snapshot()
	if err != nil {
		return nil, err
	}
	var words []string
	for _, f := range snap.Faults(y.Plan().Objects(m, n, e)) {
		words = append(words, f.Text)
	}
	if e.Inside.Link == "" {
		return words, nil
	}
	inside, err := e.Inside.Faults(r.NS)
	return append(words, inside...), err
}
