package kernel

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/kernel/gso"
	"netyard/kernel/nft"
	"netyard/wake"
)

// ChangeSignal reports that something may have changed of which Changes says what.
func (k *Kernel) ChangeSignal(ctx context.Context) (<-chan struct{}, error) {
	changed := wake.New()
	return changed, k.followLinks(ctx, func([]syscall.NetlinkMessage, bool) { changed.Send() })
}

// Changes names what changes that may have affected an object were about: changes to links, bridge ports, addresses and
// queueing disciplines, and the removal of routes and neighbours. Changes of the way out of the host may have affected
// any object: the sizes of segments depend on it.
func (k *Kernel) Changes(ctx context.Context) (*core.Changes, error) {
	c := core.NewChanges()
	var known core.LinkNames // nil: to be read. Only the goroutine that reads messages uses it
	err := k.followLinks(ctx, func(msgs []syscall.NetlinkMessage, lost bool) {
		if lost || known == nil {
			names, err := core.ReadLinkNames(k.Handle)
			if known = names; lost || err != nil {
				c.AddAll()
			}
		}
		for _, m := range msgs {
			if isRoute(m) && gso.MayTell(m.Data) {
				c.AddAll()
			}
			known.Name(m, func(l core.LinkID) {
				if c.Add(l); gso.IsOut(k.Handle, l.Name) {
					c.AddAll()
				}
			})
		}
		c.Signal.Send()
	})
	if err != nil {
		return nil, err
	}
	return c, nil
}

// followLinks calls f with the relevant messages about links. lost: others were lost.
func (k *Kernel) followLinks(ctx context.Context, f func(msgs []syscall.NetlinkMessage, lost bool)) error {
	sock, err := nl.SubscribeAt(k.NS, netns.None(), unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR,
		unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_NEIGH, unix.RTNLGRP_TC)
	if err != nil {
		return fmt.Errorf("watch links: %w", err)
	}
	core.Follow(ctx, sock, func(msgs []syscall.NetlinkMessage) {
		lost := len(msgs) == 0 // an overrun
		msgs = slices.DeleteFunc(msgs, func(m syscall.NetlinkMessage) bool { return !isRelevant(m) })
		if lost || len(msgs) > 0 {
			f(msgs, lost)
		}
	})
	return nil
}

func isRoute(m syscall.NetlinkMessage) bool {
	return m.Header.Type == unix.RTM_NEWROUTE || m.Header.Type == unix.RTM_DELROUTE
}

// isRelevant reports whether a message is about something that netyard may have made. On a router routes change all the
// time, and neighbours come and go on any host: most of these messages are ignored.
func isRelevant(m syscall.NetlinkMessage) bool {
	const (
		routeProtocol = 5 // struct rtmsg (rtnetlink(7))
		neighState    = 8 // struct ndmsg
		neighFlags    = 10
		neighSize     = 12
	)
	switch m.Header.Type {
	case unix.RTM_NEWNEIGH:
		return false
	case unix.RTM_NEWROUTE:
		return gso.MayTell(m.Data)
	case unix.RTM_DELROUTE:
		if len(m.Data) <= routeProtocol {
			return false
		}
		protocol := m.Data[routeProtocol]
		return protocol == unix.RTPROT_KERNEL || protocol == core.RouteProtocol || gso.MayTell(m.Data)
	case unix.RTM_DELNEIGH:
		return len(m.Data) >= neighSize && (binary.NativeEndian.Uint16(m.Data[neighState:])&unix.NUD_PERMANENT != 0 ||
			m.Data[neighFlags]&unix.NTF_PROXY != 0)
	}
	return true
}

// BridgeNames returns the names of the bridges of netyard's networks, sorted.
func (k *Kernel) BridgeNames() (names []string) {
	for _, e := range nft.Of(k.Handle).Wanted() {
		if e.Set == bridge.Bridges {
			names = append(names, e.Text)
		}
	}
	slices.Sort(names)
	return names
}
