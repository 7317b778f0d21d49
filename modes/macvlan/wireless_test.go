package macvlan

import (
	"strings"
	"testing"

	"netyard/kernel/core"
	"netyard/modes"
)

// TestWireless: an access point knows a card by its one hardware address.
func TestWireless(t *testing.T) {
	t.Parallel()
	for mode, refused := range map[string]bool{"bridge": true, "private": true, "vepa": true, passthru: false} {
		n := modes.Network{Mode: "macvlan", Options: map[string]string{"parent": "wlan0", "macvlan_mode": mode}}
		err := fit(nil, n, "wlan0", core.LinkInfo{Wireless: true})
		if (err != nil) != refused ||
			refused && !strings.Contains(err.Error(), "parent=wlan0: wlan0 is wireless: an access point") {
			t.Errorf("%s: %v", mode, err)
		}
	}
}
