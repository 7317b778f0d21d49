// Package mirror keeps copies of records in step with etcd, and saves them in the host's database for a boot without
// etcd.
package mirror

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"netyard/cluster/etcd"
	"netyard/cluster/record"
	"netyard/wake"
)

// grace is how long a mirror keeps a record that is missing after etcd was restored from an old backup: in this
// time the record's host restores it.
const grace = time.Minute

// A Mirror is a copy of the records below a prefix. It follows etcd, and stays as it is while etcd is away.
type Mirror struct {
	c      *etcd.Client
	log    *slog.Logger
	prefix string
	apply  func([]record.Change)
	// compare is etcd.CompareEvery, and grace the constant of this name; both are shorter in tests.
	compare time.Duration
	grace   time.Duration
	// recheck receives when everything is to be read again; nil: Run was not called yet.
	recheck <-chan struct{}

	mu     sync.Mutex
	cached map[string]cached
	// dirty are the keys that differ from what Save has written.
	dirty  map[string]bool
	status Status
	// bad says why records were rejected, by key.
	bad map[string]string
	// graceUntil is until when records that are missing in etcd are kept.
	graceUntil time.Time
}

type cached struct {
	record.Record
	value string
	// missing says that etcd, restored from a backup, does not have the record.
	missing bool
}

// A Status is the state of a Mirror.
type Status struct {
	Records int
	// Revision is the revision of etcd up to which the Mirror is complete.
	Revision int64
	// Compared is when everything was last read; zero: never by this process.
	Compared time.Time
	// Compares counts how often everything was read, and Missed the changes that the watch had not reported by then.
	Compares, Missed int
	// Rejected counts the keys whose records were rejected.
	Rejected int
	// Reason is why the Mirror does not follow etcd at the moment; empty while it does.
	Reason string
}

// New makes a Mirror of the records whose keys begin with prefix. Run calls apply with the changes, in order.
func New(c *etcd.Client, log *slog.Logger, prefix string, apply func([]record.Change)) *Mirror {
	return &Mirror{
		c: c, log: log.With("prefix", prefix), prefix: prefix, apply: apply,
		compare: etcd.CompareEvery, grace: grace,
		cached: map[string]cached{}, dirty: map[string]bool{}, bad: map[string]string{},
	}
}

// Status returns the state of the Mirror.
func (m *Mirror) Status() Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.status
	s.Records, s.Rejected = len(m.cached), len(m.bad)
	return s
}

// Each calls f with every record, in no order. f must not call the Mirror.
func (m *Mirror) Each(f func(record.Record)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range m.cached {
		f(k.Record)
	}
}

// Get returns the record under a key; nil when there is none.
func (m *Mirror) Get(key string) record.Record {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.cached[key].Record
}

// Has says whether etcd has a record under a key. Get also returns one that an old backup lacks, during the grace
// period.
func (m *Mirror) Has(key string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := m.cached[key]
	return k.Record != nil && !k.missing
}

// Run follows etcd until ctx ends. After any error it reads everything again.
func (m *Mirror) Run(ctx context.Context) error {
	var unsubscribe func()
	m.recheck, unsubscribe = m.c.Rechecks()
	defer unsubscribe()
	for ctx.Err() == nil {
		err := m.follow(ctx)
		if ctx.Err() != nil {
			return nil
		}
		m.mu.Lock()
		news := err != nil && m.status.Reason == ""
		if m.status.Reason = ""; err != nil {
			m.status.Reason = err.Error()
		}
		m.mu.Unlock()
		if err == nil {
			continue
		}
		if news { // once, not once a second
			m.log.Warn("etcd watch failed", "err", err)
		}
		// The random part keeps hosts that lost etcd together from coming back together.
		if !wake.Sleep(ctx, etcd.RetryEvery+rand.N(etcd.RetryEvery)) { //nolint:gosec // it need not be secret
			return nil
		}
	}
	return nil
}

// follow reads everything and then watches for changes, until it is time to read again or an error occurs.
func (m *Mirror) follow(ctx context.Context) error {
	revision, err := m.list(ctx)
	if err != nil {
		return err
	}
	return m.watch(ctx, revision+1)
}

