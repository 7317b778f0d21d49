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
	k.tidy()
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
			k.tidy()
		case <-k.poked:
			timer = orSoon(timer)
		case <-tick.C:
			k.stale.Store(true)
			k.tidy()
		case <-timer:
			timer = nil
			k.tidy()
		}
	}
}

// poke asks the watcher to look soon.
func (k *Kernel) poke() {
	select {
	case k.poked <- struct{}{}:
	default:
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
	ns := k.subscribeNS
	err := netlink.LinkSubscribeWithOptions(links, ctx.Done(), netlink.LinkSubscribeOptions{
		Namespace: &ns, ReceiveBufferSize: netfilterBuffer, ReceiveBufferForceSize: true,
		ErrorCallback: func(err error) { k.log.Debug("watch links", "err", err) },
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
	_, _, ours := ParseAlias(a.Alias)
	return ours || OwnName(a.Name)
}

// watchTables tells of every change of nftables that is not of this process, and whether a table has gone. What else
// changed is not of interest: netyard looks for itself. That look is a dump of all of it, so it is not for each of its
// own transactions.
func (k *Kernel) watchTables(ctx context.Context) (<-chan bool, error) {
	sock, err := nl.SubscribeAt(k.subscribeNS, netns.None(), unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if err != nil {
		return nil, fmt.Errorf("watch nftables: %w", err)
	}
	const delTable = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_DELTABLE
	changed := make(chan bool, 1)
	follow(ctx, sock, func(msgs []syscall.NetlinkMessage) {
		// None is an overrun: what was lost may have been another's.
		if len(msgs) > 0 && !slices.ContainsFunc(msgs, func(m syscall.NetlinkMessage) bool { return m.Header.Pid != k.fw.out.own.Load() }) {
			return
		}
		if len(msgs) == 0 || slices.ContainsFunc(msgs, foreignRules) {
			k.unsure.Store(true)
		}
		gone := slices.ContainsFunc(msgs, func(m syscall.NetlinkMessage) bool { return m.Header.Type == delTable && ownTable(m.Data) })
		select {
		case old := <-changed: // not taken yet
			gone = gone || old
		default:
		}
		changed <- gone // this is the only sender
	})
	return changed, nil
}

// ownTable says whether a message is about a table of netyard's (struct nfgenmsg, and then attributes).
func ownTable(msg []byte) bool {
	attrs, err := nl.ParseRouteAttr(msg[min(len(msg), unix.SizeofNlAttr):])
	return err == nil && slices.ContainsFunc(attrs, func(a syscall.NetlinkRouteAttr) bool {
		return a.Attr.Type == unix.NFTA_TABLE_NAME && string(a.Value) == tableName+"\x00"
	})
}

// follow hands f what a socket receives until ctx ends. An overrun of its buffer is a change like any other.
func follow(ctx context.Context, sock *nl.NetlinkSocket, f func([]syscall.NetlinkMessage)) {
	go func() {
		<-ctx.Done()
		sock.Close()
	}()
	go func() {
		for ctx.Err() == nil {
			msgs, _, err := sock.Receive()
			if err != nil && ctx.Err() != nil {
				return
			}
			f(msgs)
			if err != nil {
				time.Sleep(time.Millisecond) // a failing socket must not take a core
			}
		}
	}()
}

// tidy is the watcher's look at the kernel.
func (k *Kernel) tidy() {
	for _, f := range []func() error{k.fw.restoreTables, k.askAnew, k.ensureLoopRoutes, k.syncBridges, k.syncDockerUser, k.syncLegacyDockerUser, k.freshenFlows} {
		if err := f(); err != nil {
			k.log.Warn("tidy up the firewall", "err", err)
		}
	}
}

// askAnew has everybody asked anew if somebody's rules changed.
func (k *Kernel) askAnew() error {
	if !k.unsure.Swap(false) {
		return nil
	}
	return k.fw.askAnew()
}

// restoreTables loads the ruleset again when a rule or an element of it is gone, or one is there that ought to have
// been taken away.
func (f *firewall) restoreTables() error {
	return f.runNow(func() error {
		if !f.loaded {
			return nil
		}
		if f.doubt {
			same, err := f.asWanted()
			if err == nil && !same {
				err = f.load()
			}
			f.doubt = f.doubt && err != nil
			return err
		}
		faults, err := f.ruleFaults()
		if err != nil {
			return err
		}
		if len(faults) > 0 {
			return f.load()
		}
		have, _, err := f.dumpElements()
		if err != nil || f.hasWanted(have) {
			return err
		}
		return f.load()
	})
}

// syncBridges makes the sets of the host's other bridges what the links say.
func (k *Kernel) syncBridges() error {
	links, err := retry(k.nl.LinkList)
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	have := map[elementID]bool{}
	var fresh, gone []Element
	for _, l := range links {
		a := l.Attrs()
		if _, _, ours := ParseAlias(a.Alias); ours || l.Type() != "bridge" {
			continue
		}
		wants := []Element{InterfaceIn(same, a.Name, a.Name)}
		if foreignBridge.MatchString(a.Name) {
			wants = append(wants, InterfaceIn(foreign, a.Name))
		}
		for _, e := range wants {
			have[e.id()], fresh = true, append(fresh, e)
		}
	}
	k.fw.mu.Lock()
	for id, w := range k.fw.want {
		if (id.set == foreign || id.set == same) && !have[id] {
			gone = append(gone, w.Element)
		}
	}
	k.fw.mu.Unlock()
	if err := k.fw.remove(gone); err != nil {
		return err
	}
	return k.fw.add(context.Background(), fresh)
}
