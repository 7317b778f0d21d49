// Package ports is about ports of the host and of containers: ports published by address translation, on loopback and
// on containers' own addresses, and ports redirected inside a sandbox.
package ports

import (
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"netyard/kernel/exchange"
	"netyard/kernel/nft"
	"netyard/kernel/rule"
)

// The host's firewall, whoever manages it, says in its input rules which ports of the host are open, and to whom.
// Packets for a published port never reach those rules: they are translated first, and then forwarded. So where the
// host's firewall is to decide, the first packet of a client to a port is not translated and passes the input rules
// like any packet for the host. If it reaches the end of the input hook, its client is admitted to that port and the
// packet is dropped. The client sends it again (RFC 9293, section 3.8.1: after a second), and that packet is
// translated. When anybody's rules change, all clients have to be admitted again; established flows go on.
const (
	// admitted4 and admitted6 hold (client, protocol, port of the host) for each client that the host's firewall has
	// let through.
	admitted4 rule.SetName = "admitted4"
	admitted6 rule.SetName = "admitted6"

	// admitLife bounds an admission, for rule changes that the kernel does not report: those of the old iptables
	// interface.
	admitLife = 10 * time.Minute

	// LetInChain admits clients whose packets the host's firewall has let through.
	LetInChain = "let_in"
)

func admitSets() []rule.Set {
	to := func(addr nftables.SetDatatype) nftables.SetDatatype {
		return nftables.MustConcatSetType(addr, nftables.TypeInetProto, nftables.TypeInetService)
	}
	return []rule.Set{
		{Name: admitted4, Type: to(nftables.TypeIPAddr), Concat: true, Life: admitLife},
		{Name: admitted6, Type: to(nftables.TypeIP6Addr), Concat: true, Life: admitLife},
	}
}

// toPublished returns the prerouting rules that lead to the chain of published ports.
func toPublished(b rule.SetBook, obeys bool) []rule.Rule {
	if !obeys {
		return []rule.Rule{rule.New("translate published ports", rule.ForHost(), rule.Jump(publishChain))}
	}
	rules := []rule.Rule{rule.New(
		"translate published ports for the host itself, by loopback",
		rule.FromLink("lo"), rule.ForHost(), rule.Jump(publishChain),
	)}
	for _, f := range rule.Families() {
		rules = append(rules, rule.New(
			f.Name("translate published ports for clients the host's firewall let through"),
			b.FromTo(f), []expr.Any{b.Lookup(rule.ByFamily(f.V6(), admitted4, admitted6), false)},
			rule.ForHost(), rule.Jump(publishChain),
		))
	}
	return rules
}

// AdmitChains returns the chain that admits clients whose packets the host's firewall has let through.
func AdmitChains(b rule.SetBook, obeys bool) []rule.Chain {
	if !obeys {
		return nil
	}
	var rules []rule.Rule
	remote := rule.NotFromLoopback()
	for _, f := range rule.Families() {
		one, anyAddr, ranges, admitted := toOne4, toAny4, toRange4, admitted4
		if f.Proto == unix.NFPROTO_IPV6 {
			one, anyAddr, ranges, admitted = toOne6, toAny6, toRange6, admitted6
		}
		one, anyAddr, ranges = published(one), published(anyAddr), published(ranges)
		then := rule.Join(b.FromTo(f), []expr.Any{&expr.Dynset{
			SrcRegKey: rule.Reg1, SetName: b[admitted].Name, SetID: b[admitted].ID,
			Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: admitLife,
		}}, rule.Drop())
		rules = append(rules,
			rule.New(f.Name("admit the client to a port of one address"), remote, b.DPortOf(one, f), then),
			rule.New(f.Name("admit the client to a port of any address"), remote, b.DPort(anyAddr), then),
			rule.New(f.Name("admit the client to a port in a range"), remote, b.DPortOf(ranges, f), then))
	}
	return []rule.Chain{{
		Name: LetInChain, Kind: nftables.ChainTypeFilter, Hook: nftables.ChainHookInput,
		Priority: nftables.ChainPriorityRef(rule.AfterInputFilters), Rules: rules,
	}}
}

// ForgetAdmitted empties the sets of admitted clients, so that the host's firewall decides about each of them again.
func ForgetAdmitted(f *nft.Firewall) error {
	return f.RunNow(func() error {
		if !HostFirewallDecides(f.Handle) || !f.Loaded {
			return nil
		}
		return f.RetryUnknown(func(tx *exchange.Transaction) error {
			tx.FlushSet(f.Sets[admitted4])
			tx.FlushSet(f.Sets[admitted6])
			return f.Flush("forget the clients that the host's firewall let through")
		})
	})
}

// IsForeignChange reports whether a netlink message tells of a change to a table that is not netyard's.
func IsForeignChange(m syscall.NetlinkMessage) bool {
	subsystem, message := m.Header.Type>>8, m.Header.Type&0xff
	return subsystem == unix.NFNL_SUBSYS_NFTABLES && message != unix.NFT_MSG_NEWGEN && !nft.OwnTable(m.Data)
}
