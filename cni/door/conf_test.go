package door

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"netyard/kernel/sandbox"
	"netyard/modes"
	"netyard/modes/all"
)

func knows() *modes.Table { return all.Options() }

// TestOptions shows that keys of the upstream plugins set netyard's mode and options.
func TestOptions(t *testing.T) {
	t.Parallel()
	for conf, want := range map[string]struct {
		mode string
		opts map[string]string
	}{
		`{"type":"netyard","bridge":"cni0","ipMasq":true,"mtu":1400,"promiscMode":true,"portIsolation":true}`: {
			"bridge", map[string]string{
				"bridge": "cni0", "masquerade": "true", "mtu": "1400", "promisc": "true",
				"icc": "false",
			},
		},
		`{"type":"netyard"}`:                                                     {"bridge", map[string]string{"masquerade": "false"}},
		`{"type":"netyard","master":"eth0","mode":"l3"}`:                         {"ipvlan", map[string]string{"parent": "eth0", "ipvlan_mode": "l3"}},
		`{"type":"netyard","master":"eth0"}`:                                     {"macvlan", map[string]string{"parent": "eth0"}},
		`{"type":"netyard-ipvlan","master":"eth0"}`:                              {"ipvlan", map[string]string{"parent": "eth0"}},
		`{"type":"netyard","master":"eth0","mode":"vepa"}`:                       {"macvlan", map[string]string{"parent": "eth0", "macvlan_mode": "vepa"}},
		`{"type":"netyard","master":"eth0","options":{"mode":"ipvlan","x":"y"}}`: {"ipvlan", map[string]string{"parent": "eth0", "x": "y"}},
		`{"type":"macvlan","master":"eth0"}`:                                     {"macvlan", map[string]string{"parent": "eth0"}},
	} {
		c, err := decodeConfig([]byte(conf))
		if err != nil {
			t.Errorf("%s: %v", conf, err)
			continue
		}
		mode := c.mode(knows())
		if mode != want.mode {
			t.Errorf("%s: mode %s", conf, mode)
		}
		opts, err := c.options(knows(), mode)
		if d := cmp.Diff(want.opts, opts); d != "" || err != nil {
			t.Errorf("%s: %v %s", conf, err, d)
		}
	}
}

// TestRefused shows that keys that netyard does not support are refused, with an error that names the key.
func TestRefused(t *testing.T) {
	t.Parallel()
	for conf, key := range map[string]string{
		`{"forceAddress":true}`:                           "forceAddress",
		`{"ipMasqBackend":"iptables"}`:                    "ipMasqBackend",
		`{"vlan":7}`:                                      "vlan",
		`{"vlanTrunk":[{"id":1}]}`:                        "vlanTrunk",
		`{"linkInContainer":true}`:                        "linkInContainer",
		`{"bcqueuelen":9}`:                                "bcqueuelen",
		`{"isGatway":true}`:                               "isGatway",
		`{"ipam":{"type":"dhcp","subnet":"10.0.0.0/24"}}`: "ipam.type",
		`{"ipam":{"type":"dhcp","daemonSocketPath":"/run/cni/dhcp.sock"}}`:                "ipam.daemonSocketPath",
		`{"ipam":{"type":"dhcp","provide":[{"option":"12"}]}}`:                            "ipam.provide",
		`{"bridge":"br0","isGateway":true,"ipam":{"type":"dhcp"}}`:                        "isGateway",
		`{"ipam":{"type":"whereabouts"}}`:                                                 "ipam.type",
		`{"ipam":{"type":"static","addresses":[{"address":"10.0.0.1/24"}],"request":[]}}`: "ipam.request",
		`{"network":"web","bridge":"x"}`:                                                  "network",
		`{"network":"web","ipam":{"type":"host-local","subnet":"10.0.0.0/24"}}`:           "ipam.type",
		`{"ipam":{"type":"host-local"}}`:                                                  "ipam.ranges",
		`{"ipam":{"type":"host-local","subnet":"10.0.0.0"}}`:                              "ipam.subnet",
		`{"ipam":{"type":"host-local","subnet":"10.0.0.0/24","rangeStart":"10.1.0.1"}}`:   "ipam.rangeStart",
		`{"ipam":{"type":"static"}}`:                                                      "ipam.addresses",
		`{"ipam":{"type":"static","addresses":[{"address":"10.0.0.1"}]}}`:                 "ipam.addresses",
		`{"ipam":{"type":"host-local","subnet":"10.0.0.0/24","routes":[{"dst":"x"}]}}`:    "ipam.routes",
		`{"ipam":{"type":"host-local","subnet":"10.0.0.0/24","resolvConf":"/nope"}}`:      "ipam.resolvConf",
		`{"master":"eth0","isGateway":true}`:                                              "bridge",
	} {
		c, err := decodeConfig([]byte(conf))
		if err == nil {
			if _, err = c.isNamed(); err == nil && c.Network == "" {
				_, err = c.plan(knows(), nil)
			}
		}
		if err == nil || !strings.Contains(err.Error(), "key "+key+":") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v; want key %s named", conf, err, key)
		}
	}
}

