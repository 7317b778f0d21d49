package core_test

import (
	"strings"
	"testing"

	"netyard/kernel/core"
)

const id = "0123456789abcdef0123456789abcdef"

// TestName: names of links have the longest beginning of the ID that the kernel takes, and are known as netyard's.
func TestName(t *testing.T) {
	t.Parallel()
	for _, prefix := range []string{
		core.BridgePrefix, core.VethPrefix, core.PeerPrefix, core.ShaperPrefix, core.IslandPrefix, core.ShimPrefix,
		core.VXLANPrefix,
	} {
		name := core.Name(prefix, id)
		if name != prefix+id[:11] || len(name) != 15 || !core.OwnName(name) {
			t.Errorf("%s: %s, netyard's: %v", prefix, name, core.OwnName(name))
		}
	}
	if got := core.Name(core.BridgePrefix, "ab"); got != "nyb-ab" {
		t.Errorf("of a short ID: %s", got)
	}
	for _, hash := range []string{core.HashID("eth0"), core.HashID("eth1")} {
		if name := core.Name(core.ShimPrefix, hash); !core.OwnName(name) {
			t.Errorf("%s is not known as netyard's", name)
		}
	}
	if core.HashID("eth0") == core.HashID("eth1") {
		t.Error("two names have one hash")
	}
}

// TestForeignName: names that an admin may have given are not taken for netyard's.
func TestForeignName(t *testing.T) {
	t.Parallel()
	for _, name := range []string{
		"", "eth0", "nyb-", "nyb-lan", "nyb-0123456789", "nyb-0123456789a-", "nyb-0123456789A", "nyc-0123456789a",
		"nyt-other", "nyb-0123456789ab", "docker0",
	} {
		if core.OwnName(name) {
			t.Errorf("%q is taken for netyard's", name)
		}
	}
	if !core.OwnName(core.TunnelName) {
		t.Errorf("%s is not known as netyard's", core.TunnelName)
	}
}

// TestAlias: an alias names network and endpoint, and is read back as it was written.
func TestAlias(t *testing.T) {
	t.Parallel()
	for _, endpoint := range []string{"", id, "a:b"} {
		network, got, ok := core.ParseAlias(core.Alias(id, endpoint))
		if network != id || got != endpoint || !ok {
			t.Errorf("%q: read back as %q and %q, %v", core.Alias(id, endpoint), network, got, ok)
		}
	}
	for _, alias := range []string{
		"", "uplink", "netyard", "netyard:", "netyard::e", " netyard:n", strings.ToUpper("netyard:n"),
	} {
		if network, endpoint, ok := core.ParseAlias(alias); ok {
			t.Errorf("%q is taken for netyard's: %q and %q", alias, network, endpoint)
		}
	}
}
