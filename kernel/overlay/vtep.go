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
	// vteps4 and vteps6 hold (host, VNI): the hosts that each network is on.
	vteps4 rule.SetName = "vteps4"
	vteps6 rule.SetName = "vteps6"

	vxlanChain  = "vxlan_host"
	astrayChain = "vxlan_astray"
	madeChain   = "vxlan_made"
)

// CloseElements returns the elements that close a network: its frames leave the host only by its VXLAN device, and none
// is accepted. VTEPs opens it for its hosts.
func CloseElements(port uint16, vni uint32) (all []nft.Element) {
	dport, number := string(binaryutil.BigEndian.PutUint16(port)), bridge.VNIKey(vni)
	for _, table := range []rule.SetName{"", rule.Bridged} {
		all = append(all,
			nft.NewElement(Sets(), bridge.VXLANPorts+table, dport, ""),
			nft.NewElement(Sets(), bridge.VNIs+table, number, ""))
	}
	return all
}

// VTEPElements returns the elements that let frames of a network in from its hosts, and from nobody else. Without hosts
// none is let in.
func VTEPElements(port uint16, vni uint32, hosts []netip.Addr) []nft.Element {
	return append(CloseElements(port, vni), MemberElements(vni, hosts)...)
}

// MemberElements returns the elements of VTEPs that are about the hosts.
func MemberElements(vni uint32, hosts []netip.Addr) (all []nft.Element) {
	number := bridge.VNIKey(vni) + "\x00"
	for _, h := range hosts {
		addr, members := string(h.AsSlice()), rule.ByFamily(h.Is6(), bridge.Members4, bridge.Members6)
		all = append(all, nft.NewElement(Sets(), rule.ByFamily(h.Is6(), vteps4, vteps6), addr+number, ""))
		for _, table := range []rule.SetName{"", rule.Bridged} {
			all = append(all, nft.NewElement(Sets(), members+table, addr, ""))
		}
	}
	return all
}

func vtepSets() []rule.Set {
	number := nftables.TypeInteger
	vni := bridge.VNIField()
	return []rule.Set{
		{Name: bridge.VXLANPorts, Type: nftables.TypeInetService},
		vniSet(rule.Set{Name: bridge.VNIs, Early: true}),
		{Name: bridge.VXLANPorts + rule.Bridged, Type: nftables.TypeInetService, Bridge: true},
		vniSet(rule.Set{Name: bridge.VNIs + rule.Bridged, Bridge: true}),
		{Name: vteps4, Type: nftables.MustConcatSetType(nftables.TypeIPAddr, number), Concat: true, Raw: vni},
		{Name: vteps6, Type: nftables.MustConcatSetType(nftables.TypeIP6Addr, number), Concat: true, Raw: vni},
		{Name: bridge.Members4, Type: nftables.TypeIPAddr},
		{Name: bridge.Members6, Type: nftables.TypeIP6Addr},
		{Name: bridge.Members4 + rule.Bridged, Type: nftables.TypeIPAddr, Bridge: true},
		{Name: bridge.Members6 + rule.Bridged, Type: nftables.TypeIP6Addr, Bridge: true},
	}
}

// vniSet completes the declaration of a set of VNIs.
func vniSet(s rule.Set) rule.Set {
	s.Raw, s.Type = bridge.VNIField(), nftables.TypeInteger
	s.Type.Bytes = s.Raw.Len
	return s
}

