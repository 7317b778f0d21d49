package kernel

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// AliasPrefix begins the alias of every link netyard makes: netyard:<network>[:<endpoint>].
	AliasPrefix = "netyard:"

	// BridgePrefix begins the names of bridges; they go on with the beginning of the network's id.
	BridgePrefix = "nyb-"
	// VethPrefix begins the names of endpoints' outer links; they go on with the beginning of the endpoint's id.
	VethPrefix = "nyv-"
	// PeerPrefix begins the names of the inner ones, while they are outside.
	PeerPrefix = "nyp-"

	maxName = unix.IFNAMSIZ - 1
)

// Name is the name of the link of that prefix which belongs to id.
func Name(prefix, id string) string {
	if n := maxName - len(prefix); len(id) > n {
		id = id[:n]
	}
	return prefix + id
}

// Alias is the alias of a link of that network, and of that endpoint if there is one.
func Alias(network, endpoint string) string {
	if endpoint == "" {
		return AliasPrefix + network
	}
	return AliasPrefix + network + ":" + endpoint
}

// ParseAlias takes an alias apart; ok is false when it is not one of netyard's.
func ParseAlias(alias string) (network, endpoint string, ok bool) {
	rest, ok := strings.CutPrefix(alias, AliasPrefix)
	network, endpoint, _ = strings.Cut(rest, ":")
	return network, endpoint, ok && network != ""
}

// A Bridge is a bridge of netyard's own.
type Bridge struct {
	Name, Alias string
	MTU         int
	MAC         net.HardwareAddr // fixed, or it would follow the ports' as they come and go
	IPv6        bool
	Promisc     bool // takes frames for others too
}

// String names the link.
func (b Bridge) String() string { return "bridge " + b.Name }

func (b Bridge) ensure(k *Kernel) error {
	link, err := k.link(b.Name)
	if err != nil {
		return err
	}
	if link != nil && link.Attrs().Alias != b.Alias {
		return fmt.Errorf("create %s: a link of that name exists and %w", b, ErrForeign)
	}
	if link == nil {
		if link, err = b.create(k); err != nil {
			return fmt.Errorf("create %s: %w", b, err)
		}
	}
	if err := b.tune(k); err != nil {
		return err
	}
	if a := link.Attrs(); a.MTU != b.MTU {
		if err := k.nl.LinkSetMTU(link, b.MTU); err != nil {
			return fmt.Errorf("set MTU %d on %s: %w", b.MTU, b, err)
		}
	}
	if b.Promisc && link.Attrs().Promisc == 0 {
		if err := k.nl.SetPromiscOn(link); err != nil {
			return fmt.Errorf("make %s listen to all frames: %w", b, err)
		}
	}
	if err := k.nl.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", b, err)
	}
	return nil
}

// create makes the link under a name of netyard's, marks it and only then gives it the wanted name: a crash in between
// leaves nothing that could be taken for somebody else's.
func (b Bridge) create(k *Kernel) (netlink.Link, error) {
	_, id, _ := strings.Cut(b.Alias, ":")
	attrs := netlink.NewLinkAttrs()
	// Not the MTU: only one that is set later counts as set, and does not follow the ports' (br_change_mtu,
	// net/bridge/br_device.c).
	attrs.Name, attrs.HardwareAddr = Name(BridgePrefix, id), b.MAC
	if err := k.nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, err
	}
	link, err := k.nl.LinkByName(attrs.Name)
	if err != nil {
		return nil, err
	}
	if err := k.nl.LinkSetAlias(link, b.Alias); err != nil {
		return nil, err
	}
	if attrs.Name != b.Name {
		if err := k.nl.LinkSetName(link, b.Name); err != nil {
			return nil, errors.Join(err, k.nl.LinkDel(link))
		}
		return k.nl.LinkByName(b.Name)
	}
	return link, nil
}

// tune sets what has to be so before the bridge is up: containers are not believed when they play the router.
func (b Bridge) tune(k *Kernel) error {
	for _, s := range b.sysctls() {
		if err := s.ensure(k); err != nil {
			return err
		}
	}
	return nil
}

func (b Bridge) sysctls() []Sysctl {
	v4 := func(name, value string) Sysctl {
		return Sysctl{Path: []string{"net", "ipv4", "conf", b.Name, name}, Value: value}
	}
	v6 := func(name, value string) Sysctl {
		return Sysctl{Path: []string{"net", "ipv6", "conf", b.Name, name}, Value: value, Optional: true}
	}
	disabled := "1"
	if b.IPv6 {
		disabled = "0"
	}
	return []Sysctl{
		v4("accept_redirects", "0"), v4("accept_source_route", "0"),
		v6("accept_ra", "0"), v6("accept_redirects", "0"), v6("disable_ipv6", disabled),
	}
}

