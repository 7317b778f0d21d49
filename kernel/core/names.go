package core

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"

	"golang.org/x/sys/unix"
)

// ShaperPrefix begins the names of the links where what endpoints send is delayed; they go on with the beginning of the
// endpoint's id.
const ShaperPrefix = "nyi-"

const (
	// AliasPrefix begins the alias of every link netyard makes: netyard:<network>[:<endpoint>].
	AliasPrefix = "netyard:"

	// BridgePrefix begins the names of bridges; they go on with the beginning of the network's id.
	BridgePrefix = "nyb-"
	// VethPrefix begins the names of endpoints' outer links; they go on with the beginning of the endpoint's id.
	VethPrefix = "nyv-"
	// PeerPrefix begins the names of the inner ones, while they are outside.
	PeerPrefix = "nyp-"

	maxName = unix.IFNAMSIZ - 1
)

// Name is the name of the link of that prefix which belongs to id.
func Name(prefix, id string) string {
	if n := maxName - len(prefix); len(id) > n {
		id = id[:n]
	}
	return prefix + id
}

// Alias is the alias of a link of that network, and of that endpoint if there is one.
func Alias(network, endpoint string) string {
	if endpoint == "" {
		return AliasPrefix + network
	}
	return AliasPrefix + network + ":" + endpoint
}

// ParseAlias takes an alias apart; ok is false when it is not one of netyard's.
func ParseAlias(alias string) (network, endpoint string, ok bool) {
	rest, ok := strings.CutPrefix(alias, AliasPrefix)
	network, endpoint, _ = strings.Cut(rest, ":")
	return network, endpoint, ok && network != ""
}

// OwnName says whether a link's name is one that only netyard gives: a prefix and eleven hexadecimal digits, or that of
// the tunnel.
func OwnName(name string) bool {
	for _, p := range []string{BridgePrefix, VethPrefix, PeerPrefix, ShaperPrefix, IslandPrefix, ShimPrefix, VXLANPrefix} {
		if id, ok := strings.CutPrefix(name, p); ok {
			return len(name) == maxName && strings.Trim(id, "0123456789abcdef") == ""
		}
	}
	return name == TunnelName
}

const (
	// IslandPrefix begins the names of parents that lead nowhere, and of VLAN links until they are marked.
	IslandPrefix = "nyd-"
	// ShimPrefix begins the names of the host's own links on parents; they go on with a hash of the parent's name.
	ShimPrefix = "nys-"
)

// HashID is hexadecimal digits that stand for a name.
func HashID(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:])
}

// VXLANPrefix begins the names of VXLAN devices; they go on with the beginning of the network's id.
const VXLANPrefix = "nyx-"

// TunnelName is the WireGuard device of the host: one for all of its encrypted networks. The ruleset has the name, so
// the rules need not know whether there is such a link.
const TunnelName = "nyt-overlay"
