package driver_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"netyard/kernel/kerneltest"
)

// lanCreate returns the body of a CreateNetwork with these options, and an ID that ends in these two digits.
func lanCreate(id, options string) string {
	return strings.Replace(fmt.Sprintf(create, options), "aaaaaaaaaaaa01", "aaaaaaaaaaaa"+id, 1)
}

func lanEngine(t *testing.T, mode string) *engine {
	t.Helper()
	e := newEngine(t, mode)
	e.host.Peer(t, "eth0")
	e.host.Sh(t, "sysctl -qw net.ipv6.conf.all.disable_ipv6=1")
	return e
}

// TestLANMacvlan shows the life of a macvlan network, with an engine's calls.
func TestLANMacvlan(t *testing.T) {
	t.Parallel()
	e := lanEngine(t, "macvlan")
	before := e.state()
	for range 2 {
		e.ok("NetworkDriver.CreateNetwork", lanCreate("01", `"parent":"eth0"`))
	}
	e.ok("NetworkDriver.CreateNetwork", lanCreate("02", `"parent":"eth0","macvlan_mode":"private"`))
	e.refused("NetworkDriver.CreateNetwork", lanCreate("03", `"parent":"eth0","macvlan_mode":"passthru"`),
		"macvlan_mode=passthru requires exclusive use of the parent")
	first := e.ok("NetworkDriver.CreateEndpoint", endpoint)
	if fmt.Sprint(first) != "map[Interface:map[MacAddress:02:42:0a:09:00:02]]" {
		t.Errorf("CreateEndpoint: %v", first)
	}
	for range 2 {
		if j := e.ok("NetworkDriver.Join", join); fmt.Sprint(j) != joined {
			t.Errorf("Join: %v, want %s", j, joined)
		}
	}
	e.host.Sh(t, "ip -d link show nyp-eeeeeeeeeee | grep 'macvlan mode bridge'")
	for range 2 {
		e.ok("NetworkDriver.Leave", ids)
		e.ok("NetworkDriver.DeleteEndpoint", ids)
	}
	for _, id := range []string{"01", "02"} {
		e.ok("NetworkDriver.DeleteNetwork", fmt.Sprintf(`{"NetworkID":"aaaaaaaaaaaa%s"}`, id))
	}
	if after := e.state(); after != before {
		t.Errorf("something is left:\n%s", cmp.Diff(before, after))
	}
}

// TestHostsOwnAddress shows that no container gets an address that the host has on the link of its network, whichever
// IPAM gives it, and that an address of the host is not chosen to be the router of a LAN.
func TestHostsOwnAddress(t *testing.T) {
	t.Parallel()
	for mode, generic := range map[string]string{
		"macvlan": `"parent":"lan0"`, "bridge": `"com.docker.network.bridge.name":"lan0"`,
	} {
		e := newEngine(t, mode)
		kind := map[string]string{"macvlan": "veth peer name lan1", "bridge": "bridge"}[mode]
		e.host.Sh(t, "ip link add lan0 type "+kind+" && ip link set lan0 up && ip addr add 10.9.0.1/29 dev lan0 && "+
			"ip addr add 10.9.0.3/29 dev lan0 && ip -6 addr add fd09::1/64 dev lan0 nodad")
		pool := e.ok("IpamDriver.RequestPool", `{"AddressSpace":"netyard","Pool":"10.9.0.0/29"}`)["PoolID"].(string)
		pool6 := e.ok("IpamDriver.RequestPool", `{"AddressSpace":"netyard","Pool":"fd09::/64"}`)["PoolID"].(string)
		address := func(pool, more string) string {
			return e.ok("IpamDriver.RequestAddress", fmt.Sprintf(`{"PoolID":%q,%s}`, pool, more))["Address"].(string)
		}
		const chosen = `"Address":"","Options":{"RequestAddressType":"com.docker.network.gateway"}`
		gw, gw6 := address(pool, chosen), address(pool6, chosen)
		if host := gw == "10.9.0.1/29" && gw6 == "fd09::1/64"; host != (mode == "bridge") {
			t.Errorf("%s: the gateways are %s and %s", mode, gw, gw6)
		}
		e.ok("NetworkDriver.CreateNetwork", fmt.Sprintf(`{"NetworkID":"aaaaaaaaaaaa01","Options":{`+
			`"com.docker.network.generic":{%s}},`+
			`"IPv4Data":[{"AddressSpace":"netyard","Pool":"10.9.0.0/29","Gateway":%q}],`+
			`"IPv6Data":[{"AddressSpace":"netyard","Pool":"fd09::/64","Gateway":%q}]}`, generic, gw, gw6))
		for range 3 {
			a, a6 := address(pool, `"Address":"","Options":{}`), address(pool6, `"Address":"","Options":{}`)
			if a == "10.9.0.1/29" || a == "10.9.0.3/29" || a6 == "fd09::1/64" {
				t.Errorf("%s: a container gets %s and %s", mode, a, a6)
			}
		}
		for pool, asked := range map[string]string{pool: "10.9.0.3", pool6: "fd09::1"} {
			e.refused("IpamDriver.RequestAddress", fmt.Sprintf(`{"PoolID":%q,"Address":%q,"Options":{}}`, pool, asked),
				"address "+asked+": it is the host's own, on lan0")
		}
		// The addresses of Docker's own IPAM are known when it has given them.
		e.ok("NetworkDriver.CreateNetwork", strings.ReplaceAll(lanCreate("02", generic), "10.9.0.0/24", "10.9.0.0/16"))
		e.refused("NetworkDriver.CreateEndpoint", strings.NewReplacer("aaaaaaaaaaaa01", "aaaaaaaaaaaa02",
			"10.9.0.2", "10.9.0.3").Replace(endpoint), "address 10.9.0.3: it is the host's own, on lan0")
	}
}

