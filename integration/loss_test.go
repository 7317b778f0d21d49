package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"netyard/integration/lab"
)

// lossPolicy allows only one container to connect to another.
const lossPolicy = `
name: app
select: {labels: {tier: app}}
ingress: {allow: [{container: proxy}]}
`

// A shut is a host with restrictions: a policy, a reservation and a network with icc=false.
type shut struct {
	*lab.Host

	t            *testing.T
	app, proxied string
	policies     string
}

// shutHost applies a policy, reserves an address, and sets icc=false on a network while its containers run.
func shutHost(t *testing.T, h *lab.Host) *shut {
	t.Helper()
	h.Docker("network create -d netyard --ipam-driver netyard --subnet 10.77.0.0/24 web")
	h.Docker("network create -d netyard --subnet 10.78.0.0/24 apart")
	h.Run("client", "--network web")
	h.Run("proxy", "--network web")
	h.Run("app", "--network web --label tier=app")
	h.Run("aa", "--network apart")
	h.Run("bb", "--network apart")
	s := &shut{Host: h, t: t, app: h.Addr("app", "web"), proxied: h.Addr("bb", "apart")}
	h.Ping("client", s.app) // shows that the tests below can fail
	h.Ping("aa", s.proxied)
	if out, err := apply(t, h, "", lossPolicy); err != nil {
		t.Fatal(out, err)
	}
	h.Sh("netyard lease reserve --name db 10.77.0.200")
	h.Sh("netyard network set apart icc=false")
	s.policies = h.Sh("netyard policy ls")
	eventually(t, "the proxy is allowed", func() bool {
		_, err := h.TryExec("proxy", "ping -c 1 -W 1 "+s.app)
		return err == nil
	})
	s.closed()
	return s
}

// closed checks that the policy and icc=false are in force.
func (s *shut) closed() {
	s.t.Helper()
	s.PingFail("client", s.app)
	s.PingFail("aa", s.proxied)
}

// whole checks that all restrictions are on record and in force, and that nothing else is closed.
func (s *shut) whole() {
	s.t.Helper()
	healthy(s.t, s.Host)
	s.closed()
	s.Ping("proxy", s.app)
	s.Ping("client", s.Outside.IP)
	eventually(s.t, "the policy is as it was", func() bool { return s.Sh("netyard policy ls") == s.policies })
	has(s.t, s.Sh("netyard lease ls --format '{{.Address}} {{.State}} {{.Name}}'"), "10.77.0.200 reserved db")
	has(s.t, s.Sh("netyard network inspect apart"), "icc")
}

// refuses checks that the daemon does not start, and logs why.
func (s *shut) refuses(why ...string) {
	s.t.Helper()
	before := len(s.Netyard.Log())
	s.Netyard.Launch()
	if state := s.Netyard.Wait(time.Minute); state.Success() {
		s.t.Errorf("the daemon ended with %v", state)
	}
	for _, part := range why {
		has(s.t, s.Netyard.Log()[before:], part)
	}
	s.closed()
}

// TestClosedOverLoss: a policy, a reservation and a later icc=false stay in force when the check of the database is
// killed, and when the database is damaged or missing: in the kernel without the daemon, and on record after its start.
func TestClosedOverLoss(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := host(t, e)
		s := shutHost(t, h)
		db := filepath.Join(h.Dir, "state", "netyard.db")

		h.Netyard.Stop()
		was, err := os.ReadFile(db)
		if err != nil {
			t.Fatal(err)
		}
		program := h.Netyard.Program
		h.Netyard.Program = killedExaminer(t, h)
		s.refuses(db, "signal: killed", "3 runs", "left as it is")
		h.Sh("umount", filepath.Join(h.Dir, "examined"))
		h.Netyard.Program = program
		if now, err := os.ReadFile(db); err != nil || string(now) != string(was) {
			t.Errorf("the database has changed: %v", err)
		}
		h.Netyard.Start()
		s.whole()
		if aside, _ := filepath.Glob(db + ".damaged-*"); len(aside) > 0 {
			t.Errorf("moved aside: %v", aside)
		}
		for name, lose := range map[string]func() error{
			"damaged": func() error { overwritePages(t, db, 1); return nil },
			"missing": func() error { return os.Remove(db) },
			"empty":   func() error { return os.Truncate(db, 0) },
		} {
			h.Netyard.Kill()
			if err := lose(); err != nil {
				t.Fatal(name, err)
			}
			s.closed()
			h.Netyard.Start()
			s.closed()
			s.whole()
		}
		h.Docker("rm -f client proxy app aa bb")
		h.Docker("network rm web apart")
		h.Sh("netyard policy rm app")
		healthy(t, h)
	})
}

// killedExaminer returns a program that starts the daemon, but replaces its file by one that is killed, so that each
// process that the daemon starts of itself is killed.
func killedExaminer(t *testing.T, h *lab.Host) string {
	t.Helper()
	path := func(name string) string { return filepath.Join(h.Dir, name) }
	examined, killed, start := path("examined"), path("killed"), path("start")
	raw, err := os.ReadFile(lab.Build(t))
	if err != nil {
		t.Fatal(err)
	}
	for file, text := range map[string][]byte{
		examined: raw, killed: []byte("#!/bin/sh\nkill -KILL $$\n"),
		start: []byte("#!/bin/sh\nexec 9<" + examined + "\nmount --bind " + killed + " " + examined +
			"\nexec /proc/self/fd/9 \"$@\"\n"),
	} {
		if err := os.WriteFile(file, text, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return start
}

// TestClosedOnFullDisk: on a full disk a change of a policy is refused and changes nothing, and the daemon can restart;
// with a damaged database it does not start, and restrictions stay in force, until there is space.
func TestClosedOnFullDisk(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := lab.New(t, e)
		state := filepath.Join(h.Dir, "state")
		h.Sh("mkdir -p", state, "&& mount -t tmpfs -o size=4m none", state)
		h.Netyard.Start()
		s := shutHost(t, h)
		full := func() { _, _ = h.TrySh("dd if=/dev/zero bs=4096 of=" + state + "/filler") }
		full()
		changed := strings.Replace(lossPolicy, "container: proxy", "container: client", 1)
		if out, err := apply(t, h, "", changed); err == nil {
			t.Errorf("a policy was applied on a full disk: %s", out)
		} else {
			has(t, out+err.Error(), "no space left on device")
		}
		s.closed()
		has(t, h.Sh("netyard policy ls"), strings.TrimSpace(s.policies))
		h.Netyard.Kill()
		h.Netyard.Start()
		s.closed()
		h.Netyard.Kill()
		h.Sh("dd if=/dev/zero bs=4096 count=2 conv=notrunc of=" + state + "/netyard.db")
		full()
		was := h.Sh("ls", state)
		for range 2 {
			s.refuses("no space left on device")
		}
		if now := h.Sh("ls", state); now != was {
			t.Errorf("the directory has\n%s and had\n%s", now, was)
		}
		h.Sh("rm", state+"/filler")
		h.Netyard.Start()
		s.whole()
		has(t, h.Sh("ls", state), "netyard.db.damaged-")
		h.Docker("rm -f client proxy app aa bb")
		h.Docker("network rm web apart")
		h.Sh("netyard policy rm app")
		healthy(t, h)
		h.Netyard.Stop()
		h.Sh("umount", state)
	})
}
