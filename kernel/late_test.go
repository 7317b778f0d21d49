package kernel_test

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"netyard/kernel/core"
	"netyard/kernel/kerneltest"
	"netyard/kernel/nft"
	"netyard/kernel/policy"
	"netyard/kernel/ports"
)

// stall calls Stall, and fails the test if that fails.
func stall(t *testing.T, h *kerneltest.Host, refused unix.Errno) (sent, goOn chan struct{}) {
	t.Helper()
	sent, goOn, err := h.Stall(refused)
	if err != nil {
		t.Fatal(err)
	}
	return sent, goOn
}

// watched runs the watcher until the test ends, and fails the test if the watcher fails.
func watched(t *testing.T, h *kerneltest.Host) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- h.Watch(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// eventuallyOnly waits until the kernel has the elements of objects, and no others.
func eventuallyOnly(t *testing.T, h *kerneltest.Host, objects ...core.Object) {
	t.Helper()
	for until := time.Now().Add(30 * time.Second); ; {
		snap, err := h.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		strays, faults := snap.Strays(objects), snap.Faults(objects)
		if len(strays)+len(faults) == 0 {
			return
		}
		if time.Now().After(until) {
			t.Fatalf("strays %v, faults %v", strays, faults)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestLateRemovalRefused shows that a removal which was reported as done before the kernel had made it, and which the
// kernel then refuses, is made all the same, since the caller will not ask again. Afterwards another endpoint gets the
// port.
func TestLateRemovalRefused(t *testing.T) {
	t.Parallel()
	h := kerneltest.New(t)
	h.LeaveTablesOpen()
	if err := h.LoadFirewall(); err != nil {
		t.Fatal(err)
	}
	watched(t, h)
	port := func(to string) (all []core.Object) {
		for _, e := range (ports.Publication{
			Proto: "tcp", Host: netip.MustParseAddr("192.0.2.9"), Port: 8080, Count: 1,
			To: netip.MustParseAddr(to), ToPort: 80,
		}).Elements() {
			all = append(all, e)
		}
		return all
	}
	old, next := port("10.1.0.9"), port("10.1.0.10")
	if err := h.Ensure(t.Context(), old...); err != nil {
		t.Fatal(err)
	}
	sent, goOn := stall(t, h, unix.ENOMEM)
	answered := make(chan error, 1)
	go func() { answered <- h.Remove(old...) }()
	<-sent
	if err := <-answered; err != nil {
		t.Errorf("a removal that waits for the kernel failed: %v", err)
	}
	close(goOn)
	eventuallyOnly(t, h)
	if err := h.Ensure(t.Context(), next...); err != nil {
		t.Errorf("the next endpoint did not get the port: %v", err)
	}
	eventuallyOnly(t, h, next...)
}

// TestLateUndoRefused shows that a change whose caller did not wait for its end is undone, even if the kernel refuses
// that at first.
func TestLateUndoRefused(t *testing.T) {
	t.Parallel()
	h := kerneltest.New(t)
	h.LeaveTablesOpen()
	if err := h.LoadFirewall(); err != nil {
		t.Fatal(err)
	}
	watched(t, h)
	sent, goOn := stall(t, h, 0)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	answered := make(chan error, 1)
	go func() { answered <- h.Ensure(ctx, elements()...) }()
	<-sent
	cancel()
	if err := <-answered; !errors.Is(err, nft.ErrBusy) {
		t.Errorf("the caller that did not wait got %v", err)
	}
	if err := h.RefuseNext(unix.ENOMEM); err != nil {
		t.Fatal(err)
	}
	close(goOn)
	eventuallyOnly(t, h)
}

// TestAdoptedElementsSurviveUndo shows that a policy which could not be applied in time leaves adopted elements as they
// were: the kernel goes on enforcing what it has of an address that no record decides about.
func TestAdoptedElementsSurviveUndo(t *testing.T) {
	t.Parallel()
	for name, refused := range map[string]unix.Errno{"nobody waited": 0, "the kernel refused": unix.ENOMEM} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, _ := policed(t)
			const other = "10.1.0.7"
			h.Sh(t, "nft add element inet netyard closed_in4 '{ "+other+" }'")
			h.Sh(t, "nft add element inet netyard allow_in4 '{ "+other+" . 10.3.0.0/16 . tcp . 1-9 }'")
			h.Reopen(t)
			h.LeaveTablesOpen()
			if err := h.AdoptPolicy(); err != nil {
				t.Fatal(err)
			}
			if err := h.Enforce(t.Context(), policy.Objects(h.Handle, subjects())); err != nil {
				t.Fatal(err)
			}
			mine := policy.Subject{
				Port: "nyv-a", Bridge: "nyb-a", Addr: netip.MustParseAddr(other), In: &policy.Access{},
			}
			sent, goOn := stall(t, h, refused)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			answered := make(chan error, 1)
			go func() { answered <- h.Enforce(ctx, policy.Objects(h.Handle, append(subjects(), mine))) }()
			<-sent
			if refused == 0 {
				cancel()
			} else {
				close(goOn)
			}
			if err := <-answered; err == nil {
				t.Error("the change counts as done")
			}
			if refused == 0 {
				close(goOn)
			}
			if err := h.Enforce(t.Context(), policy.Objects(h.Handle, subjects())); err != nil {
				t.Fatal(err)
			}
			if out := h.Sh(t, "nft list ruleset"); strings.Count(out, other) != 2 {
				t.Errorf("the elements of an address that no record decides about are gone:\n%s", out)
			}
		})
	}
}
