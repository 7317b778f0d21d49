package yard

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"netyard/ipam"
	"netyard/modes"
)

const (
	// Docker is the name of the engine behind the doors of package driver.
	Docker = "docker"
	// Containerd is the engine of an attachment whose container is known to containerd.
	Containerd = "containerd"
	// CNI is the engine of one that only its runtime knows.
	CNI = "cni"
	// Own is the engine of networks that the admin made, or a CNI configuration: nobody but the admin removes them.
	Own = "netyard"

	defaultMode = "bridge"

	// optParent is netyard's own --ipam-opt: the same subnet may be in use on several parents.
	optParent = "parent"
)

// Resolve finds the mode of a network that came in by a door of that mode, and its options under their canonical names.
func Resolve(doorMode string, given map[string]string) (mode string, opts map[string]string, err error) {
	mode = doorMode
	if said, ok := given["mode"]; ok && mode != "" && said != mode {
		return "", nil, fmt.Errorf("%w: mode=%s: the driver netyard-%s has networks of mode %s only; use -d netyard", modes.ErrOption, said, mode, mode)
	} else if mode == "" && ok {
		mode = said
	}
	if mode == "" {
		mode = defaultMode
	}
	opts, err = modes.Resolve(mode, given)
	delete(opts, "mode")
	return mode, opts, err
}

// PoolRequest reads what docker network create's --subnet, --ip-range and --ipam-opt say.
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
		if k != optParent {
			return r, fmt.Errorf("%w: unknown --ipam-opt %s; there is only %s", modes.ErrOption, k, optParent)
		}
		if !modes.ValidIfName(opts[k]) {
			return r, fmt.Errorf("%w: --ipam-opt %s=%s: want an interface name", modes.ErrOption, k, opts[k])
		}
		r.Domain = opts[k]
	}
	return r, nil
}
