package yard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"time"

	"netyard/kernel/sandbox"
	"netyard/modes"
	"netyard/store"
	"netyard/yard/book"
	"netyard/yard/event"
	"netyard/yard/live"
	"netyard/yard/overlay"
)

// A Process is an engine's process, as a door identifies it.
type Process = sandbox.Process

// PeerOf returns the process at the other end of a door's connection.
func PeerOf(c net.Conn) Process { return sandbox.PeerOf(c) }

// removeTime bounds the wait for the locks of a dead endpoint: a request for it may be in progress.
const removeTime = 3 * time.Second

// RetryWithoutDead runs a request. If it fails because of what dead endpoints have (book.HeldError), it removes those
// endpoints and runs the request again. When do fails, it must have undone what it did, and hold no lock.
func (y *Yard) RetryWithoutDead(ctx context.Context, do func(*live.Check) error) error {
	j := live.NewCheck(y.Book)
	for {
		err := do(j)
		var held *book.HeldError
		if !errors.As(err, &held) {
			return err
		}
		news, removeErr := removeDead(ctx, y, j, held)
		if removeErr != nil {
			return errors.Join(err, removeErr)
		}
		if !news {
			return err
		}
	}
}

// removeDead removes those holders that are dead. news: one was removed, or one whose state was unknown was found
// alive.
func removeDead(ctx context.Context, y *Yard, j *live.Check, held *book.HeldError) (news bool, err error) {
	for _, h := range held.Holders {
		e, err := y.Endpoint(h.Network, h.Endpoint)
		if errors.Is(err, book.ErrNotFound) { // it went meanwhile
			news, j.Living[h] = news || !j.Living[h], true
			continue
		}
		if err != nil {
			return news, err
		}
		dead, err := j.Dead(ctx, e)
		if err != nil {
			return news, err
		}
		if !dead {
			news = news || held.Err == book.ErrUnjudged && !j.Living[h] //nolint:errorlint // it is that one
			j.Living[h] = true
			continue
		}
		gone, err := y.RemoveDead(ctx, e)
		if err != nil {
			return news, fmt.Errorf("remove %s, whose sandbox is dead: %w", book.Owned(e), err)
		}
		if news = news || gone; gone && held.AnyOne {
			return true, nil
		}
	}
	return news, nil
}

// RemoveDead removes an endpoint that was found dead, unless it has changed since. gone: it no longer exists.
func (y *Yard) RemoveDead(ctx context.Context, was modes.Endpoint) (gone bool, err error) {
	wait, cancel := context.WithTimeout(ctx, removeTime)
	defer cancel()
	h, err := y.Hold(wait, was.NetworkID, was.ID)
	if errors.Is(err, book.ErrNotFound) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer h.Release()
	n, e := h.Network, h.Endpoint
	same := e.Phase == was.Phase && e.Sandbox == was.Sandbox && e.BootID == was.BootID &&
		e.Created.Equal(was.Created) && e.Joined.Equal(was.Joined)
	if !same {
		return false, nil // it was joined or left meanwhile
	}
	if err := y.Remove(ctx, h); err != nil {
		return false, err
	}
	for _, p := range e.Addrs {
		if err := overlay.ReleaseUnused(y.Book, n, p.Addr()); err != nil { // their engine may never release them
			return true, err
		}
	}
	text := fmt.Sprintf("%s left network %s: its sandbox is dead", book.Owned(e), book.Label(n))
	y.Tell(book.About(event.EndpointLeft, n, e, text))
	y.Sharing.Wake.Send()
	y.Config.Changed()
	return true, nil
}

// RemoveLost removes the dead endpoints whose engine's process has ended: that process will not delete them, and the
// next one may not know them.
func (y *Yard) RemoveLost(ctx context.Context) error {
	es, err := y.Endpoints()
	if err != nil {
		return err
	}
	j := live.NewCheck(y.Book)
	ended := map[sandbox.Process]bool{}
	var errs []error
	for _, e := range es {
		if !e.Maker.Known() || e.Attachment != "" || e.Phase != modes.Ready {
			continue
		}
		if _, known := ended[e.Maker]; !known {
			ended[e.Maker] = e.Maker.Ended()
		}
		if !ended[e.Maker] {
			continue
		}
		dead, err := j.Dead(ctx, e)
		if err == nil && dead {
			_, err = y.RemoveDead(ctx, e)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// WithLinkHolders adds to the cause why an endpoint could not be attached the endpoints that may have what it needs: a
// link, a hardware address, a device of the host's, a parent that takes one link only. Those are the joined endpoints
// of its network and of other networks with the same parent.
func (y *Yard) WithLinkHolders(h *book.Held, cause error) error {
	own, e := h.Network, h.Endpoint
	if errors.Is(cause, context.Canceled) || errors.Is(cause, context.DeadlineExceeded) {
		return cause
	}
	held := &book.HeldError{Err: cause}
	err := y.Config.Store.View(func(tx store.Tx) error {
		ns, err := book.Networks.List(tx, "")
		if err != nil {
			return err
		}
		for _, n := range ns {
			parent := n.Given(book.OptParent)
			if n.ID != own.ID && (parent == "" || parent != own.Given(book.OptParent)) {
				continue
			}
			es, err := book.Endpoints.List(tx, book.EndpointKey(n.ID, ""))
			if err != nil {
				return err
			}
			for _, o := range es {
				if o.ID != e.ID && (o.Sandbox != "" || o.Kept != nil) {
					held.Holders = append(held.Holders, book.Holder{Network: o.NetworkID, Endpoint: o.ID})
				}
			}
		}
		if own.Given(book.OptParent) != "" && isTaken(cause) {
			held.Err = withOwners(tx, own.Given(book.OptParent), cause, held.Holders)
		}
		return nil
	})
	if err != nil {
		return errors.Join(cause, err)
	}
	return held
}

// isTaken reports whether a link could not be made because another one has what it needs.
func isTaken(err error) bool {
	// In this order: a parent, a parent in passthru mode, a name, a MAC.
	for _, e := range []error{syscall.EBUSY, syscall.EINVAL, syscall.EEXIST, syscall.EADDRINUSE} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// withOwners adds to an error the first few owners of links on a parent.
func withOwners(tx store.Tx, parent string, cause error, holders []book.Holder) error {
	const few = 3
	var who []string
	for _, h := range holders[:min(len(holders), few)] {
		who = append(who, book.InUseBy(tx, h))
	}
	if len(holders) > few {
		who = append(who, fmt.Sprintf("%d more", len(holders)-few))
	}
	if len(who) == 0 {
		return cause
	}
	return fmt.Errorf("%w (on %s: %s)", cause, parent, strings.Join(who, ", "))
}
