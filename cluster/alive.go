package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// lifetime is how long a host counts as alive that says nothing, seconds.
	lifetime = 30
	// pulse is how often etcd is asked whether it is there, and still the same.
	pulse = 3 * time.Second
)

// Live makes a host a member, as h says that it is at the time, says that it is alive until ctx ends, and notices when
// etcd is away, goes back in time or belongs to another cluster. told is called with why it cannot, once for each
// reason, and with nil when it can again. The word is taken back in the end; a member it stays.
func (c *Client) Live(ctx context.Context, log *slog.Logger, h func() Host, boot string, told func(error)) error {
	var last string
	lived := false
	for ctx.Err() == nil {
		err := c.live(ctx, h, boot, lived, func() {
			last, lived = "", true
			told(nil)
		})
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && err.Error() != last {
			last = err.Error()
			log.Warn("saying that this host is alive", "err", err)
			told(err)
		}
		if !sleep(ctx, retryEvery) {
			return nil
		}
	}
	return nil
}

// live is Live until something is wrong. A lease that etcd has forgotten is no reason to stop: the next is a new one.
// lived: this process was let in before, so the machine was not reset since, and who is alive with another boot is a
// twin whatever card it has.
func (c *Client) live(ctx context.Context, h func() Host, boot string, lived bool, said func()) error {
	a := Alive{Host: h().ID, Boot: boot}
	conn, err := c.dial(ctx)
	if err != nil {
		return c.note("grant a lease", err)
	}
	var lease clientv3.LeaseID
	err = c.call(ctx, "grant a lease", func(ctx context.Context, conn *clientv3.Client) error {
		granted, err := conn.Grant(ctx, lifetime)
		if err == nil {
			lease = granted.ID
		}
		return err
	})
	if err != nil {
		return err
	}
	defer func() { // not with the host's ctx, which may have ended
		bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_, _ = conn.Revoke(bye, lease) // or it ends by itself
	}()
	// Alive first: a machine that was cloned must not take its twin's record.
	say := func() error {
		who := h()
		if lived {
			who.Card = ""
		}
		return c.sayAlive(ctx, who, a, lease)
	}
	err = say()
	if errors.Is(err, ErrNotFound) {
		if err = c.Join(ctx, h()); err == nil {
			err = say()
		}
	}
	if err == nil {
		err = c.Join(ctx, h()) // as it is now
	}
	if err != nil {
		return err
	}
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	kept, err := conn.KeepAlive(inner, lease)
	if err != nil {
		return fmt.Errorf("keep the lease: %w", err)
	}
	said()
	tick := time.NewTicker(pulse)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-kept:
			if !ok {
				return fmt.Errorf("keep the lease: it has ended")
			}
		case <-tick.C:
			found, err := c.read(ctx, "ask etcd", []string{a.Key()})
			if err != nil {
				return err
			}
			if !found[a.Key()].there { // this host was taken out, or etcd does not know of the lease
				return nil
			}
			if now, _ := found[a.Key()].Record.(*Alive); now != nil && now.Boot != boot {
				return fmt.Errorf("%w (boot %s), which came later", ErrTwin, now.Boot)
			}
		}
	}
}

// sayAlive refuses when another machine has the same id: one was cloned. The boot id tells them apart, and a daemon
// from the one before. A machine that was reset has another boot id, too, and its containers are not to wait until the
// word of its former life ends: it has the former one's address on the same card, which no two machines that others
// reach can have.
func (c *Client) sayAlive(ctx context.Context, h Host, a Alive, lease clientv3.LeaseID) error {
	own, tomb := Host{ID: a.Host}.Key(), Tomb{Host: a.Host}.Key()
	return c.change(ctx, "say that this host is alive", []string{a.Key(), own, tomb}, func(found map[string]held) (d decision, err error) {
		was, _ := found[own].Record.(*Host)
		switch has, _ := found[a.Key()].Record.(*Alive); {
		case found[tomb].there:
			return d, ErrForgotten
		case !found[own].there:
			return d, fmt.Errorf("host %s %w", a.Host, ErrNotFound)
		case has != nil && has.Boot != a.Boot && !h.onCardOf(was):
			return d, fmt.Errorf("%w (boot %s); if it was this one before a restart, that ends within %d s", ErrTwin, has.Boot, lifetime)
		}
		d.put, d.lease = []Record{&a}, lease
		return d, nil
	})
}

// onCardOf says whether a host's address is on the card that another record says has it.
func (h Host) onCardOf(was *Host) bool {
	return was != nil && h.Card != "" && h.Card == was.Card && h.VTEP == was.VTEP
}
