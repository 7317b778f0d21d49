package fabric

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"netyard/cluster/clustertest"
	"netyard/cluster/record"
	"netyard/kernel/core"
	"netyard/kernel/kerneltest"
	"netyard/kernel/overlay"
	"netyard/store"
)

// TestTunnelKey: the WireGuard key stays the same over a restart, and without WireGuard there is none; only the public
// key is published.
func TestTunnelKey(t *testing.T) {
	t.Parallel()
	h := hosts(t, clustertest.Start(t, ""), 1)[0]
	encrypts := overlay.Encrypts(h.Handle) == nil
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
	o := Modes{h.Agent}
	if err := o.A.createDevice(); (err == nil) != encrypts {
		t.Errorf("a device: %v", err)
	}
	must(t, h.releaseDevice())
}

// TestEncryptedRotation: a rotation that is interrupted at any step is completed by the next daemon, and no host is left
// with an unused key.
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
		must(t, h.createDevice())
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
				for _, f := range snap.Faults([]core.Object{h.deviceNow(), h.peersNow()}) {
					last += f.Text + "; "
				}
				if p := h.peersNow(); len(p.All) != 1 || p.Partial {
					last += fmt.Sprintf("peers %v; ", p)
				}
			}
			for _, pair := range [][2]*host{{one, two}, {two, one}} {
				want := record.PublicKeyOf(pair[1].deviceNow().Key.Public())
				if p := pair[0].peersNow().All; len(p) != 1 || record.PublicKeyOf(p[0].Key) != want {
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
		var kept secret
		must(t, one.db.View(func(tx store.Tx) (err error) { kept, err = secrets.Get(tx, secretKey); return err }))
		if len(kept.Next) != 0 || overlay.Secret(kept.Key) != one.deviceNow().Key {
			t.Errorf("%s: the recorded key is not the one in use", when)
		}
	}
	right("at first")
	keys := map[record.PublicKey]bool{one.host().WireGuard: true}
	steps := []struct {
		name string
		do   func() error
	}{
		{"recorded", func() error { return one.recordNextKey() }},
		{"published", func() error {
			return retryUnreachable(t, func() error { return one.c.Client.Join(t.Context(), one.host()) })
		}},
		{"used", func() error {
			d := one.deviceNow()
			d.Key = one.tunnel.next
			return one.Ensure(t.Context(), d)
		}},
	}
	for until := range steps {
		one.stop()
		for _, s := range steps[:until+1] {
			must(t, s.do())
		}
		one.boot(1)
		one.run()
		one.member()
		clustertest.Eventually(t, "a key that was "+steps[until].name+" is not used", func() bool {
			one.Agent.mu.Lock()
			defer one.Agent.mu.Unlock()
			return !one.tunnel.rotates
		})
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
	clustertest.Eventually(t, "a key that waited for etcd is not used", func() bool {
		one.Agent.mu.Lock()
		defer one.Agent.mu.Unlock()
		return !one.tunnel.rotates
	})
	pending = false
	right("when it is back")
	if one.peersNow().All[0].Addr != (record.Host{ID: two.self}).Tunnel() ||
		!one.deviceNow().Addr.Contains(netip.Addr(two.deviceNow().Addr.Addr())) {
		t.Errorf("the hosts are at %v and %v", one.deviceNow().Addr, one.peersNow().All)
	}
}

func (h *host) deviceNow() overlay.WireGuard {
	h.Agent.mu.Lock()
	defer h.Agent.mu.Unlock()
	return h.device()
}

func (h *host) peersNow() overlay.WireGuardPeers {
	h.Agent.mu.Lock()
	defer h.Agent.mu.Unlock()
	return h.tunnelPeers()
}
