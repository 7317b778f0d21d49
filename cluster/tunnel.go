package cluster

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
)

// keyLen is the length of a WireGuard key: a point of Curve25519 (RFC 7748, section 5).
const keyLen = 32

// A PublicKey is what others know a host's WireGuard by, as wg(8) writes it; empty: it has none. As text it can be
// compared.
type PublicKey string

// Bytes is the key as the kernel takes it.
func (k PublicKey) Bytes() (raw [keyLen]byte) {
	b, _ := base64.StdEncoding.DecodeString(string(k)) // it was checked when it came in
	copy(raw[:], b)
	return raw
}

// PublicKeyOf writes a key as text.
func PublicKeyOf(raw [keyLen]byte) PublicKey {
	return PublicKey(base64.StdEncoding.EncodeToString(raw[:]))
}

func (k PublicKey) check() error {
	raw, err := base64.StdEncoding.Strict().DecodeString(string(k))
	switch {
	case err != nil || len(raw) != keyLen || base64.StdEncoding.EncodeToString(raw) != string(k):
		return fmt.Errorf("wireguard %.60q is not a key", string(k))
	case bytes.Equal(raw, make([]byte, keyLen)):
		return errors.New("wireguard is nobody's: it is all zeros")
	}
	return nil
}

// checkTunnel: a key and the port that it is used at go together.
func (h Host) checkTunnel() error {
	if (h.WireGuard == "") != (h.WireGuardPort == 0) {
		return fmt.Errorf("wireguard %.60q and wireguard_port %d: one is missing", string(h.WireGuard), h.WireGuardPort)
	}
	if h.WireGuard == "" {
		return nil
	}
	return h.WireGuard.check()
}

// TunnelBits is the length of the prefix that the hosts' addresses inside WireGuard have in common.
const TunnelBits = 64

// Tunnel is the host's address inside WireGuard. It follows from the host's id, which is random: nobody claims it, so
// no record can claim another host's. The prefix is a unique local one (RFC 4193), the same for all clusters, since it
// is on no other link than the tunnel.
func (h Host) Tunnel() netip.Addr {
	const half = TunnelBits / 8
	prefix, own := sha256.Sum256([]byte("netyard tunnel")), sha256.Sum256([]byte("netyard tunnel of host "+h.ID))
	var a [16]byte
	a[0] = 0xfd
	copy(a[1:half], prefix[:])
	copy(a[half:], own[:])
	return netip.AddrFrom16(a)
}
