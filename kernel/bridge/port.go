package bridge

import (
	"errors"
	"fmt"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"netyard/kernel/core"
)

// readPort is readPorts for one port, by its index. The library can only list them all.
func readPort(k *core.Handle, index int) (f portFacts, err error) {
	f = portFacts{map[int]netlink.Protinfo{}, map[int]map[core.MAC]bool{}}
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index) //nolint:gosec // an index from the kernel
	links, err := core.Ask(k, unix.RTM_GETLINK, unix.NLM_F_ACK, msg)
	if errors.Is(err, unix.ENODEV) {
		return f, nil
	}
	if err != nil {
		return f, fmt.Errorf("read a port of a bridge: %w", err)
	}
	for _, m := range links {
		if flags, ok := flagsIn(m); ok {
			f.flags[index] = flags
		}
	}
	if len(f.flags) == 0 {
		return f, nil
	}
	msg = nl.NewIfInfomsg(unix.AF_BRIDGE) // the kernel accepts it in place of struct ndmsg, and filters by the port
	msg.Index = int32(index)              //nolint:gosec // an index from the kernel
	entries, err := core.Ask(k, unix.RTM_GETNEIGH, unix.NLM_F_DUMP, msg)
	if err != nil {
		return f, fmt.Errorf("list forwarding entries of a port: %w", err)
	}
	for _, m := range entries {
		n, err := netlink.NeighDeserialize(m)
		if err != nil {
			return f, fmt.Errorf("read a forwarding entry: %w", err)
		}
		if n.LinkIndex == index {
			f.add(*n)
		}
	}
	return f, nil
}

// flagsIn returns the flags that a link has as a port of a bridge, from the answer about it (IFLA_INFO_SLAVE_DATA).
func flagsIn(link []byte) (p netlink.Protinfo, ok bool) {
	if len(link) < unix.SizeofIfInfomsg {
		return p, false
	}
	kind, data := "", []byte(nil)
	for _, info := range core.Within(link[unix.SizeofIfInfomsg:], unix.IFLA_LINKINFO) {
		switch info.Attr.Type {
		case nl.IFLA_INFO_SLAVE_KIND:
			kind = nl.BytesToString(info.Value)
		case nl.IFLA_INFO_SLAVE_DATA:
			data = info.Value
		}
	}
	if kind != "bridge" {
		return p, false
	}
	attrs, _ := nl.ParseRouteAttr(data)
	for _, a := range attrs {
		on := len(a.Value) > 0 && a.Value[0] != 0
		switch a.Attr.Type {
		case nl.IFLA_BRPORT_MODE:
			p.Hairpin = on
		case nl.IFLA_BRPORT_GUARD:
			p.Guard = on
		case nl.IFLA_BRPORT_LEARNING:
			p.Learning = on
		case nl.IFLA_BRPORT_UNICAST_FLOOD:
			p.Flood = on
		case nl.IFLA_BRPORT_ISOLATED:
			p.Isolated = on
		}
	}
	return p, true
}

// readQueuesOf is readQueues for one link. The kernel can only list the qdiscs of all links, so they are read only if
// the link has one, which it says itself.
func readQueuesOf(v *core.View, link netlink.Link) (q queues, err error) {
	index := link.Attrs().Index
	q = queues{map[int][]netlink.Qdisc{}, map[int]int{}}
	queued, err := core.HasQueue(v.Handle, index)
	v.Note(1, err)
	if err == nil && queued {
		all, err := core.Dump(v, listQdiscs)
		if err != nil {
			return q, err
		}
		q.qdiscs[index] = all[index]
	}
	if strings.HasPrefix(link.Attrs().Alias, core.AliasPrefix) {
		q.redirects[index], err = redirected(v.Handle, link)
		v.Note(1, nil)
	}
	return q, err
}
