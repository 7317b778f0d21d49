package overlay

import (
	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"

	"netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/kernel/nft"
	"netyard/kernel/rule"
)

// A network that is encrypted fails closed: not because its frames find their way into WireGuard, but because these
// rules drop what does not. They stand before the network's VXLAN device does, and stay until it has gone. So nothing
// leaves in clear before the first handshake, nor when somebody deletes the WireGuard device and a default route would
// have what is for the other end of it; and nothing is let in that did not come by it.
const (
	// encrypted has the numbers of those networks.
	encrypted rule.SetName = "encrypted"

	tunnelChain = "tunnel"
)

// Encrypted says that a network's frames are inside WireGuard, or nowhere. Ensure it before the VXLAN device, and
// remove it after.
func Encrypted(port uint16, vni uint32) []nft.Element {
	return append(Closed(port, vni), nft.NewElement(Sets(), encrypted, string(binaryutil.NativeEndian.PutUint32(vni)), ""))
}

func tunnelSets() []rule.Set {
	return []rule.Set{{Name: encrypted, Type: nftables.TypeMark, Early: true}}
}

// byVXLANPort matches what is for a UDP port of VXLAN.
func byVXLANPort(b rule.Book) []expr.Any { return bridge.ToVXLANPort(b, bridge.VXLANPorts) }

// inClear drops frames of encrypted networks that did not come by the tunnel.
func inClear(b rule.Book) rule.Rule {
	return rule.New("frames of an encrypted network, in clear", bridge.VNI(rule.Reg1), []expr.Any{b.Lookup(encrypted, false)}, rule.NotInterface(expr.MetaKeyIIFNAME, core.TunnelName), rule.Drop())
}

// tunnelChains are about what comes out of the tunnel, and what ought to go into it. Other hosts reach nothing of this
// one by it but the networks that they have in common, and no container reaches anything by it: nothing is forwarded
// into it. The way out is looked at last of all, when nothing can change any more where a packet leaves.
func tunnelChains(b rule.Book) []rule.Chain {
	return []rule.Chain{
		{Name: tunnelChain, Rules: []rule.Rule{
			rule.New("frames of an encrypted network", byVXLANPort(b), rule.ForHost(), bridge.VNI(rule.Reg1), []expr.Any{b.Lookup(encrypted, false)}, rule.Back()),
			rule.New("nothing else comes by the tunnel", rule.Drop()),
		}},
		{
			Name: "tunnel_forward", Kind: nftables.ChainTypeFilter, Hook: nftables.ChainHookForward,
			Priority: nftables.ChainPriorityFilter, Rules: []rule.Rule{
				rule.New("nothing is forwarded into the tunnel", ToLink(core.TunnelName), rule.Drop()),
			},
		},
		{
			Name: "vxlan_out", Kind: nftables.ChainTypeFilter, Hook: nftables.ChainHookPostrouting,
			Priority: nftables.ChainPrioritySELinuxLast, Rules: []rule.Rule{
				rule.New("VXLAN that leaves", byVXLANPort(b), rule.Jump(madeChain)),
			},
		},
		{Name: madeChain, Rules: madeRules(b)},
	}
}

// ToLink matches what leaves by an interface.
func ToLink(name string) []expr.Any {
	es := rule.NotInterface(expr.MetaKeyOIFNAME, name)
	es[1].(*expr.Cmp).Op = expr.CmpOpEq
	return es
}
