package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"netyard/integration/lab"
)

// lossPolicy closes one container against all others.
const lossPolicy = `
name: app
select: {labels: {tier: app}}
ingress: {allow: [{container: proxy}]}
`

// A shut is a host on which something is closed.
type shut struct {
	*lab.Host

	t            *testing.T
	app, proxied string
	policies     string
}

// shutHost applies a policy, reserves an address, and closes a network against itself while its containers run.
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
	h.Ping("client", s.app) // or nothing below could fail
	h.Ping("aa", s.proxied)
	if out, err := apply(t, h, "", lossPolicy); err != nil {
		t.Fatal(out, err)
	}
	h.Sh("netyard lease reserve --name db 10.77.0.200")
	h.Sh("netyard network set apart icc=false")
	s.policies = h.Sh("netyard policy ls")
	eventually(t, "the proxy is known", func() bool { _, err := h.TryExec("proxy", "ping -c 1 -W 1 "+s.app); return err == nil })
	s.closed()
	return s
}

// closed wants that to be shut, for packets.
func (s *shut) closed() {
	s.t.Helper()
	s.PingFail("client", s.app)
	s.PingFail("aa", s.proxied)
}

// whole wants all of it to be on record, and in force, and nothing else to be closed.
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

// refuses starts the daemon and wants it to end by itself, and to say why.
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

// TestClosedOverLoss: a policy, a reservation and a network that was closed later stay so when the examiner of the
// database is killed, and when the database is damaged or missing: in the kernel while there is no daemon, and on
// record when there is one again.
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
		s.refuses(db, "signal: killed", "3 times", "left as it is")
		h.Sh("umount", filepath.Join(h.Dir, "examined"))
		h.Netyard.Program = program
		if now, err := os.ReadFile(db); err != nil || string(now) != string(was) {
			t.Errorf("the database is another one now: %v", err)
		}
		h.Netyard.Start()
		s.whole()
		if aside, _ := filepath.Glob(db + ".damaged-*"); len(aside) > 0 {
			t.Errorf("set aside: %v", aside)
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

// killedExaminer is a program that becomes the daemon, and in whose place each process it starts of itself finds one
// that is killed.
func killedExaminer(t *testing.T, h *lab.Host) string {
	t.Helper()
	examined, killed, start := filepath.Join(h.Dir, "examined"), filepath.Join(h.Dir, "killed"), filepath.Join(h.Dir, "start")
	raw, err := os.ReadFile(lab.Build(t))
	if err != nil {
		t.Fatal(err)
	}
	for file, text := range map[string][]byte{
		examined: raw, killed: []byte("#!/bin/sh\nkill -KILL $$\n"),
		start: []byte("#!/bin/sh\nexec 9<" + examined + "\nmount --bind " + killed + " " + examined + "\nexec /proc/self/fd/9 \"$@\"\n"),
	} {
		if err := os.WriteFile(file, text, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return start
}

// TestClosedOnFullDisk: on a full disk a change of policy is refused and changes nothing, and the daemon starts again;
// a database that was damaged there stays where it is, and what was closed stays closed, until there is room.
func TestClosedOnFullDisk(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := lab.New(t, e)
		state := filepath.Join(h.Dir, "state")
		h.Sh("mkdir -p", state, "&& mount -t tmpfs -o size=4m none", state)
		h.Netyard.Start()
		s := shutHost(t, h)
		full := func() { _, _ = h.TrySh("dd if=/dev/zero bs=4096 of=" + state + "/filler") }
		full()
		if out, err := apply(t, h, "", strings.Replace(lossPolicy, "container: proxy", "container: client", 1)); err == nil {
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
			t.Errorf("there is\n%s and was\n%s", now, was)
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
