package bridge

import (
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"netyard/kernel/core"
	"netyard/kernel/gso"
)

// A Bridge is a bridge that netyard makes.
type Bridge struct {
	Name, Alias string
	MTU         int
	MAC         net.HardwareAddr // set, or it would change as ports come and go
	IPv6        bool
	Promisc     bool // receives frames to other hardware addresses, too
	// Segments says how large the segments may be that the host sends to its ports.
	Segments gso.Want
}

// String names the link.
func (b Bridge) String() string { return "bridge " + b.Name }

func (b Bridge) Ensure(k *core.Handle) error {
	link, err := k.Link(b.Name)
	if err != nil {
		return err
	}
	switch {
	case link == nil:
		if link, err = b.create(k); err != nil {
			return fmt.Errorf("create %s: %w", b, err)
		}
	case link.Attrs().Alias == "" && !core.OwnName(b.Name):
		return fmt.Errorf("create %s: a link of that name exists and %w", b, core.ErrForeign)
	default:
		if err := core.EnsureAlias(k, link, b.Alias); err != nil {
			return fmt.Errorf("create %s: a link of that name exists and %w", b, err)
		}
	}
	if err := b.tune(k); err != nil {
		return err
	}
	if err := core.EnsureMTU(k, b, link, b.MTU); err != nil {
		return err
	}
	if err := core.EnsureMAC(k, link, b.MAC); err != nil {
		return fmt.Errorf("set MAC %s on %s: %w", b.MAC, b, err)
	}
	if b.Promisc && link.Attrs().Promisc == 0 {
		if err := k.NL.SetPromiscOn(link); err != nil {
			return fmt.Errorf("set %s promiscuous: %w", b, err)
		}
	}
	limit, err := gso.Known(k, b.Segments)
	if err == nil {
		err = gso.Ensure(k.NL, link, limit.Sizes)
	}
	if err != nil {
		return err
	}
	if err := k.NL.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", b, err)
	}
	return nil
}

// create makes the link under a name that only netyard uses, marks it, and only then gives it the wanted name. A crash
// in between leaves no link that looks like somebody else's.
func (b Bridge) create(k *core.Handle) (netlink.Link, error) {
	_, id, _ := strings.Cut(b.Alias, ":")
	attrs := netlink.NewLinkAttrs()
	// The MTU is not among the attributes: only an MTU that is set later counts as set and does not follow those of the
	// ports (br_change_mtu, net/bridge/br_device.c).
	attrs.Name, attrs.HardwareAddr = core.Name(core.BridgePrefix, id), b.MAC
	if err := k.NL.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, err
	}
	link, err := k.NL.LinkByName(attrs.Name)
	if err != nil {
		return nil, err
	}
	if err := k.NL.LinkSetAlias(link, b.Alias); err != nil {
		return nil, err
	}
	if attrs.Name != b.Name {
		if err := k.NL.LinkSetName(link, b.Name); err != nil {
			return nil, errors.Join(err, k.NL.LinkDel(link))
		}
		return k.NL.LinkByName(b.Name)
	}
	return link, nil
}

// tune sets the sysctls of the bridge before it is up: the host must not accept router advertisements or redirects from
// containers.
func (b Bridge) tune(k *core.Handle) error {
	for _, s := range b.sysctls() {
		if err := s.Ensure(k); err != nil {
			return err
		}
	}
	return nil
}

func (b Bridge) sysctls() []core.Sysctl {
	v4 := func(name, value string) core.Sysctl {
		return core.Sysctl{Path: []string{"net", "ipv4", "conf", b.Name, name}, Value: value}
	}
	v6 := func(name, value string) core.Sysctl {
		return core.Sysctl{Path: []string{"net", "ipv6", "conf", b.Name, name}, Value: value, Optional: true}
	}
	disabled := "1"
	if b.IPv6 {
		disabled = "0"
	}
	return []core.Sysctl{
		v4("accept_redirects", "0"), v4("accept_source_route", "0"),
		v6("accept_ra", "0"), v6("accept_redirects", "0"), v6("disable_ipv6", disabled),
	}
}

func (b Bridge) Remove(k *core.Handle) error { return k.DeleteLink(b.Name, b.Alias) }

