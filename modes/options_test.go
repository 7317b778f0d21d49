package modes_test

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"netyard/modes"
	"netyard/modes/all"
)

// TestTable: the table agrees with itself.
func TestTable(t *testing.T) {
	t.Parallel()
	seen := map[string]string{}
	var names []string
	for _, o := range all.Options().Options() {
		names = append(names, o.Name)
		if o.Help == "" {
			t.Errorf("%s has no help", o.Name)
		}
		if o.Default != "" {
			mode := append(slices.Clone(o.Modes), modes.DefaultMode)[0]
			got, err := all.Options().Resolve(mode, map[string]string{o.Name: o.Default})
			if v := got[o.Name]; err != nil || v != o.Default {
				t.Errorf("%s: its own default %q: %q %v", o.Name, o.Default, v, err)
			}
		}
		for _, key := range append([]string{o.Name}, o.Docker...) {
			if other, taken := seen[key]; taken {
				t.Errorf("%s is said to mean %s and %s", key, other, o.Name)
			}
			seen[key] = o.Name
		}
	}
	if name := modes.Contradiction(all.On(modes.Env{})); name != "" {
		t.Errorf("two modes do not agree about %s", name)
	}
	if !slices.IsSorted(names) {
		t.Errorf("the table is not in order: %v", names)
	}
}

func TestResolve(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		mode      string
		given     map[string]string
		want      map[string]string
		complaint string
	}{
		"nothing":         {"bridge", nil, map[string]string{}, ""},
		"Docker's keys":   {"bridge", map[string]string{"com.docker.network.driver.mtu": "1400", "com.docker.network.bridge.enable_icc": "0"}, map[string]string{"mtu": "1400", "icc": "false"}, ""},
		"said twice":      {"bridge", map[string]string{"mtu": "1400", "com.docker.network.driver.mtu": "1400"}, map[string]string{"mtu": "1400"}, ""},
		"contradiction":   {"bridge", map[string]string{"mtu": "1400", "com.docker.network.driver.mtu": "1500"}, nil, "mtu=1400 contradicts com.docker.network.driver.mtu=1500"},
		"interfaces":      {"bridge", map[string]string{"com.docker.network.bridge.trusted_host_interfaces": "wg0:eth1::wg0"}, map[string]string{"trusted_interfaces": "eth1,wg0"}, ""},
		"no interfaces":   {"bridge", map[string]string{"trusted_interfaces": "wg0,a/b"}, nil, "trusted_interfaces=wg0,a/b: want names of interfaces, with commas or colons between them"},
		"typing error":    {"bridge", map[string]string{"masquerde": "false"}, nil, "unknown option masquerde for mode bridge; did you mean masquerade?"},
		"nothing like it": {"bridge", map[string]string{"colour": "blue"}, nil, "unknown option colour for mode bridge"},
		"another mode's":  {"none", map[string]string{"mtu": "1400"}, nil, "mtu is not an option of mode none, but of bridge, host, ipvlan, macvlan"},
		"too small":       {"bridge", map[string]string{"mtu": "67"}, nil, "mtu=67: want a number from 68 to 65535"},
		"a bare word":     {"overlay", map[string]string{"encrypted": ""}, map[string]string{"encrypted": "true"}, ""},
		"a value missing": {"overlay", map[string]string{"masquerade": ""}, nil, "masquerade=: want true or false"},
		"no such value":   {"bridge", map[string]string{"mode": "brigde"}, nil, "mode=brigde: want one of bridge, host, ipvlan, macvlan, none"},
		"one spelling":    {"bridge", map[string]string{"routes": "10.9.3.4/16@192.168.1.3, 10.8.0.0/16,FD00:1::/64@fd00:2::0:3", "egress_ipv6": "2001:DB8::7", "gateway_address": "10.9.0.2"}, map[string]string{"routes": "10.9.0.0/16@192.168.1.3,10.8.0.0/16,fd00:1::/64@fd00:2::3", "egress_ipv6": "2001:db8::7", "gateway_address": "10.9.0.2"}, ""},
		"wrong family":    {"bridge", map[string]string{"egress_ipv4": "2001:db8::7"}, nil, "egress_ipv4=2001:db8::7: want an IPv4 address"},
		"no address":      {"bridge", map[string]string{"com.docker.network.host_ipv6": "::"}, nil, "com.docker.network.host_ipv6=::: want an IPv6 address"},
		"two families":    {"bridge", map[string]string{"routes": "10.9.0.0/16@fd00::1"}, nil, "routes=10.9.0.0/16@fd00::1: want subnets"},
		"default route":   {"bridge", map[string]string{"routes": "::/0@fd00::1"}, nil, "routes=::/0@fd00::1: want subnets"},
		"half a route":    {"bridge", map[string]string{"routes": "10.9.0.0/16@"}, nil, "routes=10.9.0.0/16@: want subnets"},
		"gateway mode":    {"bridge", map[string]string{"com.docker.network.bridge.gateway_mode_ipv4": "nat-unprotected"}, nil, "gateway_mode_ipv4=nat-unprotected: want one of nat, routed, isolated"},
		"long prefix":     {"bridge", map[string]string{"iface_prefix": "abcdefghijklmn"}, nil, "iface_prefix=abcdefghijklmn: want an interface name: 1 to 13"},
		"long name":       {"bridge", map[string]string{"bridge": "sixteen-letters-"}, nil, "bridge=sixteen-letters-: want an interface name"},
	} {
		got, err := all.Options().Resolve(c.mode, c.given)
		if c.complaint != "" {
			if !errors.Is(err, modes.ErrOption) || !strings.Contains(err.Error(), c.complaint) ||
				strings.HasSuffix(c.complaint, "bridge") && strings.Contains(err.Error(), "did you mean") {
				t.Errorf("%s: %v, want %q", name, err, c.complaint)
			}
			continue
		}
		if err != nil || !maps.Equal(got, c.want) {
			t.Errorf("%s: %v %s", name, err, cmp.Diff(c.want, got))
		}
	}
}

