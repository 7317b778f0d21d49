package kernel

import (
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
)

// A network that is encrypted fails closed: not because its frames find their way into WireGuard, but because these
// rules drop what does not. They stand before the network's VXLAN device does, and stay until it has gone. So nothing
// leaves in clear before the first handshake, nor when somebody deletes the WireGuard device and a default route would
// have what is for the other end of it; and nothing is let in that did not come by it.
const (
	// encrypted has the numbers of those networks.
	encrypted SetName = "encrypted"

	tunnelChain = "tunnel"
)

// Encrypted says that a network's frames are inside WireGuard, or nowhere. Ensure it before the VXLAN device, and
// remove it after.
func Encrypted(port uint16, vni uint32) []Element {
	return append(Closed(port, vni), newElement(encrypted, string(binaryutil.NativeEndian.PutUint32(vni)), ""))
}

func tunnelSets() []setSpec { return []setSpec{{name: encrypted, key: nftables.TypeMark}} }

// byVXLANPort matches what is for a UDP port of VXLAN.
func byVXLANPort(b setBook) []expr.Any { return toVXLANPort(b, vxlanPorts) }

// toVXLANPort is byVXLANPort with the ports of a set.
func toVXLANPort(b setBook, ports SetName) []expr.Any {
	return rule(udp(), []expr.Any{portInto(reg1, false), b.lookup(ports, false)})
}

// inClear drops frames of encrypted networks that did not come by the tunnel.
func inClear(b setBook) ruleSpec {
	return ruleSpec{"frames of an encrypted network, in clear", rule(vni(reg1), []expr.Any{b.lookup(encrypted, false)}, notInterface(expr.MetaKeyIIFNAME, TunnelName), drop())}
}

// tunnelChains are about what comes out of the tunnel, and what ought to go into it. Other hosts reach nothing of this
// one by it but the networks that they have in common, and no container reaches anything by it: nothing is forwarded
// into it. The way out is looked at last of all, when nothing can change any more where a packet leaves.
func tunnelChains(b setBook) []chainSpec {
	return []chainSpec{
		{name: tunnelChain, rules: []ruleSpec{
			{"frames of an encrypted network", rule(byVXLANPort(b), forHost(), vni(reg1), []expr.Any{b.lookup(encrypted, false)}, back())},
			{"nothing else comes by the tunnel", drop()},
		}},
		{
			name: "tunnel_forward", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookForward,
			priority: nftables.ChainPriorityFilter, rules: []ruleSpec{
				{"nothing is forwarded into the tunnel", rule(out(TunnelName), drop())},
			},
		},
		{
			name: "vxlan_out", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookPostrouting,
			priority: nftables.ChainPrioritySELinuxLast, rules: []ruleSpec{
				{"VXLAN that leaves", rule(byVXLANPort(b), jump(madeChain))},
			},
		},
		{name: madeChain, rules: madeRules(b)},
	}
}

// out matches what leaves by an interface.
func out(name string) []expr.Any {
	es := notInterface(expr.MetaKeyOIFNAME, name)
	es[1].(*expr.Cmp).Op = expr.CmpOpEq
	return es
}

// closeEarly loads the ruleset when the first overlay network comes before the rest of what is wanted is known, and
// there are no tables of a daemon before this one: the host has just started, and nothing is to be disturbed. The other
// hosts take it for a member already.
func (f *firewall) closeEarly(elements []Element) error {
	if !slices.ContainsFunc(elements, func(e Element) bool { return e.Set == encrypted || e.Set == vnis }) {
		return nil
	}
	for _, t := range tables() {
		if there, err := f.has(t); err != nil || there {
			return err
		}
	}
	return f.load()
}
