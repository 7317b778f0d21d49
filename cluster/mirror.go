package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// compareEvery is how often everything is read again: etcd before 3.4.36 and 3.5.18 may lose watch events.
	compareEvery = 5 * time.Minute
	// grace is how long a mirror keeps a record that is missing after etcd was restored from an old backup: in this
	// time the record's host restores it.
	grace = time.Minute
	// retryEvery is the pause before etcd is asked again after it did not answer, on top of the connection's own.
	retryEvery = time.Second
)

// A Change is one record that was added, removed or changed.
type Change struct {
	Key string
	// Old is nil for a record that was added, New for one that was removed.
	Old, New Record
}

// A Mirror is a copy of the records below a prefix. It follows etcd, and stays as it is while etcd is away.
type Mirror struct {
	c      *Client
	log    *slog.Logger
	prefix string
	apply  func([]Change)
	// compare is compareEvery, and grace the constant of this name; both are shorter in tests.
	compare time.Duration
	grace   time.Duration
	// recheck is signalled when everything is to be read again.
	recheck chan struct{}

	mu     sync.Mutex
	cached map[string]cached
	// dirty are the keys that differ from what Save has written.
	dirty  map[string]bool
	status MirrorStatus
	// bad says why records were rejected, by key.
	bad map[string]string
	// graceUntil is until when records that are missing in etcd are kept.
	graceUntil time.Time
}

type cached struct {
	Record
	value string
	// missing says that etcd, restored from a backup, does not have the record.
	missing bool
}

// A MirrorStatus is the state of a Mirror.
type MirrorStatus struct {
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

// NewMirror makes a Mirror of the records whose keys begin with prefix. Run calls apply with the changes, in order.
func (c *Client) NewMirror(log *slog.Logger, prefix string, apply func([]Change)) *Mirror {
	m := &Mirror{
		c: c, log: log.With("prefix", prefix), prefix: prefix, apply: apply,
		compare: compareEvery, grace: grace, recheck: make(chan struct{}, 1),
		cached: map[string]cached{}, dirty: map[string]bool{}, bad: map[string]string{},
	}
	c.mu.Lock()
	c.rechecks = append(c.rechecks, m.recheck)
	c.mu.Unlock()
	return m
}

// Status returns the state of the Mirror.
func (m *Mirror) Status() MirrorStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.status
	s.Records, s.Rejected = len(m.cached), len(m.bad)
	return s
}

// Each calls f with every record, in no order. f must not call the Mirror.
func (m *Mirror) Each(f func(Record)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range m.cached {
		f(k.Record)
	}
}

// Get returns the record under a key; nil when there is none.
func (m *Mirror) Get(key string) Record {
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
	defer m.unsubscribe()
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
			m.log.Warn("watch of etcd failed", "err", err)
		}
		// The random part keeps hosts that lost etcd together from coming back together.
		if !sleep(ctx, retryEvery+rand.N(retryEvery)) { //nolint:gosec // it need not be secret
			return nil
		}
	}
	return nil
}

// unsubscribe undoes the subscription that NewMirror made.
func (m *Mirror) unsubscribe() {
	m.c.mu.Lock()
	defer m.c.mu.Unlock()
	for i, ch := range m.c.rechecks {
		if ch == m.recheck {
			m.c.rechecks = append(m.c.rechecks[:i:i], m.c.rechecks[i+1:]...)
			return
		}
	}
}

// sleep waits for d; it returns false if ctx ends before.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
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
	revision, err = m.c.scan(ctx, m.prefix, func(key string, value []byte) {
		if r, err := Decode(key, value); err == nil {
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
	var changes []Change
	for key, now := range have {
		old := m.cached[key]
		m.cached[key] = now
		if old.value != now.value {
			changes = append(changes, Change{key, old.Record, now.Record})
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
		changes = append(changes, Change{key, old.Record, nil})
		delete(m.cached, key)
		m.dirty[key] = true
	}
	m.noteRejected(bad)
	if m.status.Compares++; m.status.Compares > 1 {
		m.status.Missed += len(changes)
	}
	m.status.Revision, m.status.Compared, m.status.Reason = revision, time.Now(), ""
	m.mu.Unlock()
	m.notify(changes)
	return revision, nil
}

// noteRejected records which keys were rejected, and logs each once.
func (m *Mirror) noteRejected(bad map[string]string) {
	for key, why := range bad {
		if m.bad[key] != why {
			m.log.Warn("etcd record rejected", "err", why)
		}
	}
	m.bad = bad
}

func (m *Mirror) notify(changes []Change) {
	if len(changes) > 0 {
		m.apply(changes)
	}
}

// watch applies changes from a revision on. It returns nil when everything is to be read again.
func (m *Mirror) watch(ctx context.Context, from int64) error {
	conn, err := m.c.dial(ctx)
	if err != nil {
		return err
	}
	inner, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	responses := conn.Watch(inner, m.c.prefix+m.prefix, clientv3.WithPrefix(), clientv3.WithRev(from))
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
		case resp, ok := <-responses:
			if !ok {
				return fmt.Errorf("watch %s: the connection was closed", m.prefix)
			}
			if resp.CompactRevision != 0 { // no error: this host was away for longer than etcd keeps history
				return nil
			}
			if err := resp.Err(); err != nil {
				return fmt.Errorf("watch %s: %w", m.prefix, err)
			}
			m.applyEvents(resp)
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
func (m *Mirror) applyEvents(resp clientv3.WatchResponse) {
	m.mu.Lock()
	var changes []Change
	for _, ev := range resp.Events {
		key := string(ev.Kv.Key[len(m.c.prefix):])
		old := m.cached[key]
		delete(m.bad, key)
		var now cached
		if ev.Type == clientv3.EventTypePut {
			r, err := Decode(key, ev.Kv.Value)
			if err != nil {
				m.log.Warn("etcd record rejected", "err", err)
				m.bad[key] = err.Error()
			} else {
				now = cached{Record: r, value: string(ev.Kv.Value)}
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
		changes = append(changes, Change{key, old.Record, now.Record})
	}
	if resp.Header.Revision > m.status.Revision {
		m.status.Revision = resp.Header.Revision
	}
	m.mu.Unlock()
	m.notify(changes)
}
