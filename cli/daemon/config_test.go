package daemon

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"netyard/ipam"
)

// TestCheck: a configuration that is not valid is refused, by an error that names the key.
func TestCheck(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"":                                  "",
		"modes: [bridge, none]":             "",
		"cooldown: 0s":                      "",
		"docker_host: ''":                   "",
		"state_dir: state":                  `state_dir: "state" is not an absolute path`,
		"modes: []":                         "modes: at least one mode is required",
		"modes: [brigde]":                   `modes: unknown mode "brigde"; the modes are bridge, host, ipvlan, macvlan, none, overlay`,
		"log_level: loud":                   `log_level: "loud" is not debug, info, warn or error`,
		"log_format: xml":                   `log_format: "xml" is neither text nor json`,
		"docker_host: /run/docker.sock":     `docker_host: "/run/docker.sock" has no scheme, as in unix:///var/run/docker.sock`,
		"publish: nobody":                   `publish: "nobody" is neither open nor host`,
		"cooldown: -1s":                     "cooldown: -1s is negative",
		"pools: [10.0.0.0]":                 `pools: "10.0.0.0" is not BASE:SIZE, as in 10.224.0.0/12:24`,
		"pools: ['fd00::/8:64']":            `pools: "fd00::/8" is not an IPv4 subnet`,
		"pools: ['10.0.0.0/16:8']":          `pools: "10.0.0.0/16:8": the size must be a prefix length from 16 to 30`,
		"ipv6_pool: fd00::/64":              `ipv6_pool: "fd00::/64" is not an IPv6 /48`,
		"overlay: {address: 192.0.2.1}":     "overlay: requires etcd.endpoints, which is not set",
		"modez: [bridge]":                   "yaml: unmarshal errors:\n  line 1: field modez not found",
		"log_level: info\noverlay: {to: 1}": "yaml: unmarshal errors:\n  line 2: field to not found",
		"protect_rules: maybe":              "yaml: unmarshal errors:\n  line 1: cannot unmarshal !!str `maybe` into bool",
	} {
		cfg, got := defaults(), ""
		err := cfg.decode([]byte(text))
		if err == nil {
			err = cfg.check()
		}
		if err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s: got %s, want %s", text, got, want)
		}
	}
}

// TestPrintConfig: what is printed is a configuration file of the same meaning.
func TestPrintConfig(t *testing.T) {
	t.Parallel()
	cfg := defaults()
	cfg.Pools, cfg.Cooldown, cfg.Overlay.Address = []string{"10.0.0.0/16:24"}, time.Minute, "192.0.2.1"
	var out bytes.Buffer
	if err := printConfig(&out, cfg); err != nil {
		t.Fatal(err)
	}
	again := defaults()
	if err := again.decode(out.Bytes()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(cfg, again, cmp.Comparer(func(a, b overlayConfig) bool { return a == b })); diff != "" {
		t.Errorf("-printed +read:\n%s", diff)
	}
}

func TestPools(t *testing.T) {
	t.Parallel()
	cfg := config{Pools: []string{"10.1.2.3/16:24"}, IPv6Pool: "fd00:1:2:3::/48"}
	bases, err := cfg.bases()
	want := []ipam.Base{{Prefix: netip.MustParsePrefix("10.1.0.0/16"), Size: 24}}
	if err != nil || len(bases) != 1 || bases[0] != want[0] {
		t.Errorf("got %v and %v, want %v", bases, err, want)
	}
	ula, err := cfg.ula("")
	if err != nil || ula != netip.MustParsePrefix("fd00:1:2::/48") {
		t.Errorf("got %v and %v", ula, err)
	}
	if cooldown(0) != -1 || cooldown(time.Second) != time.Second {
		t.Error("a cooldown of 0 is not package ipam's none")
	}
}

func TestLogger(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	cfg := config{LogLevel: "warn", LogFormat: "json"}
	log, err := cfg.logger(&out)
	if err != nil {
		t.Fatal(err)
	}
	log.Info("not this")
	log.Warn("this")
	if got := out.String(); strings.Contains(got, "not this") || !strings.Contains(got, `"msg":"this"`) {
		t.Errorf("got %s", got)
	}
}
