package kernel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"netyard/kernel/beside"
	"netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/kernel/lan"
	"netyard/kernel/nft"
	"netyard/kernel/policy"
	"netyard/kernel/ports"
	"netyard/kernel/rule"
)

// AdoptFirewall is LoadFirewall for when the records are lost: what is in the kernel's table counts as wanted, but for
// what the records say otherwise. If it cannot be read nothing is loaded: what is in force stays so.
func (k *Kernel) AdoptFirewall() error {
	if err := nft.Of(k.Handle).Adopt(func(rule.SetName) bool { return true }); err != nil {
		return err
	}
	return k.LoadFirewall()
}

// AdoptPolicy is LoadFirewall for when the policies alone are lost: what the kernel has of them counts as wanted.
func (k *Kernel) AdoptPolicy() error {
	if err := nft.Of(k.Handle).Adopt(policy.IsSet); err != nil {
		return err
	}
	return k.LoadFirewall()
}

// Policed says whether the kernel has elements of policy.
func (k *Kernel) Policed() (bool, error) {
	have, err := nft.Of(k.Handle).ReadElements(policy.IsSet)
	if err != nil {
		return false, err
	}
	for _, keys := range have {
		if len(keys) > 0 {
			return true, nil
		}
	}
	return false, nil
}

// LoadFirewall puts the ruleset and every element wanted so far into the kernel, in one transaction. Nobody waits for
// it: it takes the time it takes.
func (k *Kernel) LoadFirewall() error {
	if err := k.syncBridges(); err != nil {
		return err
	}
	if err := ports.EnsureLoopRoutes(k.Handle); err != nil {
		return err
	}
	err := nft.Of(k.Handle).RunNow(func() error {
		if err := beside.RecallRestricted(nft.Of(k.Handle)); err != nil {
			return err
		}
		same, err := nft.Of(k.Handle).TakeOver()
		if !same && err == nil {
			err = nft.Of(k.Handle).Load()
		}
		return err
	})
	return errors.Join(err, nft.Of(k.Handle).RunNow(func() error { return beside.SyncDockerUserNow(nft.Of(k.Handle)) }))
}

// UnloadFirewall takes the tables, and the routes that go with them, out of the kernel.
func (k *Kernel) UnloadFirewall() error {
	if err := ports.RemoveLoopRoutes(k.Handle); err != nil {
		return err
	}
	return nft.Of(k.Handle).RunNow(func() error {
		nft.Of(k.Handle).SetLoaded(false)
		return nft.Of(k.Handle).Sure(func() error {
			for _, t := range rule.Tables() {
				there, err := nft.Of(k.Handle).Has(t)
				if err != nil {
					return err
				}
				if there {
					nft.Of(k.Handle).Tx.DelTable(t)
				}
			}
			return nft.Of(k.Handle).Flush("unload ruleset")
		})
	})
}

// ShareTables leaves the tables to whoever wants to change them, as kernels before 6.9 do. Call it before LoadFirewall.
func (k *Kernel) ShareTables() {
	nft.Of(k.Handle).Mu.Lock()
	defer nft.Of(k.Handle).Mu.Unlock()
	nft.Of(k.Handle).Shared = true
}

// Enforce makes the elements of policy what these objects say, in one transaction: a packet sees the policies as they
// were or as they are to be. Before the ruleset is loaded they are only collected. What was adopted stays for all
// addresses but those that are decided about here or settled: of those the records know all.
func (k *Kernel) Enforce(ctx context.Context, objects []core.Object, settled ...netip.Addr) error {
	wanted := map[nft.ElementID]nft.Element{}
	var rest []core.Object
	for _, o := range objects {
		if e, ok := o.(nft.Element); ok {
			wanted[e.ID()] = e
		} else if !slices.Contains(rest, o) {
			rest = append(rest, o)
		}
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("enforce policy: %w", err)
	}
	if err := nft.Of(k.Handle).Replace(ctx, wanted, settled); err != nil {
		return err
	}
	return k.Ensure(ctx, rest...)
}

