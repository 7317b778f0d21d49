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
	"netyard/yard/overlay"
)

// A Process is an engine's, as a door knows it.
type Process = sandbox.Process

// PeerOf returns the process at the other end of a door's connection.
func PeerOf(c net.Conn) Process { return sandbox.PeerOf(c) }

// buryTime bounds the wait for the locks of an endpoint that is to give way: its own request may be in progress.
const buryTime = 3 * time.Second

// Past runs a request, and again if it failed for what dead endpoints have: those are dropped, with all they have. do
// must have undone what it did and hold no lock when it fails.
func (y *Yard) Past(ctx context.Context, do func(*book.Judge) error) error {
	j := y.NewJudge()
	for {
		err := do(j)
		var held *book.HeldError
		if !errors.As(err, &held) {
			return err
		}
		news, buryErr := giveWay(ctx, y, j, held)
		if buryErr != nil {
			return errors.Join(err, buryErr)
		}
		if !news {
			return err
		}
	}
}

// giveWay drops those holders that are dead. news: there is one fewer, or one more of which it is known that it lives.
func giveWay(ctx context.Context, y *Yard, j *book.Judge, held *book.HeldError) (news bool, err error) {
	for _, h := range held.Holders {
		e, err := j.Y.Endpoint(h.Network, h.Endpoint)
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
		gone, err := y.BuryDead(ctx, e)
		if err != nil {
			return news, fmt.Errorf("drop %s, whose sandbox is dead: %w", book.Owned(e), err)
		}
		if news = news || gone; gone && held.One {
			return true, nil
		}
	}
	return news, nil
}

// BuryDead drops an endpoint that was found dead, unless it is another than that by now. gone says that it is no more.
func (y *Yard) BuryDead(ctx context.Context, was modes.Endpoint) (gone bool, err error) {
	wait, cancel := context.WithTimeout(ctx, buryTime)
	defer cancel()
	release, err := y.Hold(wait, was.NetworkID, was.ID)
	if err != nil {
		return false, err
	}
	defer release()
	m, n, e, err := y.Whole(was.NetworkID, was.ID)
	if errors.Is(err, book.ErrNotFound) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	same := e.Phase == was.Phase && e.Sandbox == was.Sandbox && e.BootID == was.BootID &&
		e.Created.Equal(was.Created) && e.Joined.Equal(was.Joined)
	if !same {
		return false, nil // it was joined, or left, while it was looked at
	}
	if err := y.BuryNow(ctx, m, n, e); err != nil {
		return false, err
	}
	for _, p := range e.Addrs {
		if err := overlay.GiveUp(y.Book, n, p.Addr()); err != nil { // no engine need say that they are free
			return true, err
		}
	}
	y.Tell(book.About(event.EndpointLeft, n, e, fmt.Sprintf("%s left network %s: its sandbox is dead", book.Owned(e), book.Label(n))))
	y.Sharing.Poke()
	y.Config.Changed()
	return true, nil
}

// BuryLost drops the dead endpoints whose engine's process has ended: it will not speak of them, and the next one may
// not know of them.
func (y *Yard) BuryLost(ctx context.Context) error {
	es, err := y.Endpoints()
	if err != nil {
		return err
	}
	j := y.NewJudge()
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
			_, err = y.BuryDead(ctx, e)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// HeldBeside says of an endpoint that could not be attached who may have what it needs: a link, a hardware address, a
// card of the host's, a parent that takes one link only. That is who is on its network, or on another network with the
// same parent.
func (y *Yard) HeldBeside(e modes.Endpoint, cause error) error {
	if errors.Is(cause, context.Canceled) || errors.Is(cause, context.DeadlineExceeded) {
		return cause
	}
	held := &book.HeldError{Err: cause}
	err := y.Config.Store.View(func(tx store.Tx) error {
		own, err := book.GetNetwork(tx, e.NetworkID)
		if err != nil {
			return err
		}
		ns, err := book.Networks.List(tx, "")
		if err != nil {
			return err
		}
		for _, n := range ns {
			if n.ID != own.ID && (n.Given(book.OptParent) == "" || n.Given(book.OptParent) != own.Given(book.OptParent)) {
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
			held.Err = beside(tx, own.Given(book.OptParent), cause, held.Holders)
		}
		return nil
	})
	if err != nil {
		return errors.Join(cause, err)
	}
	return held
}

// isTaken says whether a link could not be made since another one has what it needs.
func isTaken(err error) bool {
	// A parent, one that passes a link through, a name, a MAC.
	for _, e := range []error{syscall.EBUSY, syscall.EINVAL, syscall.EEXIST, syscall.EADDRINUSE} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// beside names those who have links on a parent, as far as they are few.
func beside(tx store.Tx, parent string, cause error, holders []book.Holder) error {
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
