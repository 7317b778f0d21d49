package fabric

import (
	"context"
	"net/netip"
	"slices"

	"netyard/cluster/record"
	"netyard/kernel/overlay"
)

// host returns this host's record as it is published.
func (a *Agent) host() record.Host {
	h := a.c.Host
	// at boot its address may be set after netyard starts
	link, _ := a.kernel.Carrier(h.VTEP)
	if card := record.MAC(link.MAC); card.Valid() {
		h.Card = card
	}
	h.WireGuard, h.WireGuardPort = a.tunnel.Published()
	return h
}

// RotateKey gives this host a new WireGuard key and returns it.
func (a *Agent) RotateKey(ctx context.Context) (record.PublicKey, error) {
	if err := a.tunnel.Rotate(ctx); err != nil {
		return "", err
	}
	key, _ := a.tunnel.Published()
	return key, nil
}

// encrypts says whether any network of this host is encrypted.
func (a *Agent) encrypts() bool {
	return slices.ContainsFunc(a.on(), func(n *network) bool { return n.Encrypted })
}

// tunnelPeers returns the hosts that this host's encrypted networks are on.
func (a *Agent) tunnelPeers() (all overlay.WireGuardPeers) {
	a.mu.Lock()
	fenced := a.fenced
	a.mu.Unlock()
	if fenced {
		return all
	}
	seen := map[string]bool{}
	for _, n := range a.on() {
		if !n.Encrypted {
			continue
		}
		all.Partial = all.Partial || !a.read(n) // a killed daemon may have set more, see dataplane
		for _, h := range n.plane.Tunnels() {
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
