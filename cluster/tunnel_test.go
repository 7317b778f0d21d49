package cluster

import (
	"strings"
	"testing"
)

// TestTunnel: a host's address inside WireGuard is derived from its ID alone, so that all hosts compute the same one,
// for good.
func TestTunnel(t *testing.T) {
	t.Parallel()
	one, two := *hostOf(1), *hostOf(2)
	one.Name, one.WireGuard = "other", keyOf(9)
	if got, want := one.Tunnel().String(), hostOf(1).Tunnel().String(); got != want ||
		got != "fd37:7698:1b77:784c:fc15:c3ca:6264:a534" {
		t.Errorf("the address of host 1 is %s, and with another name and key %s", want, got)
	}
	a, b := one.Tunnel(), two.Tunnel()
	p, err := a.Prefix(TunnelBits)
	if err != nil || a == b || !p.Contains(b) || !a.IsPrivate() {
		t.Errorf("%s and %s: %v", a, b, err)
	}
}

// TestBookEncrypted: the peers of an encrypted network are reached at their hosts' addresses inside WireGuard; the
// addresses of a host without a key, or with another host's key, are no peers.
func TestBookEncrypted(t *testing.T) {
	t.Parallel()
	net := blue()
	net.Encrypted = true
	b := NewBook(id(1), net)
	put := func(rs ...Record) {
		var cs []Change
		for _, r := range rs {
			cs = append(cs, Change{Key: r.Key(), New: r})
		}
		b.Apply(cs)
	}
	keyed := func(n int, key byte) *Host {
		h := hostOf(n)
		if key != 0 {
			h.WireGuard, h.WireGuardPort = keyOf(key), 14789
		}
		return h
	}
	state := func(when string, want ...*Host) {
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
			t.Errorf("%s: %d peers, want %d; refused %v", when, len(b.Peers()), len(want), b.Refused())
		}
	}
	put(keyed(1, 1), keyed(2, 2), keyed(3, 0), keyed(4, 4), &Member{id(9), id(1)}, &Member{id(9), id(2)},
		&Member{id(9), id(3)}, &Member{id(9), id(4)},
		addrOf("10.20.0.12", 2, macA), addrOf("10.20.0.13", 3, macB), addrOf("10.20.0.14", 4, "02:42:0a:14:00:0c"))
	state("at first", hostOf(2), hostOf(4))
	if why := b.Refused()[addrOf("10.20.0.13", 3, macB).Addr]; why != "its host h3 cannot encrypt" {
		t.Errorf("a host without a key: %q", why)
	}
	put(keyed(3, 3))
	state("when it has a key", hostOf(2), hostOf(3), hostOf(4))
	put(keyed(4, 2))
	state("when a host has another host's key", hostOf(2), hostOf(3))
	put(keyed(2, 1))
	state("when that host has this host's key", hostOf(3), hostOf(4))
	put(keyed(2, 5), keyed(4, 4))
	state("when all keys differ", hostOf(2), hostOf(3), hostOf(4))
	put(keyed(4, 0))
	state("when a host has no key any more", hostOf(2), hostOf(3))
}
