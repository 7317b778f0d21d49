package etcd

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// advised checks that the advice is want, in this order, and nothing else.
func advised(t *testing.T, c Config, e Etcd, want ...string) {
	t.Helper()
	got := c.Advise(e, time.Now())
	if len(got) != len(want) {
		t.Errorf("%q, want %q", got, want)
		return
	}
	for i, w := range want {
		if !strings.Contains(got[i], w) || strings.Contains(got[i], "\n") {
			t.Errorf("%q, want %q", got[i], w)
		}
	}
}

func TestAdvise(t *testing.T) {
	c := Config{Endpoints: []string{"https://a:2379", "https://b:2379", "https://c:2379"}, User: "netyard"}
	healthy := func(f func(*Etcd)) Etcd {
		e := Etcd{Members: 3, Write: 2 * time.Millisecond}
		for _, endpoint := range c.Endpoints {
			e.Servers = append(e.Servers, Server{
				Endpoint: endpoint, Version: "3.5.18", HasLeader: true, Revision: 5000,
				Size: 20 << 20, Quota: 2 << 30,
			})
		}
		f(&e)
		return e
	}
	advised(t, c, healthy(func(*Etcd) {}))
	advised(t, c, healthy(func(e *Etcd) {
		e.Servers[1] = Server{Endpoint: "https://b:2379", Err: errors.New("refused")}
	}), "https://b:2379 does not answer: refused")
	advised(t, c, healthy(func(e *Etcd) { e.Servers[2].HasLeader = false }), "https://c:2379 has no leader")
	advised(t, c, healthy(func(e *Etcd) { e.Servers[2].Revision = 2000 }), "3000 revisions behind")
	advised(t, c, healthy(func(e *Etcd) { e.Servers[0].Size = 1800 << 20 }), "1800 of its quota of 2048 MiB")
	advised(t, c, healthy(func(e *Etcd) { e.Members = 5 }), "5 members, and etcd.endpoints lists 3")
	advised(t, c, healthy(func(e *Etcd) { e.Members = 2 }), "2 members, which tolerate no more failures than 1")
	advised(t, c, healthy(func(e *Etcd) { e.Alarms = []string{"NOSPACE"} }),
		"the alarm NOSPACE: etcd is full and refuses all writes; "+
			"compact and defragment it, or raise its --quota-backend-bytes, and then run etcdctl alarm disarm")
	advised(t, c, healthy(func(e *Etcd) { e.Alarms, e.WriteErr = []string{"NOSPACE"}, ErrFull }), "the alarm NOSPACE")
	advised(t, c, healthy(func(e *Etcd) { e.Alarms = []string{"CORRUPT"} }), "the alarm CORRUPT: the data of a member")
	advised(t, c, healthy(func(e *Etcd) { e.WriteErr = errors.New("too many requests") }),
		"etcd refuses writes: too many requests")
	advised(t, c, healthy(func(e *Etcd) { e.Write = 300 * time.Millisecond }), "a write to etcd takes 300ms")
	advised(t, Config{Endpoints: c.Endpoints}, healthy(func(*Etcd) {}), "neither certificate (etcd.cert) nor user")
	for version, old := range map[string]bool{
		"3.4.23": true, "3.4.36": false, "3.4.37": false, "3.5.0": true, "3.5.17": true,
		"3.5.18": false, "3.5.30": false, "3.6.0-rc.1": false, "3.7.3": false, "4.0.0": false, "": true,
	} {
		if losesEvents(version) != old {
			t.Errorf("etcd %s loses events: %v", version, !old)
		}
	}
}
