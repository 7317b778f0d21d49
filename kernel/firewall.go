package kernel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"

	"netyard/kernel/beside"
	"netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/kernel/exchange"
	"netyard/kernel/lan"
	"netyard/kernel/nft"
	"netyard/kernel/others"
	"netyard/kernel/policy"
	"netyard/kernel/ports"
	"netyard/kernel/rule"
)

// AdoptFirewall loads the firewall when the records are lost: elements in the kernel's table count as wanted, unless
// the records say otherwise. If the table cannot be read, nothing is loaded and the current rules stay in force.
func (k *Kernel) AdoptFirewall() error {
	if err := nft.Of(k.Handle).Adopt(func(rule.SetName) bool { return true }); err != nil {
		return err
	}
	return k.LoadFirewall()
}

// AdoptPolicy loads the firewall when only the policies are lost: policy elements in the kernel's table count as
// wanted.
func (k *Kernel) AdoptPolicy() error {
	if err := nft.Of(k.Handle).Adopt(policy.IsSet); err != nil {
		return err
	}
	return k.LoadFirewall()
}

// HasPolicy reports whether the kernel has elements of policy.
func (k *Kernel) HasPolicy() (bool, error) {
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

// LoadFirewall loads the ruleset and every element wanted so far, in one transaction. It has no deadline, since no
// request waits for it.
func (k *Kernel) LoadFirewall() error {
	if err := others.Recall(k.Handle); err != nil {
		return err
	}
	if err := others.Sync(context.Background(), k.Handle); err != nil {
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

// UnloadFirewall deletes the tables, and the local routes that belong to them.
func (k *Kernel) UnloadFirewall() error {
	if err := ports.RemoveLoopRoutes(k.Handle); err != nil {
		return err
	}
	return nft.Of(k.Handle).RunNow(func() error {
		nft.Of(k.Handle).SetLoaded(false)
		return nft.Of(k.Handle).RetryUnknown(func(tx *exchange.Transaction) error {
			for _, t := range rule.Tables() {
				there, err := nft.Of(k.Handle).Has(t)
				if err != nil {
					return err
				}
				if there {
					tx.DelTable(t)
				}
			}
			return nft.Of(k.Handle).Flush("unload ruleset")
		})
	})
}

// LeaveTablesOpen makes the tables changeable by anybody, as they are on kernels before 6.9. Call it before
// LoadFirewall.
func (k *Kernel) LeaveTablesOpen() { nft.Of(k.Handle).Shared = true }

// Enforce replaces the policy elements by those among the objects, in one transaction: a packet sees either the old
// policies or the new ones. Before the ruleset is loaded, it only collects the elements. It keeps adopted elements,
// except those of addresses that the objects decide about or that are settled, since the records of those addresses are
// complete.
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

// inetChains returns the chains for routed packets and for published ports. An accept here does not override a drop
// elsewhere, and vice versa: a Bypass (kernel/beside) lets traffic pass Docker's own FORWARD policy.
func inetChains(b rule.SetBook, restricted beside.Restricted, obeys bool) []rule.Chain {
	fromNetworks, toNetworks := b.IIF(bridge.Bridges, false), b.OIF(bridge.Bridges, false)
	forward := slices.Concat([]rule.Rule{
		rule.New("accept traffic within a network", b.IfPair(bridge.Reachable, false), rule.Accept()),
	}, ports.KillSwitch(b), []rule.Rule{
		rule.New("accept established connections", rule.Established(), rule.Accept()),
		rule.New("drop outbound from internal networks", b.IIF(bridge.Internal, false), rule.Drop()),
		rule.New("drop inbound to internal networks", b.OIF(bridge.Internal, false), rule.Drop()),
	}, ports.InboundRules(b), lan.ShimRules(b), []rule.Rule{
		rule.New("drop traffic between networks", fromNetworks, toNetworks, rule.Drop()),
		rule.New("drop traffic to other managers' networks", fromNetworks, b.OIF(bridge.Foreign, false), rule.Drop()),
		rule.New("drop other inbound traffic to containers", toNetworks, rule.Drop()),
	}, others.GuardRules(b, restricted))
	return slices.Concat(
		ports.PublishChains(b, obeys), ports.LoopbackChains(b), ports.GatewayChains(b), ports.AdmitChains(b, obeys),
		[]rule.Chain{
			{
				Name: "forward", Kind: nftables.ChainTypeFilter, Hook: nftables.ChainHookForward,
				Priority: nftables.ChainPriorityFilter, Rules: forward,
			},
			{
				Name: "postrouting", Kind: nftables.ChainTypeNAT, Hook: nftables.ChainHookPostrouting,
				Priority: nftables.ChainPriorityNATSource,
				Rules:    slices.Concat(lan.ReturnRules(b), masquerading(b), ports.EgressRules(b)),
			},
		},
	)
}

// masquerading returns the rules that give traffic an address of the host: traffic whose answer must come back by way
// of the host, and outbound traffic of networks with NAT.
func masquerading(b rule.SetBook) []rule.Rule {
	toNetworks, outbound := b.OIF(bridge.Bridges, false), b.OIF(bridge.Bridges, true)
	return []rule.Rule{
		rule.New("masquerade hairpin traffic between neighbours",
			rule.Translated(), b.IfPair(bridge.Own, false), rule.Masquerade()),
		rule.New("masquerade hairpin traffic to the sender itself",
			b.AddrPair(ports.Self4, rule.IPv4()), rule.Masquerade()),
		rule.New("masquerade hairpin traffic to the sender itself, IPv6",
			b.AddrPair(ports.Self6, rule.IPv6()), rule.Masquerade()),
		rule.New("masquerade loopback traffic to containers", ports.LoopSource4(), toNetworks, rule.Masquerade()),
		rule.New("masquerade loopback traffic to containers, IPv6",
			ports.LoopSource6(), toNetworks, rule.Masquerade()),
		rule.New("masquerade clients of networks with a gateway container",
			rule.Translated(), b.OIF(ports.GatewayContainerBridges, false), rule.Masquerade()),
		rule.New("masquerade outbound traffic", b.SAddr4(bridge.NAT4), outbound, rule.Masquerade()),
		rule.New("masquerade outbound traffic, IPv6", b.SAddr6(bridge.NAT6), outbound, rule.Masquerade()),
	}
}

// bridgeChains returns the chains for all frames on bridges. They also keep a container from acting as the router of
// its neighbours or of the host (CVE-2020-13401).
func bridgeChains(b rule.SetBook, conntrack bool) []rule.Chain {
	return append(bridge.GuardChains(b), policy.BridgePolicyChains(b, conntrack)...)
}
