package overlay

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"netyard/kernel/bridge"
	"netyard/kernel/core"
)

// A VXLAN is the port of a network's bridge that leads to the network's other hosts. Its entries are given to it
// (Peers), it learns none, and it answers ARP and neighbour solicitations for its peers. Frames for anybody else go
// nowhere: there is no default remote.
type VXLAN struct {
	Name, Alias string
	Master      string // the bridge
	VNI         uint32
	Local       netip.Addr // the host's address that the other hosts send to
	Port        uint16
	MTU         int // inside
}

// String names the link.
func (v VXLAN) String() string { return "VXLAN link " + v.Name }

func (v VXLAN) Ensure(k *core.Handle) error {
	master, err := k.NL.LinkByName(v.Master)
	if err != nil {
		return fmt.Errorf("attach %s to bridge %s: %w", v, v.Master, err)
	}
	link, err := k.Link(v.Name)
	if err != nil {
		return err
	}
	if link != nil {
		err := core.ErrForeign
		if link.Type() == "vxlan" {
			err = core.EnsureAlias(k, link, v.Alias)
		}
		if err != nil {
			return fmt.Errorf("create %s: a link of that name exists and %w", v, err)
		}
		if len(v.fixed(link)) > 0 { // these cannot be changed; Peers sets the entries of the new device
			if err := k.NL.LinkDel(link); err != nil {
				return fmt.Errorf("replace %s: %w", v, err)
			}
			link = nil
		}
	}
	if link == nil {
		if link, err = v.create(k); err != nil {
			return fmt.Errorf("create %s: %w", v, err)
		}
	}
	if link.Attrs().Alias == "" {
		if err := k.NL.LinkSetAlias(link, v.Alias); err != nil {
			return fmt.Errorf("mark %s: %w", v, err)
		}
	}
	return v.tune(k, link, master)
}

func (v VXLAN) create(k *core.Handle) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = v.Name, v.MTU
	err := k.NL.LinkAdd(&netlink.Vxlan{
		LinkAttrs: attrs, VxlanId: int(v.VNI), SrcAddr: v.Local.AsSlice(), Port: int(v.Port),
		Learning: false, Proxy: true,
	})
	if errors.Is(err, unix.EEXIST) { // one device per namespace, VNI and port (vxlan_vni_in_use, drivers/net/vxlan)
		err = fmt.Errorf("another device has VNI %d at port %d: %w", v.VNI, v.Port, err)
	}
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = fmt.Errorf("this kernel has no vxlan: %w", err)
	}
	if err != nil {
		return nil, err
	}
	return k.NL.LinkByName(v.Name)
}

// tune makes the link a port from which the bridge learns nothing, and to which it sends all unknown unicast.
func (v VXLAN) tune(k *core.Handle, link, master netlink.Link) error {
	// IPv6 stays on (disable_ipv6): a link without IPv6 answers no neighbour solicitation (neigh_reduce,
	// drivers/net/vxlan). Without a link-local address the link sends nothing of its own.
	for _, s := range v.sysctls() {
		if err := s.Ensure(k); err != nil {
			return err
		}
	}
	// With snooping, a container that acts as multicast querier would keep neighbour solicitations from the other
	// hosts.
	if err := bridge.SetMulticastSnooping(k, master.Attrs().Index, false); err != nil {
		return fmt.Errorf("turn off multicast snooping of bridge %s: %w", v.Master, err)
	}
	a := link.Attrs()
	if a.MasterIndex != master.Attrs().Index {
		if err := k.NL.LinkSetMaster(link, master); err != nil {
			return fmt.Errorf("attach %s to bridge %s: %w", v, v.Master, err)
		}
	}
	if err := core.EnsureMTU(k, v, link, v.MTU); err != nil {
		return err
	}
	if err := errors.Join(k.NL.LinkSetLearning(link, false), k.NL.LinkSetFlood(link, true)); err != nil {
		return fmt.Errorf("set learning and flooding of %s: %w", v, err)
	}
	port := udpPort{v.Port, v.Name, "end that, or set overlay.port to another, the same on all hosts"}
	if err := port.explain(k, k.NL.LinkSetUp(link)); err != nil {
		return fmt.Errorf("set %s up: %w", v, err)
	}
	return nil
}

// noLinkLocal keeps a link from generating IPv6 addresses (IN6_ADDR_GEN_MODE_NONE, linux/if_link.h).
func noLinkLocal(link string) core.Sysctl {
	return core.Sysctl{Path: []string{"net", "ipv6", "conf", link, "addr_gen_mode"}, Value: "1", Optional: true}
}

// sysctls returns the settings of the link: it answers for its peers, when something is sent through it, and for the
// host to nobody. Frames to reserved group addresses (br_handle_frame, net/bridge/br_input.c) reach the link itself.
func (v VXLAN) sysctls() []core.Sysctl {
	const toNobody = "8" // Documentation/networking/ip-sysctl.rst, arp_ignore
	return []core.Sysctl{
		{Path: []string{"net", "ipv4", "conf", v.Name, "arp_ignore"}, Value: toNobody},
		noLinkLocal(v.Name),
		{Path: []string{"net", "ipv6", "conf", v.Name, "disable_ipv6"}, Value: "0", Optional: true},
		{Path: []string{"net", "ipv6", "conf", v.Name, "accept_ra"}, Value: "0", Optional: true},
	}
}

