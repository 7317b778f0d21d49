package overlay

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/kernel/nft"
	"netyard/kernel/rule"
)

const (
	// vteps4 and vteps6 have the hosts that each network is on.
	vteps4 rule.SetName = "vteps4"
	vteps6 rule.SetName = "vteps6"

	vxlanChain  = "vxlan"
	astrayChain = "vxlan_astray"
	madeChain   = "vxlan_made"
)

// Closed closes a network: its frames leave the host only by its VXLAN device, and none is let in. VTEPs opens it for
// its hosts.
func Closed(port uint16, vni uint32) (all []nft.Element) {
	dport, number := string(binaryutil.BigEndian.PutUint16(port)), string(binaryutil.NativeEndian.PutUint32(vni))
	for _, table := range []rule.SetName{"", rule.Bridged} {
		all = append(all, nft.NewElement(Sets(), bridge.VXLANPorts+table, dport, ""), nft.NewElement(Sets(), bridge.VNIs+table, number, ""))
	}
	return all
}

// VTEPs lets frames of a network in that come from its hosts, and those of nobody else. Without hosts nothing of it
// gets in.
func VTEPs(port uint16, vni uint32, hosts []netip.Addr) []nft.Element {
	return append(Closed(port, vni), Members(vni, hosts)...)
}

// Members are the elements of VTEPs that are about the hosts.
func Members(vni uint32, hosts []netip.Addr) (all []nft.Element) {
	number := string(binaryutil.NativeEndian.PutUint32(vni))
	for _, h := range hosts {
		all = append(all, nft.NewElement(Sets(), rule.Either(h.Is6(), vteps4, vteps6), string(h.AsSlice())+number, ""))
		for _, table := range []rule.SetName{"", rule.Bridged} {
			all = append(all, nft.NewElement(Sets(), rule.Either(h.Is6(), bridge.Members4, bridge.Members6)+table, string(h.AsSlice()), ""))
		}
	}
	return all
}

func vtepSets() []rule.Set {
	number := nftables.TypeMark // the host's order, and shown as 0x00001234
	return []rule.Set{
		{Name: bridge.VXLANPorts, Type: nftables.TypeInetService},
		{Name: bridge.VNIs, Type: number, Early: true},
		{Name: bridge.VXLANPorts + rule.Bridged, Type: nftables.TypeInetService, Bridge: true},
		{Name: bridge.VNIs + rule.Bridged, Type: number, Bridge: true},
		{Name: vteps4, Type: nftables.MustConcatSetType(nftables.TypeIPAddr, number), Concat: true},
		{Name: vteps6, Type: nftables.MustConcatSetType(nftables.TypeIP6Addr, number), Concat: true},
		{Name: bridge.Members4, Type: nftables.TypeIPAddr},
		{Name: bridge.Members6, Type: nftables.TypeIP6Addr},
		{Name: bridge.Members4 + rule.Bridged, Type: nftables.TypeIPAddr, Bridge: true},
		{Name: bridge.Members6 + rule.Bridged, Type: nftables.TypeIP6Addr, Bridge: true},
	}
}

