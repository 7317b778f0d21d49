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
	// ConfDir is where runtimes look for networks.
	ConfDir = "/etc/cni/net.d"
	// confSuffix is that of a file which a runtime reads.
	confSuffix = ".conflist"
	// pluginType names the plugin's program: a link to netyard-cni.
	pluginType = "netyard"

	// DefaultNetwork is the network of nerdctl's containers that name none.
	DefaultNetwork = "bridge"
	// nerdctlsOwn is the file that nerdctl makes of it, and asideSuffix what it ends with while netyard stands in.
	nerdctlsOwn = "nerdctl-bridge.conflist"
	asideSuffix = ".netyard-aside"
)

// A Conflist is a network configuration list for runtimes, of one plugin that does everything.
type Conflist struct {
	CNIVersion string `json:"cniVersion"`
	// Versions are for runtimes that know of more than one (CNI 1.1.0).
	Versions []string `json:"cniVersions,omitempty"`
	Name     string   `json:"name"`
	// Labels show in nerdctl network inspect. There is no nerdctlID: with one, nerdctl network prune would delete
	// networks that stopped containers need, and nerdctl network rm those that netyard has.
	Labels  map[string]string `json:"nerdctlLabels,omitempty"`
	Plugins []Plugin          `json:"plugins"`
}

// A Plugin is netyard's part of a Conflist.
type Plugin struct {
	Type         string          `json:"type"`
	Network      string          `json:"network"`
	Socket       string          `json:"socket"`
	Capabilities map[string]bool `json:"capabilities"`
	// IPAM is for people and for nerdctl network inspect; the addresses are netyard's to give.
	IPAM *IPAM `json:"ipam,omitempty"`
}

// An IPAM says what addresses a network has.
type IPAM struct {
	Type   string    `json:"type"`
	Ranges [][]Range `json:"ranges"`
}

// A Range is one subnet of it.
type Range struct {
	Subnet  string `json:"subnet"`
	Gateway string `json:"gateway,omitempty"`
}

// New is the configuration of a network of netyard's under a name of its own; ranges are its subnets.
func New(name, network, id, mode, socket string, ranges []Range) Conflist {
	c := Conflist{
		CNIVersion: "1.0.0", Versions: []string{"1.0.0", "1.1.0"}, Name: name,
		Labels: map[string]string{"netyard.mode": mode, "netyard.network": id},
		Plugins: []Plugin{{
			Type: pluginType, Network: network, Socket: socket,
			Capabilities: map[string]bool{"portMappings": true, "ips": true, "mac": true, "bandwidth": true, "aliases": true, "dns": true},
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

// Install writes the configuration for runtimes to find, at once: one file that cannot be parsed breaks every command
// of nerdctl's. The name puts it behind those of a cluster, which takes the first one of all for its own.
func (c Conflist) Install(dir string) (path string, err error) {
	path = filepath.Join(dir, "netyard-"+c.Name+confSuffix)
	others, err := list(dir)
	if err != nil {
		return path, err
	}
	for _, o := range others {
		own := c.Name == DefaultNetwork && filepath.Base(o.Path) == nerdctlsOwn
		if o.Name == c.Name && o.Path != path && !own {
			return path, fmt.Errorf("install network %s: %s has a network of that name already", c.Name, o.Path)
		}
	}
	raw, err := json.MarshalIndent(c, "", "  ")
	if err == nil {
		err = os.MkdirAll(dir, 0o755)
	}
	if err == nil {
		err = os.WriteFile(path+".new", append(raw, '\n'), 0o644)
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err == nil && c.Name == DefaultNetwork {
		err = ignoreMissing(os.Rename(filepath.Join(dir, nerdctlsOwn), filepath.Join(dir, nerdctlsOwn+asideSuffix)))
	}
	if err != nil {
		return path, fmt.Errorf("install network %s: %w", c.Name, err)
	}
	return path, nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// An Installed is a configuration that is there.
type Installed struct {
	Path, Name string
	// Network is netyard's, empty when the configuration is of another plugin or is a whole network by itself.
	Network string
	// Ours: netyard's plugin is in it.
	Ours bool
}

// List finds the configurations with netyard's plugin in a directory.
func List(dir string) ([]Installed, error) {
	all, err := list(dir)
	return slices.DeleteFunc(all, func(i Installed) bool { return !i.Ours }), err
}

// list reads all that can be read.
func list(dir string) (all []Installed, err error) {
	files, err := filepath.Glob(filepath.Join(dir, "*"+confSuffix))
	if err != nil {
		return nil, fmt.Errorf("look into %s: %w", dir, err)
	}
	for _, path := range files {
		raw, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read network configuration: %w", err)
		}
		var c Conflist
		if err := json.Unmarshal(raw, &c); err != nil {
			continue // another's, of another form
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

// Uninstall removes the configurations of a network of netyard's and returns what it removed; nerdctl's own default
// network comes back.
func Uninstall(dir, network string) (paths []string, err error) {
	all, err := List(dir)
	if err != nil {
		return nil, err
	}
	for _, i := range all {
		if i.Network != network {
			continue
		}
		if err := os.Remove(i.Path); err != nil {
			return paths, fmt.Errorf("uninstall network %s: %w", network, err)
		}
		paths = append(paths, i.Path)
		if i.Name == DefaultNetwork {
			own := filepath.Join(dir, nerdctlsOwn)
			if err := ignoreMissing(os.Rename(own+asideSuffix, own)); err != nil {
				return paths, fmt.Errorf("put nerdctl's own network back: %w", err)
			}
		}
	}
	return paths, nil
}
