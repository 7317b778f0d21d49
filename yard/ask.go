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

// engineKeys are the keys among a network's -o options that an engine reads itself. It sends them on, whatever the
// driver, and so do the defaults of its configuration (default-network-opts).
func engineKeys() []string {
	const prefix = "com.docker.network."
	return []string{
		prefix + "enable_ipv4", prefix + "enable_ipv6",
		prefix + "advertise_addr_nmsgs", prefix + "advertise_addr_ms",
	}
}

// ResolveFromEngine resolves the -o options that an engine has of a network, as Resolve does, without its own.
func (y *Yard) ResolveFromEngine(doorMode string, given map[string]string) (string, map[string]string, error) {
	own := engineKeys()
	given = maps.Clone(given)
	maps.DeleteFunc(given, func(key, _ string) bool { return slices.Contains(own, key) })
	return y.Resolve(doorMode, given)
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
