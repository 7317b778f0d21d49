package door

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"netyard/modes"
)

// A config is the plugin's part of a network configuration: netyard's own keys, or those of the upstream plugins
// bridge, macvlan and ipvlan, and those that the runtime adds.
type config struct {
	CNIVersion   string          `json:"cniVersion"`
	Name         string          `json:"name"`
	Type         string          `json:"type"`
	Capabilities map[string]bool `json:"capabilities"`
	PrevResult   json.RawMessage `json:"prevResult"`
	Args         json.RawMessage `json:"args"` // see confArgs
	DNS          types.DNS       `json:"dns"`
	Runtime      runtimeConfig   `json:"runtimeConfig"`
	IPAM         *ipamConfig     `json:"ipam"`

	// netyard's own keys.
	Network string            `json:"network"` // an existing network, which defines everything itself
	Socket  string            `json:"socket"`  // read by the plugin
	Options map[string]string `json:"options"` // of a network that is made from this configuration

	upstream
}

// upstream holds the keys of the plugins of containernetworking (plugins v1.9, main/bridge, main/macvlan, main/ipvlan).
// Those that netyard does not support are here so that it can refuse them by name; their default values are accepted.
type upstream struct {
	Bridge           string `json:"bridge"`
	IsGateway        bool   `json:"isGateway"`
	IsDefaultGateway bool   `json:"isDefaultGateway"`
	IPMasq           bool   `json:"ipMasq"`
	HairpinMode      bool   `json:"hairpinMode"` // netyard enables it for its own published ports in any case
	PromiscMode      bool   `json:"promiscMode"`
	PortIsolation    bool   `json:"portIsolation"`
	MTU              int    `json:"mtu"`
	MacSpoofChk      bool   `json:"macspoofchk"` // netyard checks addresses too, and does so by default
	Master           string `json:"master"`
	Mode             string `json:"mode"`

	ForceAddress        bool            `json:"forceAddress"`
	IPMasqBackend       string          `json:"ipMasqBackend"`
	Vlan                int             `json:"vlan"`
	VlanTrunk           json.RawMessage `json:"vlanTrunk"`
	PreserveDefaultVlan *bool           `json:"preserveDefaultVlan"` // has a meaning only with vlan
	EnableDad           bool            `json:"enabledad"`
	DisableIf           bool            `json:"disableContainerInterface"`
	LinkContNs          bool            `json:"linkInContainer"`
	BcQueueLen          uint32          `json:"bcqueuelen"`
}

// runtimeConfig holds what a runtime passes for the capabilities that the configuration declares.
type runtimeConfig struct {
	PortMappings []portMapping `json:"portMappings"`
	IPs          []string      `json:"ips"`
	MAC          string        `json:"mac"`
	Bandwidth    *bandwidth    `json:"bandwidth"`
	// Aliases is read by config.aliases: no alias is worth a container's network.
	Aliases json.RawMessage `json:"aliases"`
	DNS     *struct {
		Servers  []string `json:"servers"`
		Searches []string `json:"searches"`
		Options  []string `json:"options"`
	} `json:"dns"`
	CgroupPath string `json:"cgroupPath"` // not used
}

