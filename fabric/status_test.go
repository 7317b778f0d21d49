package fabric

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"netyard/cluster"
	"netyard/cluster/clustertest"
	"netyard/cluster/etcd"
	"netyard/cluster/hosttest"
	"netyard/fabric/address"
	"netyard/store"
)

// waitReason waits until the status has this reason and advice.
func (h *host) waitReason(reason, advice string) {
	h.t.Helper()
	var s Status
	defer func() {
		if h.t.Failed() {
			h.t.Logf("status: %q, %q", s.Reason, s.Advice)
		}
	}()
	clustertest.Eventually(h.t, "the status lacks "+reason, func() bool {
		s = h.status()
		return strings.Contains(s.Reason, reason) && strings.Contains(s.Advice, advice) &&
			!strings.Contains(s.Reason, "\n")
	})
}

// TestStatus: the status reports each problem with etcd, and the host works again afterwards.
func TestStatus(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	all := hosts(t, e, 2)
	blue := joinBlue(t, all)
	one, two := all[0].start(blue, "b1eeeeeeeeee"), all[1].start(blue, "b2eeeeeeeeee")
	all[0].knows(blue, two.v4)
	all[1].knows(blue, one.v4)
	h := all[0]
	if s := h.status(); s.Reason+s.Advice != "" || s.Health.Worst == 0 || s.Health.Worst < s.Health.Median {
		t.Errorf("status of a healthy host: %+v", s)
	}

	const slow = 150 * time.Millisecond
	e.Slow(slow)
	h.start(blue, "b3eeeeeeeeee")
	clustertest.Eventually(t, "a slow etcd is not noticed", func() bool { return h.status().Health.Worst >= slow })
	if s := h.status(); s.Reason != "" {
		t.Errorf("with a slow etcd the host is not a member: %s", s.Reason)
	}
	e.Slow(0)

	e.Cut() // as a dead router: no answer, and no refusal
	h.waitReason(etcd.ErrUnreachable.Error(), "running containers are not affected")
	if h.status().Health.Down.IsZero() {
		t.Error("the status does not say since when")
	}
	reach(t, one.Host, two.v4, true)
	e.Mend()
	h.member()

	e.Kill(t)
	kept := filepath.Join(t.TempDir(), "kept")
	clustertest.Backup(t, e.Dir, kept)
	e.Wipe(t)
	e.Run(t)
	h.waitReason("it holds none", "from a backup")
	reach(t, one.Host, two.v4, true)
	if _, err := h.Grant(t.Context(), address.Wish{Network: blue.ID, Endpoint: "new"}); err != nil {
		t.Errorf("a spare address is this host's whatever etcd holds: %v", err)
	}
	e.Kill(t)
	clustertest.Backup(t, kept, e.Dir)
	e.Run(t)
	for _, h := range all {
		h.member()
		h.release(blue, "new")
		h.warm(blue)
	}
	reach(t, one.Host, two.v4, true)
}

// TestTwin: a copy of a machine, with its database, reports ErrTwin and grants no addresses; a host with another host's
// name reports that.
func TestTwin(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	all := hosts(t, e, 3)
	blue := joinBlue(t, all[:1])
	first, second := all[0], all[1]
	first.stop()
	must(t, first.db.Close())
	for _, h := range []*host{first, second} {
		if h == second {
			must(t, h.db.Close())
		}
		path := filepath.Join(t.TempDir(), "db")
		clustertest.Backup(t, first.file, filepath.Dir(path))
		var err error
		h.db, err = store.Open(t.Context(), store.Config{NoSync: true, Path: path})
		must(t, err)
		h.boot(h.n)
		h.up(blue)
	}
	first.run()
	first.member()
	second.run()
	second.waitReason("another running machine has this host's ID, with boot ID boot1", "remove netyard.db")
	_, err := second.Grant(t.Context(), address.Wish{Network: blue.ID, Endpoint: "new"})
	if !errors.Is(err, address.ErrNone) || !errors.Is(err, cluster.ErrTwin) {
		t.Errorf("a copy grants addresses: %v", err)
	}
	first.warm(blue)

	all[2].c.Host.Name = "h1"
	all[2].run()
	all[2].waitReason("host name h1 is taken by", "another overlay.name")
}

// TestFullEtcd: an etcd whose database is full is reported with the remedy, and the host works again afterwards.
func TestFullEtcd(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "", "--quota-backend-bytes", "1000000")
	h := hosts(t, e, 1)[0]
	blue := joinBlue(t, []*host{h})
	raw := hosttest.Raw(t, e.Direct())
	var err error
	for err == nil {
		_, err = raw.Put(t.Context(), "/other", strings.Repeat("x", 100_000))
	}
	if err := h.c.Client.TryWrite(t.Context()); !errors.Is(err, etcd.ErrFull) {
		t.Errorf("a write: %v", err)
	}
	found, err := h.Doctor(t.Context())
	if said := fmt.Sprint(found); err != nil || !strings.Contains(said, "etcd raised the alarm NOSPACE: etcd is full") {
		t.Errorf("doctor: %s, %v", said, err)
	}
	var last error
	for n := range 20 { // spare addresses first
		_, last = h.Grant(t.Context(), address.Wish{Network: blue.ID, Endpoint: fmt.Sprint("new", n)})
		if last != nil {
			break
		}
	}
	if !errors.Is(last, etcd.ErrFull) {
		t.Errorf("an address without a spare one: %v", last)
	}
	_, err = raw.Compact(t.Context(), h.status().Health.Revision)
	must(t, err)
	_, err = raw.Delete(t.Context(), "/other")
	must(t, err)
	_, err = raw.Defragment(t.Context(), e.Direct())
	must(t, err)
	_, err = raw.AlarmDisarm(t.Context(), &clientv3.AlarmMember{})
	must(t, err)
	must(t, h.c.Client.TryWrite(t.Context()))
	if found, err := h.Doctor(t.Context()); err != nil || strings.Contains(fmt.Sprint(found), "NOSPACE") {
		t.Errorf("doctor, later: %v, %v", found, err)
	}
}
