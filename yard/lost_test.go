package yard_test

import (
	"errors"
	"strconv"
	"strings"
	"testing"

	"netyard/kernel/core"
	"netyard/yard/attach"
	"netyard/yard/reconcile"
)

// TestNewRecordsAlone kills the daemon at each step of what containers do, on a host without engines whose records are
// new: what it was making or removing is no sign of lost records. So no element of a port stays that nobody has, and
// the rebuild, which nobody else would end, ends when no link is unknown.
func TestNewRecordsAlone(t *testing.T) {
	t.Parallel()
	for _, command := range []string{
		"attach web c2 -p 8081:80", "attach web c1 -p 8082:80", "detach web c1", "publish web d1 8083:80",
		"withdraw web d1", "leave web d1", "endpoint delete web d1", "network set web icc=false",
	} {
		t.Run(command, func(t *testing.T) {
			t.Parallel()
			for n := 1; diesAt(t, n, command); n++ {
				continue
			}
		})
	}
}

// diesAt runs a command that dies at its nth step, and what follows; died: it has so many.
func diesAt(t *testing.T, n int, command string) (died bool) {
	t.Helper()
	w, err := newWorld(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.st.Close() }()
	do := func(line string) string {
		t.Helper()
		out, err := w.do(t.Context(), nil, strings.Fields(line))
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		return out
	}
	for _, line := range []string{
		"network create web --subnet 10.9.0.0/24", "attach web c1 -p 8080:80",
		"endpoint create web d1", "join web d1", "publish web d1 8084:80",
	} {
		do(line)
	}
	if err := w.st.Update(reconcile.MarkRecordsLost); err != nil { // the file was new
		t.Fatal(err)
	}
	_, err = w.do(t.Context(), nil, append([]string{"crash", strconv.Itoa(n)}, strings.Fields(command)...))
	if died = err == nil; !died && !strings.Contains(err.Error(), "there is no step") {
		t.Fatal(err)
	}
	do("restart")
	if strays, err := reconcile.HasStrays(w.y); err != nil || strays {
		t.Errorf("step %d: the rebuild cannot end: %v", n, err)
	}
	if err := reconcile.EndRebuild(t.Context(), w.y); err != nil || reconcile.Rebuilding(w.y) {
		t.Errorf("step %d: the rebuild did not end: %v", n, err)
	}
	if got := do("audit"); strings.TrimSpace(got) != "ok" {
		t.Errorf("step %d: %s", n, got)
	}
	return died
}

// TestPortOfNobody shows that a port that the kernel has for a container that is on no record is free for the next one.
func TestPortOfNobody(t *testing.T) {
	t.Parallel()
	w, err := newWorld(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.st.Close() }()
	for _, line := range []string{
		"network create web --subnet 10.9.0.0/24", "attach web c1", "attach web c2 -p 8080:80", "container end c2",
		"lose-records", "network create web --subnet 10.9.0.0/24", "attach web c3 -p 8080:80",
	} {
		if _, err := w.do(t.Context(), nil, strings.Fields(line)); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
	}
}

// TestUnknownLinkAlone shows that the rebuild goes on while a link is in no record: a container may use it.
func TestUnknownLinkAlone(t *testing.T) {
	t.Parallel()
	w, err := newWorld(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.st.Close() }()
	_, plantErr := plant(t.Context(), w, args{words: []string{"nyb-lost"}})
	if err := errors.Join(plantErr, w.st.Update(reconcile.MarkRecordsLost)); err != nil {
		t.Fatal(err)
	}
	if err := reconcile.EndRebuild(t.Context(), w.y); err != nil || !reconcile.Rebuilding(w.y) {
		t.Errorf("the rebuild ended: %v", err)
	}
	if state, err := w.state(); err != nil || !strings.Contains(state, "nyb-lost") {
		t.Errorf("the link is gone: %v\n%s", err, state)
	}
}

// TestAttachWithoutBridge shows that a container that comes right after somebody removed its network's bridge gets it
// back.
func TestAttachWithoutBridge(t *testing.T) {
	t.Parallel()
	r, p := newRig(t), newPlace(t)
	n := r.made()
	r.host.Sh(t, "ip link del "+core.Name(core.BridgePrefix, n.ID))
	if _, err := attach.Attach(t.Context(), r.Yard, p.request(n, "c1")); err != nil {
		t.Fatal(err)
	}
	r.healthy("attached")
}
