package kernel_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
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

// shrink makes the receive buffers of this process's sockets to a namespace's nftables so small that answers of the
// kernel get lost. It returns how many sockets it found.
func shrink(t *testing.T, h *kerneltest.Host) (found int) {
	t.Helper()
	var own uint64
	err := h.Do(func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		own, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		domain, err1 := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
		proto, err2 := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
		cookie, err3 := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		if errors.Join(err1, err2, err3) != nil || cookie != own ||
			domain != unix.AF_NETLINK || proto != unix.NETLINK_NETFILTER {
			continue
		}
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1) == nil {
			found++
		}
	}
	return found
}

// TestLostAnswers shows that netyard finds out whether a transaction was made when the acknowledgements are lost, and
// owns its tables all the time.
func TestLostAnswers(t *testing.T) {
	t.Parallel()
	h := kerneltest.New(t)
	if err := h.LoadFirewall(); err != nil {
		t.Fatal(err)
	}
	if n := shrink(t, h); n == 0 {
		t.Fatal("no socket of the Kernel's was found")
	}
	if err := h.Ensure(t.Context(), elements()...); err != nil {
		t.Errorf("a transaction that was made counts as failed: %v", err)
	}
	want := h.Sh(t, "nft list ruleset")
	if !strings.Contains(want, "8080") {
		t.Errorf("the elements are not there:\n%s", want)
	}
	snap, err := h.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range snap.Faults(elements()) {
		t.Errorf("after it: %s", f.Text)
	}
	for _, s := range snap.Strays(elements()) {
		t.Errorf("after it: a stray %s", s.Text)
	}
	if strings.Contains(want, "flags owner") { // Linux 6.9 or later
		h.Sh(t, "nft flush ruleset")
		if got := h.Sh(t, "nft list ruleset"); got != want {
			t.Errorf("another process could change the tables:\n%s", got)
		}
	}

	shrink(t, h)
	if err := h.Remove(elements()...); err != nil {
		t.Errorf("a removal that was made counts as failed: %v", err)
	}
	if snap, err = h.Snapshot(); err != nil {
		t.Fatal(err)
	}
	for _, s := range snap.Strays(nil) {
		t.Errorf("after the removal: a stray %s", s.Text)
	}
}

// TestRefusedAfterLostAnswers shows that a transaction which the kernel refuses counts as refused, also after lost
// answers.
func TestRefusedAfterLostAnswers(t *testing.T) {
	t.Parallel()
	h := kerneltest.New(t)
	h.LeaveTablesOpen()
	if err := h.LoadFirewall(); err != nil {
		t.Fatal(err)
	}
	shrink(t, h)
	if err := h.Ensure(t.Context(), elements()...); err != nil {
		t.Errorf("a transaction that was made counts as failed: %v", err)
	}
	// Another process adds an interval that overlaps with netyard's next one.
	h.Sh(t, "nft add element inet netyard to_range4 '{ 192.0.2.9 . tcp . 5000-5999 : 10.9.9.9 }'")
	var all []core.Object
	for _, e := range (ports.Publication{
		Proto: "tcp", Host: netip.MustParseAddr("192.0.2.9"), Port: 5500, Count: 1000,
		To: netip.MustParseAddr("10.1.0.9"), ToPort: 5500,
	}).Elements() {
		all = append(all, e)
	}
	if err := h.Ensure(t.Context(), all...); err == nil {
		t.Errorf("a refused transaction counts as made:\n%s", h.Sh(t, "nft list map inet netyard to_range4"))
	} else if strings.Contains(err.Error(), "\n") {
		t.Errorf("one fault is reported more than once: %v", err)
	}
}

// busyFor starts a transaction of another process, with so many addresses that the kernel is busy with it for a while.
func busyFor(t *testing.T, h *kerneltest.Host, addresses int) (ended chan struct{}) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "many.nft")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	w := bufio.NewWriter(f)
	fmt.Fprint(w, "table inet many {}\nflush table inet many\ntable inet many { set s { type ipv4_addr; elements = {\n")
	for i := range addresses {
		fmt.Fprintf(w, "%d.%d.%d.%d,\n", 10+i>>24, i>>16&255, i>>8&255, i&255)
	}
	fmt.Fprint(w, "}\n}\n}\n")
	if err := errors.Join(w.Flush(), f.Close()); err != nil {
		t.Fatal(err)
	}
	ended = make(chan struct{})
	go func() {
		defer close(ended)
		if out, err := h.TrySh("nft -f " + name + "; nft delete table inet many"); err != nil {
			t.Errorf("nft: %v\n%s", err, out)
		}
	}()
	t.Cleanup(func() { <-ended })
	return ended
}

