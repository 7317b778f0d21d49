// Package ports is about ports of the host and of containers: published by translation, on loopback, by addresses of
// their own, or redirected in a sandbox.
package ports

import (
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"netyard/kernel/core"
	"netyard/kernel/nft"
	"netyard/kernel/rule"
)

// The host's firewall, whoever's it is, says in its rules for input which ports of the host are open, and to whom. A
// published port never gets there: its packets are translated before, and forwarded. So where the host's firewall is to
// decide, the first packet of a client to a port is left as it is and goes the way of one for the host itself. If it
// comes through to the end of input, its client is admitted to that port, and the packet is dropped: the client sends
// it again (RFC 9293, section 3.8.1: after a second), and that one is translated. When anybody's rules change,
// everybody is asked anew; flows that are known go on.
const (
	// admitted4 and admitted6 have clients, protocols and ports of the host that the host's firewall has let through.
	admitted4 rule.SetName = "admitted4"
	admitted6 rule.SetName = "admitted6"

	// admitLife is for changes that nobody tells of: those of the old iptables interface.
	admitLife = 10 * time.Minute

	letInChain = "let_in"
)

// ObeyHostFirewall has the host's own firewall decide about published ports. Call it before LoadFirewall.
func ObeyHostFirewall(k *core.Handle) {
	nft.Of(k).Mu.Lock()
	defer nft.Of(k).Mu.Unlock()
	obedienceOf(k).on = true
}

func admitSets() []rule.Set {
	to := func(addr nftables.SetDatatype) nftables.SetDatatype {
		return nftables.MustConcatSetType(addr, nftables.TypeInetProto, nftables.TypeInetService)
	}
	return []rule.Set{
		{Name: admitted4, Type: to(nftables.TypeIPAddr), Concat: true, Life: admitLife},
		{Name: admitted6, Type: to(nftables.TypeIP6Addr), Concat: true, Life: admitLife},
	}
}

// toPublished is how packets from elsewhere get to the chain of published ports.
func toPublished(b rule.Book, obeys bool) []rule.Rule {
	if !obeys {
		return []rule.Rule{rule.New("published ports, from outside", rule.ForHost(), rule.Jump(publishChain))}
	}
	return []rule.Rule{
		rule.New("published ports, from the host by loopback", rule.FromLink("lo"), rule.ForHost(), rule.Jump(publishChain)),
		rule.New("published ports, to whom the host's firewall let in", b.FromTo(rule.IPv4()), []expr.Any{b.Lookup(admitted4, false)}, rule.ForHost(), rule.Jump(publishChain)),
		rule.New("published ports, to whom the host's firewall let in, IPv6", b.FromTo(rule.IPv6()), []expr.Any{b.Lookup(admitted6, false)}, rule.ForHost(), rule.Jump(publishChain)),
	}
}

// AdmitChains let in whoever the host's firewall has let through.
func AdmitChains(b rule.Book, obeys bool) []rule.Chain {
	if !obeys {
		return nil
	}
	var rules []rule.Rule
	for _, f := range []rule.Family{rule.IPv4(), rule.IPv6()} {
		one, anyAddr, ranges, admitted := toOne4, toAny4, toRange4, admitted4
		if f.Proto == unix.NFPROTO_IPV6 {
			one, anyAddr, ranges, admitted = toOne6, toAny6, toRange6, admitted6
		}
		then := rule.Join(b.FromTo(f), []expr.Any{&expr.Dynset{
			SrcRegKey: rule.Reg1, SetName: b[admitted].Name, SetID: b[admitted].ID, Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: admitLife,
		}}, rule.Drop())
		rules = append(rules,
			rule.New(f.Name("let in to one address"), rule.NotFromLoopback(), b.DAddrPort(one), then),
			rule.New(f.Name("let in to any address"), rule.NotFromLoopback(), b.Port(anyAddr, f.Proto), then),
			rule.New(f.Name("let in to a range"), rule.NotFromLoopback(), b.DAddrPort(ranges), then))
	}
	return []rule.Chain{{
		Name: letInChain, Kind: nftables.ChainTypeFilter, Hook: nftables.ChainHookInput,
		Priority: nftables.ChainPriorityRef(rule.BehindInput), Rules: rules,
	}}
}

// AskAnew forgets whom the host's firewall has let in.
func AskAnew(f *nft.Firewall) error {
	return f.RunNow(func() error {
		if !obedienceOf(f.Handle).on || !f.Loaded {
			return nil
		}
		return f.Sure(func() error {
			f.Tx.FlushSet(f.Sets[admitted4])
			f.Tx.FlushSet(f.Sets[admitted6])
			return f.Flush("forget whom the host's firewall let in")
		})
	})
}

// ForeignRules says whether a message tells of a change of somebody else's table.
func ForeignRules(m syscall.NetlinkMessage) bool {
	return m.Header.Type>>8 == unix.NFNL_SUBSYS_NFTABLES && m.Header.Type&0xff != unix.NFT_MSG_NEWGEN && !nft.OwnTable(m.Data)
}

// Obeys says whether the host's own firewall decides about published ports.
func Obeys(k *core.Handle) bool {
	nft.Of(k).Mu.Lock()
	defer nft.Of(k).Mu.Unlock()
	return obedienceOf(k).on
}
