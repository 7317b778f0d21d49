package kernel

import (
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The host's firewall, whoever's it is, says in its rules for input which ports of the host are open, and to whom. A
// published port never gets there: its packets are translated before, and forwarded. So where the host's firewall is to
// decide, the first packet of a client to a port is left as it is and goes the way of one for the host itself. If it
// comes through to the end of input, its client is admitted to that port, and the packet is dropped: the client sends
// it again (RFC 9293, section 3.8.1: after a second), and that one is translated. When anybody's rules change,
// everybody is asked anew; flows that are known go on.
const (
	// admitted4 and admitted6 have clients, protocols and ports of the host that the host's firewall has let through.
	admitted4 SetName = "admitted4"
	admitted6 SetName = "admitted6"

	// admitLife is for changes that nobody tells of: those of the old iptables interface.
	admitLife = 10 * time.Minute

	// behindInput is behind every chain that a firewall may have at input, and before connection tracking confirms a
	// flow.
	behindInput = 250

	letInChain = "let_in"
)

// ObeyHostFirewall has the host's own firewall decide about published ports. Call it before LoadFirewall.
func (k *Kernel) ObeyHostFirewall() {
	k.fw.mu.Lock()
	defer k.fw.mu.Unlock()
	k.fw.obeys = true
}

func admitSets() []setSpec {
	to := func(addr nftables.SetDatatype) nftables.SetDatatype {
		return nftables.MustConcatSetType(addr, nftables.TypeInetProto, nftables.TypeInetService)
	}
	return []setSpec{
		{name: admitted4, key: to(nftables.TypeIPAddr), concat: true, life: admitLife},
		{name: admitted6, key: to(nftables.TypeIP6Addr), concat: true, life: admitLife},
	}
}

// toPublished is how packets from elsewhere get to the chain of published ports.
func (b setBook) toPublished(obeys bool) []ruleSpec {
	if !obeys {
		return []ruleSpec{{"published ports, from outside", rule(forHost(), jump(publishChain))}}
	}
	return []ruleSpec{
		{"published ports, from the host by loopback", rule(in("lo"), forHost(), jump(publishChain))},
		{"published ports, to whom the host's firewall let in", rule(b.fromTo(v4Loop()), []expr.Any{b.lookup(admitted4, false)}, forHost(), jump(publishChain))},
		{"published ports, to whom the host's firewall let in, IPv6", rule(b.fromTo(v6Loop()), []expr.Any{b.lookup(admitted6, false)}, forHost(), jump(publishChain))},
	}
}

// admitChains let in whoever the host's firewall has let through.
func admitChains(b setBook, obeys bool) []chainSpec {
	if !obeys {
		return nil
	}
	var rules []ruleSpec
	for _, f := range []loopFamily{v4Loop(), v6Loop()} {
		one, anyAddr, ranges, admitted := toOne4, toAny4, toRange4, admitted4
		if f.proto == unix.NFPROTO_IPV6 {
			one, anyAddr, ranges, admitted = toOne6, toAny6, toRange6, admitted6
		}
		then := rule(b.fromTo(f), []expr.Any{&expr.Dynset{
			SrcRegKey: reg1, SetName: b[admitted].Name, SetID: b[admitted].ID, Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: admitLife,
		}}, drop())
		rules = append(rules,
			ruleSpec{f.name("let in to one address"), rule(notFromLoopback(), b.daddrPort(one), then)},
			ruleSpec{f.name("let in to any address"), rule(notFromLoopback(), b.port(anyAddr, f.proto), then)},
			ruleSpec{f.name("let in to a range"), rule(notFromLoopback(), b.daddrPort(ranges), then)})
	}
	return []chainSpec{{
		name: letInChain, kind: nftables.ChainTypeFilter, hook: nftables.ChainHookInput,
		priority: nftables.ChainPriorityRef(behindInput), rules: rules,
	}}
}

// fromTo loads source address, protocol and destination port.
func (setBook) fromTo(f loopFamily) []expr.Any {
	next := uint32(behind4)
	if f.proto == unix.NFPROTO_IPV6 {
		next = behind6
	}
	return rule(nfproto(f.proto),
		[]expr.Any{&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: f.src, Len: f.size}}, protoPort(next))
}

func in(name string) []expr.Any {
	es := notInterface(expr.MetaKeyIIFNAME, name)
	es[1].(*expr.Cmp).Op = expr.CmpOpEq
	return es
}

// askAnew forgets whom the host's firewall has let in.
func (f *firewall) askAnew() error {
	return f.runNow(func() error {
		if !f.obeys || !f.loaded {
			return nil
		}
		return f.sure(func() error {
			f.tx.FlushSet(f.sets[admitted4])
			f.tx.FlushSet(f.sets[admitted6])
			return f.flush("forget whom the host's firewall let in")
		})
	})
}

// foreignRules says whether a message tells of a change of somebody else's table.
func foreignRules(m syscall.NetlinkMessage) bool {
	return m.Header.Type>>8 == unix.NFNL_SUBSYS_NFTABLES && m.Header.Type&0xff != unix.NFT_MSG_NEWGEN && !ownTable(m.Data)
}