// vtepChains look before conntrack does: what is dropped shall take no place there. Fragments have been put together by
// then (nf_defrag_ipv4, priority -400). A packet whose destination is translated later to a VXLAN port of the host is
// dropped at input.
func vtepChains(b rule.Book) []rule.Chain {
	members := []rule.Rule{
		inClear(b),
		rule.New("other networks", bridge.VNI(rule.Reg1), []expr.Any{b.Lookup(bridge.VNIs, true)}, rule.Back()),
		rule.New("frames by a link that does not lead back", noWayBack(), rule.Jump(astrayChain)),
	}
	for _, f := range rule.Families() {
		next := uint32(rule.Behind4)
		if f.V6() {
			next = rule.Behind6
		}
		members = append(members, rule.New(f.Name("from hosts of the network"), rule.NFProto(f.Proto), []expr.Any{
			&expr.Payload{DestRegister: rule.Reg1, Base: expr.PayloadBaseNetworkHeader, Offset: f.Src, Len: f.Size},
		}, bridge.VNI(next), []expr.Any{b.Lookup(rule.Either(f.V6(), vteps4, vteps6), false)}, rule.Back()))
	}
	return []rule.Chain{
		{
			Name: "vxlan_in", Kind: nftables.ChainTypeFilter, Hook: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw, Rules: []rule.Rule{
				rule.New("what comes by the tunnel", rule.FromLink(core.TunnelName), rule.Jump(tunnelChain)),
				rule.New("VXLAN for this host", byVXLANPort(b), rule.ForHost(), rule.GoTo(vxlanChain)),
				rule.New("frames for everybody", byVXLANPort(b), bridge.VNI(rule.Reg1), []expr.Any{b.Lookup(bridge.VNIs, false)}, notUnicast(), rule.Drop()),
			},
		},
		{Name: vxlanChain, Rules: append(members, rule.New("frames of who is no member", rule.Drop()))},
		{Name: astrayChain, Rules: []rule.Rule{
			rule.New("frames from the host itself", rule.FromLink("lo"), rule.Drop()),
			rule.New("frames by the host's link to its containers on the LAN",
				rule.IfNamePrefix(expr.MetaKeyIIFNAME, core.ShimPrefix), rule.Drop()),
			rule.New("frames from a container or a virtual machine", virtual(), rule.Drop()),
		}},
		{
			Name: "vxlan_turned", Kind: nftables.ChainTypeFilter, Hook: nftables.ChainHookInput,
			Priority: nftables.ChainPriorityRef(rule.BehindInput - 10), Rules: []rule.Rule{
				rule.New("frames by a translated port",
					rule.Translated(), byVXLANPort(b), bridge.VNI(rule.Reg1), []expr.Any{b.Lookup(bridge.VNIs, false)}, rule.Drop()),
				rule.New("frames of netyard's networks",
					byVXLANPort(b), bridge.VNI(rule.Reg1), []expr.Any{b.Lookup(bridge.VNIs, false)}, setSuspect(false), rule.Accept()),
				rule.New("others, which may have such frames behind them", byVXLANPort(b), setSuspect(true)),
			},
		},
	}
}

// notUnicast matches what is for a broadcast or multicast address, or for IPv6's subnet-router anycast address: a VXLAN
// device takes it, and none of netyard's sends it.
func notUnicast() []expr.Any {
	es := rule.ForHost()
	es[1] = &expr.Cmp{Op: expr.CmpOpNeq, Register: rule.Reg1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_UNICAST)}
	return es
}

// setSuspect sets the bit of the mark, or takes it off.
func setSuspect(on bool) []expr.Any {
	bit := uint32(0)
	if on {
		bit = bridge.Suspect
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: rule.Reg1},
		&expr.Bitwise{
			SourceRegister: rule.Reg1, DestRegister: rule.Reg1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(^bridge.Suspect), Xor: binaryutil.NativeEndian.PutUint32(bit),
		},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: rule.Reg1, SourceRegister: true},
	}
}

// noWayBack matches a packet that did not come by the link by which its sender is reached.
func noWayBack() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: rule.Reg1, FlagSADDR: true, FlagIIF: true, FlagPRESENT: true, ResultOIF: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: rule.Reg1, Data: make([]byte, 4)},
	}
}

// virtual matches what came by a link that is made of software and not by one of those that stand for a card or join
// cards to a network. A card itself has no kind, and then a rule that asks for it does not match (nft_meta_store_kind,
// net/netfilter/nft_meta.c). So a host with several links on its LANs takes frames by any of them, whichever its routes
// prefer; what leads to containers and virtual machines has another kind.
func virtual() (all []expr.Any) {
	for _, kind := range uplinks() {
		all = append(all, &expr.Meta{Key: rule.MetaIIFKind, Register: rule.Reg1},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: rule.Reg1, Data: []byte(rule.IfName(kind))})
	}
	return all
}

