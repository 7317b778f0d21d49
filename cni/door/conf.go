package door

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"netyard/modes"
)

// A config is a plugin's part of a network configuration: netyard's own keys, or those of the upstream plugins for
// bridges, macvlan and ipvlan, and what the runtime adds.
type config struct {
	CNIVersion   string          `json:"cniVersion"`
	Name         string          `json:"name"`
	Type         string          `json:"type"`
	Capabilities map[string]bool `json:"capabilities"`
	PrevResult   json.RawMessage `json:"prevResult"`
	Args         json.RawMessage `json:"args"` // conventions, see confArgs
	DNS          types.DNS       `json:"dns"`
	Runtime      runtimeConfig   `json:"runtimeConfig"`
	IPAM         *ipamConfig     `json:"ipam"`

	// netyard's own.
	Network string            `json:"network"` // the network is there already, and says all
	Socket  string            `json:"socket"`  // read by the plugin
	Options map[string]string `json:"options"` // of a network that is made from this configuration

	upstream
}

// upstream are the keys of the plugins of containernetworking (plugins v1.9, main/bridge, main/macvlan, main/ipvlan).
// Those that netyard cannot honour are here to be refused by name, and are fine with the value that they have by
// themselves.
type upstream struct {
	Bridge           string `json:"bridge"`
	IsGateway        bool   `json:"isGateway"`
	IsDefaultGateway bool   `json:"isDefaultGateway"`
	IPMasq           bool   `json:"ipMasq"`
	HairpinMode      bool   `json:"hairpinMode"` // netyard's ports have it when they need it: with published ports
	PromiscMode      bool   `json:"promiscMode"`
	PortIsolation    bool   `json:"portIsolation"`
	MTU              int    `json:"mtu"`
	MacSpoofChk      bool   `json:"macspoofchk"` // netyard holds addresses too, and does so unless it is told otherwise
	Master           string `json:"master"`
	Mode             string `json:"mode"`

	ForceAddress        bool            `json:"forceAddress"`
	IPMasqBackend       string          `json:"ipMasqBackend"`
	Vlan                int             `json:"vlan"`
	VlanTrunk           json.RawMessage `json:"vlanTrunk"`
	PreserveDefaultVlan *bool           `json:"preserveDefaultVlan"` // of ports with a vlan only
	EnableDad           bool            `json:"enabledad"`
	DisableIf           bool            `json:"disableContainerInterface"`
	LinkContNs          bool            `json:"linkInContainer"`
	BcQueueLen          uint32          `json:"bcqueuelen"`
}

// runtimeConfig is what a runtime passes for the capabilities that the configuration declares.
type runtimeConfig struct {
	PortMappings []portMapping `json:"portMappings"`
	IPs          []string      `json:"ips"`
	MAC          string        `json:"mac"`
	Bandwidth    *bandwidth    `json:"bandwidth"`
	Aliases      []string      `json:"aliases"`
	DNS          *struct {
		Servers  []string `json:"servers"`
		Searches []string `json:"searches"`
		Options  []string `json:"options"`
	} `json:"dns"`
	CgroupPath string `json:"cgroupPath"` // of no use to a network
}

// A portMapping has the keys that CNI's conventions give it; nerdctl begins them with capitals, which is the same to
// encoding/json.
type portMapping struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP"`
}

// String is how -p says it.
func (p portMapping) String() string {
	s := fmt.Sprintf("%d:%d/%s", p.HostPort, p.ContainerPort, p.Protocol)
	if p.HostIP != "" {
		s = p.HostIP + ":" + s
	}
	return s
}

// bandwidth is in bits per second. Bursts, in bits, are netyard's to choose: runtimes say what the upstream plugin
// cannot do without.
type bandwidth struct {
	IngressRate  uint64 `json:"ingressRate"`
	IngressBurst uint64 `json:"ingressBurst"`
	EgressRate   uint64 `json:"egressRate"`
	EgressBurst  uint64 `json:"egressBurst"`
}

// rates are the bandwidth as options: what the container gets, and what it sends.
func (r runtimeConfig) rates() map[string]string {
	out := map[string]string{}
	if r.Bandwidth == nil {
		return out
	}
	for option, bits := range map[string]uint64{"ingress_rate": r.Bandwidth.IngressRate, "egress_rate": r.Bandwidth.EgressRate} {
		if bits > 0 {
			out[option] = fmt.Sprintf("%dbit", bits)
		}
	}
	return out
}

// ipamConfig is what the upstream plugins host-local, static and dhcp are told.
type ipamConfig struct {
	Type   string     `json:"type"`
	Ranges [][]ipamIn `json:"ranges"`
	ipamIn
	Routes     []ipamRoute     `json:"routes"`
	Addresses  []ipamAddress   `json:"addresses"`
	ResolvConf string          `json:"resolvConf"`
	DataDir    string          `json:"dataDir"` // netyard keeps leases in its own database
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

// confArgs is the part of "args" that CNI's conventions give to plugins; the rest is others'.
type confArgs struct {
	CNI struct {
		IPs []string `json:"ips"`
		MAC string   `json:"mac"`
	} `json:"cni"`
}

// errConfig is at the root of every refusal of a configuration.
var errConfig = errors.New("bad network configuration")

func refuse(key, why string) error {
	return fmt.Errorf("%w: key %s: %s", errConfig, key, why)
}

// runtimePrefix begins the keys that a runtime adds by itself (CNI specification 1.1.0, section 4).
const runtimePrefix = "cni.dev/"

// decodeConfig reads a configuration and refuses, by name, what netyard does not know or cannot do.
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
			return c, refuse(strings.Trim(key, `"`), "netyard does not know it, so it would not be honoured")
		}
		return c, fmt.Errorf("%w: %w", errConfig, err)
	}
	return c, c.check()
}

