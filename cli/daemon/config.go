package daemon

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

	"netyard/cli/api"
	"netyard/cluster/etcd"
	"netyard/cluster/record"
	"netyard/fabric"
	"netyard/ipam"
	"netyard/modes/all"
)

const (
	defaultConfig   = "/etc/netyard/netyard.yaml"
	defaultStateDir = "/var/lib/netyard"
)

// config is the daemon's configuration, from its file and from flags. Flags have precedence.
type config struct {
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
	// Publish says who decides about published ports: only publish_from (open), or the host's input rules too (host).
	Publish string `yaml:"publish"`
	// Etcd configures the access to the cluster of overlay networks. Without endpoints, the host is in no cluster.
	Etcd etcd.Config `yaml:"etcd,omitempty"`
	// Overlay describes this host to the other hosts of the cluster.
	Overlay overlayConfig `yaml:"overlay,omitempty"`
	// ProtectRules prevents other programs from changing netyard's nftables tables, where the kernel supports it.
	ProtectRules bool `yaml:"protect_rules"`
}

// An overlayConfig describes a host of the cluster to the others.
type overlayConfig struct {
	// Address is the host's address that other hosts send to.
	Address string `yaml:"address,omitempty"`
	// Port is the UDP port of VXLAN, on all hosts of the cluster; 0: 4789.
	Port uint16 `yaml:"port,omitempty"`
	// WireGuardPort is the UDP port of this host's WireGuard; 0: 14789.
	WireGuardPort uint16 `yaml:"wireguard_port,omitempty"`
	// Name is the host's name in the cluster; empty: its host name.
	Name string `yaml:"name,omitempty"`
}

// vxlanPort is the UDP port that IANA assigned to VXLAN (RFC 7348, section 8).
const vxlanPort = 4789

// checkOverlay checks that other hosts of the cluster can reach this one by its configuration.
func (cfg *config) checkOverlay() error {
	if err := cfg.Etcd.Check(); err != nil {
		return err
	}
	if !cfg.Etcd.Enabled() {
		if cfg.Overlay != (overlayConfig{}) {
			return errors.New("overlay: requires etcd.endpoints, which is not set")
		}
		return nil
	}
	a, err := netip.ParseAddr(cfg.Overlay.Address)
	local := a.IsLoopback() || a.IsUnspecified() || a.IsLinkLocalUnicast() || a.Zone() != ""
	if err != nil || local || a.IsMulticast() {
		return fmt.Errorf("overlay.address: %q is not a unicast address that other hosts reach", cfg.Overlay.Address)
	}
	vxlan, wireguard := cmp.Or(cfg.Overlay.Port, vxlanPort), cmp.Or(cfg.Overlay.WireGuardPort, fabric.WireGuardPort)
	if vxlan == wireguard {
		return fmt.Errorf("overlay.wireguard_port: %d is the port of VXLAN (overlay.port) too", wireguard)
	}
	if name := cfg.Overlay.Name; name != "" {
		if err := record.CheckName("overlay.name", name); err != nil {
			return err
		}
	}
	return nil
}

const (
	publishOpen = "open"
	publishHost = "host"
)

func defaults() config {
	return config{
		StateDir: defaultStateDir, RunDir: api.RunDir, PluginDir: "/run/docker/plugins",
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
		str("config", "configuration `FILE` (YAML; keys as these flags, with _ for -; "+
			"etcd and overlay only in the file)",
			defaultConfig+", if it exists"),
		str("state-dir", "`DIR` of the database", d.StateDir),
		str("plugin-dir", "`DIR` where Docker looks for plugin sockets", d.PluginDir),
		str("docker-host", "`ADDRESS` of the Docker engine, to ask for container names; empty: do not ask",
			d.DockerHost),
		str("containerd-address", "`SOCKET` of containerd, to ask for container names and labels; empty: do not ask",
			d.ContainerdAddress),
		&cli.StringSliceFlag{
			Name: "modes", Usage: "`MODES` to offer; repeat the flag or separate by commas",
			DefaultText: strings.Join(d.Modes, ","),
		},
		str("log-level", "log `LEVEL`: debug, info, warn or error", d.LogLevel),
		str("log-format", "log `FORMAT`: text or json", d.LogFormat),
		&cli.StringSliceFlag{
			Name:        "pools",
			Usage:       "`BASE:SIZE` of the default pools: a network without --subnet gets a /SIZE of BASE",
			DefaultText: defaultPools(),
		},
		str("ipv6-pool", "`PREFIX` (a /48) for IPv6 networks without --subnet",
			"a unique local one, derived from the machine ID"),
		&cli.DurationFlag{
			Name: "cooldown", Usage: "`DURATION` before a released address is assigned again",
			DefaultText: d.Cooldown.String(),
		},
		str("publish", "`WHO` decides about published ports: open (only publish_from), "+
			"or host (the host's input rules too)", d.Publish),
		&cli.BoolFlag{
			Name: "protect-rules",
			Usage: "prevent changes to netyard's nftables tables by others (Linux 6.9 and newer); " +
				"on by default, --protect-rules=false turns it off",
		},
		&cli.BoolFlag{Name: "check", Usage: "check the configuration, print it and exit"},
	}
}