func (b Bridge) remove(k *Kernel) error { return k.deleteLink(b.Name, b.Alias) }

func (b Bridge) check(s *snapshot) []string {
	link := s.links[b.Name]
	if link == nil {
		return []string{b.String() + " is missing"}
	}
	var faults []string
	a := link.Attrs()
	if a.Alias != b.Alias {
		return []string{fmt.Sprintf("%s %v", b, ErrForeign)}
	}
	if a.Flags&net.FlagUp == 0 {
		faults = append(faults, b.String()+" is down")
	}
	if a.MTU != b.MTU {
		faults = append(faults, fmt.Sprintf("%s has MTU %d instead of %d", b, a.MTU, b.MTU))
	}
	if b.Promisc && a.Promisc == 0 {
		faults = append(faults, b.String()+" does not listen to all frames")
	}
	for _, sysctl := range b.sysctls() {
		faults = append(faults, sysctl.check(s)...)
	}
	return faults
}

// A Veth is a pair of which one end is a port of a bridge and the other waits to be moved into a sandbox.
type Veth struct {
	Name, Peer, Alias string
	Master            string
	MTU               int
	MAC               net.HardwareAddr // of the peer
	Isolated          bool             // reaches no other isolated port of the bridge
	// Hairpin: the bridge may send back what came from here. Where br_netfilter is on, it translates what a container
	// sends to its own published port before the host routes it, and the frame never leaves the bridge
	// (br_nf_pre_routing_finish, net/bridge).
	Hairpin bool
	// PeerNS is an open descriptor of the namespace that the peer is made in; 0: the host's.
	PeerNS int
	// Fenced: nothing goes through it. It is down, and a port of no bridge, so that no entry there leads to it either.
	Fenced bool
}

// String names the end that stays on the host.
func (v Veth) String() string { return "link " + v.Name }

func (v Veth) ensure(k *Kernel) error {
	if v.Fenced {
		return v.fence(k)
	}
	master, err := k.nl.LinkByName(v.Master)
	if err != nil {
		return fmt.Errorf("attach %s to bridge %s: %w", v, v.Master, err)
	}
	link, err := k.link(v.Name)
	if err != nil {
		return err
	}
	if link == nil {
		return v.create(k, master.Attrs().Index)
	}
	if a := link.Attrs(); a.Alias != "" && a.Alias != v.Alias {
		return fmt.Errorf("create %s: a link of that name exists and %w", v, ErrForeign)
	} else if a.Alias == "" {
		if err := k.nl.LinkSetAlias(link, v.Alias); err != nil {
			return fmt.Errorf("mark %s: %w", v, err)
		}
	}
	if a := link.Attrs(); a.MasterIndex != master.Attrs().Index {
		if v.Isolated { // a port of a bridge is isolated only after it has become one: until then nothing may pass
			if err := k.nl.LinkSetDown(link); err != nil {
				return fmt.Errorf("set %s down: %w", v, err)
			}
		}
		if err := k.nl.LinkSetMaster(link, master); err != nil {
			return fmt.Errorf("attach %s to bridge %s: %w", v, v.Master, err)
		}
	}
	if a := link.Attrs(); a.MTU != v.MTU {
		if err := k.nl.LinkSetMTU(link, v.MTU); err != nil {
			return fmt.Errorf("set MTU %d on %s: %w", v.MTU, v, err)
		}
	}
	if err := k.nl.LinkSetIsolated(link, v.Isolated); err != nil {
		return fmt.Errorf("set whether %s is isolated: %w", v, err)
	}
	if err := k.nl.LinkSetHairpin(link, v.Hairpin); err != nil {
		return fmt.Errorf("set hairpin of %s: %w", v, err)
	}
	if err := k.nl.LinkSetARPOff(link); err != nil {
		return fmt.Errorf("turn off ARP on %s: %w", v, err)
	}
	// The port needs no address of its own; without one it neither speaks nor listens to IPv6.
	if err := noIPv6(v.Name).ensure(k); err != nil {
		return err
	}
	if err := k.nl.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", v, err)
	}
	return nil
}

// fence cuts the pair off. One that is not there is cut off.
func (v Veth) fence(k *Kernel) error {
	link, err := k.link(v.Name)
	if err != nil || link == nil {
		return err
	}
	if link.Attrs().Alias != v.Alias {
		return fmt.Errorf("fence %s: a link of that name exists and %w", v, ErrForeign)
	}
	if err := errors.Join(k.nl.LinkSetDown(link), k.nl.LinkSetNoMaster(link)); err != nil {
		return fmt.Errorf("fence %s: %w", v, err)
	}
	return nil
}

