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

// Changes reports changes that may have affected an object: changes to links, bridge ports, addresses and queueing
// disciplines, the removal of routes and neighbours, and new default routes. Several changes may be reported as one.
func (k *Kernel) Changes(ctx context.Context) (<-chan struct{}, error) {
	sock, err := nl.SubscribeAt(k.NS, netns.None(), unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR,
		unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_NEIGH, unix.RTNLGRP_TC)
	if err != nil {
		return nil, fmt.Errorf("watch links: %w", err)
	}
	changed := wake.New()
	core.Follow(ctx, sock, func(msgs []syscall.NetlinkMessage) {
		// No message means an overrun: a relevant one may have been lost.
		if len(msgs) > 0 && !slices.ContainsFunc(msgs, isRelevant) {
			return
		}
		changed.Send()
	})
	return changed, nil
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