// TestAliases shows that aliases are read in both forms, and that what is not an alias costs nobody the network.
func TestAliases(t *testing.T) {
	t.Parallel()
	for aliases, want := range map[string][]string{
		`["db","store"]`: {"db", "store"},
		`{"web":["db","store"],"back":["other"]}`: {"db", "store"},
		`{"back":["other"]}`:                      nil,
		`{"web":"db"}`:                            nil,
		`{}`:                                      nil,
		`null`:                                    nil,
		`["db",7,null,["x"],{"y":1},"","db","st"]`: {"db", "st"},
		`"db"`:             nil,
		`7`:                nil,
		`{"web":null}`:     nil,
		`{"web":["db",7]}`: {"db"},
	} {
		c, err := decodeConfig([]byte(`{"name":"web","runtimeConfig":{"aliases":` + aliases + `}}`))
		if err != nil {
			t.Errorf("%s: %v", aliases, err)
		}
		if d := cmp.Diff(want, c.aliases()); d != "" {
			t.Errorf("%s: %s", aliases, d)
		}
	}
}

// TestRoutes shows that a route without a gateway goes via the gateway of its family.
func TestRoutes(t *testing.T) {
	t.Parallel()
	c, err := decodeConfig([]byte(`{"isDefaultGateway":true,"ipam":{"type":"host-local",
		"ranges":[[{"subnet":"10.1.0.0/16"}],[{"subnet":"fd00:1::/64","gateway":"fd00:1::9"}]],
		"routes":[{"dst":"192.168.0.0/16"},{"dst":"10.9.0.0/16","gw":"10.1.0.7"},{"dst":"fd00:2::/64"}]}}`))
	if err != nil {
		t.Fatal(err)
	}
	p, err := c.plan(knows(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	addrs := []netip.Prefix{netip.MustParsePrefix("10.1.0.2/16"), netip.MustParsePrefix("fd00:1::2/64")}
	for _, r := range p.containerRoutes(addrs) {
		got = append(got, sandbox.Route(r).String())
	}
	want := []string{
		"192.168.0.0/16 via 10.1.0.1", "10.9.0.0/16 via 10.1.0.7", "fd00:2::/64 via fd00:1::9",
		"0.0.0.0/0 via 10.1.0.1", "::/0 via fd00:1::9",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// FuzzConfig shows that every configuration is accepted, or refused with an error of one line.
func FuzzConfig(f *testing.F) {
	for _, s := range []string{
		`{"cniVersion":"1.0.0","name":"web","type":"netyard","network":"web","capabilities":{"portMappings":true}}`,
		`{"type":"netyard","bridge":"b","isGateway":true,"ipam":{"type":"host-local",` +
			`"ranges":[[{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.5"}]],"routes":[{"dst":"0.0.0.0/0"}]}}`,
		`{"ipam":{"type":"static","addresses":[{"address":"10.0.0.1/24","gateway":"10.0.0.254"}]},` +
			`"runtimeConfig":{"portMappings":[{"HostPort":1}],"ips":["10.0.0.1"],"mac":"x",` +
			`"bandwidth":{"ingressRate":1}}}`,
		`{"args":{"cni":{"ips":["::1"]}},"prevResult":{},"cni.dev/valid-attachments":[]}`,
	} {
		f.Add([]byte(s), "IgnoreUnknown=1;IP=10.0.0.1;MAC=02:00:00:00:00:01")
	}
	f.Fuzz(func(t *testing.T, raw []byte, args string) {
		c, err := decodeConfig(raw)
		if err != nil {
			if strings.Contains(cniError(err).Msg, "\n") {
				t.Errorf("more than one line: %v", err)
			}
			return
		}
		if p, err := c.plan(knows(), environment(args)); err == nil {
			for _, s := range p.network.Subnets {
				if !s.Pool.Subnet.IsValid() || s.Pool.Subnet != s.Pool.Subnet.Masked() {
					t.Errorf("subnet %s", s.Pool.Subnet)
				}
			}
			p.containerRoutes(nil)
		}
		if _, err := asksOf(c.Runtime.PortMappings); err == nil {
			_, _ = requestedAddrs(c, environment(args), order{}, modes.Network{})
		}
	})
}
