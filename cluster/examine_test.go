package cluster

import (
	"errors"
	"strings"
	"testing"
	"time"

	"netyard/cluster/clustertest"
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
	advised(t, c, healthy(func(e *Etcd) { e.Alarms = []string{"NOSPACE"} }), "the alarm NOSPACE")
	advised(t, c, healthy(func(e *Etcd) { e.Write = 300 * time.Millisecond }), "a write to etcd takes 300ms")
	advised(t, Config{Endpoints: c.Endpoints}, healthy(func(*Etcd) {}), "neither certificate (etcd.cert) nor user")
	for version, old := range map[string]bool{
		"3.4.23": true, "3.4.36": false, "3.4.37": false, "3.5.0": true, "3.5.17": true, "3.5.18": false, "3.5.30": false, "3.6.0-rc.1": false, "3.7.3": false, "4.0.0": false, "": true,
	} {
		if losesEvents(version) != old {
			t.Errorf("etcd %s loses events: %v", version, !old)
		}
	}
}

// TestExamine: what a real etcd reports, with one endpoint that does not answer and a certificate that expires.
func TestExamine(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	c := member(t, e, 1)
	c.c.Endpoints = append(c.c.Endpoints, "http://127.0.0.1:1")
	got, err := c.Examine(t.Context())
	must(t, err)
	s := got.Servers[0]
	if s.Err != nil || !strings.Contains(e.Version(t), `"etcdserver":"`+s.Version+`"`) || !s.HasLeader ||
		s.Revision < 2 || s.Size == 0 || s.Quota == 0 || got.Servers[1].Err == nil {
		t.Errorf("%+v", got)
	}
	if got.Members != 1 || len(got.Alarms) != 0 || got.Write == 0 {
		t.Errorf("%+v", got)
	}
	ca := newAuthority(t, "ca")
	ca.issue("host")
	if all := (Config{
		CA:   ca.file("ca.crt"),
		Cert: ca.file("host.crt"),
	}).expiring(time.Now().Add(-expiryNotice * 100)); len(all) != 0 {
		t.Errorf("%q", all)
	}
	if all := (Config{CA: ca.file("ca.crt"), Cert: ca.file("host.crt")}).expiring(ca.cert.NotAfter); len(all) != 2 ||
		!strings.Contains(all[1], `etcd.cert: the certificate of "host"`) {
		t.Errorf("%q", all)
	}
	e.Kill(t)
	if all, err := c.Advise(t.Context()); err != nil || len(all) < 2 || !strings.Contains(all[0], "does not answer") {
		t.Errorf("%q, %v", all, err)
	}
}