// list reads everything and makes the copy equal to it, except for records in their grace period.
func (m *Mirror) list(ctx context.Context) (revision int64, err error) {
	select { // this read answers an earlier recheck
	case <-m.recheck:
	default:
	}
	have, bad := map[string]cached{}, map[string]string{}
	revision, err = m.c.Scan(ctx, m.prefix, func(key string, value []byte) {
		if r, err := record.Decode(key, value); err == nil {
			have[key] = cached{Record: r, value: string(value)}
		} else {
			bad[key] = err.Error()
		}
	})
	if err != nil {
		return 0, err
	}
	m.mu.Lock()
	back := revision < m.status.Revision
	if back {
		m.graceUntil = time.Now().Add(m.grace)
		m.log.Warn("etcd revision went back; missing records kept until their hosts restore them",
			"from", m.status.Revision, "to", revision, "for", m.grace)
	}
	inGrace := time.Now().Before(m.graceUntil)
	var changes []record.Change
	for key, now := range have {
		old := m.cached[key]
		m.cached[key] = now
		if old.value != now.value {
			changes = append(changes, record.Change{Key: key, Old: old.Record, New: now.Record})
			m.dirty[key] = true
		}
	}
	for key, old := range m.cached {
		if _, there := have[key]; there {
			continue
		}
		// A record that etcd had after it was restored, and no longer has, was deleted: it gets no grace.
		if (back || inGrace && old.missing) && bad[key] == "" {
			old.missing = true
			m.cached[key] = old
			continue
		}
		changes = append(changes, record.Change{Key: key, Old: old.Record, New: nil})
		delete(m.cached, key)
		m.dirty[key] = true
	}
	m.noteRejected(bad)
	if m.status.Compares > 0 {
		m.status.Missed += len(changes)
	}
	m.status.Revision, m.status.Compared, m.status.Reason = revision, time.Now(), ""
	m.mu.Unlock()
	m.notify(changes)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.status.Compares++ // who sees it takes the changes for applied
	return revision, nil
}

// noteRejected records which keys were rejected, and logs each once.
func (m *Mirror) noteRejected(bad map[string]string) {
	for key, why := range bad {
		if m.bad[key] != why {
			m.log.Warn("etcd record rejected", "reason", why)
		}
	}
	m.bad = bad
}

func (m *Mirror) notify(changes []record.Change) {
	if len(changes) > 0 {
		m.apply(changes)
	}
}

// watch applies changes from a revision on. It returns nil when everything is to be read again.
func (m *Mirror) watch(ctx context.Context, from int64) error {
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	batches, err := m.c.Watch(inner, m.prefix, from)
	if err != nil {
		return err
	}
	due := time.NewTimer(m.nextCompare())
	defer due.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-due.C:
			return nil
		case <-m.recheck:
			return nil
		case b, ok := <-batches:
			switch {
			case !ok:
				return fmt.Errorf("watch %s: the connection was closed", m.prefix)
			case b.Compacted: // no error: this host was away for longer than etcd keeps history
				return nil
			case b.Err != nil:
				return b.Err
			}
			m.applyEvents(b)
		}
	}
}

// nextCompare returns the time until everything is read again: at the end of a grace period, or after compare.
func (m *Mirror) nextCompare() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	if left := time.Until(m.graceUntil); left > 0 {
		return min(left, m.compare)
	}
	return m.compare
}

// applyEvents applies the events of a watch.
func (m *Mirror) applyEvents(b etcd.Batch) {
	m.mu.Lock()
	var changes []record.Change
	for _, ev := range b.Events {
		key := ev.Key
		old := m.cached[key]
		delete(m.bad, key)
		var now cached
		if ev.Value != nil {
			r, err := record.Decode(key, ev.Value)
			if err != nil {
				m.log.Warn("etcd record rejected", "err", err)
				m.bad[key] = err.Error()
			} else {
				now = cached{Record: r, value: string(ev.Value)}
			}
		}
		if now.value == old.value {
			if now.Record != nil {
				m.cached[key] = now // no longer missing
			}
			continue
		}
		if m.dirty[key] = true; now.Record == nil {
			delete(m.cached, key)
		} else {
			m.cached[key] = now
		}
		changes = append(changes, record.Change{Key: key, Old: old.Record, New: now.Record})
	}
	m.status.Revision = max(m.status.Revision, b.Revision)
	m.mu.Unlock()
	m.notify(changes)
}
