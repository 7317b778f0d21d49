package tunnel

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

// Rotate gives this host a new key. It is recorded, published to the other hosts, and only then used. A rotation that
// is interrupted is completed later.
func (t *Tunnel) Rotate(ctx context.Context) error {
	if t.clear != nil {
		return t.clear
	}
	// The key could not be published, and so not be used.
	if reason := t.c.Reason(); reason != nil && !t.Rotates() {
		return fmt.Errorf("rotate WireGuard key: this host is not a member of the cluster: %w", reason)
	}
	if err := t.RecordNext(); err != nil {
		return fmt.Errorf("record new WireGuard key: %w", err)
	}
	if err := t.Complete(ctx); err != nil {
		return fmt.Errorf("publish new WireGuard key: %w; it is recorded, and used once it can be published", err)
	}
	return nil
}

// Rotates says whether a rotation is pending.
func (t *Tunnel) Rotates() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.rotates
}

// RecordNext records a new key as the next one, unless a rotation is pending already.
func (t *Tunnel) RecordNext() error {
	t.rotating.Lock()
	defer t.rotating.Unlock()
	t.mu.Lock()
	key, rotates := t.key, t.rotates
	t.mu.Unlock()
	if rotates {
		return nil
	}
	next, err := overlay.NewSecret()
	if err != nil {
		return err
	}
	err = t.c.Store.Update(func(tx store.Tx) error {
		return secrets.Put(tx, secretKey, secret{Key: key[:], Next: next[:]})
	})
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.next, t.rotates = next, true
	return nil
}

// Complete completes a pending rotation: it publishes the next key, sets it on the device, and records it as the key.
// Each step can be repeated.
func (t *Tunnel) Complete(ctx context.Context) error {
	t.rotating.Lock()
	defer t.rotating.Unlock()
	if !t.Rotates() {
		return nil
	}
	if err := t.c.Publish(ctx); err != nil {
		return err
	}
	if err := t.UseNext(ctx); err != nil {
		return err
	}
	key := t.Device().Key
	err := t.c.Store.Update(func(tx store.Tx) error { return secrets.Put(tx, secretKey, secret{Key: key[:]}) })
	if err != nil {
		return err
	}
	t.mu.Lock()
	t.rotates = false
	t.mu.Unlock()
	t.c.Log.Info("host's WireGuard key rotated", "public_key", record.PublicKeyOf(key.Public()))
	return nil
}

// UseNext sets the next key on the device, after it has been published.
func (t *Tunnel) UseNext(ctx context.Context) error {
	t.turn.Lock()
	defer t.turn.Unlock()
	since := time.Now()
	t.mu.Lock()
	t.key = t.next
	t.mu.Unlock()
	if t.c.Needed() {
		if err := t.c.Kernel.Ensure(ctx, t.Device()); err != nil {
			return err
		}
	}
	if t.programmed != nil {
		t.retryHandshakes(t.programmed.All, since)
	}
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
// is lost, too, the other does. The caller holds turn.
func (t *Tunnel) retryHandshakes(peers []overlay.WireGuardPeer, since time.Time) {
	if len(peers) == 0 {
		return
	}
	var first, second []overlay.WireGuardPeer
	for _, p := range peers {
		if t.c.Host.Tunnel().Less(p.Addr) {
			first = append(first, p)
		} else {
			second = append(second, p)
		}
	}
	t.c.Start(func(ctx context.Context) error {
		t.retryHandshake(ctx, first, since, firstRetry)
		t.retryHandshake(ctx, second, since, secondRetry)
		return nil
	})
}

// retryHandshake waits until after has passed since since, and then starts handshakes with those that are still peers
// and have completed none.
func (t *Tunnel) retryHandshake(
	ctx context.Context, peers []overlay.WireGuardPeer, since time.Time, after time.Duration,
) {
	select {
	case <-ctx.Done():
		return
	case <-time.After(time.Until(since.Add(after))):
	}
	t.turn.Lock()
	defer t.turn.Unlock()
	if t.programmed == nil {
		return
	}
	peers = slices.DeleteFunc(peers,
		func(p overlay.WireGuardPeer) bool { return !slices.Contains(t.programmed.All, p) })
	if err := t.c.Kernel.AskAgain(peers, since); err != nil {
		t.c.Log.Debug("failed WireGuard handshakes not retried", "err", err)
	}
}
