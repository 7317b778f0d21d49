package engines

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"netyard/modes"
	"netyard/yard"
	"netyard/yard/book"
	"netyard/yard/reconcile"
)

// cniCache is where runtimes that use libcni keep what they have attached (libcni, CacheDir): CRI-O, podman, cnitool,
// and containerd's.
const cniCache = "/var/lib/cni/results"

// A cached is one attachment as its runtime remembers it (libcni, cachedInfo).
type cached struct {
	ContainerID, IfName, NetNS string
	Result                     struct {
		Interfaces []struct{ Sandbox string }
		IPs        []struct{ Address netip.Prefix }
	}
}

// is says whether an endpoint that is in one of its sandboxes is the one: the path may be another container's by now.
func (c cached) is(s reconcile.SeenEndpoint) bool {
	return s.IfName == c.IfName && (len(c.Result.IPs) == 0 || slices.ContainsFunc(c.Result.IPs, func(ip struct{ Address netip.Prefix }) bool {
		return slices.Contains(s.Addrs, ip.Address)
	}))
}

// sandboxes are the paths that its sandbox may be at. Older runtimes remember only what the plugin said of it.
func (c cached) sandboxes() (paths []string) {
	paths = append(paths, c.NetNS)
	for _, i := range c.Result.Interfaces {
		paths = append(paths, i.Sandbox)
	}
	return paths
}

// lookBeside finds what was attached by runtimes that containerd does not know of: the kernel says what netyard has in
// a sandbox, and the runtime's own memory what it calls it when it comes to take it away.
func lookBeside(y *yard.Yard, dir string, census reconcile.Census) error {
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		return fmt.Errorf("look for what runtimes have attached: %w", err)
	}
	for _, file := range files {
		var c cached
		raw, err := os.ReadFile(file)
		if err != nil || json.Unmarshal(raw, &c) != nil || c.ContainerID == "" {
			continue // it is nobody's, or was taken away meanwhile
		}
		for _, path := range c.sandboxes() {
			if path == "" {
				continue
			}
			found, err := reconcile.FindIn(y, path)
			if err != nil {
				continue // there is no such sandbox any more
			}
			for id, s := range found {
				if _, known := census.Endpoints[id]; known || !c.is(s) {
					continue
				}
				s.Container, s.Attachment = modes.Container{Engine: book.CNI}, c.ContainerID
				census.Endpoints[id] = s
			}
		}
	}
	return nil
}