// TestBusyKernel shows that, while another process's transaction keeps the kernel busy, each request succeeds or fails
// with an error of one line, that a removal is made when the kernel is free, and that afterwards the kernel has exactly
// what is wanted.
func TestBusyKernel(t *testing.T) {
	t.Parallel()
	h := kerneltest.New(t)
	if err := h.LoadFirewall(); err != nil {
		t.Fatal(err)
	}
	h.Watched(t)
	if err := h.Ensure(t.Context(), elements()...); err != nil {
		t.Fatal(err)
	}
	gone := publish(6000)
	if err := h.Ensure(t.Context(), gone...); err != nil {
		t.Fatal(err)
	}
	wanted, port, refused := elements(), uint16(7000), false
	for many := 60000; !refused && many < 2000000; many *= 2 { // a fast machine needs more addresses to be busy
		for ended := busyFor(t, h, many); !over(ended); port++ {
			err := within(t, 400*time.Millisecond, func(ctx context.Context) error {
				return h.Ensure(ctx, publish(port)...)
			})
			switch {
			case err == nil:
				wanted = append(wanted, publish(port)...)
				continue
			case !errors.Is(err, nft.ErrBusy) || strings.Contains(err.Error(), "\n"):
				t.Errorf("a request failed with another error: %v", err)
			}
			if refused {
				continue
			}
			refused = true
			t.Logf("the error is: %v", err)
			if err := h.Remove(gone...); err != nil {
				t.Errorf("a removal meanwhile failed: %v", err)
			}
			if len(ports.Published(h.Handle)) == 0 {
				t.Error("the published ports are not known meanwhile")
			}
			if _, err := h.Snapshot(); err != nil {
				t.Errorf("a snapshot meanwhile failed: %v", err)
			}
			err = within(t, 400*time.Millisecond, func(ctx context.Context) error {
				return h.Enforce(ctx, policy.Objects(h.Handle, []policy.Subject{{
					Port: "nyv-a", Bridge: "nyb-a", Addr: netip.MustParseAddr("10.1.0.2"), In: &policy.Access{},
				}}))
			})
			if err == nil { // the other process may have finished
				err = h.Enforce(t.Context(), nil)
			} else if errors.Is(err, nft.ErrBusy) {
				err = nil
			}
			if err != nil {
				t.Errorf("enforcing policy meanwhile failed: %v", err)
			}
		}
	}
	if !refused {
		t.Fatal("no request had to wait for the other process's transaction")
	}
	logged := ""
	eventually(t, "the kernel has what is wanted", func() bool {
		snap, err := h.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		now := fmt.Sprint(snap.Faults(wanted), snap.Strays(wanted))
		if now != logged {
			t.Log(now)
		}
		logged = now
		return len(snap.Faults(wanted)) == 0 && len(snap.Strays(wanted)) == 0
	})
	if err := h.Ensure(t.Context(), gone...); err != nil {
		t.Errorf("removed elements could not be added again: %v", err)
	}
}

// over reports whether something has ended, and waits 10 ms if it has not.
func over(ended chan struct{}) bool {
	select {
	case <-ended:
		return true
	case <-time.After(10 * time.Millisecond):
		return false
	}
}

func within(t *testing.T, d time.Duration, do func(context.Context) error) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	return do(ctx)
}

// publish returns the elements of one published port of the host, owned by an endpoint of its own.
func publish(port uint16) (all []core.Object) {
	for _, e := range (ports.Publication{
		Proto: "tcp", Host: netip.IPv4Unspecified(), Port: port, Count: 1,
		To: netip.MustParseAddr("10.1.0.2"), ToPort: 80,
	}).Elements() {
		all = append(all, e.For(fmt.Sprintf("endpoint %d", port)))
	}
	return all
}