// aliases returns the runtime's aliases. They are a list (CNI's conventions), or in podman's case a list for each
// network. Whatever is not a name is ignored.
func (c config) aliases() (names []string) {
	raw := c.Runtime.Aliases
	var byNetwork map[string]json.RawMessage
	if json.Unmarshal(raw, &byNetwork) == nil {
		raw = byNetwork[c.Name]
	}
	var all []any
	_ = json.Unmarshal(raw, &all)
	for _, a := range all {
		if name, ok := a.(string); ok && name != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// A portMapping has the keys of CNI's conventions. nerdctl capitalizes them, which encoding/json accepts.
type portMapping struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP"`
}

// String returns the mapping in the form of -p.
func (p portMapping) String() string {
	s := fmt.Sprintf("%d:%d/%s", p.HostPort, p.ContainerPort, p.Protocol)
	if p.HostIP != "" {
		s = p.HostIP + ":" + s
	}
	return s
}

// bandwidth holds rates in bits per second and bursts in bits. netyard ignores the bursts, which runtimes set because
// the upstream plugin requires them, and chooses its own.
type bandwidth struct {
	IngressRate  uint64 `json:"ingressRate"`
	IngressBurst uint64 `json:"ingressBurst"`
	EgressRate   uint64 `json:"egressRate"`
	EgressBurst  uint64 `json:"egressBurst"`
}

// rates returns the bandwidth as endpoint options: ingress is what the container receives, egress what it sends.
func (r runtimeConfig) rates() map[string]string {
	out := map[string]string{}
	b := r.Bandwidth
	if b == nil {
		return out
	}
	for option, bits := range map[string]uint64{"ingress_rate": b.IngressRate, "egress_rate": b.EgressRate} {
		if bits > 0 {
			out[option] = fmt.Sprintf("%dbit", bits)
		}
	}
	return out
}

// ipamConfig holds the keys of the upstream plugins host-local, static and dhcp.
type ipamConfig struct {
	Type   string     `json:"type"`
	Ranges [][]ipamIn `json:"ranges"`
	ipamIn
	Routes     []ipamRoute     `json:"routes"`
	Addresses  []ipamAddress   `json:"addresses"`
	ResolvConf string          `json:"resolvConf"`
	DataDir    string          `json:"dataDir"` // ignored: netyard's leases are in its own database
	DNS        types.DNS       `json:"dns"`
	Daemon     string          `json:"daemonSocketPath"`
	Request    json.RawMessage `json:"request"`
	Provide    json.RawMessage `json:"provide"`
}

// ipamIn is one range of addresses.
type ipamIn struct {
	Subnet  string `json:"subnet"`
	First   string `json:"rangeStart"`
	Last    string `json:"rangeEnd"`
	Gateway string `json:"gateway"`
}

type ipamRoute struct {
	Dst string `json:"dst"`
	GW  string `json:"gw"`
}

type ipamAddress struct {
	Address string `json:"address"`
	Gateway string `json:"gateway"`
}

// confArgs is the part of "args" that CNI's conventions define for plugins; netyard ignores the rest.
type confArgs struct {
	CNI struct {
		IPs []string `json:"ips"`
		MAC string   `json:"mac"`
	} `json:"cni"`
}

// errConfig is wrapped by every error about a configuration, and is the first part of its text.
var errConfig = errors.New("network configuration")

// refuse returns an error about a key of the configuration.
func refuse(key, cause string) error {
	return fmt.Errorf("%w: key %s: %s", errConfig, key, cause)
}

// refuseAddress returns an error about an address: in a key of the configuration, or in IP or GATEWAY of CNI_ARGS.
func refuseAddress(key, cause string) error {
	if key == argIP || key == argGateway {
		return fmt.Errorf("%w: %s in CNI_ARGS: %s", errEnvironment, key, cause)
	}
	return refuse(key, cause)
}

// argIP and argGateway are keys of CNI_ARGS.
const argIP, argGateway = "IP", "GATEWAY"

// runtimePrefix is the prefix of keys that a runtime adds itself (CNI specification 1.1.0, section 4).
const runtimePrefix = "cni.dev/"

// decodeConfig decodes a configuration and refuses, by name, keys that netyard does not know or support.
func decodeConfig(raw []byte) (c config, err error) {
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(raw, &keys); err != nil {
		return c, fmt.Errorf("%w: %w", errConfig, err)
	}
	for k := range keys {
		if strings.HasPrefix(k, runtimePrefix) {
			delete(keys, k)
		}
	}
	rest, err := json.Marshal(keys)
	if err != nil {
		return c, fmt.Errorf("%w: %w", errConfig, err)
	}
	d := json.NewDecoder(bytes.NewReader(rest))
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		if key, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
			return c, refuse(strings.Trim(key, `"`), "unknown to netyard, which would ignore it; remove it")
		}
		return c, fmt.Errorf("%w: %w", errConfig, err)
	}
	return c, c.check()
}

