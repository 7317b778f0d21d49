package kernel_test

import (
	"strings"
	"testing"

	"netyard/kernel"
	"netyard/kernel/kerneltest"
)

// TestWatchAmidOwnChanges: the watcher passes by what is netyard's own doing, and misses nothing of what others do in between.
func TestWatchAmidOwnChanges(t *testing.T) {
	t.Parallel()
	h := kerneltest.New(t)
	h.ShareTables()
	if err := h.LoadFirewall(); err != nil {
		t.Fatal(err)
	}
	h.Watched(t)
	own := kernel.InterfaceIn(kernel.Bridges, "nyb-own")
	moving := []kernel.Object{
		kernel.InterfaceIn(kernel.Bridges, "nyb-moving"),
		kernel.Bridge{Name: "nyb-00000000000", Alias: kernel.Alias("00000000000", ""), MTU: 1500},
	}
	if err := h.Ensure(t.Context(), own); err != nil {
		t.Fatal(err)
	}
	for _, theirs := range []string{
		"nft delete table inet netyard", "nft delete element inet netyard bridges '{ \"nyb-own\" }'", "nft flush ruleset",
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
		_ = h.Ensure(t.Context(), moving...) // right behind it; it finds no table, or the new one
		back := func() bool {
			out, err := h.TrySh("nft list set inet netyard bridges")
			return err == nil && strings.Contains(out, `"nyb-own"`)
		}
		eventually(t, "the ruleset is back after "+theirs, back)
		if err := h.Remove(moving...); err != nil {
			t.Fatal(err)
		}
	}
	h.Sh(t, "ip link add br-0123456789ab type bridge") // as Docker's
	eventually(t, "another's bridge is seen", func() bool { return strings.Contains(h.Sh(t, "nft list set inet netyard foreign"), "br-0123456789ab") })
}
