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

// Sets are those that are about ports.
func Sets() []rule.Set {
	return slices.Concat(publishSets(), loopbackSets(), gatewaySets(), admitSets())
}

// An obedience says whether the host's firewall decides about published ports; the firewall's lock guards it.
type obedience struct{ on bool }

func obedienceOf(k *core.Handle) *obedience { return core.Kept[obedience](k) }

// ObeysHostFirewall is obedience for who holds the lock.
func ObeysHostFirewall(k *core.Handle) bool { return obedienceOf(k).on }

// staleness says that flows may be known that are no longer so: the watcher looks through them.
type staleness struct{ atomic.Bool }

// StaleOf is that of a host.
func StaleOf(k *core.Handle) *atomic.Bool { return &core.Kept[staleness](k).Bool }

// Sockets opens sockets in the namespace of a handle.
type Sockets struct{ *core.Handle }

// ListenOn is ListenOn of the handle.
func (s Sockets) ListenOn(ctx context.Context, link string, at netip.AddrPort) (net.PacketConn, net.Listener, error) {
	return ListenOn(ctx, s.Handle, link, at)
}
