package bridge

import (
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"netyard/kernel/core"
)

// A StaticPort is a port of a bridge with one hardware address, which is there for good: the bridge learns nothing from
// what comes by it. It would learn also from frames to reserved group addresses, which no guard sees
// (__br_handle_local_finish, net/bridge/br_input.c), and a container that uses another's address there would get what
// is for that one, or for another host.
type StaticPort struct {
	Link string
	MAC  net.HardwareAddr
	// Open ports have what addresses they like: the bridge learns from them.
	Open bool
	// Flooded ports get frames that the bridge has no entry for. On a bridge of the host's owner an entry may be
	// missing for a VLAN.
	Flooded bool
}

// String names the port.
func (p StaticPort) String() string { return "static port " + p.Link }

func (p StaticPort) Ensure(k *core.Handle) error {
	link, err := k.NL.LinkByName(p.Link)
	if err != nil {
		return fmt.Errorf("set %s: %w", p, err)
	}
	if err := p.tune(k, link.Attrs().Index); err != nil {
		return fmt.Errorf("set %s: %w", p, err)
	}
	if p.Open {
		return nil
	}
	const sticky = 0x40 // NTF_STICKY (linux/neighbour.h): whoever else uses the address, the entry stays at this port
	entry := &netlink.Neigh{
		LinkIndex: link.Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_MASTER | sticky,
		State: netlink.NUD_NOARP, HardwareAddr: p.MAC,
	}
	if err := k.NL.NeighSet(entry); err != nil {
		return fmt.Errorf("add %s to %s: %w", p.MAC, p, err)
	}
	return nil
}

// tune sets all at once. A port that sends what only bridges send is disabled by the kernel, where the bridge takes
// part in STP: a container does not change which way a LAN's frames go (br_stp_rcv, net/bridge/br_stp_bpdu.c).
func (p StaticPort) tune(k *core.Handle, port int) error {
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	req.Sockets = k.Sockets
	msg := nl.NewIfInfomsg(unix.AF_BRIDGE)
	msg.Index = int32(port) //nolint:gosec // an index of the kernel's
	req.AddData(msg)
	info := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
	info.AddRtAttr(nl.IFLA_BRPORT_LEARNING, core.Flag(p.Open))
	info.AddRtAttr(nl.IFLA_BRPORT_UNICAST_FLOOD, core.Flag(p.Open || p.Flooded))
	info.AddRtAttr(nl.IFLA_BRPORT_GUARD, core.Flag(!p.Open))
	req.AddData(info)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

func (StaticPort) Remove(*core.Handle) error { return nil } // it goes with the link

func (p StaticPort) Check(s *core.View) (faults []string) {
	link := s.Links[p.Link]
	if link == nil {
		return nil // that the link is missing is said by the link
	}
	index := link.Attrs().Index
	fault := func(text string) { faults = append(faults, p.String()+" "+text) }
	flags, ok := PortsOf(s).Flags(index)
	switch {
	case !ok:
	case flags.Learning && !p.Open:
		fault("learns")
	case !flags.Learning && p.Open:
		fault("does not learn")
	case flags.Flood && !p.Open && !p.Flooded:
		fault("gets what is for others")
	case !flags.Flood && (p.Open || p.Flooded):
		fault("does not get what may be for it")
	case flags.Guard == p.Open:
		fault(map[bool]string{true: "does not let STP in", false: "lets STP in"}[p.Open])
	}
	if !p.Open && !PortsOf(s).has(index, core.MACOf(p.MAC)) {
		fault("has no entry for " + p.MAC.String())
	}
	return faults
}
