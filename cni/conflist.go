package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

const (
	// ConfDir is the directory of the runtimes' network configurations.
	ConfDir = "/etc/cni/net.d"
	// confSuffix is the suffix of files that runtimes read.
	confSuffix = ".conflist"
	// copySuffix is that of a copy of each file of Install, which runtimes do not read. It stays when podman deletes
	// the file itself (podman network rm, prune).
	copySuffix = ".installed"
	// pluginType is the file name of the plugin's program, a link to netyard-cni.
	pluginType = "netyard"

	// DefaultNetwork is the network of nerdctl's containers that name none.
	DefaultNetwork = "bridge"
	// nerdctlDefault is the file of nerdctl's own default network. While netyard provides that network, the file has
	// asideSuffix, so that nerdctl does not read it.
	nerdctlDefault = "nerdctl-bridge.conflist"
	asideSuffix    = ".netyard-aside"
)

// A Conflist is a network configuration list for runtimes, with netyard as its only plugin.
type Conflist struct {
	CNIVersion string `json:"cniVersion"`
	// Versions is for runtimes that read more than one version (CNI 1.1.0).
	Versions []string `json:"cniVersions,omitempty"`
	Name     string   `json:"name"`
	// Labels show in nerdctl network inspect. There is no nerdctlID: with one, nerdctl network prune would delete
	// networks that stopped containers need, and nerdctl network rm would delete networks of netyard.
	Labels  map[string]string `json:"nerdctlLabels,omitempty"`
	Plugins []Plugin          `json:"plugins"`
}

// A Plugin is netyard's entry in a Conflist.
type Plugin struct {
	Type         string          `json:"type"`
	Network      string          `json:"network"`
	Socket       string          `json:"socket"`
	Capabilities map[string]bool `json:"capabilities"`
	// IPAM is for people and for nerdctl network inspect; the daemon does not read it to give addresses.
	IPAM *IPAM `json:"ipam,omitempty"`
}

// An IPAM lists the subnets of a network.
type IPAM struct {
	Type   string    `json:"type"`
	Ranges [][]Range `json:"ranges"`
}

// A Range is one subnet of an IPAM.
type Range struct {
	Subnet  string `json:"subnet"`
	Gateway string `json:"gateway,omitempty"`
}

// New returns the configuration of a netyard network under the name that runtimes use; ranges are its subnets.
func New(name, network, id, mode, socket string, ranges []Range) Conflist {
	c := Conflist{
		CNIVersion: "1.0.0", Versions: []string{"1.0.0", "1.1.0"}, Name: name,
		Labels: map[string]string{"netyard.mode": mode, "netyard.network": id},
		Plugins: []Plugin{{
			Type: pluginType, Network: network, Socket: socket,
			Capabilities: map[string]bool{
				"portMappings": true, "ips": true, "mac": true, "bandwidth": true, "aliases": true, "dns": true,
			},
		}},
	}
	if name == DefaultNetwork {
		c.Labels["nerdctl/default-network"] = "true"
	}
	if len(ranges) > 0 {
		ipam := &IPAM{Type: pluginType}
		for _, r := range ranges {
			ipam.Ranges = append(ipam.Ranges, []Range{r})
		}
		c.Plugins[0].IPAM = ipam
	}
	return c
}

// Install writes the configuration to the runtimes' directory, atomically: a file that cannot be parsed breaks every
// nerdctl command. Its file name sorts after those of a Kubernetes network, since the kubelet's runtime uses the first
// file as the cluster's network.
func (c Conflist) Install(dir string) (path string, err error) {
	path = pathOf(dir, c.Name)
	others, err := list(dir)
	if err != nil {
		return path, err
	}
	for _, o := range others {
		own := c.Name == DefaultNetwork && filepath.Base(o.Path) == nerdctlDefault
		if o.Name == c.Name && o.Path != path && !own {
			return path, fmt.Errorf("install network %s: %s already defines a network of that name", c.Name, o.Path)
		}
	}
	raw, err := json.MarshalIndent(c, "", "  ")
	if err == nil {
		err = os.MkdirAll(dir, 0o755)
	}
	for _, file := range []string{path, copyOf(dir, c.Name)} {
		if err == nil {
			err = os.WriteFile(file+".new", append(raw, '\n'), 0o644)
		}
		if err == nil {
			err = os.Rename(file+".new", file)
		}
	}
	if err == nil && c.Name == DefaultNetwork {
		own := filepath.Join(dir, nerdctlDefault)
		err = ignoreMissing(os.Rename(own, own+asideSuffix))
	}
	if err != nil {
		return path, fmt.Errorf("install network %s: %w", c.Name, err)
	}
	return path, nil
}

