package record

import (
	"testing"
)

// TestTunnel: a host's address inside WireGuard is derived from its ID alone, so that all hosts compute the same one,
// for good.
func TestTunnel(t *testing.T) {
	t.Parallel()
	one, same, two := Host{ID: id(1)}, Host{ID: id(1)}, Host{ID: id(2)}
	one.Name, one.WireGuard = "other", keyOf(9)
	if got, want := one.Tunnel().String(), same.Tunnel().String(); got != want ||
		got != "fd37:7698:1b77:784c:fc15:c3ca:6264:a534" {
		t.Errorf("the address of host 1 is %s, and with another name and key %s", want, got)
	}
	a, b := one.Tunnel(), two.Tunnel()
	p, err := a.Prefix(TunnelBits)
	if err != nil || a == b || !p.Contains(b) || !a.IsPrivate() {
		t.Errorf("%s and %s: %v", a, b, err)
	}
}
