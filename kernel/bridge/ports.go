package bridge

import (
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"netyard/kernel/core"
)

// portFacts are the flags of each port, and the hardware addresses that bridges have forwarding entries of StaticPorts
// for, by the index of the port.
type portFacts struct {
	flags   map[int]netlink.Protinfo
	entries map[int]map[core.MAC]bool
}

// Flags returns the flags of a port. ok is false if it is no port, or it could not be read.
func (p Port) Flags() (netlink.Protinfo, bool) {
	facts, err := p.load()
	if err != nil {
		return netlink.Protinfo{}, false
	}
	f, ok := facts.flags[p.index]
	return f, ok
}

// SetMulticastSnooping turns multicast snooping of a bridge on or off. The request names nothing else of the bridge.
// The library's own request also has the bridge's name, and before 6.3 the kernel refuses even the present name for a
// link that is up (dev_change_name, net/core/dev.c).
func SetMulticastSnooping(k *core.Handle, bridge int, on bool) error {
	value := byte(0)
	if on {
		value = 1
	}
	return k.Inside(func() error {
		req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
		msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
		msg.Index = int32(bridge) //nolint:gosec // an index from the kernel
		info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
		info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
		info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.IFLA_BR_MCAST_SNOOPING, []byte{value})
		req.AddData(msg)
		req.AddData(info)
		_, err := req.Execute(unix.NETLINK_ROUTE, 0)
		return err
	})
}

// hasEntry reports whether the bridge has a static forwarding entry for a hardware address at the port.
func (p Port) hasEntry(m core.MAC) bool {
	facts, err := p.load()
	return err == nil && facts.entries[p.index][m]
}

// readPorts lists links as bridges see them (AF_BRIDGE), since the list of all links has no flags of ports.
func readPorts(k *core.Handle) (f portFacts, err error) {
	f = portFacts{map[int]netlink.Protinfo{}, map[int]map[core.MAC]bool{}}
	list, err := core.Retry(func() ([]netlink.Neigh, error) { return k.NL.NeighList(0, unix.AF_BRIDGE) })
	if err != nil {
		return f, fmt.Errorf("list forwarding entries: %w", err)
	}
	for _, n := range list {
		f.add(n)
	}
	return f, k.ListPorts(func(link netlink.Link) {
		if p := link.Attrs().Protinfo; p != nil {
			f.flags[link.Attrs().Index] = *p
		}
	})
}

// add adds a forwarding entry, if it is one of a StaticPort.
func (f portFacts) add(n netlink.Neigh) {
	static := n.State&unix.NUD_NOARP != 0 && n.Flags&sticky != 0
	if n.MasterIndex == 0 || len(n.HardwareAddr) != len(core.MAC{}) || !static {
		return
	}
	if f.entries[n.LinkIndex] == nil {
		f.entries[n.LinkIndex] = map[core.MAC]bool{}
	}
	f.entries[n.LinkIndex][core.MACOf(n.HardwareAddr)] = true
}
