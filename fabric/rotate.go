package fabric

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"netyard/cluster/record"
	"netyard/kernel/overlay"
	"netyard/store"
)

// RotateKey gives this host a new WireGuard key and returns it. The key is recorded, published to the other hosts, and
// only then used. A rotation that is interrupted is completed later.
func (a *Agent) RotateKey(ctx context.Context) (record.PublicKey, error) {
	a.mu.Lock()
	cannot, rotates, reason := a.tunnel.clear, a.tunnel.rotates, a.reason
	a.mu.Unlock()
	if cannot != nil {
		return "", cannot
	}
	if reason != nil && !rotates { // the key could not be published, and so not be used
		return "", fmt.Errorf("rotate WireGuard key: this host is not a member of the cluster: %w", reason)
	}
	if err := a.recordNextKey(); err != nil {
		return "", fmt.Errorf("record new WireGuard key: %w", err)
	}
	if err := a.rotateIfPending(ctx); err != nil {
		return "", fmt.Errorf("publish new WireGuard key: %w; it is recorded, and used once it can be published", err)
	}
	return a.host().WireGuard, nil
}

// recordNextKey records a new key as the next one, unless a rotation is pending already.
func (a *Agent) recordNextKey() error {
	a.tunnel.rotating.Lock()
	defer a.tunnel.rotating.Unlock()
	a.mu.Lock()
	key, rotates := a.tunnel.key, a.tunnel.rotates
	a.mu.Unlock()
	if rotates {
		return nil
	}
	next, err := overlay.NewSecret()
	if err != nil {
		return err
	}
	err = a.c.Store.Update(func(tx store.Tx) error {
		return secrets.Put(tx, secretKey, secret{Key: key[:], Next: next[:]})
	})
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tunnel.next, a.tunnel.rotates = next, true
	return nil
}

// rotateIfPending completes a pending rotation: it publishes the next key, sets it on the device, and records it as the
// key. Each step can be repeated.
func (a *Agent) rotateIfPending(ctx context.Context) error {
	a.tunnel.rotating.Lock()
	defer a.tunnel.rotating.Unlock()
	a.mu.Lock()
	rotates := a.tunnel.rotates
	a.mu.Unlock()
	if !rotates {
		return nil
	}
	if err := a.c.Client.Join(ctx, a.host()); err != nil {
		return err
	}
	return a.finishRotation(ctx)
}

// finishRotation completes a rotation whose key has been published.
func (a *Agent) finishRotation(ctx context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	next, since := a.tunnel.next, time.Now()
	a.tunnel.key = next
	if a.encrypts() {
		if err := a.c.Kernel.Ensure(ctx, a.device()); err != nil {
			return err
		}
	}
	if a.tunnel.programmed != nil {
		a.retryHandshakes(a.tunnel.programmed.All, since) //nolint:contextcheck // it runs until Run ends
	}
	err := a.c.Store.Update(func(tx store.Tx) error { return secrets.Put(tx, secretKey, secret{Key: next[:]}) })
	if err != nil {
		return err
	}
	a.tunnel.rotates = false
	a.c.Log.Info("key of WireGuard rotated", "public", record.PublicKeyOf(next.Public()))
	return nil
}

// changedKeys returns the peers in now whose key differs from that in was. Both are sorted by address.
func changedKeys(was, now []overlay.WireGuardPeer) (all []overlay.WireGuardPeer) {
	byAddr := func(p overlay.WireGuardPeer, addr netip.Addr) int { return p.Addr.Compare(addr) }
	for _, p := range now {
		if i, ok := slices.BinarySearchFunc(was, p.Addr, byAddr); ok && was[i].Key != p.Key {
			all = append(all, p)
		}
	}
	return all
}

// These are the times after which a host whose handshake with a peer got no answer starts another. They are longer than
// any answer takes, and differ, so that the two hosts do not retry at the same time.
const (
	firstRetry  = 400 * time.Millisecond
	secondRetry = time.Second
)

// retryHandshakes makes this host and peers complete a handshake soon after one of them has changed its key at since.
// Two hosts that start handshakes at the same time each answer the other's and forget their own, so neither accepts the
// answer, and WireGuard would retry only after five seconds (REKEY_TIMEOUT). One of the two retries before, and if that
// is lost, too, the other does. The caller holds the lock.
func (a *Agent) retryHandshakes(peers []overlay.WireGuardPeer, since time.Time) {
	if !a.entered || len(peers) == 0 { // peers from the saved copy have no changed key
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
		a.retryHandshake(ctx, first, since, firstRetry)
		a.retryHandshake(ctx, second, since, secondRetry)
		return nil
	})
}

// retryHandshake waits until after has passed since since, and then starts handshakes with those that are still peers
// and have completed none.
func (a *Agent) retryHandshake(
	ctx context.Context, peers []overlay.WireGuardPeer, since time.Time, after time.Duration,
) {
	select {
	case <-ctx.Done():
		return
	case <-time.After(time.Until(since.Add(after))):
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.tunnel.programmed == nil {
		return
	}
	peers = slices.DeleteFunc(peers,
		func(p overlay.WireGuardPeer) bool { return !slices.Contains(a.tunnel.programmed.All, p) })
	if err := overlay.AskAgain(a.c.Kernel.Handle, peers, since); err != nil {
		a.c.Log.Debug("retry of WireGuard handshakes failed", "err", err)
	}
}
