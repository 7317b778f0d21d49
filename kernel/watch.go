package kernel

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"netyard/kernel/beside"
	"netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/kernel/nft"
	"netyard/kernel/ports"
)

const (
	// settle is how long a burst of changes may last before netyard looks at what came of it.
	settle = 20 * time.Millisecond
	// sweep is how often it looks without having been told of a change.
	sweep = time.Minute
)

// foreignBridge matches the bridges that other managers of containers and machines make: Docker, podman, CNI, nerdctl,
// libvirt, LXC, LXD and Incus. A bridge of the host's owner, such as br-lan, is not among them.
var foreignBridge = regexp.MustCompile(`^(docker0|docker_gwbridge|br-[0-9a-f]{12}|(podman|cni|nerdctl|virbr|lxcbr|lxdbr|incusbr)[0-9a-z-]*)$`)

// Watch follows changes of links and of nftables until ctx ends: it keeps the set of other managers' bridges, puts the
// bypasses into DOCKER-USER when Docker makes that chain, and loads the ruleset anew when somebody took it away.
func (k *Kernel) Watch(ctx context.Context) error {
	links, err := k.watchLinks(ctx)
	if err != nil {
		return err
	}
	tables, err := k.watchTables(ctx)
	if err != nil {
		return err
	}
	tick := time.NewTicker(sweep)
	defer tick.Stop()
	var timer <-chan time.Time
	k.tidy(ctx)
	for {
		select {
		case <-ctx.Done():
			return nil
		case l, ok := <-links:
			if !ok { // more came at once than the socket holds
				if links, err = k.watchLinks(ctx); err != nil {
					return err
				}
			}
			if ok && ownLink(l.Link) { // each container brings some, and none of them is anything to tidy up
				continue
			}
			timer = orSoon(timer)
		case gone := <-tables:
			if !gone {
				timer = orSoon(timer)
				continue
			}
			timer = nil // every millisecond counts: where others can take the tables away, nothing else keeps networks apart
			k.tidy(ctx)
		case <-k.Poked:
			timer = orSoon(timer)
		case <-tick.C:
			ports.StaleOf(k.Handle).Store(true)
			k.tidy(ctx)
		case <-timer:
			timer = nil
			k.tidy(ctx)
		}
	}
}

func orSoon(timer <-chan time.Time) <-chan time.Time {
	if timer != nil {
		return timer
	}
	return time.After(settle)
}

func (k *Kernel) watchLinks(ctx context.Context) (<-chan netlink.LinkUpdate, error) {
	links := make(chan netlink.LinkUpdate, 64)
	ns := k.NS
	err := netlink.LinkSubscribeWithOptions(links, ctx.Done(), netlink.LinkSubscribeOptions{
		Namespace: &ns, ReceiveBufferSize: nft.NetfilterBuffer, ReceiveBufferForceSize: true,
		ErrorCallback: func(err error) { k.Log.Debug("watch links", "err", err) },
	})
	if err != nil {
		return nil, fmt.Errorf("watch links: %w", err)
	}
	return links, nil
}

// ownLink says whether a link is one that netyard made. Of a bridge that is given another name both are told, and its
// alias.
func ownLink(l netlink.Link) bool {
	a := l.Attrs()
	_, _, ours := core.ParseAlias(a.Alias)
	return ours || core.OwnName(a.Name)
}

// watchTables tells of every change of nftables that is not of this process, and whether a table has gone. What else
// changed is not of interest: netyard looks for itself. That look is a dump of all of it, so it is not for each of its
// own transactions.
func (k *Kernel) watchTables(ctx context.Context) (<-chan bool, error) {
	sock, err := nl.SubscribeAt(k.NS, netns.None(), unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if err != nil {
		return nil, fmt.Errorf("watch nftables: %w", err)
	}
	const delTable = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_DELTABLE
	changed := make(chan bool, 1)
	core.Follow(ctx, sock, func(msgs []syscall.NetlinkMessage) {
		// None is an overrun: what was lost may have been another's.
		if len(msgs) > 0 && !slices.ContainsFunc(msgs, func(m syscall.NetlinkMessage) bool { return m.Header.Pid != nft.Of(k.Handle).Port() }) {
			return
		}
		if len(msgs) == 0 || slices.ContainsFunc(msgs, ports.ForeignRules) {
			k.unsure.Store(true)
		}
		gone := slices.ContainsFunc(msgs, func(m syscall.NetlinkMessage) bool { return m.Header.Type == delTable && nft.OwnTable(m.Data) })
		select {
		case old := <-changed: // not taken yet
			gone = gone || old
		default:
		}
		changed <- gone // this is the only sender
	})
	return changed, nil
}

// tidy is the watcher's look at the kernel.
func (k *Kernel) tidy(ctx context.Context) {
	h := k.Handle
	for _, f := range []func() error{
		nft.Of(h).RestoreTables,
		k.askAnew,
		func() error { return ports.EnsureLoopRoutes(h) },
		k.syncBridges,
		func() error { return beside.SyncDockerUser(h) },
		func() error { return beside.SyncLegacyDockerUser(ctx, h) },
		func() error { return ports.FreshenFlows(h) },
	} {
		if err := f(); err != nil {
			k.Log.Warn("tidy up the firewall", "err", err)
		}
	}
}

// AskAnew has everybody asked anew if somebody's rules changed.
func (k *Kernel) askAnew() error {
	if !k.unsure.Swap(false) {
		return nil
	}
	return ports.AskAnew(nft.Of(k.Handle))
}

// syncBridges makes the sets of the host's other bridges what the links say.
func (k *Kernel) syncBridges() error {
	links, err := core.Retry(k.NL.LinkList)
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	have := map[nft.ElementID]bool{}
	var fresh, gone []nft.Element
	for _, l := range links {
		a := l.Attrs()
		if _, _, ours := core.ParseAlias(a.Alias); ours || l.Type() != "bridge" {
			continue
		}
		wants := []nft.Element{nft.InterfaceIn(bridge.Same, a.Name, a.Name)}
		if foreignBridge.MatchString(a.Name) {
			wants = append(wants, nft.InterfaceIn(bridge.Foreign, a.Name))
		}
		for _, e := range wants {
			have[e.ID()], fresh = true, append(fresh, e)
		}
	}
	nft.Of(k.Handle).Mu.Lock()
	for id, w := range nft.Of(k.Handle).Want {
		if (id.Set == bridge.Foreign || id.Set == bridge.Same) && !have[id] {
			gone = append(gone, w.Element)
		}
	}
	nft.Of(k.Handle).Mu.Unlock()
	if err := nft.Of(k.Handle).Remove(gone); err != nil {
		return err
	}
	return nft.Of(k.Handle).Add(context.Background(), fresh)
}
