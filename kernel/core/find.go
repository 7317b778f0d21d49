package core

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Has says for each alias of netyard's whether a network's or an endpoint's link carries it; a shaper alone is none.
func (k *Handle) Has() (map[string]bool, error) {
	links, err := Retry(k.NL.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	has := map[string]bool{}
	for _, l := range links {
		if a := l.Attrs().Alias; strings.HasPrefix(a, AliasPrefix) && l.Type() != "ifb" {
			has[a] = true
		}
	}
	return has, nil
}

// LinkByAlias finds the link that carries an alias; nil when there is none.
func (*Handle) LinkByAlias(nl *netlink.Handle, alias string) (netlink.Link, error) {
	links, err := Retry(nl.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		if l.Attrs().Alias == alias {
			return l, nil
		}
	}
	return nil, nil //nolint:nilnil // nothing there is an answer
}

// DeviceUp says whether a link was set up, whatever its carrier says.
func DeviceUp(a *netlink.LinkAttrs) bool { return a.Flags&net.FlagUp != 0 }

// SetLinkMTU sets the MTU of a link that waits on the host to be moved into a sandbox, bytes.
func (k *Handle) SetLinkMTU(name string, mtu int) error {
	link, err := k.NL.LinkByName(name)
	if err == nil {
		err = k.NL.LinkSetMTU(link, mtu)
	}
	if err != nil {
		return fmt.Errorf("set MTU %d on link %s: %w", mtu, name, err)
	}
	return nil
}

// Flag is a boolean as an attribute has it.
func Flag(on bool) []byte {
	if on {
		return []byte{1}
	}
	return []byte{0}
}

// NoIPv6 turns IPv6 off on a link.
func NoIPv6(link string) Sysctl {
	return Sysctl{Path: []string{"net", "ipv6", "conf", link, "disable_ipv6"}, Value: "1", Optional: true}
}

// PortMAC is the hardware address of the end of a pair that is a port, when the other end's is mac. A bridge takes the
// lowest address among its ports' for its own: this must be none of them. Nor must it be the other end's, which then
// nobody would reach.
func PortMAC(mac net.HardwareAddr) net.HardwareAddr {
	const high, next = 0xfe, 0xfa // unicast, locally administered
	first := byte(high)
	if mac[0] == high {
		first = next
	}
	return append(net.HardwareAddr{first}, mac[1:]...)
}

// Link finds a link by name; nil when there is none.
func (k *Handle) Link(name string) (netlink.Link, error) { return Find(k.NL, name) }

// Find finds a link by name; nil when there is none.
func Find(nl *netlink.Handle, name string) (netlink.Link, error) {
	link, err := nl.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil //nolint:nilnil // nothing there is an answer
	}
	if err != nil {
		return nil, fmt.Errorf("find link %s: %w", name, err)
	}
	return link, nil
}

// DeleteLink removes a link if it is there and netyard's: it carries the alias, or none yet and a name of netyard's.
func (k *Handle) DeleteLink(name, alias string) error {
	link, err := k.Link(name)
	if err != nil || link == nil {
		return err
	}
	if a := link.Attrs().Alias; a != alias && (a != "" || !OwnName(name)) {
		return nil
	}
	if err := k.NL.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete link %s: %w", name, err)
	}
	return nil
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
func (k *Handle) FindLink(name string) (info LinkInfo, ok bool, err error) {
	link, err := k.Link(name)
	if err != nil || link == nil {
		return LinkInfo{}, false, err
	}
	a := link.Attrs()
	info = LinkInfo{Kind: link.Type(), Alias: a.Alias, MTU: a.MTU, MAC: a.HardwareAddr.String(), Encap: a.EncapType}
	if a.MasterIndex != 0 {
		master, err := k.NL.LinkByIndex(a.MasterIndex)
		if err != nil {
			return LinkInfo{}, false, fmt.Errorf("find the master of link %s: %w", name, err)
		}
		info.Master = master.Attrs().Name
	}
	_, err = os.Stat(filepath.Join(k.Sys, a.Name, "phy80211")) // made by cfg80211 (net/wireless/sysfs.c)
	info.Wireless = err == nil
	return info, true, nil
}

// LinkIndex is the number of a link; 0: there is none of that name. One that was deleted and made again has another.
func (k *Handle) LinkIndex(name string) (int, error) {
	l, err := k.Link(name)
	if err != nil || l == nil {
		return 0, err
	}
	return l.Attrs().Index, nil
}

// HasKind says whether the kernel can make links of a kind that needs a parent, loading its module if that is all it
// lacks. It asks for one on the loopback link, which no kernel makes.
func (k *Handle) HasKind(kind string) bool {
	attrs := netlink.NewLinkAttrs()
	const loopback = 1 // in every namespace (loopback_net_init, drivers/net/loopback.c)
	attrs.Name, attrs.ParentIndex = PeerPrefix+"probe", loopback
	err := k.NL.LinkAdd(&netlink.GenericLink{LinkAttrs: attrs, LinkType: kind})
	return !errors.Is(err, unix.EOPNOTSUPP)
}

// Links lists the names of all links, in order.
func (k *Handle) Links() ([]string, error) {
	links, err := Retry(k.NL.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var names []string
	for _, l := range links {
		names = append(names, l.Attrs().Name)
	}
	slices.SortFunc(names, strings.Compare)
	return names, nil
}