// vtepChains check incoming VXLAN before conntrack does, so that dropped packets have no entry there. Fragments have
// been reassembled by then (nf_defrag_ipv4, priority -400). A packet whose destination is translated later, to a VXLAN
// port of the host, is dropped at input.
func vtepChains(b rule.SetBook) []rule.Chain {
	members := []rule.Rule{
		clearRule(b),
		rule.New("accept VXLAN of other networks", toNetwork(b, bridge.VNIs, true), rule.Return()),
		rule.New("check frames from a link that does not lead back to the sender",
			noRouteBack(), rule.Jump(astrayChain)),
	}
	for _, f := range rule.Families() {
		next := uint32(rule.RegAfter4)
		if f.V6() {
			next = rule.RegAfter6
		}
		source := []expr.Any{
			&expr.Payload{DestRegister: rule.Reg1, Base: expr.PayloadBaseNetworkHeader, Offset: f.Src, Len: f.Size},
		}
		hosts := []expr.Any{b.Lookup(rule.ByFamily(f.V6(), vteps4, vteps6), false)}
		members = append(members, rule.New(f.Name("accept frames from hosts of the network"),
			rule.NFProto(f.Proto), source, bridge.VNI(next), hosts, rule.Return()))
	}
	members = append(members, rule.New("drop frames from hosts that are not members", rule.Drop()))
	return []rule.Chain{
		{
			Name: "vxlan_in", Kind: nftables.ChainTypeFilter, Hook: nftables.ChainHookPrerouting,
			Priority: nftables.ChainPriorityRaw, Rules: []rule.Rule{
				rule.New("check traffic from the tunnel", rule.FromLink(core.TunnelName), rule.Jump(tunnelChain)),
				rule.New("check VXLAN to this host", toVXLANPort(b), rule.ForHost(), rule.GoTo(vxlanChain)),
				rule.New("drop frames to broadcast, multicast and anycast addresses",
					toVXLANPort(b), toNetwork(b, bridge.VNIs, false), notUnicast(), rule.Drop()),
			},
		},
		{Name: vxlanChain, Rules: members},
		{Name: astrayChain, Rules: []rule.Rule{
			rule.New("drop frames from the host itself", rule.FromLink("lo"), rule.Drop()),
			rule.New("drop frames from the host's link to its containers on the LAN",
				rule.IfNamePrefix(expr.MetaKeyIIFNAME, core.ShimPrefix), rule.Drop()),
			rule.New("drop frames from a container or a virtual machine", fromVirtualLink(), rule.Drop()),
		}},
		{
			Name: "vxlan_turned", Kind: nftables.ChainTypeFilter, Hook: nftables.ChainHookInput,
			Priority: nftables.ChainPriorityRef(rule.AfterInputFilters - 10), Rules: []rule.Rule{
				rule.New("drop frames to a translated port",
					rule.Translated(), toVXLANPort(b), toNetwork(b, bridge.VNIs, false), rule.Drop()),
				rule.New("accept frames of netyard's networks, without the mark",
					toVXLANPort(b), toNetwork(b, bridge.VNIs, false), setSuspect(false), rule.Accept()),
				rule.New("mark other VXLAN, which may hide such frames", toVXLANPort(b), setSuspect(true)),
			},
		},
	}
}

// notUnicast matches packets to a broadcast or multicast address, or to IPv6's subnet-router anycast address. A VXLAN
// device accepts them, and none of netyard's sends them.
func notUnicast() []expr.Any {
	es := rule.ForHost()
	es[1] = &expr.Cmp{Op: expr.CmpOpNeq, Register: rule.Reg1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_UNICAST)}
	return es
}

// setSuspect sets or clears the bit Suspect of the packet mark.
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

// noRouteBack matches a packet that did not come by the link that leads to its sender.
func noRouteBack() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: rule.Reg1, FlagSADDR: true, FlagIIF: true, FlagPRESENT: true, ResultOIF: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: rule.Reg1, Data: make([]byte, 4)},
	}
}

// fromVirtualLink matches packets that came in by a software link that is not one of uplinks, such as a link to a
// container or a virtual machine. It does not match a network card, which has no kind: a rule that reads the kind does
// not match then (nft_meta_store_kind, net/netfilter/nft_meta.c). So a host with several links on its LANs accepts
// frames by any of them, whichever its routes prefer.
func fromVirtualLink() (all []expr.Any) {
	for _, kind := range uplinks() {
		all = append(all, &expr.Meta{Key: rule.MetaIIFKind, Register: rule.Reg1},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: rule.Reg1, Data: []byte(rule.IfName(kind))})
	}
	return all
}

