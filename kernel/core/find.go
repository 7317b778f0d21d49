package core

import (
	"bytes"
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

// Has returns the set of netyard's aliases that links of networks and endpoints carry. Shaper links (ifb) do not count.
func (k *Handle) Has() (map[string]bool, error) {
	links, err := k.ListLinks()
	if err != nil {
		return nil, err
	}
	has := map[string]bool{}
	for _, l := range links {
		if a := l.Attrs().Alias; strings.HasPrefix(a, AliasPrefix) && l.Type() != "ifb" {
			has[a] = true
		}
	}
	return has, nil
}

// LinkByAlias finds the link that carries an alias. It returns nil if there is none.
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
	return nil, nil //nolint:nilnil // no such link is a valid answer
}

// DeviceUp reports whether a link is administratively up, with or without carrier.
func DeviceUp(a *netlink.LinkAttrs) bool { return a.Flags&net.FlagUp != 0 }

// SetLinkMTU sets the MTU, in bytes, of a link that waits on the host to be moved into a sandbox.
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

// Flag encodes a boolean as a one-byte netlink attribute.
func Flag(on bool) []byte {
	if on {
		return []byte{1}
	}
	return []byte{0}
}

// NoIPv6 is the setting that turns IPv6 off on a link.
func NoIPv6(link string) Sysctl {
	return Sysctl{Path: []string{"net", "ipv6", "conf", link, "disable_ipv6"}, Value: "1", Optional: true}
}

// PortMAC returns a MAC for the bridge-port end of a veth pair whose other end has mac. A bridge takes the lowest MAC
// of its ports as its own, so the first octet is high enough for the bridge never to take this one. It also differs
// from the other end's MAC, which would be unreachable if the port had the same.
func PortMAC(mac net.HardwareAddr) net.HardwareAddr {
	const high, next = 0xfe, 0xfa // unicast, locally administered
	first := byte(high)
	if mac[0] == high {
		first = next
	}
	return append(net.HardwareAddr{first}, mac[1:]...)
}

// Link finds a link of the host by name. It returns nil if there is none.
func (k *Handle) Link(name string) (netlink.Link, error) { return Find(k.NL, name) }

// Find finds a link by name in the namespace of nl. It returns nil if there is none.
func Find(nl *netlink.Handle, name string) (netlink.Link, error) {
	link, err := nl.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil //nolint:nilnil // no such link is a valid answer
	}
	if err != nil {
		return nil, fmt.Errorf("find link %s: %w", name, err)
	}
	return link, nil
}

// IsNoLink reports whether something failed because a link did not exist.
func IsNoLink(err error) bool { return errors.As(err, &netlink.LinkNotFoundError{}) }

// DeleteLink deletes a link if it exists and is netyard's: it has the alias, or it has no alias yet and a name that
// only netyard gives.
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

// A LinkInfo is what a mode has to know about a link that it did not make.
type LinkInfo struct {
	Kind, Alias string
	MTU         int
	MAC         string
	// Encap is its link layer: "ether", "loopback", "none".
	Encap string
	// Master is the bridge or bond that it is a port of; empty if it is no port.
	Master string
	// Wireless: it is a Wi-Fi client, and its access point accepts only its one MAC.
	Wireless bool
}

// FindLink looks a link up by name; ok is false if there is none.
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

// LinkIndex returns the index of a link, 0 if there is none of that name. A link that is deleted and made again gets
// another index.
func (k *Handle) LinkIndex(name string) (int, error) {
	l, err := k.Link(name)
	if err != nil || l == nil {
		return 0, err
	}
	return l.Attrs().Index, nil
}

// HasKind reports whether the kernel supports a kind of link that needs a parent. It tries to make one on the loopback
// link, which every kernel refuses, but with EOPNOTSUPP only if it does not know the kind. The attempt loads the kind's
// module if necessary.
func (k *Handle) HasKind(kind string) bool {
	attrs := netlink.NewLinkAttrs()
	const loopback = 1 // in every namespace (loopback_net_init, drivers/net/loopback.c)
	attrs.Name, attrs.ParentIndex = PeerPrefix+"probe", loopback
	err := k.NL.LinkAdd(&netlink.GenericLink{LinkAttrs: attrs, LinkType: kind})
	return !errors.Is(err, unix.EOPNOTSUPP)
}

// Links returns the names of all links, sorted.
func (k *Handle) Links() ([]string, error) {
	links, err := k.ListLinks()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, l := range links {
		names = append(names, l.Attrs().Name)
	}
	slices.SortFunc(names, strings.Compare)
	return names, nil
}

// EnsureAlias marks a link of netyard's with its alias, if it has none, or another one that somebody gave it. Else the
// link is not netyard's.
func EnsureAlias(k *Handle, link netlink.Link, alias string) error {
	switch a := link.Attrs(); {
	case a.Alias == alias:
		return nil
	case a.Alias != "" && !remarked(a):
		return ErrForeign
	}
	return k.NL.LinkSetAlias(link, alias)
}

// remarked reports whether a link's name is one that only netyard gives, while its alias is nobody's of netyard.
func remarked(a *netlink.LinkAttrs) bool {
	_, _, own := ParseAlias(a.Alias)
	return OwnName(a.Name) && !own
}

// EnsureMAC sets the hardware address of a link, if it has another one. A nil mac stands for any.
func EnsureMAC(k *Handle, link netlink.Link, mac net.HardwareAddr) error {
	if mac == nil || bytes.Equal(link.Attrs().HardwareAddr, mac) {
		return nil
	}
	return k.NL.LinkSetHardwareAddr(link, mac)
}

// CheckMAC reports if the link of an object has another hardware address. A nil mac stands for any.
func CheckMAC(o Object, link netlink.Link, mac net.HardwareAddr) []string {
	if got := link.Attrs().HardwareAddr; mac != nil && !bytes.Equal(got, mac) {
		return []string{fmt.Sprintf("%s has MAC %s instead of %s", o, got, mac)}
	}
	return nil
}

// EnsureMTU sets the MTU of the link of an object, in bytes, if it has another one.
func EnsureMTU(k *Handle, o Object, link netlink.Link, mtu int) error {
	if link.Attrs().MTU == mtu {
		return nil
	}
	if err := k.NL.LinkSetMTU(link, mtu); err != nil {
		return fmt.Errorf("set MTU %d on %s: %w", mtu, o, err)
	}
	return nil
}

// CheckMTU reports if the link of an object has another MTU.
func CheckMTU(o Object, link netlink.Link, mtu int) []string {
	if got := link.Attrs().MTU; got != mtu {
		return []string{fmt.Sprintf("%s has MTU %d instead of %d", o, got, mtu)}
	}
	return nil
}
