package cli

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"go.yaml.in/yaml/v3"

	"netyard/cluster"
	"netyard/fabric"
	"netyard/ipam"
	"netyard/modes/all"
)

const (
	defaultConfig   = "/etc/netyard/netyard.yaml"
	defaultRunDir   = "/run/netyard"
	defaultStateDir = "/var/lib/netyard"
)

// Config is what the daemon is told, by its file or by flags; a flag wins.
type Config struct {
	StateDir          string        `yaml:"state_dir"`
	RunDir            string        `yaml:"run_dir"`
	PluginDir         string        `yaml:"plugin_dir"`
	DockerHost        string        `yaml:"docker_host"`
	ContainerdAddress string        `yaml:"containerd_address"`
	Modes             []string      `yaml:"modes"`
	LogLevel          string        `yaml:"log_level"`
	LogFormat         string        `yaml:"log_format"`
	Pools             []string      `yaml:"pools"`
	IPv6Pool          string        `yaml:"ipv6_pool"`
	Cooldown          time.Duration `yaml:"cooldown"`
	// Publish says who decides about published ports: they are open, or the host's firewall has to let them through.
	Publish string `yaml:"publish"`
	// Etcd is where the cluster is that overlay networks are in; without endpoints there is none.
	Etcd cluster.Config `yaml:"etcd,omitempty"`
	// Overlay is this host, as the others of the cluster see it.
	Overlay OverlayConfig `yaml:"overlay,omitempty"`
	// ProtectRules keeps others from changing netyard's tables, where the kernel can.
	ProtectRules bool `yaml:"protect_rules"`
}

// An OverlayConfig is a host of overlay networks.
type OverlayConfig struct {
	// Address is the host's that the others send to.
	Address string `yaml:"address,omitempty"`
	// Port is the UDP port of VXLAN, on all hosts of the cluster; 0: 4789.
	Port uint16 `yaml:"port,omitempty"`
	// WireGuardPort is the UDP port of this host's WireGuard; 0: 14789.
	WireGuardPort uint16 `yaml:"wireguard_port,omitempty"`
	// Name is the host's in the cluster; empty: its own.
	Name string `yaml:"name,omitempty"`
}

// vxlanPort is VXLAN's (RFC 7348, section 8).
const vxlanPort = 4789

// checkOverlay refuses what the others could not reach this host by.
func (cfg *Config) checkOverlay() error {
	if err := cfg.Etcd.Check(); err != nil {
		return err
	}
	if !cfg.Etcd.Enabled() {
		if cfg.Overlay != (OverlayConfig{}) {
			return errors.New("overlay: it is for hosts of a cluster, and etcd.endpoints is not set")
		}
		return nil
	}
	a, err := netip.ParseAddr(cfg.Overlay.Address)
	if err != nil || a.Zone() != "" || a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() || a.IsLinkLocalUnicast() {
		return fmt.Errorf("overlay.address: %q is not an address of this host that the others of the cluster can send to", cfg.Overlay.Address)
	}
	if vxlan, own := cmp.Or(cfg.Overlay.Port, vxlanPort), cmp.Or(cfg.Overlay.WireGuardPort, fabric.WireGuardPort); vxlan == own {
		return fmt.Errorf("overlay.wireguard_port: %d is VXLAN's (overlay.port)", own)
	}
	if name := cfg.Overlay.Name; name != "" {
		if err := cluster.CheckName("overlay.name", name); err != nil {
			return err
		}
	}
	return nil
}

const (
	publishOpen = "open"
	publishHost = "host"
)

func defaults() Config {
	return Config{
		StateDir: defaultStateDir, RunDir: defaultRunDir, PluginDir: "/run/docker/plugins",
		DockerHost: "unix:///var/run/docker.sock", ContainerdAddress: "/run/containerd/containerd.sock",
		Modes: slices.Sorted(maps.Keys(all.Modes())), LogLevel: "info", LogFormat: "text",
		Cooldown: ipam.DefaultCooldown, Publish: publishOpen, ProtectRules: true,
	}
}

