// Package tunnel is the WireGuard device inside which the frames of encrypted networks travel: this host's key, the
// peers, and how the key is replaced.
package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"netyard/cluster/record"
	"netyard/kernel/core"
	"netyard/kernel/overlay"
	"netyard/modes"
	"netyard/store"
)

// Port is the UDP port of WireGuard unless the configuration sets another. It is none that admins commonly use for
// tunnels of their own, and below the kernel's ephemeral ports (net.ipv4.ip_local_port_range).
const Port = 14789

// Kernel is what a Tunnel does to the kernel.
type Kernel interface {
	Ensure(ctx context.Context, objects ...core.Object) error
	Remove(objects ...core.Object) error
	// Encrypts returns why the kernel has no WireGuard.
	Encrypts() error
	// AskAgain starts handshakes with those of the peers that have completed none since a time.
	AskAgain(peers []overlay.WireGuardPeer, since time.Time) error
}

// Config is what a Tunnel needs.
type Config struct {
	Log    *slog.Logger
	Store  *store.Store
	Kernel Kernel
	// Host is this host.
	Host record.Host
	// Port is the UDP port of the device.
	Port uint16
	// Peers returns the hosts that this host's encrypted networks are on, and Needed says whether there are such
	// networks.
	Peers  func() overlay.WireGuardPeers
	Needed func() bool
	// Reason returns why this host is not a member of the cluster at the moment; nil: it is one.
	Reason func() error
	// Publish writes this host's record to etcd, with the key of Published.
	Publish func(context.Context) error
	// Start runs a task until the daemon ends. It does nothing while peers are known from the saved copy only.
	Start func(task func(context.Context) error)
}

// A secret is this host's private key, and the next one while a rotation is pending. It is in the database with the
// rest of the host's records, so that a key and its use are recorded in one transaction, and only root can read it.
type secret struct {
	Key  []byte
	Next []byte `json:",omitempty"`
}

// secrets holds this host's secret.
var secrets = store.Bucket[secret]{Name: "wireguard"}

const secretKey = "key"

// A Tunnel is the host's WireGuard device. All methods can be called at any time. Those that change the kernel wait for
// each other; the others never wait for the kernel.
type Tunnel struct {
	c Config
	// clear is why this host cannot encrypt; nil: it can.
	clear error

	// rotating is held during each step of a rotation. It is taken before turn.
	rotating sync.Mutex
	// turn is held while the kernel is changed, so that changes get there in order. It is taken before mu.
	turn sync.Mutex
	// programmed are the peers that the kernel was last given; nil: none yet. It changes under turn.
	programmed *overlay.WireGuardPeers
	// creating counts the networks for which the device was created and that may not be bound yet. It changes under
	// turn.
	creating int

	// mu is never held while the kernel is changed.
	mu  sync.Mutex
	key overlay.Secret
	// next is the key that is being published, if rotates.
	next    overlay.Secret
	rotates bool
}

// Open loads this host's key, or creates one, if the kernel has WireGuard.
func Open(c Config) (*Tunnel, error) {
	t := &Tunnel{c: c}
	if t.clear = c.Kernel.Encrypts(); t.clear != nil {
		return t, nil
	}
	err := c.Store.Update(func(tx store.Tx) error {
		s, err := secrets.Get(tx, secretKey)
		if errors.Is(err, store.ErrNotFound) {
			if t.key, err = overlay.NewSecret(); err != nil {
				return err
			}
			return secrets.Put(tx, secretKey, secret{Key: t.key[:]})
		}
		copy(t.key[:], s.Key)
		copy(t.next[:], s.Next)
		t.rotates = len(s.Next) > 0
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("load WireGuard key: %w", err)
	}
	return t, nil
}

// Clear returns why this host cannot encrypt; nil: it can.
func (t *Tunnel) Clear() error { return t.clear }

// Published returns the key to publish, and the port; none when this host cannot encrypt.
func (t *Tunnel) Published() (key record.PublicKey, port uint16) {
	if t.clear != nil {
		return "", 0
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	secret := t.key
	if t.rotates {
		secret = t.next
	}
	return record.PublicKeyOf(secret.Public()), t.c.Port
}

// Device returns the device that this host should have.
func (t *Tunnel) Device() overlay.WireGuard {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := modes.OverlayHost{VTEP: t.c.Host.VTEP, MTU: t.c.Host.MTU}
	return overlay.WireGuard{
		Key: t.key, Port: t.c.Port, MTU: h.TunnelMTU(),
		Addr: netip.PrefixFrom(t.c.Host.Tunnel(), record.TunnelBits),
	}
}

// Create creates the device, for a network that is about to be bound. It stays at least until Bound is called.
func (t *Tunnel) Create() error {
	if t.clear != nil {
		return t.clear
	}
	t.turn.Lock()
	defer t.turn.Unlock()
	err := t.c.Kernel.Ensure(context.Background(), t.Device())
	if err == nil {
		err = t.update(true)
	}
	if err == nil {
		t.creating++
	} else if t.unused() {
		err = errors.Join(err, t.remove())
	}
	return err
}

// Bound says that the network for which Create was called has been bound, or could not be.
func (t *Tunnel) Bound() error {
	t.turn.Lock()
	defer t.turn.Unlock()
	if t.creating--; t.unused() {
		return t.remove()
	}
	return nil
}

// unused says whether no network needs the device. The caller holds turn.
func (t *Tunnel) unused() bool { return t.creating == 0 && !t.c.Needed() }

// remove removes the device. The caller holds turn.
func (t *Tunnel) remove() error {
	t.programmed = nil
	return t.c.Kernel.Remove(t.Device())
}

// Release removes the peers of a network that was unbound, or the device if no other network needs it.
func (t *Tunnel) Release() error {
	t.turn.Lock()
	defer t.turn.Unlock()
	if t.unused() {
		return t.remove()
	}
	return t.update(false)
}

// Update gives the device the hosts of this host's encrypted networks as its peers, if they have changed.
func (t *Tunnel) Update() error {
	t.turn.Lock()
	defer t.turn.Unlock()
	return t.update(false)
}

// update does the work of Update; again says that the device is given its peers although they have not changed. The
// caller holds turn.
func (t *Tunnel) update(again bool) error {
	now, was, since := t.c.Peers(), t.programmed, time.Now()
	if !again && was != nil && was.Partial == now.Partial && slices.Equal(was.All, now.All) {
		return nil
	}
	if err := t.c.Kernel.Ensure(context.Background(), now); err != nil {
		return err
	}
	t.programmed = &now
	if was != nil {
		t.retryHandshakes(changedKeys(was.All, now.All), since)
	}
	return nil
}
