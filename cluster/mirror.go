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
	// compareEvery is how often everything is read again: etcd before 3.4.36 and 3.5.18 may lose events of a watch.
	compareEvery = 5 * time.Minute
	// mercy is how long a record lives that an etcd from an old backup has not: its host puts it back meanwhile.
	mercy = time.Minute
	// retryEvery is the pause before etcd is asked again that did not answer, beside the connection's own.
	retryEvery = time.Second
)

// A Change is one record that came, went, or became another.
type Change struct {
	Key string
	// Old and New are nil where there is none.
	Old, New Record
}

// A Mirror is a copy of the records below a prefix, which follows etcd and stays as it is while etcd is away.
type Mirror struct {
	c      *Client
	log    *slog.Logger
	prefix string
	apply  func([]Change)
	// compare is compareEvery, less in tests.
	compare time.Duration
	mercy   time.Duration
	doubt   chan struct{}

	mu   sync.Mutex
	kept map[string]kept
	// dirty are the keys that differ from what was saved.
	dirty  map[string]bool
	status MirrorStatus
	bad    map[string]string
	// spare is until when nothing goes that etcd has not.
	spare time.Time
}

type kept struct {
	Record
	value string
	// spared: etcd, which went back in time, has it not.
	spared bool
}

// A MirrorStatus is how a Mirror fares.
type MirrorStatus struct {
	Records int
	// Revision is that of etcd's up to which everything is known.
	Revision int64
	// Compared is when everything was last read; zero: never by this process.
	Compared time.Time
	// Compares counts the times it was, and Missed the changes that only that found after the first.
	Compares, Missed int
	// Rejected are the keys of records that could not be let in.
	Rejected int
	// Reason is why it does not follow at the moment; empty while it does.
	Reason string
}

// NewMirror makes a Mirror of the records whose keys begin with prefix. apply is told of changes, in order, from within
// Run.
func (c *Client) NewMirror(log *slog.Logger, prefix string, apply func([]Change)) *Mirror {
	m := &Mirror{
		c: c, log: log.With("of", prefix), prefix: prefix, apply: apply, compare: compareEvery, mercy: mercy, doubt: make(chan struct{}, 1),
		kept: map[string]kept{}, dirty: map[string]bool{}, bad: map[string]string{},
	}
	c.mu.Lock()
	c.doubted = append(c.doubted, m.doubt)
	c.mu.Unlock()
	return m
}

// Status says how it fares.
func (m *Mirror) Status() MirrorStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.status
	s.Records, s.Rejected = len(m.kept), len(m.bad)
	return s
}

// Each calls f with every record, in no order. f must not call the Mirror.
func (m *Mirror) Each(f func(Record)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range m.kept {
		f(k.Record)
	}
}

// Get is the record under a key; nil when there is none.
func (m *Mirror) Get(key string) Record {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.kept[key].Record
}

// Has says whether etcd has a record under a key. One that an etcd from an old backup has not stays for a while all the
// same.
func (m *Mirror) Has(key string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := m.kept[key]
	return k.Record != nil && !k.spared
}

// Run follows etcd until ctx ends. Whatever goes wrong, it reads everything again.
func (m *Mirror) Run(ctx context.Context) error {
	defer m.forsake()
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
			m.log.Warn("following etcd", "err", err)
		}
		// Hosts that lost etcd together do not come back together.
		if !sleep(ctx, retryEvery+rand.N(retryEvery)) { //nolint:gosec // it need not be secret
			return nil
		}
	}
	return nil
}

// forsake ends what NewMirror began.
func (m *Mirror) forsake() {
	m.c.mu.Lock()
	defer m.c.mu.Unlock()
	for i, ch := range m.c.doubted {
		if ch == m.doubt {
			m.c.doubted = append(m.c.doubted[:i:i], m.c.doubted[i+1:]...)
			return
		}
	}
}

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