func serveFlags() []cli.Flag {
	d := defaults()
	str := func(name, usage, value string) cli.Flag {
		return &cli.StringFlag{Name: name, Usage: usage, DefaultText: value}
	}
	return []cli.Flag{
		str("config", "configuration `FILE` (YAML; the keys are these flags with _ for -)", defaultConfig+", if it is there"),
		str("state-dir", "`DIR` of the database", d.StateDir),
		str("plugin-dir", "`DIR` where Docker looks for plugins' sockets", d.PluginDir),
		str("docker-host", "`ADDRESS` of the Docker engine, asked in the background for containers' names; empty: never", d.DockerHost),
		str("containerd-address", "`SOCKET` of containerd, asked for the names and labels of containers that nerdctl attaches; empty: never", d.ContainerdAddress),
		&cli.StringSliceFlag{Name: "modes", Usage: "`MODES` to offer", DefaultText: strings.Join(d.Modes, ",")},
		str("log-level", "debug, info, warn or error", d.LogLevel),
		str("log-format", "text or json", d.LogFormat),
		&cli.StringSliceFlag{Name: "pools", Usage: "`BASE:SIZE` blocks that networks without --subnet are cut from", DefaultText: defaultPools()},
		str("ipv6-pool", "the `PREFIX` (/48) that IPv6 networks without --subnet are cut from", "one of the host's own, from its machine id"),
		&cli.DurationFlag{Name: "cooldown", Usage: "how long a freed address rests before it is handed out again", DefaultText: d.Cooldown.String()},
		str("publish", "who decides about published ports: open, they are open; or host, the host's firewall does, as about ports of the host's own", d.Publish),
		&cli.BoolFlag{Name: "protect-rules", Usage: "keep others from changing netyard's nftables tables, which needs Linux 6.9; so it is unless --protect-rules=false"},
		&cli.BoolFlag{Name: "check", Usage: "check the configuration, print it and exit"},
	}
}

// loadConfig reads the file and lets the flags have the last word.
func loadConfig(c *cli.Context) (Config, error) {
	cfg := defaults()
	file := c.String("config")
	raw, err := os.ReadFile(cmpOr(file, defaultConfig))
	switch {
	case err == nil:
		if err := cfg.decode(raw); err != nil {
			return cfg, fmt.Errorf("read %s: %w", cmpOr(file, defaultConfig), err)
		}
	case file != "" || !errors.Is(err, os.ErrNotExist):
		return cfg, fmt.Errorf("read configuration: %w", err)
	}
	for name, to := range map[string]*string{
		"state-dir": &cfg.StateDir, "run-dir": &cfg.RunDir, "plugin-dir": &cfg.PluginDir, "docker-host": &cfg.DockerHost,
		"containerd-address": &cfg.ContainerdAddress, "log-level": &cfg.LogLevel, "log-format": &cfg.LogFormat, "ipv6-pool": &cfg.IPv6Pool,
		"publish": &cfg.Publish,
	} {
		if c.IsSet(name) {
			*to = c.String(name)
		}
	}
	if c.IsSet("modes") {
		cfg.Modes = c.StringSlice("modes")
	}
	if c.IsSet("pools") {
		cfg.Pools = c.StringSlice("pools")
	}
	if c.IsSet("protect-rules") {
		cfg.ProtectRules = c.Bool("protect-rules")
	}
	if c.IsSet("cooldown") {
		cfg.Cooldown = c.Duration("cooldown")
	}
	return cfg, cfg.check()
}

func defaultPools() string {
	var words []string
	for _, b := range ipam.DefaultBases() {
		words = append(words, fmt.Sprintf("%s:%d", b.Prefix, b.Size))
	}
	return strings.Join(words, ",")
}

func cmpOr(s, or string) string {
	if s == "" {
		return or
	}
	return s
}