func (c config) check() error {
	const vlans = "make a network for each VLAN, whose master is the link with the VLAN's number"
	for _, r := range []struct {
		bad      bool
		key, why string
	}{
		{c.ForceAddress, "forceAddress", "netyard changes no address of a bridge that it did not make"},
		{c.IPMasqBackend != "" && c.IPMasqBackend != "nftables", "ipMasqBackend", "netyard masquerades by nftables only"},
		{c.Vlan != 0, "vlan", vlans},
		{len(c.VlanTrunk) > 0 && string(c.VlanTrunk) != "null", "vlanTrunk", vlans},
		{c.EnableDad, "enabledad", "netyard gives no address twice, and waits for nobody to say so"},
		{c.DisableIf, "disableContainerInterface", "an interface that nobody can use is not one of netyard's"},
		{c.LinkContNs, "linkInContainer", "the master is a link of the host's"},
		{c.BcQueueLen != 0, "bcqueuelen", "netyard leaves the kernel's"},
	} {
		if r.bad {
			return refuse(r.key, r.why)
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
		return refuse("ipam.type", fmt.Sprintf("%q is none of dhcp, host-local, static, netyard", c.IPAM.Type))
	}
	for key, raw := range map[string]json.RawMessage{"ipam.request": c.IPAM.Request, "ipam.provide": c.IPAM.Provide} {
		if len(raw) > 0 {
			return refuse(key, "it is of ipam type dhcp")
		}
	}
	if c.IPAM.Daemon != "" {
		return refuse("ipam.daemonSocketPath", "it is of ipam type dhcp")
	}
	return nil
}

// checkDHCP refuses what somebody would expect to be told to a DHCP server, or to be more than its answer.
func (c config) checkDHCP() error {
	i := *c.IPAM
	for _, r := range []struct {
		bad      bool
		key, why string
	}{
		{len(i.Request) > 0, "ipam.request", "netyard asks for what it uses"},
		{len(i.Provide) > 0, "ipam.provide", "netyard tells the server the container's identifier and name"},
		{i.Daemon != "", "ipam.daemonSocketPath", "netyard asks the DHCP server by itself, without another daemon"},
		{i.ipamIn != ipamIn{} || len(i.Ranges) > 0 || len(i.Addresses) > 0, "ipam.type", "with dhcp subnets, ranges, addresses and gateways are the DHCP server's to say"},
		{c.IsGateway || c.IsDefaultGateway, "isGateway", "with ipam type dhcp the gateway is the LAN's router, as the DHCP server says"},
	} {
		if r.bad {
			return refuse(r.key, r.why)
		}
	}
	return nil
}

// args are those of "args" that are meant for netyard; what is not of the form is others'.
func (c config) args() (a confArgs) {
	_ = json.Unmarshal(c.Args, &a)
	return a
}

// environment takes CNI_ARGS apart. Keys that are not netyard's are others', as the specification allows with
// IgnoreUnknown; nobody leaves that out.
func environment(args string) map[string]string {
	env := map[string]string{}
	for pair := range strings.SplitSeq(args, ";") {
		if k, v, ok := strings.Cut(pair, "="); ok {
			env[k] = v
		}
	}
	return env
}

// addresses reads addresses, each with or without the length of a prefix.
func addresses(key string, texts []string) (as []netip.Addr, err error) {
	for _, t := range texts {
		if t == "" {
			continue
		}
		a, err := netip.ParseAddr(t)
		if p, pErr := netip.ParsePrefix(t); pErr == nil {
			a, err = p.Addr(), nil
		}
		if err != nil {
			return nil, refuse(key, fmt.Sprintf("%q is not an address", t))
		}
		as = append(as, a.Unmap())
	}
	return as, nil
}

// mode is that of a network that is made from this configuration: the plugin's name says it, or else the keys do.
func (c config) mode(t *modes.Table) string {
	if m := strings.TrimPrefix(c.Type, "netyard-"); t.Knows(m) {
		return m
	}
	if m := c.Options["mode"]; m != "" {
		return m
	}
	return modes.CNIMode(c.Master, c.Mode)
}

// options are the upstream keys as netyard's options of a mode.
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
			return nil, refuse("bridge", "the network is of mode "+mode)
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
		return nil, refuse("master", "the network is of mode "+mode)
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

// isNamed says whether the configuration names a network, and refuses keys beside that which would say what it is.
func (c config) isNamed() (bool, error) {
	if c.Network == "" {
		return false, nil
	}
	u, zero := c.upstream, upstream{}
	u.VlanTrunk, u.PreserveDefaultVlan = nil, nil
	if fmt.Sprint(u) != fmt.Sprint(zero) || len(c.Options) > 0 {
		return true, refuse("network", fmt.Sprintf("network %s is what it is; leave out bridge, isGateway, ipMasq, mtu, master, mode, options and the like", c.Network))
	}
	if c.IPAM != nil && c.IPAM.Type != "netyard" && c.IPAM.Type != "" {
		return true, refuse("ipam.type", fmt.Sprintf("the addresses of network %s are netyard's to give", c.Network))
	}
	return true, nil
}

// A route is one as the configuration has it.
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