// check refuses keys that netyard does not support.
func (c config) check() error {
	const vlans = "VLANs on bridges are not supported; use mode macvlan or ipvlan with a VLAN link as master"
	nftables := c.IPMasqBackend == "" || c.IPMasqBackend == "nftables"
	for _, r := range []struct {
		bad        bool
		key, cause string
	}{
		{c.ForceAddress, "forceAddress", "netyard does not change the addresses of a bridge that it did not make"},
		{!nftables, "ipMasqBackend", "netyard masquerades with nftables only"},
		{c.Vlan != 0, "vlan", vlans},
		{len(c.VlanTrunk) > 0 && string(c.VlanTrunk) != "null", "vlanTrunk", vlans},
		{c.EnableDad, "enabledad", "netyard gives no address twice and does not wait for duplicate address detection"},
		{c.DisableIf, "disableContainerInterface", "netyard always sets the container's interface up"},
		{c.LinkContNs, "linkInContainer", "the master must be a link of the host"},
		{c.BcQueueLen != 0, "bcqueuelen", "netyard does not change the kernel's default"},
	} {
		if r.bad {
			return refuse(r.key, r.cause)
		}
	}
	return c.checkIPAM()
}

func (c config) checkIPAM() error {
	if c.IPAM == nil {
		return nil
	}
	switch c.IPAM.Type {
	case "", "netyard", "host-local", "static":
	case "dhcp":
		return c.checkDHCP()
	default:
		return refuse("ipam.type", fmt.Sprintf("%q is not dhcp, host-local, static or netyard", c.IPAM.Type))
	}
	for key, raw := range map[string]json.RawMessage{"ipam.request": c.IPAM.Request, "ipam.provide": c.IPAM.Provide} {
		if len(raw) > 0 {
			return refuse(key, "needs ipam type dhcp")
		}
	}
	if c.IPAM.Daemon != "" {
		return refuse("ipam.daemonSocketPath", "needs ipam type dhcp")
	}
	return nil
}

// checkDHCP refuses keys that would choose what netyard sends to the DHCP server, or that contradict the server's
// answer.
func (c config) checkDHCP() error {
	i := *c.IPAM
	static := i.ipamIn != ipamIn{} || len(i.Ranges) > 0 || len(i.Addresses) > 0
	for _, r := range []struct {
		bad        bool
		key, cause string
	}{
		{len(i.Request) > 0, "ipam.request", "netyard requests the options that it uses, and no others"},
		{len(i.Provide) > 0, "ipam.provide", "netyard sends the container's identifier and name, and no other options"},
		{i.Daemon != "", "ipam.daemonSocketPath", "netyard has its own DHCP client and uses no other daemon"},
		{static, "ipam.type", "with dhcp, subnets, ranges, addresses and gateways come from the DHCP server"},
		{c.IsGateway || c.IsDefaultGateway, "isGateway", "with ipam type dhcp, the DHCP server names the gateway"},
	} {
		if r.bad {
			return refuse(r.key, r.cause)
		}
	}
	return nil
}

// args returns the "args" for netyard. It ignores args of another form, which are for other plugins.
func (c config) args() (a confArgs) {
	_ = json.Unmarshal(c.Args, &a)
	return a
}

// environment returns the keys and values of CNI_ARGS. netyard ignores keys that it does not know, as the specification
// allows with IgnoreUnknown, which all runtimes set.
func environment(args string) map[string]string {
	env := map[string]string{}
	for pair := range strings.SplitSeq(args, ";") {
		if k, v, ok := strings.Cut(pair, "="); ok {
			env[k] = v
		}
	}
	return env
}

