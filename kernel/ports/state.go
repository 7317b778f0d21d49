package ports

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"

	"netyard/kernel/core"
	"netyard/kernel/rule"
)

// Sets returns the sets of this package.
func Sets() []rule.Set {
	return slices.Concat(publishSets(), loopbackSets(), gatewaySets(), admitSets())
}

// A hostDecision says whether the host's firewall decides about published ports.
type hostDecision struct{ atomic.Bool }

// LetHostFirewallDecide makes the host's own firewall decide about published ports. Call it before LoadFirewall.
func LetHostFirewallDecide(k *core.Handle) { core.Stored[hostDecision](k).Store(true) }

// HostFirewallDecides reports whether the host's own firewall decides about published ports.
func HostFirewallDecides(k *core.Handle) bool { return core.Stored[hostDecision](k).Load() }

// staleness says that there may be stale UDP flows, for which the watcher looks.
type staleness struct{ atomic.Bool }

// StaleFlowsOf returns the flag of a host that there may be stale UDP flows.
func StaleFlowsOf(k *core.Handle) *atomic.Bool { return &core.Stored[staleness](k).Bool }

// Sockets opens sockets in the namespace of a handle.
type Sockets struct{ *core.Handle }

// ListenOn calls the function ListenOn in the namespace of the handle.
func (s Sockets) ListenOn(ctx context.Context, link string, at netip.AddrPort) (net.PacketConn, net.Listener, error) {
	return ListenOn(ctx, s.Handle, link, at)
}
