package kernel

import (
	"context"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"netyard/kernel/beside"
	"netyard/kernel/core"
	"netyard/kernel/exchange"
	"netyard/kernel/nft"
	"netyard/kernel/others"
	"netyard/kernel/ports"
	"netyard/wake"
)

const (
	// burst is how long the watcher collects changes before it restores what they have altered.
	burst = 20 * time.Millisecond
	// sweep is how often it does so without having been told of a change.
	sweep = time.Minute
)

// Watch follows changes to links, routes, nftables and forwarding until ctx ends. It keeps the sets of other programs'
// links up to date, adds the bypasses to DOCKER-USER when Docker makes that chain, loads the ruleset again when
// somebody has deleted it, and removes the guard of forwarding when somebody else turns forwarding on.
func (k *Kernel) Watch(ctx context.Context) error {
	links, err := k.watchLinks(ctx)
	if err != nil {
		return err
	}
	tables, err := k.watchTables(ctx)
	if err != nil {
		return err
	}
	routes, err := k.watchRoutes(ctx)
	if err != nil {
		return err
	}
	forwarding, err := beside.WatchForwarding(ctx, k.Handle)
	if err != nil {
		k.Log.Warn("forwarding is not watched: the guard stays when another program turns it on", "err", err)
	}
	tick := time.NewTicker(sweep)
	defer tick.Stop()
	var timer <-chan time.Time
	k.repair(ctx)
	for {
		select {
		case <-ctx.Done():
			return nil
		case l, ok := <-links:
			if !ok { // the socket's buffer has overrun
				if links, err = k.watchLinks(ctx); err != nil {
					return err
				}
			}
			if ok && ownLink(l.Link) { // each container brings several, and none of them needs a repair
				continue
			}
			timer = afterBurst(timer)
		case gone := <-tables:
			if !gone {
				timer = afterBurst(timer)
				continue
			}
			// Every millisecond counts: while the tables are gone, networks are not isolated.
			timer = nil
			k.repair(ctx)
		case <-forwarding:
			if err := beside.StepBack(ctx, k.Handle); err != nil {
				k.Log.Warn("guard of forwarding not removed", "err", err)
			}
		case <-routes:
			timer = afterBurst(timer)
		case <-k.CheckRequested:
			timer = afterBurst(timer)
		case <-tick.C:
			ports.StaleFlowsOf(k.Handle).Store(true)
			k.repair(ctx)
		case <-timer:
			timer = nil
			k.repair(ctx)
		}
	}
}

// afterBurst returns the timer that is running, or starts one.
func afterBurst(timer <-chan time.Time) <-chan time.Time {
	if timer != nil {
		return timer
	}
	return time.After(burst)
}

func (k *Kernel) watchLinks(ctx context.Context) (<-chan netlink.LinkUpdate, error) {
	links := make(chan netlink.LinkUpdate, 64)
	ns := k.NS
	err := netlink.LinkSubscribeWithOptions(links, ctx.Done(), netlink.LinkSubscribeOptions{
		Namespace: &ns, ReceiveBufferSize: exchange.Buffer, ReceiveBufferForceSize: true,
		ErrorCallback: func(err error) { k.Log.Debug("watching links failed", "err", err) },
	})
	if err != nil {
		return nil, fmt.Errorf("watch links: %w", err)
	}
	return links, nil
}

// ownLink reports whether netyard made a link, which its alias says, or its name.
func ownLink(l netlink.Link) bool {
	a := l.Attrs()
	_, _, ours := core.ParseAlias(a.Alias)
	return ours || core.OwnName(a.Name)
}

// watchRoutes reports changes to routes by which links of other programs are known.
func (k *Kernel) watchRoutes(ctx context.Context) (wake.Signal, error) {
	const four, six = unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE
	sock, err := nl.SubscribeAt(k.NS, netns.None(), unix.NETLINK_ROUTE, four, six)
	if err != nil {
		return nil, fmt.Errorf("watch routes: %w", err)
	}
	changed := wake.New()
	core.Follow(ctx, sock, func(msgs []syscall.NetlinkMessage) {
		if len(msgs) == 0 || slices.ContainsFunc(msgs, others.MayTell) { // no message means an overrun
			changed.Send()
		}
	})
	return changed, nil
}

// watchTables reports every change to nftables by another process, and whether it deleted a table of netyard's. What
// else changed is of no interest: netyard compares the ruleset itself. That comparison dumps all of it, so netyard's
// own transactions do not cause one.
func (k *Kernel) watchTables(ctx context.Context) (<-chan bool, error) {
	sock, err := nl.SubscribeAt(k.NS, netns.None(), unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if err != nil {
		return nil, fmt.Errorf("watch nftables: %w", err)
	}
	const delTable = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_DELTABLE
	changed := make(chan bool, 1)
	core.Follow(ctx, sock, func(msgs []syscall.NetlinkMessage) {
		// No message means an overrun: a change by another process may have been lost.
		byOther := func(m syscall.NetlinkMessage) bool { return m.Header.Pid != nft.Of(k.Handle).Port() }
		if len(msgs) > 0 && !slices.ContainsFunc(msgs, byOther) {
			return
		}
		if len(msgs) == 0 || slices.ContainsFunc(msgs, ports.IsForeignChange) {
			k.foreignChange.Store(true)
		}
		gone := slices.ContainsFunc(msgs, func(m syscall.NetlinkMessage) bool {
			return m.Header.Type == delTable && nft.OwnTable(m.Data)
		})
		select {
		case old := <-changed: // not received yet
			gone = gone || old
		default:
		}
		changed <- gone // this is the only sender
	})
	return changed, nil
}

// repair restores what the watcher looks after: the ruleset, and what belongs to it outside of netyard's tables.
func (k *Kernel) repair(ctx context.Context) {
	h := k.Handle
	for _, f := range []func() error{
		nft.Of(h).RepairTables,
		k.forgetAdmitted,
		func() error { return ports.EnsureLoopRoutes(h) },
		func() error { return others.Sync(ctx, h) },
		func() error { return beside.SyncDockerUser(h) },
		func() error { return beside.SyncLegacyDockerUser(ctx, h) },
		func() error { return ports.DeleteStaleFlows(h) },
	} {
		if err := f(); err != nil {
			k.Log.Warn("firewall repair failed", "err", err)
		}
	}
}

// forgetAdmitted empties the sets of admitted clients if rules that are not netyard's have changed.
func (k *Kernel) forgetAdmitted() error {
	if !k.foreignChange.Swap(false) {
		return nil
	}
	return ports.ForgetAdmitted(nft.Of(k.Handle))
}