func (v VXLAN) Remove(k *core.Handle) error { return k.DeleteLink(v.Name, v.Alias) }

// fixed says in words what differs and can be set only when a device is made.
func (v VXLAN) fixed(link netlink.Link) (faults []string) {
	x, ok := link.(*netlink.Vxlan)
	if !ok {
		return []string{v.String() + " is of another kind"}
	}
	local, _ := netip.AddrFromSlice(x.SrcAddr)
	switch {
	case x.VxlanId != int(v.VNI):
		faults = append(faults, fmt.Sprintf("%s has VNI %d instead of %d", v, x.VxlanId, v.VNI))
	case x.Port != int(v.Port):
		faults = append(faults, fmt.Sprintf("%s has port %d instead of %d", v, x.Port, v.Port))
	case local.Unmap() != v.Local:
		faults = append(faults, fmt.Sprintf("%s has local address %s instead of %s", v, local.Unmap(), v.Local))
	case x.Learning || !x.Proxy:
		faults = append(faults, v.String()+" learns addresses, or does not answer for its peers")
	}
	return faults
}

func (v VXLAN) Check(s *core.View) []string {
	link := s.Link(v.Name)
	if link == nil {
		return []string{v.String() + " is missing"}
	}
	a := link.Attrs()
	faults := v.fixed(link)
	switch {
	case a.Alias != v.Alias && core.OwnName(v.Name):
		faults = append(faults, v.String()+" has another alias")
	case a.Alias != v.Alias:
		return []string{fmt.Sprintf("%s %v", v, core.ErrForeign)}
	}
	if master := s.Link(v.Master); master == nil || a.MasterIndex != master.Attrs().Index {
		faults = append(faults, fmt.Sprintf("%s is not a port of bridge %s", v, v.Master))
	} else if b, ok := master.(*netlink.Bridge); ok && b.MulticastSnooping != nil && *b.MulticastSnooping {
		faults = append(faults, fmt.Sprintf("bridge %s has multicast snooping on", v.Master))
	}
	if a.Flags&net.FlagUp == 0 {
		faults = append(faults, v.String()+" is down")
	}
	faults = append(faults, core.CheckMTU(v, link, v.MTU)...)
	if flags, ok := bridge.PortOf(s, a.Index).Flags(); ok && (flags.Learning || !flags.Flood) {
		faults = append(faults, v.String()+" learns addresses, or does not receive unknown unicast")
	}
	for _, sysctl := range v.sysctls() {
		faults = append(faults, sysctl.Check(s)...)
	}
	return faults
}

// An Anycast is an address that every host of a network has on its own bridge: the containers' gateway. The host uses
// another address as source: a reply to this one would stay with whichever host receives it.
type Anycast struct {
	Link string
	// Alias is the alias that the link must have for Remove to delete the address.
	Alias string
	Addr  netip.Addr
}

// String names the address.
func (a Anycast) String() string { return fmt.Sprintf("gateway address %s on %s", a.Addr, a.Link) }

func (a Anycast) addr() *netlink.Addr {
	// It is alone in its subnet, so that no route has it as source, and deprecated, so that IPv6 does not select it
	// either (RFC 6724, rule 3).
	addr := &netlink.Addr{IPNet: core.IPNet(netip.PrefixFrom(a.Addr, a.Addr.BitLen()))}
	if a.Addr.Is6() {
		const forever = int(^uint32(0) >> 1)
		addr.Flags, addr.ValidLft, addr.PreferedLft = unix.IFA_F_NODAD, forever, 0
	}
	return addr
}

func (a Anycast) Ensure(k *core.Handle) error {
	link, err := k.NL.LinkByName(a.Link)
	if err != nil {
		return fmt.Errorf("add %s: %w", a, err)
	}
	if err := k.NL.AddrReplace(link, a.addr()); err != nil {
		return fmt.Errorf("add %s: %w", a, err)
	}
	return nil
}

func (a Anycast) Remove(k *core.Handle) error {
	return core.Addr{Link: a.Link, Alias: a.Alias, Prefix: netip.PrefixFrom(a.Addr, a.Addr.BitLen())}.Remove(k)
}

func (a Anycast) Check(s *core.View) []string {
	link := s.Link(a.Link)
	if link == nil {
		return nil // the link reports that it is missing
	}
	for _, got := range s.AddrsOf(link.Attrs().Index) {
		if p := core.PrefixOf(got.IPNet); p.IsSingleIP() && p.Addr() == a.Addr {
			if a.Addr.Is6() && got.Flags&unix.IFA_F_DEPRECATED == 0 {
				return []string{a.String() + " is not deprecated: the host may use it as source"}
			}
			return nil
		}
	}
	return []string{a.String() + " is missing"}
}
