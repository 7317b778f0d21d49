package bridge

import (
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"netyard/kernel/core"
)

// sticky is NTF_STICKY (linux/neighbour.h): an entry stays at its port, whoever else uses the address.
const sticky = 0x40

// A StaticPort is a bridge port with one permanent hardware address: the bridge learns nothing from its frames. Else it
// would learn even from frames to reserved group addresses, which no guard sees (__br_handle_local_finish,
// net/bridge/br_input.c), and a container that uses another's address there would receive what is for that container,
// or for another host.
type StaticPort struct {
	Link string
	MAC  net.HardwareAddr
	// Open ports may use any address, so the bridge learns from them.
	Open bool
	// Flooded ports receive frames that the bridge has no entry for. On a host bridge an entry may be missing for a
	// VLAN.
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
	entry := &netlink.Neigh{
		LinkIndex: link.Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_MASTER | sticky,
		State: netlink.NUD_NOARP, HardwareAddr: p.MAC,
	}
	if err := k.NL.NeighSet(entry); err != nil {
		return fmt.Errorf("add %s to %s: %w", p.MAC, p, err)
	}
	return nil
}

// tune sets all flags in one request. With BPDU guard the kernel disables a port that sends what only bridges send,
// where the bridge takes part in STP: a container must not change the paths of a LAN (br_stp_rcv,
// net/bridge/br_stp_bpdu.c).
func (p StaticPort) tune(k *core.Handle, port int) error {
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	req.Sockets = k.Sockets
	msg := nl.NewIfInfomsg(unix.AF_BRIDGE)
	msg.Index = int32(port) //nolint:gosec // an index from the kernel
	req.AddData(msg)
	info := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
	info.AddRtAttr(nl.IFLA_BRPORT_LEARNING, core.Flag(p.Open))
	info.AddRtAttr(nl.IFLA_BRPORT_UNICAST_FLOOD, core.Flag(p.Open || p.Flooded))
	info.AddRtAttr(nl.IFLA_BRPORT_GUARD, core.Flag(!p.Open))
	req.AddData(info)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

func (StaticPort) Remove(*core.Handle) error { return nil } // it is removed with the link

func (p StaticPort) Check(s *core.View) (faults []string) {
	link := s.Link(p.Link)
	if link == nil {
		return nil // the link reports that it is missing
	}
	index := link.Attrs().Index
	fault := func(text string) { faults = append(faults, p.String()+" "+text) }
	flags, ok := PortOf(s, index).Flags()
	switch {
	case !ok:
	case flags.Learning && !p.Open:
		fault("learns addresses")
	case !flags.Learning && p.Open:
		fault("does not learn addresses")
	case flags.Flood && !p.Open && !p.Flooded:
		fault("receives unknown unicast")
	case !flags.Flood && (p.Open || p.Flooded):
		fault("does not receive unknown unicast")
	case flags.Guard == p.Open:
		fault(map[bool]string{true: "has BPDU guard on", false: "has BPDU guard off"}[p.Open])
	}
	if !p.Open && !PortOf(s, index).hasEntry(core.MACOf(p.MAC)) {
		fault("has no static forwarding entry for " + p.MAC.String())
	}
	return faults
}
