package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"netyard/cluster/etcd"
	"netyard/cluster/record"
	"netyard/wake"
)

const (
	// aliveTTL is how long a silent host still counts as alive.
	aliveTTL = 30 * time.Second
	// checkEvery is how often this host asks etcd whether it answers and still holds the cluster.
	checkEvery = 3 * time.Second
)

// StayAlive makes a host a member of the cluster and renews its Alive record until ctx ends; h returns the host as it
// is at the moment. It notices when etcd is away, was restored from a backup or holds another cluster. It calls report
// with the reason why the host is no member, once for each reason, and with nil when it is one again. At the end the
// Alive record is deleted; the host stays a member.
func (c *Client) StayAlive(
	ctx context.Context, log *slog.Logger, h func() record.Host, boot string, report func(error),
) error {
	var last string
	wasAlive := false
	for ctx.Err() == nil {
		err := c.stayAliveOnce(ctx, h, boot, wasAlive, func() {
			last, wasAlive = "", true
			report(nil)
		})
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && err.Error() != last {
			last = err.Error()
			log.Warn("host not announced", "err", err)
			report(err)
		}
		if !wake.Sleep(ctx, etcd.RetryEvery) {
			return nil
		}
	}
	return nil
}

// stayAliveOnce does the work of StayAlive until an error occurs. A lease that etcd has lost is no error: the next call
// gets a new one. wasAlive says that this process has announced the host before: the machine was not reset since, so an
// Alive record with another boot ID is a twin's, whatever its card.
func (c *Client) stayAliveOnce(
	ctx context.Context, h func() record.Host, boot string, wasAlive bool, onAlive func(),
) error {
	a := record.Alive{Host: h().ID, Boot: boot}
	lease, err := c.Grant(ctx, aliveTTL)
	if err != nil {
		return err
	}
	defer lease.Revoke(ctx)
	// The Alive record comes first: a clone must not overwrite the host record of the machine it was copied from.
	write := func() error {
		who := h()
		if wasAlive {
			who.Card = ""
		}
		return c.writeAlive(ctx, who, a, lease)
	}
	err = write()
	if errors.Is(err, ErrNotFound) {
		if err = c.Join(ctx, h()); err == nil {
			err = write()
		}
	}
	if err == nil {
		err = c.Join(ctx, h()) // updates the record
	}
	if err != nil {
		return err
	}
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	ended, err := lease.Renew(inner)
	if err != nil {
		return err
	}
	onAlive()
	tick := time.NewTicker(checkEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ended:
			return errors.New("keep lease alive: it ended")
		case <-tick.C:
			found, err := c.Read(ctx, "check etcd", []string{a.Key()})
			if err != nil {
				return err
			}
			if !found[a.Key()].There { // this host was removed from the cluster, or etcd lost the lease
				return nil
			}
			if now, _ := found[a.Key()].Record.(*record.Alive); now != nil && now.Boot != boot {
				return fmt.Errorf("%w and announced itself later, with boot ID %s", ErrTwin, now.Boot)
			}
		}
	}
}

// writeAlive writes the Alive record and refuses when another machine has the same ID, as a clone has. The boot ID
// tells machines apart; a restarted daemon has the same one. A machine that was reset has a new boot ID, too, and its
// containers must not wait until its former Alive record expires: it is recognised by its former address on the same
// card, which no two reachable machines can share.
func (c *Client) writeAlive(ctx context.Context, h record.Host, a record.Alive, lease *etcd.Lease) error {
	own, tomb := record.Host{ID: a.Host}.Key(), record.Tomb{Host: a.Host}.Key()
	keys := []string{a.Key(), own, tomb}
	return c.Change(ctx, "announce host", keys, func(found etcd.Found) (d etcd.Decision, err error) {
		was, _ := found[own].Record.(*record.Host)
		switch has, _ := found[a.Key()].Record.(*record.Alive); {
		case found[tomb].There:
			return d, ErrForgotten
		case !found[own].There:
			return d, fmt.Errorf("host %s %w", a.Host, ErrNotFound)
		case has != nil && has.Boot != a.Boot && !onSameCard(h, was):
			return d, fmt.Errorf("%w, with boot ID %s; "+
				"if that was this machine before a reboot, its record expires within %s", ErrTwin, has.Boot, aliveTTL)
		}
		d.Put, d.Lease = []record.Record{&a}, lease
		return d, nil
	})
}

// onSameCard says whether a host has the same address on the same card as an earlier record of it.
func onSameCard(h record.Host, was *record.Host) bool {
	return was != nil && h.Card != "" && h.Card == was.Card && h.VTEP == was.VTEP
}
