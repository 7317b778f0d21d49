package kernel_test

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/kernel/kerneltest"
	"netyard/kernel/nft"
)

// TestWatchAmidOwnChanges shows that the watcher ignores netyard's own changes, and misses no change that another
// process makes in between.
func TestWatchAmidOwnChanges(t *testing.T) {
	t.Parallel()
	h := kerneltest.New(t)
	h.LeaveTablesOpen()
	if err := h.LoadFirewall(); err != nil {
		t.Fatal(err)
	}
	h.Watched(t)
	own := nft.InterfaceIn(bridge.Bridges, "nyb-own")
	moving := []core.Object{
		nft.InterfaceIn(bridge.Bridges, "nyb-moving"),
		bridge.Bridge{Name: "nyb-00000000000", Alias: core.Alias("00000000000", ""), MTU: 1500},
	}
	if err := h.Ensure(t.Context(), own); err != nil {
		t.Fatal(err)
	}
	for _, theirs := range []string{
		"nft delete table inet netyard", "nft delete element inet netyard bridges '{ \"nyb-own\" }'",
		"nft flush ruleset",
	} {
		for range 5 {
			if err := h.Ensure(t.Context(), moving...); err != nil {
				t.Fatal(err)
			}
			if err := h.Remove(moving...); err != nil {
				t.Fatal(err)
			}
		}
		h.Sh(t, theirs)
		_ = h.Ensure(t.Context(), moving...) // at once: the table may be gone, or loaded again
		back := func() bool {
			out, err := h.TrySh("nft list set inet netyard bridges")
			return err == nil && strings.Contains(out, `"nyb-own"`)
		}
		eventually(t, "the ruleset is back after "+theirs, back)
		if err := h.Remove(moving...); err != nil {
			t.Fatal(err)
		}
	}
	h.Sh(t, "ip link add br-0123456789ab type bridge") // named as Docker names its bridges
	eventually(t, "another manager's bridge is in the set", func() bool {
		return strings.Contains(h.Sh(t, "nft list set inet netyard foreign"), "br-0123456789ab")
	})
}

// TestWatchStaysOutside shows that a thread which starts to watch a namespace is in its own namespace afterwards. A
// thread that stayed in the other one would run any other goroutine there.
func TestWatchStaysOutside(t *testing.T) {
	t.Parallel()
	h := kerneltest.New(t)
	for name, watch := range map[string]func(context.Context) error{
		"links":    h.WatchLinks,
		"nftables": func(ctx context.Context) error { _, err := h.WatchTables(ctx); return err },
		"changes":  func(ctx context.Context) error { _, err := h.Changes(ctx); return err },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			runtime.LockOSThread() // never unlocked: the thread ends with the test
			at := func() string {
				ns, err := os.Readlink(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
				if err != nil {
					t.Fatal(err)
				}
				return ns
			}
			before := at()
			if err := watch(t.Context()); err != nil {
				t.Fatal(err)
			}
			if after := at(); after != before {
				t.Errorf("the thread is in %s, and was in %s", after, before)
			}
		})
	}
}
