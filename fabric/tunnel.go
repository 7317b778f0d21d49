package fabric

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"netyard/cluster/record"
	"netyard/kernel/overlay"
	"netyard/modes"
	"netyard/store"
)

// WireGuardPort is the UDP port of WireGuard unless the configuration sets another. It is none that admins commonly use
// for tunnels of their own, and below the kernel's ephemeral ports (net.ipv4.ip_local_port_range).
const WireGuardPort = 14789

// A secret is this host's private key, and the next one while a rotation is pending. It is in the database with the
// rest of the host's records, so that a key and its use are recorded in one transaction, and only root can read it.
type secret struct {
	Key  []byte
	Next []byte `json:",omitempty"`
}

// secrets holds this host's secret.
var secrets = store.Bucket[secret]{Name: "wireguard"}

const secretKey = "key"

// A tunnel is the state of the host's WireGuard device. The Agent's lock guards it.
type tunnel struct {
	// clear is why this host cannot encrypt; nil: it can.
	clear error
	key   overlay.Secret
	// next is the key that is being published, if rotates.
	next    overlay.Secret
	rotates bool
	port    uint16
	// programmed are the peers that the kernel was last given; nil: none yet.
	programmed *overlay.WireGuardPeers
	// rotating is held during each step of a rotation.
	rotating sync.Mutex
}

// openTunnel loads this host's key, or creates one, if the kernel has WireGuard.
func (a *Agent) openTunnel() error {
	a.tunnel.port = cmp.Or(a.c.WireGuardPort, WireGuardPort)
	if a.tunnel.clear = overlay.Encrypts(a.c.Kernel.Handle); a.tunnel.clear != nil {
		return nil
	}
	err := a.c.Store.Update(func(tx store.Tx) error {
		s, err := secrets.Get(tx, secretKey)
		if errors.Is(err, store.ErrNotFound) {
			if a.tunnel.key, err = overlay.NewSecret(); err != nil {
				return err
			}
			return secrets.Put(tx, secretKey, secret{Key: a.tunnel.key[:]})
		}
		copy(a.tunnel.key[:], s.Key)
		copy(a.tunnel.next[:], s.Next)
		a.tunnel.rotates = len(s.Next) > 0
		return err
	})
	if err != nil {
		return fmt.Errorf("load WireGuard key: %w", err)
	}
	return nil
}

// host returns this host's record as it is published.
func (a *Agent) host() record.Host {
	// at boot its address may be set after netyard starts
	link, _ := overlay.CarrierOf(a.c.Kernel.Handle, a.c.Host.VTEP)
	a.mu.Lock()
	defer a.mu.Unlock()
	h := a.c.Host
	if card := record.MAC(link.MAC); card.Valid() {
		h.Card = card
	}
	if a.tunnel.clear != nil {
		return h
	}
	key := a.tunnel.key
	if a.tunnel.rotates {
		key = a.tunnel.next
	}
	h.WireGuard, h.WireGuardPort = record.PublicKeyOf(key.Public()), a.tunnel.port
	return h
}

// device returns the WireGuard device that this host should have.
func (a *Agent) device() overlay.WireGuard {
	h := modes.OverlayHost{VTEP: a.c.Host.VTEP, MTU: a.c.Host.MTU}
	return overlay.WireGuard{
		Key: a.tunnel.key, Port: a.tunnel.port, MTU: h.TunnelMTU(),
		Addr: netip.PrefixFrom(a.c.Host.Tunnel(), record.TunnelBits),
	}
}

// encrypts says whether any network of this host is encrypted.
func (a *Agent) encrypts() bool {
	for _, n := range a.networks {
		if n.Encrypted {
			return true
		}
	}
	return false
}

// createDevice creates the device, for a network that is about to be bound.
func (a *Agent) createDevice() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.tunnel.clear != nil {
		return a.tunnel.clear
	}
	err := a.c.Kernel.Ensure(context.Background(), a.device())
	if err == nil {
		err = a.updateTunnelPeers(true)
	}
	if err != nil && !a.encrypts() {
		err = errors.Join(err, a.removeDevice())
	}
	return err
}

// removeDevice removes the device.
func (a *Agent) removeDevice() error {
	a.tunnel.programmed = nil
	return a.c.Kernel.Remove(a.device())
}

// releaseDevice removes the peers of a network that was unbound, or the device if no other network needs it.
func (a *Agent) releaseDevice() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.encrypts() {
		return a.updateTunnelPeers(false)
	}
	return a.removeDevice()
}

// updateTunnelPeers gives the device the hosts of this host's encrypted networks as its peers, if they have changed or
// again is set.
func (a *Agent) updateTunnelPeers(again bool) error {
	now, was, since := a.tunnelPeers(), a.tunnel.programmed, time.Now()
	if !again && was != nil && was.Partial == now.Partial && slices.Equal(was.All, now.All) {
		return nil
	}
	if err := a.c.Kernel.Ensure(context.Background(), now); err != nil {
		return err
	}
	a.tunnel.programmed = &now
	if was != nil {
		a.retryHandshakes(changedKeys(was.All, now.All), since)
	}
	return nil
}

// tunnelPeers returns the hosts that this host's encrypted networks are on.
func (a *Agent) tunnelPeers() (all overlay.WireGuardPeers) {
	if a.fenced {
		return all
	}
	seen := map[string]bool{}
	for _, n := range a.networks {
		if !n.Encrypted {
			continue
		}
		all.Partial = all.Partial || !a.read(n) // see Agent.peers
		for _, h := range n.book.Tunnels() {
			if !seen[h.ID] {
				seen[h.ID] = true
				at := netip.AddrPortFrom(h.VTEP, h.WireGuardPort)
				all.All = append(all.All, overlay.WireGuardPeer{Key: h.WireGuard.Bytes(), At: at, Addr: h.Tunnel()})
			}
		}
	}
	slices.SortFunc(all.All, func(a, b overlay.WireGuardPeer) int { return a.Addr.Compare(b.Addr) })
	return all
}