// create makes the pair, and all that it is to be with two requests: each one is an event, which everybody who watches
// links reads.
func (v Veth) create(k *Kernel, master int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.MasterIndex = v.Name, v.MTU, master
	if len(v.MAC) == 6 {
		attrs.HardwareAddr = portMAC(v.MAC)
	}
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: v.Peer, PeerHardwareAddr: v.MAC, PeerMTU: uint32(v.MTU)} //nolint:gosec // an MTU
	if v.PeerNS > 0 {
		veth.PeerNamespace = netlink.NsFd(v.PeerNS)
	}
	err := k.nl.LinkAdd(veth)
	if errors.Is(err, unix.EEXIST) && v.PeerNS > 0 {
		err = fmt.Errorf("the sandbox has a link %s already: %w", v.Peer, err)
	}
	if err == nil {
		err = noIPv6(v.Name).ensure(k)
	}
	if err == nil {
		err = v.setUp(k)
	}
	if err != nil {
		return fmt.Errorf("create %s: %w", v, err)
	}
	return nil
}

// setUp marks a new port, makes it as the bridge is to treat it, and sets it up: in this order, whatever the order of
// the attributes (rtnl_changelink and do_setlink, net/core/rtnetlink.c).
func (v Veth) setUp(k *Kernel) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	req.Sockets = k.sockets
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	// Without ARP: what bypasses the bridge must not get into the host's table of neighbours.
	msg.Flags, msg.Change = unix.IFF_UP|unix.IFF_NOARP, unix.IFF_UP|unix.IFF_NOARP
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(v.Name)))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(v.Alias)))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_SLAVE_KIND, nl.NonZeroTerminated("bridge"))
	port := info.AddRtAttr(nl.IFLA_INFO_SLAVE_DATA, nil)
	port.AddRtAttr(nl.IFLA_BRPORT_ISOLATED, flag(v.Isolated))
	port.AddRtAttr(nl.IFLA_BRPORT_MODE, flag(v.Hairpin))
	req.AddData(info)
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("mark it and set it up: %w", err)
	}
	return nil
}

func flag(on bool) []byte {
	if on {
		return []byte{1}
	}
	return []byte{0}
}

func noIPv6(link string) Sysctl {
	return Sysctl{Path: []string{"net", "ipv6", "conf", link, "disable_ipv6"}, Value: "1", Optional: true}
}

// portMAC is the hardware address of the end of a pair that is a port, when the other end's is mac. A bridge takes the
// lowest address among its ports' for its own: this must be none of them. Nor must it be the other end's, which then
// nobody would reach.
func portMAC(mac net.HardwareAddr) net.HardwareAddr {
	const high, next = 0xfe, 0xfa // unicast, locally administered
	first := byte(high)
	if mac[0] == high {
		first = next
	}
	return append(net.HardwareAddr{first}, mac[1:]...)
}

func (v Veth) remove(k *Kernel) error { return k.deleteLink(v.Name, v.Alias) }

func (v Veth) check(s *snapshot) []string {
	link := s.links[v.Name]
	if link == nil {
		return []string{v.String() + " is missing"}
	}
	var faults []string
	a := link.Attrs()
	if a.Alias != v.Alias {
		faults = append(faults, v.String()+" does not carry its alias")
	}
	if v.Fenced {
		if a.MasterIndex != 0 || a.Flags&net.FlagUp != 0 {
			faults = append(faults, v.String()+" is not fenced")
		}
		return faults
	}
	if master := s.links[v.Master]; master == nil || a.MasterIndex != master.Attrs().Index {
		faults = append(faults, fmt.Sprintf("%s is not a port of bridge %s", v, v.Master))
	}
	if a.Flags&net.FlagUp == 0 {
		faults = append(faults, v.String()+" is down")
	}
	if a.MTU != v.MTU {
		faults = append(faults, fmt.Sprintf("%s has MTU %d instead of %d", v, a.MTU, v.MTU))
	}
	if a.RawFlags&unix.IFF_NOARP == 0 {
		faults = append(faults, v.String()+" answers ARP itself")
	}
	p, known := s.ports.flags(a.Index)
	switch {
	case known && v.Isolated && !p.Isolated:
		faults = append(faults, v.String()+" is not isolated")
	case known && !v.Isolated && p.Isolated:
		faults = append(faults, v.String()+" is isolated")
	}
	if known && v.Hairpin && !p.Hairpin {
		faults = append(faults, v.String()+" does not send back what is for itself")
	}
	return faults
}

