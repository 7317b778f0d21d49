package overlay

import (
	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/kernel/nft"
	"netyard/kernel/rule"
)

// An encrypted network fails closed: not because its frames find their way into WireGuard, but because these rules drop
// every frame that does not. They are loaded before the network's VXLAN device is made, and stay until it is gone. So
// nothing leaves in clear before the first handshake, nor after somebody deletes the WireGuard device, when a default
// route would take what is for the other end; and no frame is accepted that did not come through WireGuard.
const (
	// encrypted holds the VNIs of encrypted networks.
	encrypted rule.SetName = "encrypted"

	tunnelChain = "from_tunnel"
)

// EncryptElements returns the elements that let a network's frames travel inside WireGuard only. Ensure them before the
// VXLAN device, and remove them after it.
func EncryptElements(port uint16, vni uint32) []nft.Element {
	return append(CloseElements(port, vni), nft.NewElement(Sets(), encrypted, bridge.VNIKey(vni), ""))
}

func tunnelSets() []rule.Set {
	return []rule.Set{vniSet(rule.Set{Name: encrypted, Early: true})}
}

// toVXLANPort matches UDP to a port that receives VXLAN.
func toVXLANPort(b rule.SetBook) []expr.Any { return bridge.ToVXLANPort(b, bridge.VXLANPorts) }

// toNetwork matches a VXLAN packet whose VNI is in a set, or with invert one whose VNI is not.
func toNetwork(b rule.SetBook, set rule.SetName, invert bool) []expr.Any {
	return append(bridge.VNI(rule.Reg1), b.Lookup(set, invert))
}

// clearRule drops frames of encrypted networks that did not come through the tunnel.
func clearRule(b rule.SetBook) rule.Rule {
	return rule.New("drop frames of encrypted networks that come in clear",
		toNetwork(b, encrypted, false), rule.NotInterface(expr.MetaKeyIIFNAME, core.TunnelName), rule.Drop())
}

// tunnelChains check what comes out of the tunnel, and what has to go into it. Through it other hosts reach nothing of
// this host but the encrypted networks that both are on, and no container reaches anything: nothing is forwarded into
// it. Outgoing packets are checked last of all, when nothing can change any more where a packet leaves.
func tunnelChains(b rule.SetBook) []rule.Chain {
	return []rule.Chain{
		{Name: tunnelChain, Rules: []rule.Rule{
			rule.New("continue with frames of encrypted networks",
				toVXLANPort(b), rule.ForHost(), toNetwork(b, encrypted, false), rule.Return()),
			rule.New("drop other traffic from the tunnel", rule.Drop()),
		}},
		{
			Name: "tunnel_forward", Kind: nftables.ChainTypeFilter, Hook: nftables.ChainHookForward,
			Priority: nftables.ChainPriorityFilter, Rules: []rule.Rule{
				rule.New("drop what is forwarded into the tunnel", toLink(core.TunnelName), rule.Drop()),
			},
		},
		{ // whoever translates sources on the underlay would give frames one that is no member's
			Name: "vxlan_untracked", Kind: nftables.ChainTypeFilter, Hook: nftables.ChainHookOutput,
			Priority: nftables.ChainPriorityRaw, Rules: []rule.Rule{
				rule.New("do not track outgoing frames, so that their source stays", toVXLANPort(b),
					toNetwork(b, bridge.VNIs, false), []expr.Any{&expr.Notrack{}}),
			},
		},
		{
			Name: "vxlan_out", Kind: nftables.ChainTypeFilter, Hook: nftables.ChainHookPostrouting,
			Priority: nftables.ChainPrioritySELinuxLast, Rules: []rule.Rule{
				rule.New("check outgoing VXLAN", toVXLANPort(b), rule.Jump(madeChain)),
			},
		},
		{Name: madeChain, Rules: madeRules(b)},
	}
}

// toLink matches packets that leave by a link.
func toLink(name string) []expr.Any {
	es := rule.NotInterface(expr.MetaKeyOIFNAME, name)
	es[1].(*expr.Cmp).Op = expr.CmpOpEq
	return es
}