// TestLANIPVLAN shows the life of ipvlan networks, with an engine's calls.
func TestLANIPVLAN(t *testing.T) {
	t.Parallel()
	kerneltest.Needs(t, "ipvlan", "vlan")
	const routedAnswer = "map[DisableGatewayService:true InterfaceName:map[DstPrefix:eth SrcName:nyp-eeeeeeeeeee] " +
		"StaticRoutes:[map[Destination:0.0.0.0/0 NextHop: RouteType:1]]]"
	for mode, answer := range map[string]string{"l2": joined, "l3": routedAnswer, "l3s": routedAnswer} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			e := lanEngine(t, "ipvlan")
			before := e.state()
			generic := fmt.Sprintf(`"parent":"eth0.50","ipvlan_mode":"%s"`, mode)
			e.skips([2]bool{true, true}, `"com.docker.network.generic":{`+generic+`}`)
			e.ok("NetworkDriver.CreateNetwork", lanCreate("01", generic))
			e.refused("NetworkDriver.CreateNetwork",
				lanCreate("02", `"parent":"eth0.50","ipvlan_flag":"vepa","ipvlan_mode":"`+mode+`"`),
				"its ipvlan_flag=bridge is shared by all networks on one parent")
			e.refused("NetworkDriver.CreateEndpoint",
				strings.Replace(endpoint, `"MacAddress":""`, `"MacAddress":"02:11:22:33:44:55"`, 1),
				"containers on a network of mode ipvlan have no hardware address of their own")
			if first := e.ok("NetworkDriver.CreateEndpoint", endpoint); fmt.Sprint(first) != "map[Interface:map[]]" {
				t.Errorf("CreateEndpoint: %v", first)
			}
			for range 2 {
				if j := e.ok("NetworkDriver.Join", join); fmt.Sprint(j) != answer {
					t.Errorf("Join: %v, want %s", j, answer)
				}
			}
			e.host.Sh(t, "ip -d link show nyp-eeeeeeeeeee | grep 'ipvlan *mode "+mode+" bridge'")
			e.ok("NetworkDriver.Leave", ids)
			e.ok("NetworkDriver.DeleteEndpoint", ids)
			e.ok("NetworkDriver.DeleteNetwork", ids)
			if after := e.state(); after != before {
				t.Errorf("something is left:\n%s", cmp.Diff(before, after))
			}
		})
	}
}

// TestLANNoIPVLAN shows that an ipvlan network is refused with an error of one line on a kernel without ipvlan, and
// that nothing is changed.
func TestLANNoIPVLAN(t *testing.T) {
	t.Parallel()
	e := lanEngine(t, "ipvlan")
	if e.host.HasKind("ipvlan") {
		return // TestLANIPVLAN tests such a kernel
	}
	before := e.state()
	e.refused("NetworkDriver.CreateNetwork", lanCreate("01", `"parent":"eth0"`), "this kernel has no ipvlan")
	if after := e.state(); after != before {
		t.Errorf("a refusal changed something:\n%s", after)
	}
}
