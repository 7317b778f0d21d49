package kernel

import (
	"fmt"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// bridgePorts is what the bridges know of their ports, looked up when somebody first asks.
type bridgePorts struct {
	load func() (portFacts, error)
}

// portFacts are what the ports do, and which hardware addresses the bridges have entries for, by the index of the port.
type portFacts struct {
	flags   map[int]netlink.Protinfo
	entries map[int]map[mac]bool
}

func (k *Kernel) bridgePorts() bridgePorts { return bridgePorts{sync.OnceValues(k.portFacts)} }

// flags are those of a port; ok is false when it is none, or nothing can be said.
func (p bridgePorts) flags(port int) (netlink.Protinfo, bool) {
	facts, err := p.load()
	if err != nil {
		return netlink.Protinfo{}, false
	}
	f, ok := facts.flags[port]
	return f, ok
}

// setSnooping has a bridge look into who wants which multicast, or not. Of the bridge no more is said than that: not by the library, which
// also says its name, and before 6.3 even the name that it has is refused for a link that is up (dev_change_name, net/core/dev.c).
func (k *Kernel) setSnooping(bridge int, on bool) error {
	value := byte(0)
	if on {
		value = 1
	}
	return k.inside(func() error {
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
func (p bridgePorts) has(port int, m mac) bool {
	facts, err := p.load()
	return err == nil && facts.entries[port][m]
}

// portFacts asks for links as bridges see them: the list of all links has nothing of the kind.
func (k *Kernel) portFacts() (f portFacts, err error) {
	f = portFacts{map[int]netlink.Protinfo{}, map[int]map[mac]bool{}}
	list, err := retry(func() ([]netlink.Neigh, error) { return k.nl.NeighList(0, unix.AF_BRIDGE) })
	if err != nil {
		return f, fmt.Errorf("list forwarding entries: %w", err)
	}
	for _, n := range list {
		if n.MasterIndex == 0 || len(n.HardwareAddr) != len(mac{}) {
			continue
		}
		if f.entries[n.LinkIndex] == nil {
			f.entries[n.LinkIndex] = map[mac]bool{}
		}
		f.entries[n.LinkIndex][macOf(n.HardwareAddr)] = true
	}
	answers, err := retry(func() (msgs [][]byte, err error) {
		err = k.inside(func() error {
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