func (b Bridge) Check(s *core.View) []string {
	link := s.Link(b.Name)
	if link == nil {
		return []string{b.String() + " is missing"}
	}
	var faults []string
	a := link.Attrs()
	switch {
	case a.Alias != b.Alias && core.OwnName(b.Name):
		faults = append(faults, b.String()+" has another alias")
	case a.Alias != b.Alias:
		return []string{fmt.Sprintf("%s %v", b, core.ErrForeign)}
	}
	if a.Flags&net.FlagUp == 0 {
		faults = append(faults, b.String()+" is down")
	}
	faults = append(faults, core.CheckMTU(b, link, b.MTU)...)
	faults = append(faults, core.CheckMAC(b, link, b.MAC)...)
	faults = append(faults, gso.Check(b, link, gso.Of(s, b.Segments).Sizes)...)
	if b.Promisc && a.Promisc == 0 {
		faults = append(faults, b.String()+" is not promiscuous")
	}
	for _, sysctl := range b.sysctls() {
		faults = append(faults, sysctl.Check(s)...)
	}
	return faults
}

// A Veth is a pair of links. One end is a port of a bridge, the other end (the peer) is to be moved into a sandbox.
type Veth struct {
	Name, Peer, Alias string
	Master            string
	MTU               int
	MAC               net.HardwareAddr // of the peer
	Isolated          bool             // cannot reach other isolated ports of the bridge
	// Hairpin lets the bridge send a frame back to the port it came from. Where br_netfilter is on, it translates what
	// a container sends to its own published port before the host routes it, and the frame never leaves the bridge
	// (br_nf_pre_routing_finish, net/bridge).
	Hairpin bool
	// Segments says how large the segments may be at both ends, and at a bridge of netyard's.
	Segments gso.Want
	// Sandbox is the path of the namespace that the inner end belongs in, and NS that namespace, if known.
	Sandbox string
	NS      core.NamespaceID
	// PeerNS is an open descriptor of the namespace that the peer is made in; 0 means the host's.
	PeerNS int
	// Fenced blocks all traffic: the link is down and a port of no bridge, so that no entry of a bridge leads to it.
	Fenced bool
}

// String names the end on the host.
func (v Veth) String() string { return "link " + v.Name }

func (v Veth) Ensure(k *core.Handle) error {
	if v.Fenced {
		return v.fence(k)
	}
	master, err := k.NL.LinkByName(v.Master)
	if err != nil {
		return fmt.Errorf("attach %s to bridge %s: %w", v, v.Master, err)
	}
	link, err := k.Link(v.Name)
	if err != nil {
		return err
	}
	limit, err := gso.Known(k, v.Segments)
	if err != nil {
		return err
	}
	if link == nil {
		return v.create(k, master, limit.Sizes)
	}
	if err := core.EnsureAlias(k, link, v.Alias); err != nil {
		return fmt.Errorf("create %s: a link of that name exists and %w", v, err)
	}
	if a := link.Attrs(); a.MasterIndex != master.Attrs().Index {
		if v.Isolated { // isolation can be set only on a port: nothing may pass until then
			if err := k.NL.LinkSetDown(link); err != nil {
				return fmt.Errorf("set %s down: %w", v, err)
			}
		}
		if err := k.NL.LinkSetMaster(link, master); err != nil {
			return fmt.Errorf("attach %s to bridge %s: %w", v, v.Master, err)
		}
	}
	if err := core.EnsureMTU(k, v, link, v.MTU); err != nil {
		return err
	}
	if err := core.EnsureMAC(k, link, v.portMAC()); err != nil {
		return fmt.Errorf("set MAC %s on %s: %w", v.portMAC(), v, err)
	}
	if err := k.NL.LinkSetIsolated(link, v.Isolated); err != nil {
		return fmt.Errorf("set isolation of %s: %w", v, err)
	}
	if err := k.NL.LinkSetHairpin(link, v.Hairpin); err != nil {
		return fmt.Errorf("set hairpin of %s: %w", v, err)
	}
	if err := k.NL.LinkSetARPOff(link); err != nil {
		return fmt.Errorf("turn off ARP on %s: %w", v, err)
	}
	if err := v.resize(k, master, link, limit.Sizes); err != nil {
		return err
	}
	// The port needs no address of its own; without one it neither sends nor receives IPv6.
	if err := core.NoIPv6(v.Name).Ensure(k); err != nil {
		return err
	}
	if err := k.NL.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", v, err)
	}
	return nil
}

