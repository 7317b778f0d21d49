// Package record defines the records that the hosts of a cluster write to etcd: their types, their keys, and which of
// them are valid. It needs no etcd.
package record

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// Schema is the version of the records that this program writes. A host refuses to enter a cluster with a newer one.
const Schema = 1

// ErrInvalid is wrapped by every error that rejects a record.
var ErrInvalid = errors.New("invalid record")

// NewID returns a new random ID.
func NewID() string {
	var b [idLen / 2]byte
	_, _ = rand.Read(b[:]) // it never fails
	return hex.EncodeToString(b[:])
}

const (
	maxKey   = 256  // bytes, without the prefix of the cluster
	maxValue = 4096 // bytes
	maxName  = 128  // bytes
	maxNets  = 8    // subnets of a network

	// MaxNames is how many aliases an endpoint can have.
	MaxNames = 16

	idLen = 32 // hexadecimal digits

	// MinVNI is the lowest VNI that a network gets: lower ones are left for those that admins configure by hand.
	MinVNI = 0x1000
	// MaxVNI is the highest VNI (RFC 7348, section 5).
	MaxVNI = 1<<24 - 1

	minMTU     = 68   // RFC 791
	minIPv6MTU = 1280 // RFC 8200, section 5
	maxMTU     = 65535
)

// A Record is one key of the cluster and its value.
type Record interface {
	// Key returns the key, without the prefix of the cluster.
	Key() string
	// check returns what is wrong with the record.
	check() error
}

// Meta identifies the cluster and holds what applies to all of its hosts. It is written once.
type Meta struct {
	Schema  int    `json:"schema"`
	Cluster string `json:"cluster"` // an ID
	// Port is the UDP port of VXLAN, on all hosts.
	Port uint16 `json:"port"`
	// IPv6 says that the hosts' VTEPs are IPv6 addresses. A VXLAN device has one family.
	IPv6 bool `json:"ipv6,omitempty"`
}

// A Host is a member of the cluster. It is not on a lease: a host that is away for a while keeps what it has.
type Host struct {
	ID   string     `json:"-"`
	Name string     `json:"name"`
	VTEP netip.Addr `json:"vtep"` // where it receives VXLAN
	MTU  int        `json:"mtu"`  // of its link to the other hosts, bytes
	// Card is the MAC address of the link that has VTEP, where known: by both a machine is recognised after a reboot.
	Card MAC `json:"card,omitempty"`
	// Version is the version of its netyard.
	Version string `json:"version,omitempty"`
	// WireGuard is the public key with which other hosts encrypt for this one, and WireGuardPort the UDP port at which
	// it receives. A host without a key is not reached on encrypted networks.
	WireGuard     PublicKey `json:"wireguard,omitempty"`
	WireGuardPort uint16    `json:"wireguard_port,omitempty"`
}

// An Alive exists while a host's netyard runs and reaches etcd; it is the only record on a lease. It tells admins which
// hosts are up, and it tells a cloned machine that the original is running.
type Alive struct {
	Host string `json:"-"`
	Boot string `json:"boot"` // the boot ID of the machine
}

// A Tomb is the tombstone of a host that was removed from the cluster and must not go on using what it had.
type Tomb struct {
	Host string `json:"-"`
	By   string `json:"by"` // the name of the host on which it was removed
}

// A Network is an overlay network.
type Network struct {
	ID       string   `json:"-"`
	Name     string   `json:"name"`
	VNI      uint32   `json:"vni"`
	Subnets  []Subnet `json:"subnets"`
	MTU      int      `json:"mtu"` // inside, bytes
	Internal bool     `json:"internal,omitempty"`
	// Encrypted says that its frames travel between hosts only inside WireGuard.
	Encrypted bool `json:"encrypted,omitempty"`
}

// A Subnet is a range of addresses of a network, and the gateway address that every host has in it for its containers.
type Subnet struct {
	Pool    netip.Prefix `json:"pool"`
	Gateway netip.Addr   `json:"gateway"`
}

// A Member says that a network is on a host, so that the host receives frames of it.
type Member struct {
	Network string `json:"-"`
	Host    string `json:"-"`
}

// A Use says what an address is for.
type Use string

// The uses of an address.
const (
	Warm     Use = "warm"     // claimed in advance, for a container to come
	Endpoint Use = "endpoint" // a container's
	OfHost   Use = "host"     // the host's own, with which it reaches containers on other hosts
	Gateway  Use = "gateway"  // shared by all hosts
)

