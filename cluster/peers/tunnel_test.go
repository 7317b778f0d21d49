package peers

import (
	"strings"
	"testing"

	"netyard/cluster/hosttest"
	"netyard/cluster/record"
)

// TestBookEncrypted: the peers of an encrypted network are reached at their hosts' addresses inside WireGuard; the
// addresses of a host without a key, or with another host's key, are no peers.
func TestBookEncrypted(t *testing.T) {
	t.Parallel()
	net := hosttest.Blue()
	net.Encrypted = true
	b := NewBook(hosttest.ID(1), net)
	put := func(rs ...record.Record) {
		var cs []record.Change
		for _, r := range rs {
			cs = append(cs, record.Change{Key: r.Key(), New: r})
		}
		b.Apply(cs)
	}
	keyed := func(n int, key byte) *record.Host {
		h := hosttest.Host(n)
		if key != 0 {
			h.WireGuard, h.WireGuardPort = record.PublicKeyOf([32]byte{key, 31: key}), 14789
		}
		return h
	}
	state := func(when string, want ...*record.Host) {
		t.Helper()
		var at, peers, tunnels []string
		for _, h := range want {
			at = append(at, h.Tunnel().String())
		}
		for _, a := range b.VTEPs() {
			tunnels = append(tunnels, a.String())
		}
		for _, h := range b.Tunnels() {
			peers = append(peers, h.Tunnel().String())
		}
		for _, list := range [][]string{tunnels, peers} {
			if len(list) != len(at) {
				t.Errorf("%s: %v, want %v", when, list, at)
			}
		}
		for _, h := range want {
			if all := strings.Join(tunnels, " "); !strings.Contains(all, h.Tunnel().String()) {
				t.Errorf("%s: %s is not among %s", when, h.Name, all)
			}
		}
		for a, p := range b.Peers() {
			if !strings.Contains(strings.Join(at, " "), p.VTEP.String()) {
				t.Errorf("%s: %s is at %s", when, a, p.VTEP)
			}
		}
		if len(b.Peers()) != len(want) {
			t.Errorf("%s: %d peers, want %d; refused %v", when, len(b.Peers()), len(want), b.Rejected())
		}
	}
	put(keyed(1, 1), keyed(2, 2), keyed(3, 0), keyed(4, 4), memberOf(1), memberOf(2), memberOf(3), memberOf(4),
		addrOf("10.20.0.12", 2, macA), addrOf("10.20.0.13", 3, macB), addrOf("10.20.0.14", 4, "02:42:0a:14:00:0c"))
	state("at first", hosttest.Host(2), hosttest.Host(4))
	if why := b.Rejected()[addrOf("10.20.0.13", 3, macB).Addr]; why != "its host h3 cannot encrypt" {
		t.Errorf("a host without a key: %q", why)
	}
	put(keyed(3, 3))
	state("when it has a key", hosttest.Host(2), hosttest.Host(3), hosttest.Host(4))
	put(keyed(4, 2))
	state("when a host has another host's key", hosttest.Host(2), hosttest.Host(3))
	put(keyed(2, 1))
	state("when that host has this host's key", hosttest.Host(3), hosttest.Host(4))
	put(keyed(2, 5), keyed(4, 4))
	state("when all keys differ", hosttest.Host(2), hosttest.Host(3), hosttest.Host(4))
	put(keyed(4, 0))
	state("when a host has no key any more", hosttest.Host(2), hosttest.Host(3))
}