// fence blocks the traffic of the pair. A pair that does not exist is fenced.
func (v Veth) fence(k *core.Handle) error {
	link, err := k.Link(v.Name)
	if err != nil || link == nil {
		return err
	}
	if err := core.EnsureAlias(k, link, v.Alias); err != nil {
		return fmt.Errorf("fence %s: a link of that name exists and %w", v, err)
	}
	if err := errors.Join(k.NL.LinkSetDown(link), k.NL.LinkSetNoMaster(link)); err != nil {
		return fmt.Errorf("fence %s: %w", v, err)
	}
	return nil
}

// create makes the pair and sets it up in few requests: each request is an event that everybody who watches links has
// to read.
func (v Veth) create(k *core.Handle, master netlink.Link, sizes gso.Sizes) error {
	_, err := v.pair(k, sizes).Execute(unix.NETLINK_ROUTE, 0)
	if err == nil {
		err = v.enslave(k, master.Attrs().Index)
	}
	if errors.Is(err, unix.EEXIST) && v.PeerNS > 0 {
		err = fmt.Errorf("the sandbox already has a link %s: %w", v.Peer, err)
	}
	if err == nil {
		err = core.NoIPv6(v.Name).Ensure(k)
	}
	if err == nil {
		err = v.setUp(k)
	}
	if err != nil {
		return fmt.Errorf("create %s: %w", v, err)
	}
	if !sizes.Big() {
		return nil
	}
	return v.resizeBridge(k, master, sizes)
}

// pair returns the request that makes the pair: netlink.Veth has not all attributes of the other end.
func (v Veth) pair(k *core.Handle, sizes gso.Sizes) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	req.Sockets = k.Sockets
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC)
	if v.PeerNS > 0 {
		peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(v.PeerNS))) //nolint:gosec // a descriptor
	}
	for _, attr := range v.end(v.Name, v.portMAC(), sizes) {
		req.AddData(attr)
	}
	for _, attr := range v.end(v.Peer, v.MAC, sizes) {
		peer.AddChild(attr)
	}
	req.AddData(info)
	return req
}

// enslave makes the outer end a port of the bridge. It is no part of the request that makes the pair: until the kernel
// has seen that a new link has no carrier, the bridge would have one.
func (v Veth) enslave(k *core.Handle, master int) error {
	link, err := k.NL.LinkByName(v.Name)
	if err != nil {
		return err
	}
	return k.NL.LinkSetMasterByIndex(link, master)
}

// end returns the attributes of one end of the pair.
func (v Veth) end(name string, mac net.HardwareAddr, sizes gso.Sizes) []*nl.RtAttr {
	attrs := []*nl.RtAttr{nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name))}
	if v.MTU > 0 {
		attrs = append(attrs, nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(v.MTU)))) //nolint:gosec // an MTU
	}
	if mac != nil {
		attrs = append(attrs, nl.NewRtAttr(unix.IFLA_ADDRESS, mac))
	}
	if sizes.Big() { // both have small ones of themselves
		attrs = append(attrs, gso.Attrs(sizes)...)
	}
	return attrs
}

// resize sets the sizes of the segments at both ends and at the bridge. The outer end is set after the inner one: it
// tells of both.
func (v Veth) resize(k *core.Handle, master, link netlink.Link, sizes gso.Sizes) error {
	if !gso.Fits(link, sizes) {
		if err := gso.EnsureInner(k, link, v.Sandbox, v.NS, sizes); err != nil {
			return err
		}
	}
	if err := gso.Ensure(k.NL, link, sizes); err != nil {
		return err
	}
	return v.resizeBridge(k, master, sizes)
}

// resizeBridge sets the sizes at a bridge of netyard's: it takes large ones only since it has its first port.
func (v Veth) resizeBridge(k *core.Handle, master netlink.Link, sizes gso.Sizes) error {
	if _, _, own := core.ParseAlias(master.Attrs().Alias); !own || gso.Fits(master, sizes) {
		return nil
	}
	master, err := k.NL.LinkByIndex(master.Attrs().Index)
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", v.Master, err)
	}
	return gso.Ensure(k.NL, master, sizes)
}

