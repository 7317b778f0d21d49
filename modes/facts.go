package modes

import (
	"encoding/json"
	"fmt"
	"net/netip"

	"netyard/kernel/core"
	"netyard/kernel/device"
	"netyard/kernel/gso"
)

// Facts tell a mode what it may know of the host. Package plan reads them from the kernel; tests invent them.
type Facts interface {
	// FindLink finds a link by name; ok is false when there is none.
	FindLink(name string) (info core.LinkInfo, ok bool, err error)
	// Links returns the names of the host's links.
	Links() ([]string, error)
	// HasKind says whether the kernel can make links of a kind.
	HasKind(kind string) bool
	// OverlappingLink finds a link, other than except, with a subnet that overlaps the given one; empty: none. The
	// given subnet may lie inside the subnets of the links in within.
	OverlappingLink(subnet netip.Prefix, except string, within ...string) (link string, other netip.Prefix, err error)
	// HasAddr says whether the host has an address.
	HasAddr(a netip.Addr) (bool, error)
	// LinkAddrs returns the addresses of a link whose scope is more than the link.
	LinkAddrs(link string) ([]netip.Prefix, error)
	// ReversePath returns the value of rp_filter that is in effect on a link (ip-sysctl.rst).
	ReversePath(link string) (string, error)
	// SegmentLimit returns how large the segments of a network may be.
	SegmentLimit(want gso.Want) (gso.Limit, error)
	// Device returns the state of a network card of the host; an error says why no container can have it.
	Device(name string) (device.State, error)
}

// keptDevice is the key of Endpoint.Kept for the state of a card.
const keptDevice = "device"

// NoteDevice returns the state of a card as Endpoint.Kept stores it.
func NoteDevice(st device.State) (map[string]string, error) {
	text, err := json.Marshal(st)
	if err != nil {
		return nil, fmt.Errorf("encode the state of a device: %w", err)
	}
	return map[string]string{keptDevice: string(text)}, nil
}

// NotedDevice returns the state of the endpoint's card before it was moved; ok is false when none is recorded.
func (e Endpoint) NotedDevice() (st device.State, ok bool) {
	text := e.Kept[keptDevice]
	ok = text != "" && json.Unmarshal([]byte(text), &st) == nil
	return st, ok
}