// inetChains decides about routed packets. An accept here does not override a drop elsewhere, and the other way round:
// Docker's own FORWARD policy is met in DOCKER-USER (dockeruser.go).
func inetChains(b rule.Book, guard beside.Restricted, obeys bool) []rule.Chain {
	forward := slices.Concat([]rule.Rule{
		rule.New("containers of one network", b.IfPair(bridge.Talk, false), rule.Accept()),
	}, ports.KillSwitch(b), []rule.Rule{
		rule.New("answers", rule.Established(), rule.Accept()),
		rule.New("internal networks have no way out", b.IIF(bridge.Internal, false), rule.Drop()),
		rule.New("nor in", b.OIF(bridge.Internal, false), rule.Drop()),
	}, ports.WaysIn(b), lan.OnlyPublished(b), []rule.Rule{
		rule.New("networks are apart", b.IIF(bridge.Bridges, false), b.OIF(bridge.Bridges, false), rule.Drop()),
		rule.New("and apart from other managers' networks", b.IIF(bridge.Bridges, false), b.OIF(bridge.Foreign, false), rule.Drop()),
		rule.New("nothing else comes in", b.OIF(bridge.Bridges, false), rule.Drop()),
	})
	if guard.V4 {
		forward = append(forward, rule.New(beside.RestrictedComment4, rule.NFProto(unix.NFPROTO_IPV4), bridge.Between(b), rule.Drop()))
	}
	if guard.V6 {
		forward = append(forward, rule.New(beside.RestrictedComment6, rule.NFProto(unix.NFPROTO_IPV6), bridge.Between(b), rule.Drop()))
	}
	return slices.Concat(ports.PublishChains(b, obeys), ports.LoopbackChains(b), ports.GatewayChains(b), ports.AdmitChains(b, obeys), []rule.Chain{
		{
			Name: "forward", Kind: nftables.ChainTypeFilter, Hook: nftables.ChainHookForward,
			Priority: nftables.ChainPriorityFilter, Rules: forward,
		},
		{
			Name: "postrouting", Kind: nftables.ChainTypeNAT, Hook: nftables.ChainHookPostrouting,
			Priority: nftables.ChainPriorityNATSource, Rules: slices.Concat(lan.Returning(b), []rule.Rule{
				rule.New("a neighbour's answer comes back by way of the host", rule.Translated(), b.IfPair(bridge.Own, false), rule.Masquerade()),
				rule.New("and so does its own", b.AddrPair(ports.Self4, rule.IPv4()), rule.Masquerade()),
				rule.New("and its own, IPv6", b.AddrPair(ports.Self6, rule.IPv6()), rule.Masquerade()),
				rule.New("so does the answer to loopback", ports.LoopSource4(), b.OIF(bridge.Bridges, false), rule.Masquerade()),
				rule.New("and IPv6 loopback", ports.LoopSource6(), b.OIF(bridge.Bridges, false), rule.Masquerade()),
				rule.New("so do answers that would else go by the container that is the gateway", rule.Translated(), b.OIF(ports.GuidedBridges, false), rule.Masquerade()),
				rule.New("leave with the host's address", b.SAddr4(bridge.NAT4), b.OIF(bridge.Bridges, true), rule.Masquerade()),
				rule.New("leave with the host's address, IPv6", b.SAddr6(bridge.NAT6), b.OIF(bridge.Bridges, true), rule.Masquerade()),
			}, ports.Leaving(b)),
		},
	})
}

// bridgeChains decides about frames, wherever they go. A container also does not get to play the router for its
// neighbours or for the host (CVE-2020-13401).
func bridgeChains(b rule.Book, conntrack bool) []rule.Chain {
	return append(bridge.GuardChains(b), policy.BridgePolicyChains(b, conntrack)...)
}
