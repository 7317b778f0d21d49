package fabric

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"netyard/cluster"
	"netyard/kernel/overlay"
	"netyard/store"
)

// RotateKey gives this host another key. It is recorded, told to the others, and only then used; what was begun is
// brought to its end by itself, whatever comes in between.
func (a *Agent) RotateKey(ctx context.Context) (cluster.PublicKey, error) {
	a.mu.Lock()
	cannot, renews, reason := a.tunnel.clear, a.tunnel.renews, a.reason
	a.mu.Unlock()
	if cannot != nil {
		return "", cannot
	}
	if reason != nil && !renews { // it would be used only when the others have heard of it
		return "", fmt.Errorf("this host is no member of the cluster: %w", reason)
	}
	if err := a.begin(); err != nil {
		return "", fmt.Errorf("record another WireGuard key: %w", err)
	}
	if err := a.turn(ctx); err != nil {
		return "", fmt.Errorf("another WireGuard key is recorded, and used as soon as the others can be told: %w", err)
	}
	return a.host().WireGuard, nil
}

// begin records the key that comes next. One that is coming is the one.
func (a *Agent) begin() error {
	a.tunnel.turning.Lock()
	defer a.tunnel.turning.Unlock()
	a.mu.Lock()
	key, renews := a.tunnel.key, a.tunnel.renews
	a.mu.Unlock()
	if renews {
		return nil
	}
	next, err := overlay.NewSecret()
	if err != nil {
		return err
	}
	if err := a.c.Store.Update(func(tx store.Tx) error { return secrets.Put(tx, secretKey, secret{Key: key[:], Next: next[:]}) }); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tunnel.next, a.tunnel.renews = next, true
	return nil
}

// turn goes over to the key that comes next, if one does: the others are told, the device gets it, and it is recorded
// as the key. Each step can be done again.
func (a *Agent) turn(ctx context.Context) error {
	a.tunnel.turning.Lock()
	defer a.tunnel.turning.Unlock()
	a.mu.Lock()
	renews := a.tunnel.renews
	a.mu.Unlock()
	if !renews {
		return nil
	}
	if err := a.c.Client.Join(ctx, a.host()); err != nil {
		return err
	}
	return a.turned(ctx)
}

// turned is turn when the others have been told.
func (a *Agent) turned(ctx context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	next, since := a.tunnel.next, time.Now()
	a.tunnel.key = next
	if a.encrypts() {
		if err := a.c.Kernel.Ensure(ctx, a.device()); err != nil {
			return err
		}
	}
	if a.tunnel.told != nil {
		a.agree(a.tunnel.told.All, since) //nolint:contextcheck // it lives as long as Run
	}
	if err := a.c.Store.Update(func(tx store.Tx) error { return secrets.Put(tx, secretKey, secret{Key: next[:]}) }); err != nil {
		return err
	}
	a.tunnel.renews = false
	a.c.Log.Info("this host has another WireGuard key", "public", cluster.PublicKeyOf(next.Public()))
	return nil
}

// renewed are the peers that have another key than they had. Both are sorted by address.
func renewed(was, now []overlay.WireGuardPeer) (all []overlay.WireGuardPeer) {
	byAddr := func(p overlay.WireGuardPeer, addr netip.Addr) int { return p.Addr.Compare(addr) }
	for _, p := range now {
		if i, ok := slices.BinarySearchFunc(was, p.Addr, byAddr); ok && was[i].Key != p.Key {
			all = append(all, p)
		}
	}
	return all
}

// How long a host that has asked a peer for keys, in vain, waits until it asks again. Longer than an answer takes from
// anywhere, and not the same for both of them.
const (
	firstAgain  = 400 * time.Millisecond
	secondAgain = time.Second
)

// agree sees to it that this host and peers are of one mind soon, when either has had another key since then. Two that
// ask each other at the same time each answer the other and forget what they asked; so neither takes the answer, and
// WireGuard would ask again only in five seconds (REKEY_TIMEOUT). One of the two asks again before, and if that is
// lost, too, the other. The caller holds the lock.
func (a *Agent) agree(peers []overlay.WireGuardPeer, since time.Time) {
	if !a.entered || len(peers) == 0 { // what comes from store tells of nobody's other key
		return
	}
	var first, second []overlay.WireGuardPeer
	for _, p := range peers {
		if a.c.Host.Tunnel().Less(p.Addr) {
			first = append(first, p)
		} else {
			second = append(second, p)
		}
	}
	a.tasks.start(func(ctx context.Context) error {
		a.askAgain(ctx, first, since, firstAgain)
		a.askAgain(ctx, second, since, secondAgain)
		return nil
	})
}

// askAgain waits until so long after since, and has those asked again who are peers then, and have not agreed.
func (a *Agent) askAgain(ctx context.Context, peers []overlay.WireGuardPeer, since time.Time, after time.Duration) {
	select {
	case <-ctx.Done():
		return
	case <-time.After(time.Until(since.Add(after))):
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.tunnel.told == nil {
		return
	}
	peers = slices.DeleteFunc(peers, func(p overlay.WireGuardPeer) bool { return !slices.Contains(a.tunnel.told.All, p) })
	if err := overlay.AskAgain(a.c.Kernel.Handle, peers, since); err != nil {
		a.c.Log.Debug("agree upon keys with other hosts", "err", err)
	}
}