// portMAC returns the MAC of the port; nil: the kernel's choice.
func (v Veth) portMAC() net.HardwareAddr {
	if len(v.MAC) != len(core.MAC{}) {
		return nil
	}
	return core.PortMAC(v.MAC)
}

// setUp marks a new port, sets what the bridge is to know of it, and sets it up. The kernel does it in this order,
// whatever the order of the attributes (rtnl_changelink and do_setlink, net/core/rtnetlink.c).
func (v Veth) setUp(k *core.Handle) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	req.Sockets = k.Sockets
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	// ARP is off: what bypasses the bridge must not get into the host's neighbour table.
	msg.Flags, msg.Change = unix.IFF_UP|unix.IFF_NOARP, unix.IFF_UP|unix.IFF_NOARP
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(v.Name)))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(v.Alias)))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_SLAVE_KIND, nl.NonZeroTerminated("bridge"))
	port := info.AddRtAttr(nl.IFLA_INFO_SLAVE_DATA, nil)
	port.AddRtAttr(nl.IFLA_BRPORT_ISOLATED, core.Flag(v.Isolated))
	port.AddRtAttr(nl.IFLA_BRPORT_MODE, core.Flag(v.Hairpin))
	req.AddData(info)
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("mark it and set it up: %w", err)
	}
	return nil
}

func (v Veth) Remove(k *core.Handle) error { return k.DeleteLink(v.Name, v.Alias) }

func (v Veth) Check(s *core.View) []string {
	link := s.Link(v.Name)
	if link == nil {
		return []string{v.String() + " is missing"}
	}
	var faults []string
	a := link.Attrs()
	if a.Alias != v.Alias {
		faults = append(faults, v.String()+" has another alias")
	}
	if v.Fenced {
		if a.MasterIndex != 0 || a.Flags&net.FlagUp != 0 {
			faults = append(faults, v.String()+" is not fenced")
		}
		return faults
	}
	if master := s.Link(v.Master); master == nil || a.MasterIndex != master.Attrs().Index {
		faults = append(faults, fmt.Sprintf("%s is not a port of bridge %s", v, v.Master))
	}
	if a.Flags&net.FlagUp == 0 {
		faults = append(faults, v.String()+" is down")
	}
	faults = append(faults, core.CheckMTU(v, link, v.MTU)...)
	faults = append(faults, gso.Check(v, link, gso.Of(s, v.Segments).Sizes)...)
	if a.RawFlags&unix.IFF_NOARP == 0 {
		faults = append(faults, v.String()+" has ARP on")
	}
	faults = append(faults, core.CheckMAC(v, link, v.portMAC())...)
	p, known := PortOf(s, a.Index).Flags()
	if known && v.Isolated != p.Isolated {
		faults = append(faults, v.String()+map[bool]string{true: " is not isolated", false: " is isolated"}[v.Isolated])
	}
	if known && v.Hairpin && !p.Hairpin { // a port keeps it when its published ports move to another endpoint
		faults = append(faults, v.String()+" has hairpin mode off")
	}
	return append(faults, core.NoIPv6(v.Name).Check(s)...)
}

// Lost reports whether the pair is gone. A new pair would have its inner end outside the sandbox.
func (v Veth) Lost(s *core.View) bool { return s.Link(v.Name) == nil }

// A HostBridge is a bridge that the admin made: netyard attaches ports to it and changes nothing else.
type HostBridge struct{ Name string }

// String names the link.
func (b HostBridge) String() string { return "host's bridge " + b.Name }

func (b HostBridge) Ensure(k *core.Handle) error {
	link, err := k.Link(b.Name)
	if err != nil {
		return err
	}
	if link == nil {
		return fmt.Errorf("attach to bridge %s: %w", b.Name, unix.ENODEV)
	}
	if link.Type() != "bridge" {
		return fmt.Errorf("attach to bridge %s: it is a %s, not a bridge", b.Name, link.Type())
	}
	return nil
}

// DependsOn reports whether a link is the bridge.
func (b HostBridge) DependsOn(l core.LinkID) bool { return l.Name == b.Name }

func (HostBridge) Remove(*core.Handle) error { return nil }

func (b HostBridge) Check(s *core.View) []string {
	if link := s.Link(b.Name); link == nil || link.Type() != "bridge" {
		return []string{b.String() + " is missing"}
	}
	return nil
}