// loadConfig reads the configuration file and applies the flags.
func loadConfig(c *cli.Context) (config, error) {
	cfg := defaults()
	file := c.String("config")
	raw, err := os.ReadFile(cmp.Or(file, defaultConfig))
	switch {
	case err == nil:
		if err := cfg.decode(raw); err != nil {
			return cfg, fmt.Errorf("read %s: %w", cmp.Or(file, defaultConfig), err)
		}
	case file != "" || !errors.Is(err, os.ErrNotExist):
		return cfg, fmt.Errorf("read configuration: %w", err)
	}
	for name, to := range map[string]*string{
		"state-dir": &cfg.StateDir, "run-dir": &cfg.RunDir, "plugin-dir": &cfg.PluginDir,
		"docker-host": &cfg.DockerHost, "containerd-address": &cfg.ContainerdAddress,
		"log-level": &cfg.LogLevel, "log-format": &cfg.LogFormat,
		"ipv6-pool": &cfg.IPv6Pool, "publish": &cfg.Publish,
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

// defaultPools formats IPAM's default pools as the flag takes them.
func defaultPools() string {
	var words []string
	for _, b := range ipam.DefaultBases() {
		words = append(words, fmt.Sprintf("%s:%d", b.Prefix, b.Size))
	}
	return strings.Join(words, ",")
}

// decode parses YAML. It refuses unknown keys and names them and their lines.
func (cfg *config) decode(raw []byte) error {
	d := yaml.NewDecoder(bytes.NewReader(raw))
	d.KnownFields(true)
	err := d.Decode(cfg)
	var wrong *yaml.TypeError
	if errors.As(err, &wrong) {
		for i, text := range wrong.Errors {
			wrong.Errors[i], _, _ = strings.Cut(text, " in type ") // a type of this program's source code
		}
	}
	if errors.Is(err, io.EOF) { // an empty file
		return nil
	}
	return err
}

// check returns an error that names the first key whose value is not valid.
func (cfg *config) check() error {
	dirs := map[string]string{"state_dir": cfg.StateDir, "run_dir": cfg.RunDir, "plugin_dir": cfg.PluginDir}
	for key, dir := range dirs {
		if !filepath.IsAbs(dir) {
			return fmt.Errorf("%s: %q is not an absolute path", key, dir)
		}
	}
	known := defaults().Modes
	for _, m := range cfg.Modes {
		if !slices.Contains(known, m) {
			return fmt.Errorf("modes: unknown mode %q; the modes are %s", m, strings.Join(known, ", "))
		}
	}
	if len(cfg.Modes) == 0 {
		return errors.New("modes: at least one mode is required")
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
		return fmt.Errorf("docker_host: %q has no scheme, as in unix:///var/run/docker.sock", cfg.DockerHost)
	}
	if cfg.Publish != publishOpen && cfg.Publish != publishHost {
		return fmt.Errorf("publish: %q is neither open nor host", cfg.Publish)
	}
	if err := cfg.checkOverlay(); err != nil {
		return err
	}
	if cfg.Cooldown < 0 {
		return fmt.Errorf("cooldown: %s is negative", cfg.Cooldown)
	}
	_, err := cfg.ula("")
	return err
}

func (cfg *config) level() (l slog.Level, err error) {
	if err := l.UnmarshalText([]byte(cfg.LogLevel)); err != nil {
		return l, fmt.Errorf("log_level: %q is not debug, info, warn or error", cfg.LogLevel)
	}
	return l, nil
}

// logger returns a logger that writes to w as configured.
func (cfg *config) logger(w io.Writer) (*slog.Logger, error) {
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

// bases parses BASE:SIZE pairs such as 10.224.0.0/12:24.
func (cfg *config) bases() (bases []ipam.Base, err error) {
	for _, text := range cfg.Pools {
		at := strings.LastIndexByte(text, ':')
		if at < 0 {
			return nil, fmt.Errorf("pools: %q is not BASE:SIZE, as in 10.224.0.0/12:24", text)
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

// ula returns the prefix for IPv6 networks without a subnet (RFC 4193).
func (cfg *config) ula(machineID string) (netip.Prefix, error) {
	if cfg.IPv6Pool == "" {
		return ipam.HostULA(machineID), nil
	}
	p, err := netip.ParsePrefix(cfg.IPv6Pool)
	if err != nil || p.Addr().Is4() || p.Bits() != 48 {
		return p, fmt.Errorf("ipv6_pool: %q is not an IPv6 /48", cfg.IPv6Pool)
	}
	return p.Masked(), nil
}
