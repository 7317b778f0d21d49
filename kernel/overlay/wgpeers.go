package overlay

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"netyard/kernel/core"
)

// A WireGuardPeer is another host: WireGuard accepts from it only packets with its one address inside, and sends it
// only packets for that address.
type WireGuardPeer struct {
	Key [wgtypes.KeyLen]byte // public
	At  netip.AddrPort
	// Addr is its address inside the tunnel.
	Addr netip.Addr
}

// WireGuardPeers are all peers of the host's WireGuard device.
type WireGuardPeers struct {
	All []WireGuardPeer
	// Partial: there may be more peers, which are left alone.
	Partial bool
}

// String names the device.
func (WireGuardPeers) String() string { return "peers of " + core.TunnelName }

// Ensure changes only what differs: a peer that is added anew needs a new handshake.
func (p WireGuardPeers) Ensure(k *core.Handle) error {
	dev, err := tunnel(k)
	if err != nil {
		return fmt.Errorf("set %s: %w", p, err)
	}
	changes, rekeyed := p.compare(dev, false)
	if len(changes) == 0 {
		return nil
	}
	if err := setTunnel(k, wgtypes.Config{Peers: changes}); err != nil {
		return fmt.Errorf("set %s: %w", p, err)
	}
	return startHandshakes(k, rekeyed)
}

func (WireGuardPeers) Remove(*core.Handle) error { return nil } // they are removed with the device

func (p WireGuardPeers) Check(s *core.View) []string {
	if s.Link(core.TunnelName) == nil {
		return nil // the link reports that it is missing
	}
	dev, err := tunnelIn(s)
	if err != nil {
		return nil // the link reports the error
	}
	if changes, _ := p.compare(dev, true); len(changes) > 0 {
		return []string{fmt.Sprintf("%s: %d missing, different or unwanted", p, len(changes))}
	}
	return nil
}

// sessionLife is how long the keys of a handshake are valid (REJECT_AFTER_TIME, drivers/net/wireguard/messages.h).
const sessionLife = 180 * time.Second

// compare returns how the device has to change, and which hosts have another key now. With roam, a peer may be at
// another address than the wanted one: WireGuard itself follows a host that sends from another of its addresses, and
// Check accepts that.
func (p WireGuardPeers) compare(dev *wgtypes.Device, roam bool) (changes []wgtypes.PeerConfig, rekeyed []wgtypes.Key) {
	have, owner := map[wgtypes.Key]wgtypes.Peer{}, map[netip.Addr]bool{}
	for _, peer := range dev.Peers {
		have[peer.PublicKey] = peer
		for _, n := range peer.AllowedIPs {
			owner[core.PrefixOf(&n).Addr()] = true
		}
	}
	for _, want := range p.All {
		key := wgtypes.Key(want.Key)
		got, there := have[key]
		delete(have, key)
		roams := roam && time.Since(got.LastHandshakeTime) < sessionLife
		at := got.Endpoint != nil && (roams || want.At == addrPort(got.Endpoint))
		one := netip.PrefixFrom(want.Addr, want.Addr.BitLen())
		allowed := len(got.AllowedIPs) == 1 && core.PrefixOf(&got.AllowedIPs[0]) == one
		if there && at && allowed && got.PresharedKey == (wgtypes.Key{}) {
			continue
		}
		if !there && owner[want.Addr] {
			rekeyed = append(rekeyed, key)
		}
		changes = append(changes, wgtypes.PeerConfig{
			PublicKey: key, PresharedKey: &wgtypes.Key{}, Endpoint: net.UDPAddrFromAddrPort(want.At),
			ReplaceAllowedIPs: true, AllowedIPs: []net.IPNet{*core.IPNet(one)},
		})
	}
	for key, peer := range have {
		if p.Partial && !p.replaced(peer) {
			continue
		}
		changes = append(changes, wgtypes.PeerConfig{PublicKey: key, Remove: true})
	}
	return changes, rekeyed
}

// replaced reports whether a wanted peer has the address of an old one, and so is the same host with another key.
func (p WireGuardPeers) replaced(old wgtypes.Peer) bool {
	return slices.ContainsFunc(p.All, func(now WireGuardPeer) bool {
		return slices.ContainsFunc(old.AllowedIPs, func(n net.IPNet) bool {
			return core.PrefixOf(&n).Addr() == now.Addr
		})
	})
}

func addrPort(a *net.UDPAddr) netip.AddrPort {
	p := a.AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}

// startHandshakes makes the device start a handshake with each peer now. A host that had a packet to send before both
// ends knew the keys retries only after five seconds (REKEY_TIMEOUT). So each end starts a handshake when it knows the
// key, and the later one is answered. A persistent keepalive makes the device send something at once (set_peer,
// drivers/net/wireguard/netlink.c), and is turned off again.
func startHandshakes(k *core.Handle, peers []wgtypes.Key) error {
	const anything = 25 * time.Second
	for _, every := range []time.Duration{anything, 0} {
		var c wgtypes.Config
		for _, key := range peers {
			peer := wgtypes.PeerConfig{PublicKey: key, UpdateOnly: true, PersistentKeepaliveInterval: &every}
			c.Peers = append(c.Peers, peer)
		}
		if len(c.Peers) == 0 {
			return nil
		}
		if err := setTunnel(k, c); err != nil {
			return fmt.Errorf("start handshakes with peers of %s: %w", core.TunnelName, err)
		}
	}
	return nil
}

// RetryHandshakes starts a new handshake with those of the peers that have had none since that time. WireGuard itself
// retries five seconds after its last attempt, which it remembers for as long as it has the peer; so the peer is
// removed and added anew.
func RetryHandshakes(k *core.Handle, peers []WireGuardPeer, since time.Time) error {
	dev, err := tunnel(k)
	if err != nil {
		return fmt.Errorf("read peers of %s: %w", core.TunnelName, err)
	}
	var c wgtypes.Config
	var retried []wgtypes.Key
	for _, p := range dev.Peers {
		wanted := slices.ContainsFunc(peers, func(want WireGuardPeer) bool {
			return wgtypes.Key(want.Key) == p.PublicKey
		})
		if !wanted || p.LastHandshakeTime.After(since) {
			continue
		}
		retried = append(retried, p.PublicKey)
		c.Peers = append(c.Peers, wgtypes.PeerConfig{PublicKey: p.PublicKey, Remove: true}, wgtypes.PeerConfig{
			PublicKey: p.PublicKey, PresharedKey: &p.PresharedKey, Endpoint: p.Endpoint,
			ReplaceAllowedIPs: true, AllowedIPs: p.AllowedIPs,
		})
	}
	if len(retried) == 0 {
		return nil
	}
	if err := setTunnel(k, c); err != nil {
		return fmt.Errorf("reset peers of %s: %w", core.TunnelName, err)
	}
	return startHandshakes(k, retried)
}
