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

// PortClaims has the endpoint of each claimed range of host ports, by protocol, range and address.
var PortClaims = store.Bucket[portClaim]{Name: "ports"}

type portClaim struct{ Network, Endpoint string }

// An PortRequest is a request to publish a port.
type PortRequest struct {
	Proto         string
	ContainerPort uint16
	// HostIP is the host's address; invalid: the network's default.
	HostIP netip.Addr
	// HostPort is 0 for any free port; with HostPortEnd it is the first port of a range, of which one is published.
	HostPort, HostPortEnd uint16
}

// String returns the request in the form of -p.
func (a PortRequest) String() string {
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

// A ClaimedRange is the content of a claim's key.
type ClaimedRange struct {
	Proto       string
	Addr        netip.Addr
	First, Last uint16
	Key         string
}

// ClaimOf returns the range of host ports that a published port claims.
func ClaimOf(p modes.Port) ClaimedRange {
	return ClaimedRange{Proto: p.Proto, Addr: p.HostIP, First: p.HostPort, Last: p.HostPort + p.Count - 1}
}

func (r ClaimedRange) String() string {
	return fmt.Sprintf("%s/%05d-%05d/%s", r.Proto, r.First, r.Last, r.Addr)
}

// ParseClaim parses the key of a claim.
func ParseClaim(key string) (r ClaimedRange, ok bool) {
	parts := strings.SplitN(key, "/", 3)
	if len(parts) != 3 {
		return r, false
	}
	first, last, _ := strings.Cut(parts[1], "-")
	a, err1 := strconv.ParseUint(first, 10, 16)
	b, err2 := strconv.ParseUint(last, 10, 16)
	addr, err3 := netip.ParseAddr(parts[2])
	r = ClaimedRange{Proto: parts[0], Addr: addr, First: uint16(a), Last: uint16(b), Key: key}
	return r, errors.Join(err1, err2, err3) == nil
}

// Claimant names the owner of a claim.
func Claimant(tx store.Tx, key string) string {
	c, err := PortClaims.Get(tx, key)
	if err != nil {
		return "an unknown endpoint"
	}
	return InUseBy(tx, Holder(c))
}

// hostPorts returns the ports that are published on the host's addresses.
func hostPorts(ports []modes.Port) []modes.Port {
	return slices.DeleteFunc(slices.Clone(ports), func(p modes.Port) bool { return p.Routed })
}

// setPortClaims records the port claims of an endpoint, and deletes those that it no longer needs.
func setPortClaims(tx store.Tx, was, e modes.Endpoint) error {
	want := map[string]bool{}
	if e.Phase != modes.Deleting {
		for _, p := range hostPorts(e.Ports) {
			want[ClaimOf(p).String()] = true
		}
	}
	for _, p := range was.Ports {
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
