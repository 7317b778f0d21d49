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
	"netyard/yard/source"
)

// A DetachRequest names the attachment to remove.
type DetachRequest struct {
	NetworkID, Attachment, IfName string
	// NS is an open descriptor of the sandbox; negative when there is none.
	NS int
	// Gone: the runtime no longer uses the sandbox. It named the sandbox, or it has sent the request before.
	Gone bool
	// Before excludes an attachment that was made after this time, for a request that is old. Zero: excludes none.
	Before time.Time
	// Endpoint excludes every endpoint of the attachment but this one. Empty: excludes none.
	Endpoint string
}

// Detach removes an attachment: it records that now, and removes the link in the background. Detaching an unknown
// attachment succeeds.
//
// A runtime that names no sandbox may only be about to send the container a signal (nerdctl kill -s HUP, or the SIGTERM
// of nerdctl stop, which the container should still be able to react to by network). While the container's first
// process lives, Detach does nothing; the attachment is removed when that process dies.
func Detach(ctx context.Context, y *yard.Yard, r DetachRequest) error {
	release, err := y.Locks.Hold(ctx, book.ContainerLock(r.Attachment), false)
	if err != nil {
		return err
	}
	defer release()
	h, err := holdAttachment(ctx, y, r)
	if h == nil || err != nil {
		return err
	}
	defer h.Release()
	n, e := h.Network, h.Endpoint
	if r.Endpoint != "" && e.ID != r.Endpoint {
		return nil
	}
	if !r.Before.IsZero() && e.Created.After(r.Before) || !r.Gone && firstProcessLives(y, e) {
		return nil
	}
	lease.ReleaseIPv6(ctx, y.Book, e)
	if err := recordDeleting(y, "endpoint deleting", h); err != nil {
		return err
	}
	if err := port.Withdraw(ctx, h, e); err != nil {
		return err
	}
	// First: the work in the background holds the kernel's lock of all links for tens of milliseconds.
	if r.NS >= 0 && isInner(h) {
		err = y.Config.Kernel.Unplug(r.NS, sandbox.Plug{Name: e.IfName, Alias: core.Alias(e.NetworkID, e.ID)})
	}
	h.Release()
	y.FinishLater(e.NetworkID, e.ID) //nolint:contextcheck // the caller does not wait for it
	y.Tell(book.About(event.EndpointLeft, n, e, fmt.Sprintf("%s left network %s", book.Owned(e), book.Label(n))))
	pokeSharing(y, h)
	y.Config.Changed()
	return err
}

// holdAttachment holds the endpoint of an attachment; nil: there is none. The caller has the container's lock.
func holdAttachment(ctx context.Context, y *yard.Yard, r DetachRequest) (*book.Held, error) {
	all, err := y.Interfaces(r.Attachment)
	at := slices.IndexFunc(all, func(i book.Interface) bool { return i.Network == r.NetworkID && i.IfName == r.IfName })
	if err != nil || at < 0 {
		return nil, err
	}
	h, err := y.Hold(ctx, all[at].Network, all[at].Endpoint)
	if errors.Is(err, book.ErrNotFound) {
		return nil, nil
	}
	return h, err
}

// isInner reports whether an endpoint has only a link in its sandbox. A veth pair has an end on the host as well, whose
// removal removes the inner end.
func isInner(h *book.Held) bool {
	objects, _ := h.Mode.Place(h.Network, h.Endpoint)
	return slices.ContainsFunc(objects, func(o core.Object) bool {
		_, ok := o.(lan.Child)
		return ok
	})
}

// firstProcessLives reports whether the process whose namespace is the sandbox is alive. Only a path below /proc shows
// that.
func firstProcessLives(y *yard.Yard, e modes.Endpoint) bool {
	return strings.HasPrefix(e.Sandbox, "/proc/") && e.Phase == modes.Ready && e.Seen && !y.Dead(e)
}

// recordDeleting records an endpoint as deleting. Its addresses are held for its container if its engine will report
// the container's removal.
func recordDeleting(y *yard.Yard, step string, h *book.Held) error {
	e := h.Endpoint
	if e.Phase == modes.Deleting {
		return nil
	}
	e.Phase, e.Turned = modes.Deleting, y.Config.Now()
	err := y.Update(step, func(tx store.Tx) error {
		if err := h.PutIn(tx, e); err != nil { // without its claims, the leases can be released
			return err
		}
		return source.Release(y.Book, tx, h.Network, e)
	})
	if err == nil {
		h.Endpoint = e
	}
	return err
}

// ContainerExited removes the endpoints of a container whose sandbox is gone; their addresses are held.
func ContainerExited(ctx context.Context, y *yard.Yard, attachment string) error {
	es, err := y.AttachmentsOf(attachment)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range es {
		if y.Dead(e) {
			errs = append(errs, y.RemoveEndpoint(ctx, e.NetworkID, e.ID))
		}
	}
	return errors.Join(errs...)
}

// ContainerGone does the same for a container that was removed, and releases its addresses.
func ContainerGone(ctx context.Context, y *yard.Yard, attachment string) error {
	if err := ContainerExited(ctx, y, attachment); err != nil {
		return err
	}
	return y.ReleaseHolds(func(h book.Hold) bool { return h.Attachment == attachment })
}

// Faults returns how an attachment differs from its records, on the host and in its sandbox.
func Faults(y *yard.Yard, r DetachRequest) ([]string, error) {
	e, err := y.Attachment(r.Attachment, r.NetworkID, r.IfName)
	if err != nil {
		return nil, err
	}
	m, n, err := y.NetworkWithMode(e.NetworkID)
	if err != nil {
		return nil, err
	}
	if e.Phase != modes.Ready {
		return []string{"it is " + y.State(e)}, nil
	}
	if id, err := y.Config.Kernel.SandboxID(r.NS); err != nil || id != e.NS {
		return []string{"its sandbox is a different one"}, err
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
	plug := e.Inside
	plug.MAC = y.GuardedMAC(n, e)
	if plug.FixedMTU, err = lease.FixedMTU(y.Book, n, e); err != nil {
		return words, err
	}
	inside, err := y.Config.Kernel.PlugFaults(r.NS, plug)
	return append(words, inside...), err
}