// An Address is a host's claim to one address of a network, with what other hosts need to reach it. The address is its
// key, so no two hosts can have it. It does not contain the host's VTEP, so that no record can direct traffic to an
// address that is not a member's.
type Address struct {
	Network string     `json:"-"`
	Addr    netip.Addr `json:"-"`
	Host    string     `json:"host,omitempty"` // empty: all hosts
	Use     Use        `json:"use"`
	// Endpoint is the ID of the endpoint that has it; empty when none has.
	Endpoint string   `json:"endpoint,omitempty"`
	MAC      MAC      `json:"mac,omitempty"`
	Name     string   `json:"name,omitempty"`
	Aliases  []string `json:"aliases,omitempty"`
}

// A Claim reserves a name, a VTEP or a VNI for the host or network with an ID.
type Claim struct {
	Kind string `json:"-"` // hostname, vtep, netname, vni
	What string `json:"-"`
	ID   string `json:"id"`
}

// A MAC is the MAC address of a station (IEEE 802, 48 bits). As text it is comparable.
type MAC string

// Hardware returns the address as bytes.
func (m MAC) Hardware() net.HardwareAddr {
	hw, _ := net.ParseMAC(string(m)) // check has accepted it
	return hw
}

// Valid says whether it is the address of a single station.
func (m MAC) Valid() bool { return m.check() == nil }

func (m MAC) check() error {
	hw, err := net.ParseMAC(string(m))
	switch {
	case err != nil || len(hw) != 6 || hw.String() != string(m):
		return fmt.Errorf("mac %q is not a MAC address in lower case", m)
	case hw[0]&1 != 0:
		return fmt.Errorf("mac %s is a group address", m)
	case bytes.Equal(hw, make([]byte, 6)):
		return fmt.Errorf("mac %s is all zeros", m)
	}
	return nil
}

// Encode returns the value to write under a record's key.
func Encode(r Record) (string, error) {
	if err := r.check(); err != nil {
		return "", fmt.Errorf("%w: %s: %w", ErrInvalid, r.Key(), err)
	}
	raw, err := json.Marshal(r)
	if err != nil {
		return "", fmt.Errorf("encode %s: %w", r.Key(), err)
	}
	if len(raw) > maxValue {
		return "", fmt.Errorf("%w: %s: %d bytes, and at most %d are allowed", ErrInvalid, r.Key(), len(raw), maxValue)
	}
	return string(raw), nil
}

// Decode reads a record that any host may have written, and rejects it unless it is valid. Unknown fields are allowed:
// a newer netyard writes them.
func Decode(key string, value []byte) (Record, error) {
	bad := func(err error) error { return fmt.Errorf("%w: %.80q: %w", ErrInvalid, key, err) }
	if len(key) > maxKey || len(value) > maxValue {
		return nil, bad(fmt.Errorf("too long: %d bytes under a key of %d", len(value), len(key)))
	}
	r, err := decode(strings.Split(key, "/"), value)
	if err != nil {
		return nil, bad(err)
	}
	if got := r.Key(); got != key {
		return nil, bad(fmt.Errorf("the record belongs under key %q", got))
	}
	if err := r.check(); err != nil {
		return nil, bad(err)
	}
	return r, nil
}

// decode reads a record of the kind that its key names.
func decode(path []string, value []byte) (Record, error) {
	switch kind := path[0]; {
	case kind == metaKey && len(path) == 1:
		return read(value, func(*Meta) {})
	case kind == hostKind && len(path) == 2:
		return read(value, func(r *Host) { r.ID = path[1] })
	case kind == aliveKind && len(path) == 2:
		return read(value, func(r *Alive) { r.Host = path[1] })
	case kind == tombKind && len(path) == 2:
		return read(value, func(r *Tomb) { r.Host = path[1] })
	case kind == netKind && len(path) == 2:
		return read(value, func(r *Network) { r.ID = path[1] })
	case kind == MemberKind && len(path) == 3:
		return read(value, func(r *Member) { r.Network, r.Host = path[1], path[2] })
	case kind == AddrKind && len(path) == 3:
		return read(value, func(r *Address) {
			r.Network, r.Addr = path[1], parseAddr(path[2])
			r.Aliases = append([]string(nil), r.Aliases...) // nil, whether it was written as [], null or not at all
		})
	case slices.Contains(claimKinds(), kind) && len(path) == 2:
		return read(value, func(r *Claim) { r.Kind, r.What = kind, path[1] })
	}
	return nil, fmt.Errorf("unknown kind of record")
}

// read decodes a value, and has locate set the fields that are in the key.
func read[T any, P interface {
	*T
	Record
}](value []byte, locate func(P),
) (Record, error) {
	var r T
	if err := json.Unmarshal(value, &r); err != nil {
		return nil, err
	}
	locate(&r)
	return P(&r), nil
}
