package kernel

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
)

// A VXLAN device takes frames from whoever can send it a UDP packet (RFC 7348, section 7). So what is for one of netyard's networks has
// to be from a host that the network is on. VNIs that are not netyard's pass: another manager, such as a swarm, may be at the same port.
const (
	// vxlanPorts has the ports that VXLAN comes in by.
	vxlanPorts SetName = "vxlan_ports"
	// vnis has the numbers of netyard's networks.
	vnis SetName = "vnis"
	// vteps4 and vteps6 have the hosts that each network is on.
	vteps4 SetName = "vteps4"
	vteps6 SetName = "vteps6"

	vxlanChain = "vxlan"
)

// VTEPs lets frames of a network in that come from its hosts, and those of nobody else. Without hosts nothing of it gets in.
func VTEPs(port uint16, vni uint32, hosts []netip.Addr) []Element {
	number := string(binaryutil.NativeEndian.PutUint32(vni))
	all := []Element{newElement(vxlanPorts, string(binaryutil.BigEndian.PutUint16(port)), ""), newElement(vnis, number, "")}
	for _, h := range hosts {
		all = append(all, newElement(either(h.Is6(), vteps4, vteps6), string(h.AsSlice())+number, ""))
	}
	return all
}

func vtepSets() []setSpec {
	number := nftables.TypeMark // the host's order, and shown as 0x00001234
	return []setSpec{
		{name: vxlanPorts, key: nftables.TypeInetService},
		{name: vnis, key: number},
		{name: vteps4, key: nftables.MustConcatSetType(nftables.TypeIPAddr, number), concat: true},
		{name: vteps6, key: nftables.MustConcatSetType(nftables.TypeIP6Addr, number), concat: true},
	}
}

// vtepChains look before conntrack does: what is dropped shall take no place there. Fragments have been put together by then
// (nf_defrag_ipv4, priority -400).
func vtepChains(b setBook) []chainSpec {
	members := []ruleSpec{inClear(b), {"other networks", rule(vni(reg1), []expr.Any{b.lookup(vnis, true)}, back())}}
	for _, f := range families() {
		next := uint32(behind4)
		if f.v6() {
			next = behind6
		}
		members = append(members, ruleSpec{f.name("from hosts of the network"), rule(nfproto(f.proto), []expr.Any{
			&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: f.src, Len: f.size},
		}, vni(next), []expr.Any{b.lookup(either(f.v6(), vteps4, vteps6), false)}, back())})
	}
	return []chainSpec{
		{
			name: "vxlan_in", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookPrerouting, priority: nftables.ChainPriorityRaw, rules: []ruleSpec{
				{"what comes by the tunnel", rule(in(TunnelName), jump(tunnelChain))},
				{"VXLAN for this host", rule(byVXLANPort(b), forHost(), jump(vxlanChain))},
			},
		},
		{name: vxlanChain, rules: append(members, ruleSpec{"frames of who is no member", drop()})},
	}
}

// vni loads the number of the network, 24 bits behind the UDP header and 4 bytes of VXLAN's (RFC 7348, section 5).
func vni(at uint32) []expr.Any {
	const before = 8 + 3 // and one byte of those 4, to be masked
	return []expr.Any{
		&expr.Payload{DestRegister: at, Base: expr.PayloadBaseTransportHeader, Offset: before, Len: 4},
		&expr.Bitwise{SourceRegister: at, DestRegister: at, Len: 4, Mask: []byte{0, 0xff, 0xff, 0xff}, Xor: make([]byte, 4)},
		&expr.Byteorder{SourceRegister: at, DestRegister: at, Op: expr.ByteorderNtoh, Len: 4, Size: 4},
	}
}

func showNumber(v string) string {
	return fmt.Sprintf("0x%08x", binaryutil.NativeEndian.Uint32([]byte(v)))
}
