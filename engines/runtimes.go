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
	"netyard/yard/attach"
	"netyard/yard/reconcile"
)

// cniCache is the directory where runtimes that use libcni record their attachments (libcni, CacheDir): CRI-O, podman,
// cnitool, and those of containerd.
const cniCache = "/var/lib/cni/results"

// A cached is one attachment as its runtime recorded it (libcni, cachedInfo).
type cached struct {
	ContainerID, IfName, NetNS string
	CNIArgs                    [][2]string
	Result                     struct {
		Interfaces []struct{ Sandbox string }
		IPs        []struct{ Address netip.Prefix }
	}
}

// matches reports whether an endpoint found in one of the attachment's sandboxes belongs to the attachment: the path
// may be another container's by now.
func (c cached) matches(s reconcile.SeenEndpoint) bool {
	if s.IfName != c.IfName {
		return false
	}
	return len(c.Result.IPs) == 0 || slices.ContainsFunc(c.Result.IPs, func(ip struct{ Address netip.Prefix }) bool {
		return slices.Contains(s.Addrs, ip.Address)
	})
}

// owner returns the container of the attachment.
func (c cached) owner() modes.Container {
	args := map[string]string{}
	for _, arg := range c.CNIArgs {
		args[arg[0]] = arg[1]
	}
	return attach.OwnerOf(c.ContainerID, args)
}

// sandboxes returns the paths where the attachment's sandbox may be. Older runtimes record only the paths in the
// plugin's result.
func (c cached) sandboxes() (paths []string) {
	paths = append(paths, c.NetNS)
	for _, i := range c.Result.Interfaces {
		paths = append(paths, i.Sandbox)
	}
	return paths
}

// addCached adds the attachments of runtimes other than containerd's to the census. The kernel shows netyard's links in
// a sandbox; the runtime's cache has the name by which the runtime will delete the attachment.
func addCached(y *yard.Yard, dir string, census reconcile.Census) error {
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		return fmt.Errorf("list attachments in %s: %w", dir, err)
	}
	for _, file := range files {
		var c cached
		raw, err := os.ReadFile(file)
		if err != nil || json.Unmarshal(raw, &c) != nil || c.ContainerID == "" {
			continue // not an attachment, or deleted meanwhile
		}
		for _, path := range c.sandboxes() {
			if path == "" {
				continue
			}
			found, err := reconcile.FindIn(y, path)
			if err != nil {
				continue // the sandbox no longer exists
			}
			for id, s := range found {
				if _, known := census.Endpoints[id]; known || !c.matches(s) {
					continue
				}
				s.Container, s.Attachment = c.owner(), c.ContainerID
				census.Endpoints[id] = s
			}
		}
	}
	return nil
}
