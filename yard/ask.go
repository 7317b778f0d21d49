package yard

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"netyard/ipam"
	"netyard/modes"
	"netyard/yard/book"
)

// Resolve returns the mode of a network and its options under their canonical names. doorMode is the only mode of the
// door that the network came through; empty: the door has all modes.
func (y *Yard) Resolve(doorMode string, given map[string]string) (mode string, opts map[string]string, err error) {
	mode = doorMode
	if asked, ok := given["mode"]; ok && mode != "" && asked != mode {
		return "", nil, modes.Refuse("mode=%s: the driver netyard-%s has networks of mode %s only; use -d netyard",
			asked, mode, mode)
	} else if mode == "" && ok {
		mode = asked
	}
	if mode == "" {
		mode = modes.DefaultMode
	}
	opts, err = y.Options.Resolve(mode, given)
	delete(opts, "mode")
	return mode, opts, err
}

// PoolRequest parses --subnet, --ip-range and --ipam-opt of docker network create.
func PoolRequest(subnet, ipRange string, opts map[string]string) (r ipam.PoolRequest, err error) {
	if subnet != "" {
		if r.Subnet, err = netip.ParsePrefix(subnet); err != nil {
			return r, fmt.Errorf("subnet %q: %w", subnet, err)
		}
	}
	if ipRange != "" {
		if r.Range, err = netip.ParsePrefix(ipRange); err != nil {
			return r, fmt.Errorf("ip-range %q: %w", ipRange, err)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(opts)) {
		if k != book.OptParent {
			return r, modes.Refuse("unknown --ipam-opt %s: only %s is supported", k, book.OptParent)
		}
		if !modes.ValidIfName(opts[k]) {
			return r, modes.Refuse("--ipam-opt %s=%s: want an interface name", k, opts[k])
		}
		r.Domain = opts[k]
	}
	return r, nil
}