// follow reads everything and then listens to what changes, until it is time to read again, or something is wrong.
func (m *Mirror) follow(ctx context.Context) error {
	revision, err := m.list(ctx)
	if err != nil {
		return err
	}
	return m.watch(ctx, revision+1)
}

// list makes the copy what etcd has.
func (m *Mirror) list(ctx context.Context) (revision int64, err error) {
	select { // what it was about is seen now
	case <-m.doubt:
	default:
	}
	have, bad := map[string]kept{}, map[string]string{}
	revision, err = m.c.scan(ctx, m.prefix, func(key string, value []byte) {
		if r, err := Decode(key, value); err == nil {
			have[key] = kept{Record: r, value: string(value)}
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
		m.spare = time.Now().Add(m.mercy)
		m.log.Warn("etcd went back in time; what it has not is kept for a while, so that its owners can put it back", "from", m.status.Revision, "to", revision)
	}
	spare := time.Now().Before(m.spare)
	var changes []Change
	for key, now := range have {
		old := m.kept[key]
		m.kept[key] = now
		if old.value != now.value {
			changes = append(changes, Change{key, old.Record, now.Record})
			m.dirty[key] = true
		}
	}
	for key, old := range m.kept {
		if _, there := have[key]; there {
			continue
		}
		if (back || spare && old.spared) && bad[key] == "" { // what was there after it went back was taken away by somebody
			old.spared = true
			m.kept[key] = old
			continue
		}
		changes = append(changes, Change{key, old.Record, nil})
		delete(m.kept, key)
		m.dirty[key] = true
	}
	m.refuse(bad)
	if m.status.Compares++; m.status.Compares > 1 {
		m.status.Missed += len(changes)
	}
	m.status.Revision, m.status.Compared, m.status.Reason = revision, time.Now(), ""
	m.mu.Unlock()
	m.tell(changes)
	return revision, nil
}

// refuse notes which records could not be let in; the log hears of each once.
func (m *Mirror) refuse(bad map[string]string) {
	for key, why := range bad {
		if m.bad[key] != why {
			m.log.Warn("a record in etcd is not let in", "err", why)
		}
	}
	m.bad = bad
}

func (m *Mirror) tell(changes []Change) {
	if len(changes) > 0 {
		m.apply(changes)
	}
}

// watch listens from a revision on. That it ends without an error means that everything is to be read again.
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
		case <-m.doubt:
			return nil
		case resp, ok := <-responses:
			if !ok {
				return fmt.Errorf("watch %s: it ended", m.prefix)
			}
			if resp.CompactRevision != 0 { // no fault: this host was away for longer than etcd remembers
				return nil
			}
			if err := resp.Err(); err != nil {
				return fmt.Errorf("watch %s: %w", m.prefix, err)
			}
			m.take(resp)
		}
	}
}

func (m *Mirror) nextCompare() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	if left := time.Until(m.spare); left > 0 {
		return min(left, m.compare)
	}
	return m.compare
}

// take is what a watch said.
func (m *Mirror) take(resp clientv3.WatchResponse) {
	m.mu.Lock()
	var changes []Change
	for _, ev := range resp.Events {
		key := string(ev.Kv.Key[len(m.c.prefix):])
		old := m.kept[key]
		delete(m.bad, key)
		var now kept
		if ev.Type == clientv3.EventTypePut {
			r, err := Decode(key, ev.Kv.Value)
			if err != nil {
				m.log.Warn("a record in etcd is not let in", "err", err)
				m.bad[key] = err.Error()
			} else {
				now = kept{Record: r, value: string(ev.Kv.Value)}
			}
		}
		if now.value == old.value {
			if now.Record != nil {
				m.kept[key] = now // spared no more
			}
			continue
		}
		if m.dirty[key] = true; now.Record == nil {
			delete(m.kept, key)
		} else {
			m.kept[key] = now
		}
		changes = append(changes, Change{key, old.Record, now.Record})
	}
	if resp.Header.Revision > m.status.Revision {
		m.status.Revision = resp.Header.Revision
	}
	m.mu.Unlock()
	m.tell(changes)
}
