package core

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"

	"golang.org/x/sys/unix"
)

// ShaperPrefix begins the names of the links that shape what endpoints send. The beginning of the endpoint's ID
// follows.
const ShaperPrefix = "nyi-"

const (
	// AliasPrefix begins the alias of every link that netyard makes: netyard:<network>[:<endpoint>].
	AliasPrefix = "netyard:"

	// BridgePrefix begins the names of bridges. The beginning of the network's ID follows.
	BridgePrefix = "nyb-"
	// VethPrefix begins the names of the host ends of endpoints' links. The beginning of the endpoint's ID follows.
	VethPrefix = "nyv-"
	// PeerPrefix begins the names of the container ends while they are still on the host.
	PeerPrefix = "nyp-"

	maxName = unix.IFNAMSIZ - 1
)

// Name returns the name of a link: the prefix, and as much of the ID as fits.
func Name(prefix, id string) string {
	if n := maxName - len(prefix); len(id) > n {
		id = id[:n]
	}
	return prefix + id
}

// Alias returns the alias of a link of an endpoint, or of the network if endpoint is empty.
func Alias(network, endpoint string) string {
	if endpoint == "" {
		return AliasPrefix + network
	}
	return AliasPrefix + network + ":" + endpoint
}

// ParseAlias splits an alias into network and endpoint; ok is false if it is not one of netyard's.
func ParseAlias(alias string) (network, endpoint string, ok bool) {
	rest, ok := strings.CutPrefix(alias, AliasPrefix)
	network, endpoint, _ = strings.Cut(rest, ":")
	return network, endpoint, ok && network != ""
}

// OwnName reports whether a link's name is one that only netyard gives: a prefix and eleven hexadecimal digits, or
// TunnelName.
func OwnName(name string) bool {
	for _, p := range []string{
		BridgePrefix, VethPrefix, PeerPrefix, ShaperPrefix, IslandPrefix, ShimPrefix, VXLANPrefix,
	} {
		if id, ok := strings.CutPrefix(name, p); ok {
			return len(name) == maxName && strings.Trim(id, "0123456789abcdef") == ""
		}
	}
	return name == TunnelName
}

const (
	// IslandPrefix begins the names of dummy parents, which lead nowhere, and of VLAN links until they have their
	// alias.
	IslandPrefix = "nyd-"
	// ShimPrefix begins the names of the host's own links on parents. A hash of the parent's name follows.
	ShimPrefix = "nys-"
)

// HashID returns a hash of a name, to be used as an ID in Name (SHA-256, in hexadecimal).
func HashID(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:])
}

// VXLANPrefix begins the names of VXLAN devices. The beginning of the network's ID follows.
const VXLANPrefix = "nyx-"

// TunnelName is the name of the host's WireGuard device, which all of its encrypted networks share. The rules match
// this fixed name, so they are the same whether the device exists or not.
const TunnelName = "nyt-overlay"
