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

// A WireGuardPeer is another host: what it sends by its key is from its one address, and goes nowhere else.
type WireGuardPeer struct {
	Key [wgtypes.KeyLen]byte // public
	At  netip.AddrPort
	// Addr is its address inside.
	Addr netip.Addr
}

// WireGuardPeers are all peers of the host's WireGuard device.
type WireGuardPeers struct {
	All []WireGuardPeer
	// Partial: there may be more of them, who are let alone.
	Partial bool
}

// String names the device.
func (WireGuardPeers) String() string { return "peers of " + core.TunnelName }

// Ensure changes what is different, and no more: a peer that is put in anew has to agree upon keys again.
func (p WireGuardPeers) Ensure(k *core.Handle) error {
	dev, err := tunnel(k)
	if err != nil {
		return fmt.Errorf("set %s: %w", p, err)
	}
	changes, renewed := p.compare(dev, false)
	if len(changes) == 0 {
		return nil
	}
	if err := setTunnel(k, wgtypes.Config{Peers: changes}); err != nil {
		return fmt.Errorf("set %s: %w", p, err)
	}
	return greet(k, renewed)
}

func (WireGuardPeers) Remove(*core.Handle) error { return nil } // they go with the device

func (p WireGuardPeers) Check(s *core.View) []string {
	if s.Links[core.TunnelName] == nil {
		return nil // that the link is missing is said by the link
	}
	dev, err := tunnelIn(s)
	if err != nil {
		return nil // the same
	}
	if changes, _ := p.compare(dev, true); len(changes) > 0 {
		return []string{fmt.Sprintf("%s: %d are missing, different or nobody's", p, len(changes))}
	}
	return nil
}

// lively is how long an agreement upon keys is good for (REJECT_AFTER_TIME, drivers/net/wireguard/messages.h).
const lively = 180 * time.Second

// compare says what the device has to be told, and which hosts have another key now. WireGuard itself follows a host
// that answers from another of its addresses; who asks whether all is well lets it.
func (p WireGuardPeers) compare(dev *wgtypes.Device, roam bool) (changes []wgtypes.PeerConfig, renewed []wgtypes.Key) {
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
		at := got.Endpoint != nil && (want.At == addrPort(got.Endpoint) || roam && time.Since(got.LastHandshakeTime) < lively)
		one := netip.PrefixFrom(want.Addr, want.Addr.BitLen())
		allowed := len(got.AllowedIPs) == 1 && core.PrefixOf(&got.AllowedIPs[0]) == one
		if there && at && allowed && got.PresharedKey == (wgtypes.Key{}) {
			continue
		}
		if !there && owner[want.Addr] {
			renewed = append(renewed, key)
		}
		changes = append(changes, wgtypes.PeerConfig{
			PublicKey: key, PresharedKey: &wgtypes.Key{}, Endpoint: net.UDPAddrFromAddrPort(want.At), ReplaceAllowedIPs: true, AllowedIPs: []net.IPNet{*core.IPNet(one)},
		})
	}
	for key, peer := range have {
		if p.Partial && !p.replaced(peer) {
			continue
		}
		changes = append(changes, wgtypes.PeerConfig{PublicKey: key, Remove: true})
	}
	return changes, renewed
}

// replaced says whether a peer has the address of one that has another key now.
func (p WireGuardPeers) replaced(old wgtypes.Peer) bool {
	return slices.ContainsFunc(p.All, func(now WireGuardPeer) bool {
		return slices.ContainsFunc(old.AllowedIPs, func(n net.IPNet) bool { return core.PrefixOf(&n).Addr() == now.Addr })
	})
}

func addrPort(a *net.UDPAddr) netip.AddrPort {
	p := a.AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}

// greet has the device agree upon keys with peers now. One that got a packet to send before both ends had the key asks
// again only in five seconds (REKEY_TIMEOUT); so each end asks when it has it, and the later of them is answered. A
// peer that is to be kept alive is sent something at once (set_peer, drivers/net/wireguard/netlink.c), and afterwards
// it is not to be.
func greet(k *core.Handle, peers []wgtypes.Key) error {
	const anything = 25 * time.Second
	for _, every := range []time.Duration{anything, 0} {
		var c wgtypes.Config
		for _, key := range peers {
			c.Peers = append(c.Peers, wgtypes.PeerConfig{PublicKey: key, UpdateOnly: true, PersistentKeepaliveInterval: &every})
		}
		if len(c.Peers) == 0 {
			return nil
		}
		if err := setTunnel(k, c); err != nil {
			return fmt.Errorf("greet peers of %s: %w", core.TunnelName, err)
		}
	}
	return nil
}

// AskAgain has the device ask those of the peers anew that it has not agreed upon keys with since then: WireGuard
// itself does so five seconds after it asked last, which it remembers for as long as it has the peer.
func AskAgain(k *core.Handle, peers []WireGuardPeer, since time.Time) error {
	dev, err := tunnel(k)
	if err != nil {
		return fmt.Errorf("look at peers of %s: %w", core.TunnelName, err)
	}
	var c wgtypes.Config
	var again []wgtypes.Key
	for _, p := range dev.Peers {
		asked := slices.ContainsFunc(peers, func(want WireGuardPeer) bool { return wgtypes.Key(want.Key) == p.PublicKey })
		if !asked || p.LastHandshakeTime.After(since) {
			continue
		}
		again = append(again, p.PublicKey)
		c.Peers = append(c.Peers, wgtypes.PeerConfig{PublicKey: p.PublicKey, Remove: true}, wgtypes.PeerConfig{
			PublicKey: p.PublicKey, PresharedKey: &p.PresharedKey, Endpoint: p.Endpoint, ReplaceAllowedIPs: true, AllowedIPs: p.AllowedIPs,
		})
	}
	if len(again) == 0 {
		return nil
	}
	if err := setTunnel(k, c); err != nil {
		return fmt.Errorf("set peers of %s anew: %w", core.TunnelName, err)
	}
	return greet(k, again)
}
