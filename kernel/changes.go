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
	"netyard/kernel/nft"
)

// Changes tells of changes that may have touched an object: of links and ports of bridges, of addresses, and of routes,
// neighbours and queueing disciplines that went. Several may be told as one.
func (k *Kernel) Changes(ctx context.Context) (<-chan struct{}, error) {
	sock, err := nl.SubscribeAt(k.NS, netns.None(), unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR,
		unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_NEIGH, unix.RTNLGRP_TC)
	if err != nil {
		return nil, fmt.Errorf("watch links: %w", err)
	}
	changed := make(chan struct{}, 1)
	core.Follow(ctx, sock, func(msgs []syscall.NetlinkMessage) {
		// None is an overrun: what was lost may have been one that counts.
		if len(msgs) > 0 && !slices.ContainsFunc(msgs, touches) {
			return
		}
		select {
		case changed <- struct{}{}:
		default:
		}
	})
	return changed, nil
}

// touches says whether a message tells of something that netyard may have made. A router's host changes routes all the
// time, and every neighbour comes and goes: those are not looked at for each of them.
func touches(m syscall.NetlinkMessage) bool {
	const (
		routeProtocol = 5 // struct rtmsg (rtnetlink(7))
		neighState    = 8 // struct ndmsg
		neighFlags    = 10
		neighSize     = 12
	)
	switch m.Header.Type {
	case unix.RTM_NEWROUTE, unix.RTM_NEWNEIGH:
		return false
	case unix.RTM_DELROUTE:
		return len(m.Data) > routeProtocol && (m.Data[routeProtocol] == unix.RTPROT_KERNEL || m.Data[routeProtocol] == core.RouteProtocol)
	case unix.RTM_DELNEIGH:
		return len(m.Data) >= neighSize && (binary.NativeEndian.Uint16(m.Data[neighState:])&unix.NUD_PERMANENT != 0 ||
			m.Data[neighFlags]&unix.NTF_PROXY != 0)
	}
	return true
}

// BridgeNames are the bridges of netyard's networks.
func (k *Kernel) BridgeNames() (names []string) {
	nft.Of(k.Handle).Mu.Lock()
	defer nft.Of(k.Handle).Mu.Unlock()
	for _, e := range nft.Of(k.Handle).Wanted() {
		if e.Set == bridge.Bridges {
			names = append(names, e.Text)
		}
	}
	slices.Sort(names)
	return names
}