// pathOf returns the path of the configuration of that name, and copyOf that of its copy.
func pathOf(dir, name string) string { return filepath.Join(dir, "netyard-"+name+confSuffix) }
func copyOf(dir, name string) string { return pathOf(dir, name) + copySuffix }

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// An Installed is a configuration file in the runtimes' directory.
type Installed struct {
	Path, Name string
	// Network is the netyard network that it names. It is empty if the configuration is of another plugin or defines a
	// network itself.
	Network string
	// Ours says that the configuration has netyard's plugin.
	Ours bool
}

// List returns the configurations in a directory that have netyard's plugin.
func List(dir string) ([]Installed, error) {
	all, err := list(dir)
	return slices.DeleteFunc(all, func(i Installed) bool { return !i.Ours }), err
}

// Deleted returns the configurations that were installed in a directory and that another program has deleted. One that
// was renamed is still there.
func Deleted(dir string) (gone []Installed, err error) {
	copies, err := listed(dir, confSuffix+copySuffix)
	if err != nil || len(copies) == 0 {
		return nil, err
	}
	all, err := list(dir)
	for _, c := range copies {
		if !slices.ContainsFunc(all, func(i Installed) bool { return i.Name == c.Name }) {
			c.Path = strings.TrimSuffix(c.Path, copySuffix)
			gone = append(gone, c)
		}
	}
	return gone, err
}

// list returns all configurations in a directory, except those that it cannot parse.
func list(dir string) ([]Installed, error) { return listed(dir, confSuffix) }

// listed returns the configurations in the files of a suffix.
func listed(dir, suffix string) (all []Installed, err error) {
	files, err := filepath.Glob(filepath.Join(dir, "*"+suffix))
	if err != nil {
		return nil, fmt.Errorf("list network configurations in %s: %w", dir, err)
	}
	for _, path := range files {
		raw, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) { // deleted meanwhile
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read network configuration: %w", err)
		}
		var c Conflist
		if err := json.Unmarshal(raw, &c); err != nil {
			continue // not in the form of a Conflist, so not netyard's
		}
		i := Installed{Path: path, Name: c.Name}
		for _, p := range c.Plugins {
			if p.Type == pluginType || strings.HasPrefix(p.Type, pluginType+"-") {
				i.Ours, i.Network = true, p.Network
			}
		}
		all = append(all, i)
	}
	return all, nil
}

// Uninstall removes the configurations of a netyard network and returns their paths, also of those that another program
// has deleted. If one of them was the default network, it restores nerdctl's own.
func Uninstall(dir, network string) (paths []string, err error) {
	all, err := List(dir)
	if err != nil {
		return nil, err
	}
	deleted, err := Deleted(dir)
	if err != nil {
		return nil, err
	}
	for _, i := range append(all, deleted...) {
		if i.Network != network {
			continue
		}
		err := errors.Join(ignoreMissing(os.Remove(i.Path)), ignoreMissing(os.Remove(copyOf(dir, i.Name))))
		if err != nil {
			return paths, fmt.Errorf("uninstall network %s: %w", network, err)
		}
		paths = append(paths, i.Path)
		if i.Name == DefaultNetwork {
			own := filepath.Join(dir, nerdctlDefault)
			if err := ignoreMissing(os.Rename(own+asideSuffix, own)); err != nil {
				return paths, fmt.Errorf("restore nerdctl's own network: %w", err)
			}
		}
	}
	return paths, nil
}