// uplinks returns the kinds of software links that stand for a card, or join cards to a network. A host with a macvlan
// link of its own gets ARP requests for its address by both links, and answers by both.
func uplinks() []string { return []string{"bond", "team", "vlan", "macvlan", "ipvlan", "ipoib", "dsa"} }

// madeRules decide which frames leave for other hosts. At postrouting a packet that a VXLAN device of the host made has
// that device as its incoming interface (ip_output, net/ipv4/ip_output.c). No process, container or routed packet can
// pretend that.
func madeRules(b rule.SetBook) []rule.Rule {
	return []rule.Rule{
		rule.New("drop frames of encrypted networks that leave in clear",
			toNetwork(b, encrypted, false), rule.NotInterface(expr.MetaKeyOIFNAME, core.TunnelName), rule.Drop()),
		rule.New("accept frames from netyard's VXLAN devices",
			rule.IfNamePrefix(expr.MetaKeyIIFNAME, core.VXLANPrefix), rule.Return()),
		rule.New("accept frames of a host behind a bridge", bridged(), rule.Return()),
		rule.New("drop fragments, whose network is not known",
			rule.NFProto(unix.NFPROTO_IPV4), bridge.Fragment4(), rule.Drop()),
		rule.New("drop fragments, whose network is not known, IPv6",
			rule.NFProto(unix.NFPROTO_IPV6), bridge.Fragment6(), rule.Drop()),
		rule.New("drop frames that no VXLAN device made", toNetwork(b, bridge.VNIs, false), rule.Drop()),
		rule.New("accept frames from others' VXLAN devices", fromKind("vxlan"), rule.Return()),
		rule.New("drop what may be several datagrams, to this host", toLink("lo"), bridge.MaybeSeveral(), rule.Drop()),
		rule.New("drop what may be several datagrams, to a host of an overlay",
			rule.NFProto(unix.NFPROTO_IPV4), bridge.ToMember(b, false, ""), bridge.MaybeSeveral(), rule.Drop()),
		rule.New("drop what may be several datagrams, to a host of an overlay, IPv6",
			rule.NFProto(unix.NFPROTO_IPV6), bridge.ToMember(b, true, ""), bridge.MaybeSeveral(), rule.Drop()),
	}
}

// bridged matches frames that stay on a bridge and that br_netfilter passes to postrouting: they have no incoming
// interface there and, unlike what the host sends, a link-layer header.
func bridged() []expr.Any {
	return rule.Join([]expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIF, Register: rule.Reg1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: rule.Reg1, Data: make([]byte, 4)},
	}, rule.Payload(expr.PayloadBaseLLHeader, 12, "\x00\x00", expr.CmpOpNeq))
}

// fromKind matches packets from a link of a kind.
func fromKind(kind string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: rule.MetaIIFKind, Register: rule.Reg1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: rule.Reg1, Data: []byte(rule.IfName(kind))},
	}
}

// CheckKernel returns an error if this kernel may not know which packets its VXLAN devices made; then nothing of an
// overlay network leaves the host.
func CheckKernel() error {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return fmt.Errorf("read the kernel's version: %w", err)
	}
	return CheckRelease(unix.ByteSliceToString(name.Release[:]))
}

// CheckRelease does this for a kernel release: 5.7 is the first one where such packets have a device at postrouting.
func CheckRelease(release string) error {
	const major, minor = 5, 7
	var have struct{ major, minor int }
	if _, err := fmt.Sscanf(release, "%d.%d", &have.major, &have.minor); err != nil {
		return nil //nolint:nilerr // not a version of the usual form
	}
	if have.major > major || have.major == major && have.minor >= minor {
		return nil
	}
	return fmt.Errorf("kernel %s is older than %d.%d and may not tell overlay frames from forged ones: "+
		"then no overlay frame leaves this host", release, major, minor)
}
