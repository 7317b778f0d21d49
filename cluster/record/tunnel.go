package record

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

// A PublicKey is a host's WireGuard public key, as wg(8) prints it; empty: it has none. As text it is comparable.
type PublicKey string

// Bytes returns the key in the kernel's form.
func (k PublicKey) Bytes() (raw [keyLen]byte) {
	b, _ := base64.StdEncoding.DecodeString(string(k)) // check has accepted it
	copy(raw[:], b)
	return raw
}

// PublicKeyOf returns a key as text.
func PublicKeyOf(raw [keyLen]byte) PublicKey {
	return PublicKey(base64.StdEncoding.EncodeToString(raw[:]))
}

func (k PublicKey) check() error {
	raw, err := base64.StdEncoding.Strict().DecodeString(string(k))
	switch {
	case err != nil || len(raw) != keyLen || base64.StdEncoding.EncodeToString(raw) != string(k):
		return fmt.Errorf("wireguard %.60q is not a WireGuard key", string(k))
	case bytes.Equal(raw, make([]byte, keyLen)):
		return errors.New("wireguard key is all zeros")
	}
	return nil
}

// checkTunnel refuses a WireGuard key without a port, or a port without a key.
func (h Host) checkTunnel() error {
	if (h.WireGuard == "") != (h.WireGuardPort == 0) {
		return fmt.Errorf("wireguard %.60q and wireguard_port %d must be set together", string(h.WireGuard),
			h.WireGuardPort)
	}
	if h.WireGuard == "" {
		return nil
	}
	return h.WireGuard.check()
}

// TunnelBits is the length of the prefix that all hosts' addresses inside WireGuard share.
const TunnelBits = 64

// Tunnel returns the host's address inside WireGuard. It is derived from the host's ID, which is random, and is not in
// any record, so no record can claim another host's. The prefix is a unique local one (RFC 4193), and the same for all
// clusters, since it is used on no link but the tunnel.
func (h Host) Tunnel() netip.Addr {
	const half = TunnelBits / 8
	prefix, own := sha256.Sum256([]byte("netyard tunnel")), sha256.Sum256([]byte("netyard tunnel of host "+h.ID))
	var a [16]byte
	a[0] = 0xfd
	copy(a[1:half], prefix[:])
	copy(a[half:], own[:])
	return netip.AddrFrom16(a)
}