// uplinks are the kinds of such links. A host with a macvlan of its own is asked for its address by both links, and
// answers by both.
func uplinks() []string { return []string{"bond", "team", "vlan", "macvlan", "ipvlan", "ipoib", "dsa"} }

// madeRules decide which frames leave for other hosts. A packet that a VXLAN device of the host made is at postrouting
// as if it came in by that device (ip_output, net/ipv4/ip_output.c): no process, container or routed packet can pretend
// that.
func madeRules(b rule.Book) []rule.Rule {
	return []rule.Rule{
		rule.New("frames of an encrypted network leave by the tunnel only",
			bridge.VNI(rule.Reg1), []expr.Any{b.Lookup(encrypted, false)}, rule.NotInterface(expr.MetaKeyOIFNAME, core.TunnelName), rule.Drop()),
		rule.New("made by a VXLAN device", rule.IfNamePrefix(expr.MetaKeyIIFNAME, core.VXLANPrefix), rule.Back()),
		rule.New("of a host behind a bridge", byBridge(), rule.Back()),
		rule.New("fragments, whose network is not known", rule.NFProto(unix.NFPROTO_IPV4), bridge.Fragment4(), rule.Drop()),
		rule.New("fragments, whose network is not known, IPv6", rule.NFProto(unix.NFPROTO_IPV6), bridge.Fragment6(), rule.Drop()),
		rule.New("frames that no VXLAN device made", bridge.VNI(rule.Reg1), []expr.Any{b.Lookup(bridge.VNIs, false)}, rule.Drop()),
		rule.New("made by a VXLAN device of somebody else's", madeBy("vxlan"), rule.Back()),
		rule.New("for this host, and may be several datagrams", ToLink("lo"), bridge.MaybeSeveral(), rule.Drop()),
		rule.New("for a host of a network, and may be several datagrams",
			rule.NFProto(unix.NFPROTO_IPV4), bridge.ToMember(b, false, ""), bridge.MaybeSeveral(), rule.Drop()),
		rule.New("for a host of a network, and may be several datagrams, IPv6",
			rule.NFProto(unix.NFPROTO_IPV6), bridge.ToMember(b, true, ""), bridge.MaybeSeveral(), rule.Drop()),
	}
}

// byBridge matches frames that stay on a bridge, which br_netfilter takes to postrouting: they have no incoming
// interface there, and, unlike what the host sends, a link-layer header.
func byBridge() []expr.Any {
	return rule.Join([]expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIF, Register: rule.Reg1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: rule.Reg1, Data: make([]byte, 4)},
	}, rule.Payload(expr.PayloadBaseLLHeader, 12, "\x00\x00", expr.CmpOpNeq))
}

// madeBy matches what came from a link of a kind.
func madeBy(kind string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: rule.MetaIIFKind, Register: rule.Reg1}, &expr.Cmp{Op: expr.CmpOpEq, Register: rule.Reg1, Data: []byte(rule.IfName(kind))},
	}
}

// TellsDevices says why this kernel may not know which packets its VXLAN devices made; nothing of an overlay network
// leaves then.
func TellsDevices() error {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return fmt.Errorf("read the kernel's version: %w", err)
	}
	return TellsDevicesIn(unix.ByteSliceToString(name.Release[:]))
}

// TellsDevicesIn is about the first version that has a device for such packets at postrouting.
func TellsDevicesIn(release string) error {
	const major, minor = 5, 7
	var have struct{ major, minor int }
	if _, err := fmt.Sscanf(release, "%d.%d", &have.major, &have.minor); err != nil {
		return nil //nolint:nilerr // no version that anybody knows
	}
	if have.major > major || have.major == major && have.minor >= minor {
		return nil
	}
	return fmt.Errorf("kernel %s is older than %d.%d, and may not tell frames of overlays from forged ones: then none leaves",
		release, major, minor)
}