func FuzzResolve(f *testing.F) {
	f.Add("mtu", "1400", "com.docker.network.driver.mtu", "1500")
	f.Add("icc", "true", "bridge", "br0")
	f.Add("mod", "", "", "x")
	f.Fuzz(func(t *testing.T, k1, v1, k2, v2 string) {
		got, err := all.Options().Resolve("bridge", map[string]string{k1: v1, k2: v2})
		if err != nil {
			if !errors.Is(err, modes.ErrOption) {
				t.Errorf("%v is no refusal of an option", err)
			}
			return
		}
		again, err := all.Options().Resolve("bridge", got)
		if err != nil || !maps.Equal(got, again) {
			t.Errorf("canonical options are not: %v %v %v", got, again, err)
		}
		if b := got["bridge"]; b != "" && !modes.ValidIfName(b) {
			t.Errorf("bridge %q", b)
		}
	})
}

func TestPorts(t *testing.T) {
	t.Parallel()
	for given, want := range map[string]string{
		"80": "80", "80, 443/tcp": "80,443/tcp", "8000-8100/udp": "8000-8100/udp", "80-80": "80", "1-65535": "1-65535",
		"": "", "0": "", "65536": "", "90-80": "", "80/icmp": "",
		"80/": "", "http": "", "80,,81": "", "80-": "", "-80": "",
	} {
		got, err := all.Options().Resolve("host", map[string]string{"include": given})
		if (err == nil) != (want != "") || got["include"] != want {
			t.Errorf("%q: %q %v, want %q", given, got["include"], err, want)
		}
	}
	n := modes.Network{Options: map[string]string{"include": "80,8000-8100/udp"}}
	rs := modes.PortsOption{Name: "include"}.Of(n)
	for _, c := range []struct {
		proto string
		port  uint16
		want  bool
	}{
		{"tcp", 80, true},
		{"udp", 80, true},
		{"udp", 8000, true},
		{"udp", 8100, true},
		{"tcp", 8050, false},
		{"udp", 8101, false},
	} {
		has := func(r modes.PortRange) bool { return r.Has(c.proto, c.port) }
		if got := slices.ContainsFunc(rs, has); got != c.want {
			t.Errorf("%s %d: %v", c.proto, c.port, got)
		}
	}
}
