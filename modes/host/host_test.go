package host_test

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"netyard/kernel/kerneltest"
	"netyard/kernel/sandbox"
	"netyard/modes"
	"netyard/modes/host"
	"netyard/modes/modetest"
)

const netA = "aaaaaaaaaaaa1111"

func network(opts map[string]string, pools ...string) modes.Network {
	n := modes.Network{ID: netA, Mode: "host", Options: opts}
	for _, p := range pools {
		pool := netip.MustParsePrefix(p)
		n.Subnets = append(n.Subnets,
			modes.Subnet{Pool: pool, Gateway: netip.PrefixFrom(pool.Addr().Next(), pool.Bits())})
	}
	return n
}

func endpoint(addrs ...string) modes.Endpoint {
	e := modes.Endpoint{ID: "eeeeeeeeeeee0001", NetworkID: netA}
	for _, a := range addrs {
		e.Addrs = append(e.Addrs, netip.MustParsePrefix(a))
	}
	return e
}

func shared(proto, host string, port uint16) modes.Port {
	return modes.Port{Proto: proto, HostIP: netip.MustParseAddr(host), HostPort: port, ContainerPort: port, Count: 1}
}

// A card is a link of the host's for a container to take.
func card(t *testing.T, h *kerneltest.Host) {
	t.Helper()
	h.Sh(t, "sysctl -qw net.ipv6.conf.default.disable_ipv6=1 && "+
		"ip link add nic0 address 02:00:00:00:00:07 type veth peer name far && ip link set far up && "+
		"ip link set nic0 up && ip addr add 192.0.2.7/24 dev nic0")
}

func TestContract(t *testing.T) {
	t.Parallel()
	withPorts := endpoint("10.9.0.2/24", "fd09::2/64")
	withPorts.Ports = []modes.Port{shared("tcp", "0.0.0.0", 80), shared("tcp", "::", 80), shared("udp", "0.0.0.0", 53)}
	for name, c := range map[string]modetest.Case{
		"IPv4":  {Network: network(nil, "10.9.0.0/24"), Endpoint: endpoint("10.9.0.2/24")},
		"both":  {Network: network(map[string]string{"mtu": "1400"}, "10.9.0.0/24", "fd09::/64"), Endpoint: endpoint("10.9.0.2/24", "fd09::2/64")},
		"ports": {Network: network(nil, "10.9.0.0/24", "fd09::/64"), Endpoint: withPorts},
		"card":  {Network: network(map[string]string{"device": "nic0"}), Endpoint: endpoint(), Setup: card},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.New = host.New
			modetest.Run(t, c)
		})
	}
}

// TestShared: which sockets of a sandbox ask for a port of the host.
func TestShared(t *testing.T) {
	t.Parallel()
	at := func(proto, addr string, port uint16) sandbox.Listener {
		return sandbox.Listener{Proto: proto, Addr: netip.MustParseAddr(addr), Port: port}
	}
	both := at("tcp", "::", 80)
	both.Both = true
	bound := at("udp", "0.0.0.0", 68)
	bound.Bound = true
	fleeting := at("udp", "0.0.0.0", 50000)
	fleeting.Ephemeral = true
	e := endpoint("10.9.0.2/24", "fd09::2/64")
	for name, c := range map[string]struct {
		opts map[string]string
		e    modes.Endpoint
		ls   []sandbox.Listener
		want []modes.Port
	}{
		"all of a family":         {nil, e, []sandbox.Listener{at("tcp", "0.0.0.0", 80)}, []modes.Port{shared("tcp", "0.0.0.0", 80)}},
		"all of IPv6":             {nil, e, []sandbox.Listener{at("tcp", "::", 80)}, []modes.Port{shared("tcp", "::", 80)}},
		"all of both":             {nil, e, []sandbox.Listener{both}, []modes.Port{shared("tcp", "0.0.0.0", 80), shared("tcp", "::", 80)}},
		"no such family":          {nil, endpoint("10.9.0.2/24"), []sandbox.Listener{both}, []modes.Port{shared("tcp", "0.0.0.0", 80)}},
		"its own address":         {nil, e, []sandbox.Listener{at("udp", "fd09::2", 53)}, []modes.Port{shared("udp", "::", 53)}},
		"said twice":              {nil, e, []sandbox.Listener{at("udp", "0.0.0.0", 53), at("udp", "10.9.0.2", 53)}, []modes.Port{shared("udp", "0.0.0.0", 53)}},
		"loopback":                {nil, e, []sandbox.Listener{at("tcp", "127.0.0.1", 80), at("tcp", "::1", 80), at("udp", "127.0.0.11", 53)}, nil},
		"another network's":       {nil, e, []sandbox.Listener{at("tcp", "10.10.0.2", 80), at("tcp", "fe80::1", 80)}, nil},
		"an interface's":          {nil, e, []sandbox.Listener{bound}, nil},
		"a client's, it may be":   {nil, e, []sandbox.Listener{fleeting}, nil},
		"one that is asked for":   {map[string]string{"include": "50000/udp"}, e, []sandbox.Listener{fleeting, at("tcp", "0.0.0.0", 50000)}, []modes.Port{shared("udp", "0.0.0.0", 50000)}},
		"excluded from the asked": {map[string]string{"include": "1-100", "exclude": "80/tcp"}, e, []sandbox.Listener{both, at("udp", "0.0.0.0", 80)}, []modes.Port{shared("udp", "0.0.0.0", 80)}},
	} {
		n := network(c.opts, "10.9.0.0/24", "fd09::/64")
		if got := host.New(modes.Env{}).Traits(n).Sharing.Ports(c.e, c.ls); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	h := kerneltest.New(t)
	h.Sh(t, "ip link add br0 type bridge && ip link add slave type veth peer name x && "+
		"ip link set slave master br0 && ip addr add 10.9.0.5/24 dev br0 && ip link set br0 up")
	m := modetest.On(h.Kernel, host.New, nil)
	internal := network(nil, "10.8.0.0/24")
	internal.Internal = true
	small := network(map[string]string{"mtu": "1000"}, "fd09::/64")
	for want, n := range map[string]modes.Network{
		"docker run --network host":          network(map[string]string{"strict": "true"}, "10.8.0.0/24"),
		"omit --ipam-driver null":            network(nil),
		"--internal contradicts":             internal,
		"IPv6 needs at least 1280":           small,
		"mtu=1400 contradicts device=nic0":   network(map[string]string{"device": "nic0", "mtu": "1400"}),
		"exclude=80 contradicts":             network(map[string]string{"device": "nic0", "exclude": "80"}),
		"device=nic0: there is no such":      network(map[string]string{"device": "nic0"}),
		"device=slave: its master is br0":    network(map[string]string{"device": "slave"}),
		"a bridge cannot be moved":           network(map[string]string{"device": "br0"}),
		"overlaps 10.9.0.0/24 on the host's": network(nil, "10.9.0.0/24"),
	} {
		_, err := m.Settle(t.Context(), n)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", maps.All(n.Options), err, want)
		}
	}
}
