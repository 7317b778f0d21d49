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

	"netyard/cluster"
	"netyard/kernel/overlay"
	"netyard/modes"
	"netyard/store"
)

// WireGuardPort is the UDP port of WireGuard unless the configuration says otherwise. It is none of those that people
// give their own tunnels, and below those that the kernel gives to anybody (net.ipv4.ip_local_port_range).
const WireGuardPort = 14789

// A secret is this host's private key, and the one that comes next while the others are told of it. It is in the file
// that has the rest of what the host is: so a key and what it is for are recorded in one transaction, and nobody but
// root can read either.
type secret struct {
	Key  []byte
	Next []byte `json:",omitempty"`
}

// secrets has one.
var secrets = store.Bucket[secret]{Name: "wireguard"}

const secretKey = "key"

// A tunnel is what a host has of WireGuard. The Agent's lock is held by who looks at it.
type tunnel struct {
	// clear is why this host cannot encrypt.
	clear error
	key   overlay.Secret
	// next is the key that the others are being told of, if renews.
	next   overlay.Secret
	renews bool
	port   uint16
	// told are the peers that the kernel was told of, and whether those were all there are.
	told *overlay.WireGuardPeers
	// turning is held while a key becomes another.
	turning sync.Mutex
}

// openTunnel recalls this host's key, or makes one, if this kernel has WireGuard.
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
		a.tunnel.renews = len(s.Next) > 0
		return err
	})
	if err != nil {
		return fmt.Errorf("recall this host's WireGuard key: %w", err)
	}
	return nil
}

// host is this one as the others are told of it.
func (a *Agent) host() cluster.Host {
	link, _ := overlay.CarrierOf(a.c.Kernel.Handle, a.c.Host.VTEP) // at boot its address may come later than netyard
	a.mu.Lock()
	defer a.mu.Unlock()
	h := a.c.Host
	if card := cluster.MAC(link.MAC); card.Valid() {
		h.Card = card
	}
	if a.tunnel.clear != nil {
		return h
	}
	key := a.tunnel.key
	if a.tunnel.renews {
		key = a.tunnel.next
	}
	h.WireGuard, h.WireGuardPort = cluster.PublicKeyOf(key.Public()), a.tunnel.port
	return h
}

// device is the WireGuard device that this host ought to have.
func (a *Agent) device() overlay.WireGuard {
	h := modes.OverlayHost{VTEP: a.c.Host.VTEP, MTU: a.c.Host.MTU}
	return overlay.WireGuard{
		Key: a.tunnel.key, Port: a.tunnel.port, MTU: h.TunnelMTU(), Addr: netip.PrefixFrom(a.c.Host.Tunnel(), cluster.TunnelBits),
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

// raise makes the device, for a network that is about to come.
func (a *Agent) raise() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.tunnel.clear != nil {
		return a.tunnel.clear
	}
	err := a.c.Kernel.Ensure(context.Background(), a.device())
	if err == nil {
		err = a.meet(true)
	}
	if err != nil && !a.encrypts() {
		err = errors.Join(err, a.lower())
	}
	return err
}

// lower takes the device away.
func (a *Agent) lower() error {
	a.tunnel.told = nil
	return a.c.Kernel.Remove(a.device())
}

// part gives up what the tunnel has for a network that has gone.
func (a *Agent) part() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.encrypts() {
		return a.meet(false)
	}
	return a.lower()
}

// meet has the device know the hosts that an encrypted network of this one is on, and nobody else.
func (a *Agent) meet(again bool) error {
	now, was, since := a.tunnelPeers(), a.tunnel.told, time.Now()
	if !again && was != nil && was.Partial == now.Partial && slices.Equal(was.All, now.All) {
		return nil
	}
	if err := a.c.Kernel.Ensure(context.Background(), now); err != nil {
		return err
	}
	a.tunnel.told = &now
	if was != nil {
		a.agree(renewed(was.All, now.All), since)
	}
	return nil
}

func (a *Agent) tunnelPeers() (all overlay.WireGuardPeers) {
	if a.fenced {
		return all
	}
	seen := map[string]bool{}
	for _, n := range a.networks {
		if !n.Encrypted {
			continue
		}
		all.Partial = all.Partial || !a.read(n) // as with Peers
		for _, h := range n.book.Tunnels() {
			if !seen[h.ID] {
				seen[h.ID] = true
				all.All = append(all.All, overlay.WireGuardPeer{Key: h.WireGuard.Bytes(), At: netip.AddrPortFrom(h.VTEP, h.WireGuardPort), Addr: h.Tunnel()})
			}
		}
	}
	slices.SortFunc(all.All, func(a, b overlay.WireGuardPeer) int { return a.Addr.Compare(b.Addr) })
	return all
}