// lost: a new pair would have its inner end outside.
func (v Veth) lost(s *snapshot) bool { return s.links[v.Name] == nil }

// A HostBridge is a bridge that belongs to the host's owner: netyard plugs ports into it and changes nothing.
type HostBridge struct{ Name string }

// String names the link.
func (b HostBridge) String() string { return "host's bridge " + b.Name }

func (b HostBridge) ensure(k *Kernel) error {
	link, err := k.link(b.Name)
	if err != nil {
		return err
	}
	if link == nil {
		return fmt.Errorf("attach to bridge %s: %w", b.Name, unix.ENODEV)
	}
	if link.Type() != "bridge" {
		return fmt.Errorf("attach to bridge %s: it is a %s", b.Name, link.Type())
	}
	return nil
}

func (HostBridge) remove(*Kernel) error { return nil }

func (b HostBridge) check(s *snapshot) []string {
	if link := s.links[b.Name]; link == nil || link.Type() != "bridge" {
		return []string{b.String() + " is missing"}
	}
	return nil
}

// link finds a link by name; nil when there is none.
func (k *Kernel) link(name string) (netlink.Link, error) { return find(k.nl, name) }

func find(nl *netlink.Handle, name string) (netlink.Link, error) {
	link, err := nl.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil //nolint:nilnil // nothing there is an answer
	}
	if err != nil {
		return nil, fmt.Errorf("find link %s: %w", name, err)
	}
	return link, nil
}

// deleteLink removes a link if it is there and netyard's: it carries the alias, or none yet and a name of netyard's.
func (k *Kernel) deleteLink(name, alias string) error {
	link, err := k.link(name)
	if err != nil || link == nil {
		return err
	}
	if a := link.Attrs().Alias; a != alias && (a != "" || !OwnName(name)) {
		return nil
	}
	if err := k.nl.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete link %s: %w", name, err)
	}
	return nil
}

// OwnName says whether a link's name is one that only netyard gives: a prefix and eleven hexadecimal digits, or that of
// the tunnel.
func OwnName(name string) bool {
	for _, p := range []string{BridgePrefix, VethPrefix, PeerPrefix, ShaperPrefix, IslandPrefix, ShimPrefix, VXLANPrefix} {
		if id, ok := strings.CutPrefix(name, p); ok {
			return len(name) == maxName && strings.Trim(id, "0123456789abcdef") == ""
		}
	}
	return name == TunnelName
}

// A LinkInfo is what a mode has to know of a link it did not make.
type LinkInfo struct {
	Kind, Alias string
	MTU         int
	MAC         string
	// Encap is what its frames are: "ether", "loopback", "none".
	Encap string
	// Master is the bridge or bond that it is a port of, if it is of one.
	Master string
	// Wireless: it speaks to an access point, which knows it by its one hardware address.
	Wireless bool
}

// FindLink looks a link up by name; ok is false when there is none.
func (k *Kernel) FindLink(name string) (info LinkInfo, ok bool, err error) {
	link, err := k.link(name)
	if err != nil || link == nil {
		return LinkInfo{}, false, err
	}
	a := link.Attrs()
	info = LinkInfo{Kind: link.Type(), Alias: a.Alias, MTU: a.MTU, MAC: a.HardwareAddr.String(), Encap: a.EncapType}
	if a.MasterIndex != 0 {
		master, err := k.nl.LinkByIndex(a.MasterIndex)
		if err != nil {
			return LinkInfo{}, false, fmt.Errorf("find the master of link %s: %w", name, err)
		}
		info.Master = master.Attrs().Name
	}
	_, err = os.Stat(filepath.Join(k.sys, a.Name, "phy80211")) // made by cfg80211 (net/wireless/sysfs.c)
	info.Wireless = err == nil
	return info, true, nil
}

// Plugged says whether a sandbox has an endpoint's link: of a pair the outer end is here, and the inner one is not. A
// sandbox that has a card of the host's is kept from then on, since some engines make it only after they have asked for
// the card.
func (k *Kernel) Plugged(o Object) (bool, error) {
	if d, ok := o.(Device); ok {
		if err := k.spaces.hold(d.alias(), d.Sandbox); err != nil {
			return false, fmt.Errorf("keep the sandbox of %s: %w", d, err)
		}
		return d.inside(k)
	}
	if c, ok := o.(Child); ok {
		return inSandbox(c.Sandbox, c.Alias)
	}
	v, ok := o.(Veth)
	if !ok {
		return false, nil
	}
	outer, err := k.link(v.Name)
	if err != nil || outer == nil {
		return false, err
	}
	inner, err := k.link(v.Peer)
	return inner == nil, err
}