// decode reads YAML and refuses keys it does not know, by name and line.
func (cfg *Config) decode(raw []byte) error {
	d := yaml.NewDecoder(bytes.NewReader(raw))
	d.KnownFields(true)
	if err := d.Decode(cfg); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// check refuses what the daemon could not work with; the error names the key.
func (cfg *Config) check() error {
	for key, dir := range map[string]string{"state_dir": cfg.StateDir, "run_dir": cfg.RunDir, "plugin_dir": cfg.PluginDir} {
		if !filepath.IsAbs(dir) {
			return fmt.Errorf("%s: %q is not an absolute path", key, dir)
		}
	}
	known := all.Modes()
	for _, m := range cfg.Modes {
		if _, ok := known[m]; !ok {
			return fmt.Errorf("modes: there is no mode %q; there are %s", m, strings.Join(slices.Sorted(maps.Keys(known)), ", "))
		}
	}
	if len(cfg.Modes) == 0 {
		return errors.New("modes: none is left to offer")
	}
	if _, err := cfg.level(); err != nil {
		return err
	}
	if cfg.LogFormat != "text" && cfg.LogFormat != "json" {
		return fmt.Errorf("log_format: %q is neither text nor json", cfg.LogFormat)
	}
	if _, err := cfg.bases(); err != nil {
		return err
	}
	if cfg.DockerHost != "" && !strings.Contains(cfg.DockerHost, "://") {
		return fmt.Errorf("docker_host: %q has no scheme, as unix:///var/run/docker.sock", cfg.DockerHost)
	}
	if cfg.Publish != publishOpen && cfg.Publish != publishHost {
		return fmt.Errorf("publish: %q is neither open nor host", cfg.Publish)
	}
	if err := cfg.checkOverlay(); err != nil {
		return err
	}
	if cfg.Cooldown < 0 {
		return fmt.Errorf("cooldown: %s is less than nothing", cfg.Cooldown)
	}
	_, err := cfg.ula("")
	return err
}

func (cfg *Config) level() (l slog.Level, err error) {
	if err := l.UnmarshalText([]byte(cfg.LogLevel)); err != nil {
		return l, fmt.Errorf("log_level: %q is none of debug, info, warn, error", cfg.LogLevel)
	}
	return l, nil
}

// logger writes to w as configured.
func (cfg *Config) logger(w io.Writer) (*slog.Logger, error) {
	l, err := cfg.level()
	if err != nil {
		return nil, err
	}
	opts := &slog.HandlerOptions{Level: l}
	if cfg.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	}
	return slog.New(slog.NewTextHandler(w, opts)), nil
}

// bases reads BASE:SIZE pairs, as 10.224.0.0/12:24.
func (cfg *Config) bases() (bases []ipam.Base, err error) {
	for _, text := range cfg.Pools {
		at := strings.LastIndexByte(text, ':')
		if at < 0 {
			return nil, fmt.Errorf("pools: %q is not BASE:SIZE, as 10.224.0.0/12:24", text)
		}
		base, err := netip.ParsePrefix(text[:at])
		if err != nil || !base.Addr().Is4() {
			return nil, fmt.Errorf("pools: %q is not an IPv4 subnet", text[:at])
		}
		size, err := strconv.Atoi(text[at+1:])
		if err != nil || size < base.Bits() || size > 30 {
			return nil, fmt.Errorf("pools: %q: the size must be a prefix length from %d to 30", text, base.Bits())
		}
		bases = append(bases, ipam.Base{Prefix: base.Masked(), Size: size})
	}
	return bases, nil
}

// ula is the block for IPv6 networks without a subnet.
func (cfg *Config) ula(machineID string) (netip.Prefix, error) {
	if cfg.IPv6Pool == "" {
		return ipam.HostULA(machineID), nil
	}
	p, err := netip.ParsePrefix(cfg.IPv6Pool)
	if err != nil || p.Addr().Is4() || p.Bits() != 48 {
		return p, fmt.Errorf("ipv6_pool: %q is not an IPv6 /48", cfg.IPv6Pool)
	}
	return p.Masked(), nil
}