// addresses parses addresses, each with or without a prefix length.
func addresses(key string, texts []string) (as []netip.Addr, err error) {
	for _, t := range texts {
		if t = strings.TrimSpace(t); t == "" {
			continue
		}
		a, err := netip.ParseAddr(t)
		if p, pErr := netip.ParsePrefix(t); pErr == nil {
			a, err = p.Addr(), nil
		}
		if err != nil {
			return nil, refuseAddress(key, fmt.Sprintf("%q is not an address", t))
		}
		as = append(as, a.Unmap())
	}
	return as, nil
}

// mode returns the mode of a network made from this configuration: the plugin's name gives it, or else the keys do.
func (c config) mode(t *modes.Table) string {
	if m := strings.TrimPrefix(c.Type, "netyard-"); t.Knows(m) {
		return m
	}
	if m := c.Options["mode"]; m != "" {
		return m
	}
	return modes.CNIMode(c.Master, c.Mode)
}

// options returns the options of a network of the mode, from "options" and the upstream keys.
func (c config) options(t *modes.Table, mode string) (map[string]string, error) {
	out := map[string]string{}
	for k, v := range c.Options {
		if k != "mode" {
			out[k] = v
		}
	}
	if c.MTU != 0 {
		out["mtu"] = fmt.Sprint(c.MTU)
	}
	bridge, bridged := t.CNI(mode, "bridge")
	if !bridged {
		if c.Bridge != "" || c.IsGateway || c.IsDefaultGateway || c.IPMasq || c.HairpinMode {
			return nil, refuse("bridge",
				"bridge, isGateway, isDefaultGateway, ipMasq and hairpinMode do not apply to mode "+mode)
		}
		for key, v := range map[string]string{"master": c.Master, "mode": c.Mode} {
			if name, ok := t.CNI(mode, key); ok && v != "" {
				out[name] = v
			} else if v != "" {
				return nil, refuse(key, "the network is of mode "+mode)
			}
		}
		return out, nil
	}
	if c.Master != "" || c.Mode != "" {
		return nil, refuse("master", "master and mode do not apply to mode "+mode)
	}
	if c.Bridge != "" {
		out[bridge] = c.Bridge
	}
	out["masquerade"] = fmt.Sprint(c.IPMasq)
	if c.PromiscMode {
		out["promisc"] = "true"
	}
	if c.MacSpoofChk {
		out["antispoof"] = "true"
	}
	if c.PortIsolation {
		out["icc"] = "false"
	}
	return out, nil
}

// isNamed reports whether the configuration names an existing network. Beside the name it refuses keys that define a
// network.
func (c config) isNamed() (bool, error) {
	if c.Network == "" {
		return false, nil
	}
	u, zero := c.upstream, upstream{}
	u.VlanTrunk, u.PreserveDefaultVlan = nil, nil
	if fmt.Sprint(u) != fmt.Sprint(zero) || len(c.Options) > 0 {
		return true, refuse("network", fmt.Sprintf("network %s has its own configuration; "+
			"remove bridge, isGateway, ipMasq, mtu, master, mode, options and the like", c.Network))
	}
	if c.IPAM != nil && c.IPAM.Type != "netyard" && c.IPAM.Type != "" {
		return true, refuse("ipam.type",
			fmt.Sprintf("network %s has its own IPAM; remove ipam, or use type netyard", c.Network))
	}
	return true, nil
}

// parse returns the route of the configuration.
func (r ipamRoute) parse() (out modes.Route, err error) {
	if out.Dst, err = netip.ParsePrefix(r.Dst); err != nil {
		return out, refuse("ipam.routes", fmt.Sprintf("%q is not a destination", r.Dst))
	}
	if r.GW != "" {
		if out.Via, err = netip.ParseAddr(r.GW); err != nil {
			return out, refuse("ipam.routes", fmt.Sprintf("%q is not an address", r.GW))
		}
	}
	return out, nil
}
