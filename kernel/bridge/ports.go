package bridge

import (
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"netyard/kernel/core"
)

// readPorts are what the ports do, and which hardware addresses the bridges have entries for, by the index of the port.
type portFacts struct {
	flags   map[int]netlink.Protinfo
	entries map[int]map[core.MAC]bool
}

// Flags are those of a port; ok is false when it is none, or nothing can be said.
func (p Ports) Flags(port int) (netlink.Protinfo, bool) {
	facts, err := p.load()
	if err != nil {
		return netlink.Protinfo{}, false
	}
	f, ok := facts.flags[port]
	return f, ok
}

// SetSnooping has a bridge look into who wants which multicast, or not. Of the bridge no more is said than that: not by
// the library, which also says its name, and before 6.3 even the name that it has is refused for a link that is up
// (dev_change_name, net/core/dev.c).
func SetSnooping(k *core.Handle, bridge int, on bool) error {
	value := byte(0)
	if on {
		value = 1
	}
	return k.Inside(func() error {
		req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
		msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
		msg.Index = int32(bridge) //nolint:gosec // what the kernel has there
		info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
		info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
		info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.IFLA_BR_MCAST_SNOOPING, []byte{value})
		req.AddData(msg)
		req.AddData(info)
		_, err := req.Execute(unix.NETLINK_ROUTE, 0)
		return err
	})
}

// has says whether the bridge has an entry for a hardware address at a port.
func (p Ports) has(port int, m core.MAC) bool {
	facts, err := p.load()
	return err == nil && facts.entries[port][m]
}

// readPorts asks for links as bridges see them: the list of all links has nothing of the kind.
func readPorts(k *core.Handle) (f portFacts, err error) {
	f = portFacts{map[int]netlink.Protinfo{}, map[int]map[core.MAC]bool{}}
	list, err := core.Retry(func() ([]netlink.Neigh, error) { return k.NL.NeighList(0, unix.AF_BRIDGE) })
	if err != nil {
		return f, fmt.Errorf("list forwarding entries: %w", err)
	}
	for _, n := range list {
		if n.MasterIndex == 0 || len(n.HardwareAddr) != len(core.MAC{}) {
			continue
		}
		if f.entries[n.LinkIndex] == nil {
			f.entries[n.LinkIndex] = map[core.MAC]bool{}
		}
		f.entries[n.LinkIndex][core.MACOf(n.HardwareAddr)] = true
	}
	answers, err := core.Retry(func() (msgs [][]byte, err error) {
		err = k.Inside(func() error {
			req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
			req.AddData(nl.NewIfInfomsg(unix.AF_BRIDGE))
			msgs, err = req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
			return err
		})
		return msgs, err
	})
	if err != nil {
		return f, fmt.Errorf("list ports of bridges: %w", err)
	}
	for _, m := range answers {
		link, err := netlink.LinkDeserialize(&unix.NlMsghdr{Type: unix.RTM_NEWLINK}, m)
		if err != nil {
			return f, fmt.Errorf("read a port of a bridge: %w", err)
		}
		if p := link.Attrs().Protinfo; p != nil {
			f.flags[link.Attrs().Index] = *p
		}
	}
	return f, nil
}
