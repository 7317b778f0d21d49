package book

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"netyard/modes"
	"netyard/store"
)

// PortClaims says which endpoint has a port of the host, by protocol, range and address.
var PortClaims = store.Bucket[portClaim]{Name: "ports"}

type portClaim struct{ Network, Endpoint string }

// An Ask is a port that somebody wants to have published.
type Ask struct {
	Proto         string
	ContainerPort uint16
	// HostIP is the host's address; invalid: the network's default.
	HostIP netip.Addr
	// HostPort is 0 for any free one; HostPortEnd is the last of those that will do.
	HostPort, HostPortEnd uint16
}

// String is how -p says it.
func (a Ask) String() string {
	host := ""
	if a.HostIP.IsValid() {
		host = a.HostIP.String() + ":"
		if a.HostIP.Is6() {
			host = "[" + a.HostIP.String() + "]:"
		}
	}
	switch {
	case a.HostPort == 0:
	case a.HostPortEnd > a.HostPort:
		host += fmt.Sprintf("%d-%d:", a.HostPort, a.HostPortEnd)
	default:
		host += fmt.Sprintf("%d:", a.HostPort)
	}
	return fmt.Sprintf("%s%d/%s", host, a.ContainerPort, a.Proto)
}

// A ClaimedRange is a claim as its key says it.
type ClaimedRange struct {
	Proto       string
	Addr        netip.Addr
	First, Last uint16
	Key         string
}

// ClaimOf is what a port claims of the host.
func ClaimOf(p modes.Port) ClaimedRange {
	return ClaimedRange{Proto: p.Proto, Addr: p.HostIP, First: p.HostPort, Last: p.HostPort + p.Count - 1}
}

func (r ClaimedRange) String() string {
	return fmt.Sprintf("%s/%05d-%05d/%s", r.Proto, r.First, r.Last, r.Addr)
}

// ParseClaim reads a claim back.
func ParseClaim(key string) (r ClaimedRange, ok bool) {
	parts := strings.SplitN(key, "/", 3)
	if len(parts) != 3 {
		return r, false
	}
	first, last, _ := strings.Cut(parts[1], "-")
	a, err1 := strconv.ParseUint(first, 10, 16)
	b, err2 := strconv.ParseUint(last, 10, 16)
	addr, err3 := netip.ParseAddr(parts[2])
	return ClaimedRange{Proto: parts[0], Addr: addr, First: uint16(a), Last: uint16(b), Key: key},
		errors.Join(err1, err2, err3) == nil
}

// Claimant names who has a claim.
func Claimant(tx store.Tx, key string) string {
	c, err := PortClaims.Get(tx, key)
	if err != nil {
		return "somebody"
	}
	return InUseBy(tx, Holder(c))
}

// hostPorts are those ports that are the host's.
func hostPorts(ports []modes.Port) []modes.Port {
	return slices.DeleteFunc(slices.Clone(ports), func(p modes.Port) bool { return p.Routed })
}

// setPortClaims makes the claims of an endpoint what its record says.
func setPortClaims(tx store.Tx, e modes.Endpoint) error {
	want := map[string]bool{}
	if e.Phase != modes.Deleting {
		for _, p := range hostPorts(e.Ports) {
			want[ClaimOf(p).String()] = true
		}
	}
	old, err := GetEndpoint(tx, e.NetworkID, e.ID)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	for _, p := range old.Ports {
		key := ClaimOf(p).String()
		c, err := PortClaims.Get(tx, key)
		if want[key] || errors.Is(err, store.ErrNotFound) || err == nil && c.Endpoint != e.ID {
			continue
		}
		if err != nil {
			return err
		}
		if err := PortClaims.Delete(tx, key); err != nil {
			return err
		}
	}
	for key := range want {
		if err := PortClaims.Put(tx, key, portClaim{e.NetworkID, e.ID}); err != nil {
			return err
		}
	}
	return nil
}
