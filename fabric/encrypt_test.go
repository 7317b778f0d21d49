package fabric

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"netyard/cluster/clustertest"
	"netyard/cluster/record"
	"netyard/fabric/tunnel"
	"netyard/kernel/core"
	"netyard/kernel/kerneltest"
	"netyard/kernel/overlay"
)

// TestTunnelKey: the WireGuard key stays the same over a restart, and without WireGuard there is none; only the public
// key is published.
func TestTunnelKey(t *testing.T) {
	t.Parallel()
	h := hosts(t, clustertest.Start(t, ""), 1)[0]
	encrypts := overlay.CheckWireGuard(h.Handle) == nil
	first := h.host()
	if (first.WireGuard != "") != encrypts || encrypts && first.WireGuardPort != WireGuardPort {
		t.Errorf("the host is published as %+v, and can encrypt: %v", first, encrypts)
	}
	h.boot(1)
	if again := h.host(); again != first {
		t.Errorf("after a restart it is %+v instead of %+v", again, first)
	}
	if s := h.status(); (s.Clear == "") != encrypts {
		t.Errorf("the status says that the host cannot encrypt: %q", s.Clear)
	}
	_, err := h.RotateKey(t.Context())
	if err == nil || !encrypts && !strings.Contains(err.Error(), "this kernel has no WireGuard") {
		t.Errorf("rotation before the host is a member, or without WireGuard: %v", err)
	}
	if err := h.tunnel.Create(); (err == nil) != encrypts {
		t.Errorf("a device: %v", err)
	}
	must(t, h.tunnel.Release())
}

// TestEncryptedRotation: a rotation that is interrupted at any step is completed by the next daemon, and no host is
// left with an unused key.
func TestEncryptedRotation(t *testing.T) {
	t.Parallel()
	kerneltest.NeedsWireGuard(t)
	e := clustertest.Start(t, "")
	all := hosts(t, e, 2)
	for _, h := range all {
		h.run()
		h.member()
	}
	var n record.Network
	must(t, retryUnreachable(t, func() (err error) {
		red := record.Network{Name: "red", MTU: 1370, Encrypted: true, Subnets: subnets(20)}
		n, err = all[0].c.Client.CreateNetwork(t.Context(), red)
		return err
	}))
	one, two := all[0], all[1]
	for _, h := range all {
		must(t, h.tunnel.Create())
		h.up(n)
	}
	pending := false // a rotation is pending
	right := func(when string) {
		t.Helper()
		var last string
		clustertest.Eventually(t, when, func() bool {
			last = ""
			for _, h := range all {
				snap, err := h.Snapshot()
				must(t, err)
				for _, f := range snap.Faults([]core.Object{h.tunnel.Device(), h.tunnelPeers()}) {
					last += f.Text + "; "
				}
				if p := h.tunnelPeers(); len(p.All) != 1 || p.Partial {
					last += fmt.Sprintf("peers %v; ", p)
				}
			}
			for _, pair := range [][2]*host{{one, two}, {two, one}} {
				want := record.PublicKeyOf(pair[1].tunnel.Device().Key.Public())
				if p := pair[0].tunnelPeers().All; len(p) != 1 || record.PublicKeyOf(p[0].Key) != want {
					last += "a peer has another key; "
				}
			}
			return last == ""
		})
		if last != "" {
			t.Errorf("%s: %s", when, last)
		}
		if pending {
			return
		}
		kept, err := tunnel.Open(tunnel.Config{Store: one.db, Kernel: one.kernel})
		must(t, err)
		if kept.Rotates() || kept.Device().Key != one.tunnel.Device().Key {
			t.Errorf("%s: the recorded key is not the one in use", when)
		}
	}
	right("at first")
	keys := map[record.PublicKey]bool{one.host().WireGuard: true}
	steps := []struct {
		name string
		do   func() error
	}{
		{"recorded", func() error { return one.tunnel.RecordNext() }},
		{"published", func() error {
			return retryUnreachable(t, func() error { return one.c.Client.Join(t.Context(), one.host()) })
		}},
		{"used", func() error { return one.tunnel.UseNext(t.Context()) }},
	}
	for until := range steps {
		one.stop()
		for _, s := range steps[:until+1] {
			must(t, s.do())
		}
		one.boot(1)
		one.run()
		one.member()
		clustertest.Eventually(t, "a key that was "+steps[until].name+" is not used",
			func() bool { return !one.tunnel.Rotates() })
		right("after a key was " + steps[until].name)
		if now := one.host().WireGuard; keys[now] {
			t.Errorf("after a key was %s the host has an old one", steps[until].name)
		} else {
			keys[now] = true
		}
	}
	e.Cut()
	if _, err := one.RotateKey(t.Context()); err == nil {
		t.Error("a key that cannot be published is used")
	}
	pending = true
	right("while etcd is away")
	e.Mend()
	clustertest.Eventually(t, "a key that waited for etcd is not used", func() bool { return !one.tunnel.Rotates() })
	pending = false
	right("when it is back")
	if one.tunnelPeers().All[0].Addr != (record.Host{ID: two.self}).Tunnel() ||
		!one.tunnel.Device().Addr.Contains(netip.Addr(two.tunnel.Device().Addr.Addr())) {
		t.Errorf("the hosts are at %v and %v", one.tunnel.Device().Addr, one.tunnelPeers().All)
	}
}
