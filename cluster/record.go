package cluster

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

const (
	maxKey   = 256  // bytes, without the prefix of the cluster
	maxValue = 4096 // bytes
	maxName  = 128  // bytes
	maxNets  = 8    // subnets of a network

	// MaxNames is how many aliases an endpoint can have.
	MaxNames = 16

	idLen = 32 // hexadecimal digits

	// MinVNI is the least number a network gets: those below people give by hand.
	MinVNI = 0x1000
	// MaxVNI is the greatest there is (RFC 7348, section 5).
	MaxVNI = 1<<24 - 1

	minMTU     = 68   // RFC 791
	minIPv6MTU = 1280 // RFC 8200, section 5
	maxMTU     = 65535
)

// A Record is one key of the cluster and what is under it.
type Record interface {
	// Key is where it is kept, without the prefix of the cluster.
	Key() string
	// check says what is wrong with it.
	check() error
}

// Meta says which cluster it is, and what holds for all of its hosts. It is written once.
type Meta struct {
	Schema  int    `json:"schema"`
	Cluster string `json:"cluster"` // an id
	// Port is the UDP port of VXLAN, on all hosts.
	Port uint16 `json:"port"`
	// IPv6: the hosts speak to each other by IPv6. A VXLAN device has one family.
	IPv6 bool `json:"ipv6,omitempty"`
}

// A Host is a member of the cluster. It is on no lease: a host that is away for a while keeps what it has.
type Host struct {
	ID   string     `json:"-"`
	Name string     `json:"name"`
	VTEP netip.Addr `json:"vtep"` // where it takes VXLAN
	MTU  int        `json:"mtu"`  // of its link to the others, bytes
	// Card is the hardware address of the link that has VTEP, where that is known: by both a machine is known that was
	// booted again.
	Card MAC `json:"card,omitempty"`
	// Version is that of its netyard.
	Version string `json:"version,omitempty"`
	// WireGuard is the key by which the others encrypt for it, and WireGuardPort the UDP port where it takes that. A
	// host without is no peer of a network that is encrypted.
	WireGuard     PublicKey `json:"wireguard,omitempty"`
	WireGuardPort uint16    `json:"wireguard_port,omitempty"`
}

// An Alive is there while a host's netyard runs and reaches etcd; it is the only record on a lease. It is for people
// and for twins.
type Alive struct {
	Host string `json:"-"`
	Boot string `json:"boot"` // the boot id of the machine
}

// A Tomb says that a host was taken out, and must not go on with what it had.
type Tomb struct {
	Host string `json:"-"`
	By   string `json:"by"` // the name of the host where it was said
}

// A Network is an overlay.
type Network struct {
	ID       string   `json:"-"`
	Name     string   `json:"name"`
	VNI      uint32   `json:"vni"`
	Subnets  []Subnet `json:"subnets"`
	MTU      int      `json:"mtu"` // inside, bytes
	Internal bool     `json:"internal,omitempty"`
	// Encrypted: what is between its hosts is inside WireGuard, or is not at all.
	Encrypted bool `json:"encrypted,omitempty"`
}

// A Subnet is a range of addresses of a network, and the address that every host has in it as its containers' gateway.
type Subnet struct {
	Pool    netip.Prefix `json:"pool"`
	Gateway netip.Addr   `json:"gateway"`
}

// A Member is a host that a network is on: it takes frames of it.
type Member struct {
	Network string `json:"-"`
	Host    string `json:"-"`
}

// A Use is what an address is for.
type Use string

// The uses of an address.
const (
	Warm     Use = "warm"     // claimed before anybody needs it
	Endpoint Use = "endpoint" // a container's
	OfHost   Use = "host"     // the host's own, by which it reaches containers elsewhere
	Gateway  Use = "gateway"  // all hosts'
)

// An Address is a claim to one address of a network, and all that the others need to reach it. Its key is the address:
// no two hosts can have it. It does not say where the host is, so that nobody can point traffic at an address that is
// not a member's.
type Address struct {
	Network string     `json:"-"`
	Addr    netip.Addr `json:"-"`
	Host    string     `json:"host,omitempty"` // empty: all of them
	Use     Use        `json:"use"`
	// Endpoint is whose it is; empty when it is not an endpoint's.
	Endpoint string   `json:"endpoint,omitempty"`
	MAC      MAC      `json:"mac,omitempty"`
	Name     string   `json:"name,omitempty"`
	Aliases  []string `json:"aliases,omitempty"`
}

// A Claim gives a name or a number to whoever has the id: of a host, or of a network.
type Claim struct {
	Kind string `json:"-"` // hostname, vtep, netname, vni
	What string `json:"-"`
	ID   string `json:"id"`
}

// A MAC is a hardware address of a station (IEEE 802, 48 bits), as text: comparable.
type MAC string

// Hardware is the address as bytes.
func (m MAC) Hardware() net.HardwareAddr {
	hw, _ := net.ParseMAC(string(m)) // it was checked when it came in
	return hw
}

// Valid says whether it is that of one card.
func (m MAC) Valid() bool { return m.check() == nil }

func (m MAC) check() error {
	hw, err := net.ParseMAC(string(m))
	switch {
	case err != nil || len(hw) != 6 || hw.String() != string(m):
		return fmt.Errorf("mac %q is not one", m)
	case hw[0]&1 != 0:
		return fmt.Errorf("mac %s is of a group", m)
	case bytes.Equal(hw, make([]byte, 6)):
		return fmt.Errorf("mac %s is nobody's", m)
	}
	return nil
}

// Encode is what is written under a record's key.
func Encode(r Record) (string, error) {
	if err := r.check(); err != nil {
		return "", fmt.Errorf("%w: %s: %w", ErrBad, r.Key(), err)
	}
	raw, err := json.Marshal(r)
	if err != nil {
		return "", fmt.Errorf("encode %s: %w", r.Key(), err)
	}
	if len(raw) > maxValue {
		return "", fmt.Errorf("%w: %s: %d bytes, which is more than %d", ErrBad, r.Key(), len(raw), maxValue)
	}
	return string(raw), nil
}

// Decode reads what others wrote. Fields it does not know are of a newer netyard's, and no error.
func Decode(key string, value []byte) (Record, error) {
	bad := func(err error) error { return fmt.Errorf("%w: %.80q: %w", ErrBad, key, err) }
	if len(key) > maxKey || len(value) > maxValue {
		return nil, bad(fmt.Errorf("%d bytes under a key of %d", len(value), len(key)))
	}
	r, err := decode(strings.Split(key, "/"), value)
	if err != nil {
		return nil, bad(err)
	}
	if got := r.Key(); got != key {
		return nil, bad(fmt.Errorf("the key would be %q", got))
	}
	if err := r.check(); err != nil {
		return nil, bad(err)
	}
	return r, nil
}

// decode reads a record of the kind that its key says.
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
	case kind == memberKind && len(path) == 3:
		return read(value, func(r *Member) { r.Network, r.Host = path[1], path[2] })
	case kind == addrKind && len(path) == 3:
		return read(value, func(r *Address) {
			r.Network, r.Addr = path[1], parseAddr(path[2])
			r.Aliases = append([]string(nil), r.Aliases...) // none is none, however it is written
		})
	case slices.Contains(claimKinds(), kind) && len(path) == 2:
		return read(value, func(r *Claim) { r.Kind, r.What = kind, path[1] })
	}
	return nil, fmt.Errorf("there is no such kind")
}

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
