package core

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// skipStats is RTEXT_FILTER_SKIP_STATS (linux/rtnetlink.h): the kernel leaves out the counters of links.
const skipStats = 1 << 3

// ListLinks lists the host's links, with the attributes that netyard reads. It keeps nothing of the kernel's messages:
// on a host with ten thousand containers they take several times the memory of the links.
func (k *Handle) ListLinks() ([]netlink.Link, error) {
	links, err := Retry(func() (links []netlink.Link, err error) {
		err = k.dumpLinks(unix.AF_UNSPEC, func(l netlink.Link) { links = append(links, l) })
		return links, err
	})
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	return links, nil
}

// ListPorts is ListLinks for the ports of bridges, as the bridges see them; one call of see each.
func (k *Handle) ListPorts(see func(netlink.Link)) error {
	_, err := Retry(func() (none struct{}, err error) { return none, k.dumpLinks(unix.AF_BRIDGE, see) })
	if err != nil {
		return fmt.Errorf("list ports of bridges: %w", err)
	}
	return nil
}

// dumpLinks calls see with each link of a family. After an error it may have seen some.
func (k *Handle) dumpLinks(family int, see func(netlink.Link)) error {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
	req.Sockets = k.Sockets
	req.AddData(nl.NewIfInfomsg(family))
	if family == unix.AF_UNSPEC { // of ports the kernel tells none
		req.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats)))
	}
	var undecoded error
	err := req.ExecuteIter(unix.NETLINK_ROUTE, unix.RTM_NEWLINK, func(msg []byte) bool {
		l, err := netlink.LinkDeserialize(&unix.NlMsghdr{Type: unix.RTM_NEWLINK}, trimLink(msg))
		if err != nil {
			undecoded = err
			return false
		}
		a := l.Attrs() // these two are parts of the message
		a.HardwareAddr, a.PermHWAddr = bytes.Clone(a.HardwareAddr), bytes.Clone(a.PermHWAddr)
		see(l)
		return true
	})
	return errors.Join(err, undecoded)
}

// isRead reports whether anybody reads an attribute of a link.
func isRead(attr uint16) bool {
	switch attr {
	case unix.IFLA_IFNAME, unix.IFLA_IFALIAS, unix.IFLA_ADDRESS, unix.IFLA_PERM_ADDRESS, unix.IFLA_MTU,
		unix.IFLA_LINK, unix.IFLA_LINK_NETNSID, unix.IFLA_MASTER, unix.IFLA_LINKINFO, unix.IFLA_PROTINFO,
		unix.IFLA_PROMISCUITY, unix.IFLA_OPERSTATE, unix.IFLA_PROP_LIST, unix.IFLA_GSO_MAX_SIZE, unix.IFLA_GRO_MAX_SIZE,
		unix.IFLA_GSO_IPV4_MAX_SIZE, unix.IFLA_GRO_IPV4_MAX_SIZE, unix.IFLA_TSO_MAX_SIZE:
		return true
	}
	return false
}

// trimLink removes the attributes that nobody reads from a message about a link, in place. They are most of it, and
// decoding them is most of the work.
func trimLink(msg []byte) []byte {
	kept := msg[:min(unix.SizeofIfInfomsg, len(msg))]
	for rest := msg[len(kept):]; len(rest) >= unix.SizeofRtAttr; {
		size, attr := int(nl.NativeEndian().Uint16(rest)), nl.NativeEndian().Uint16(rest[2:])
		if size < unix.SizeofRtAttr || size > len(rest) {
			return append(kept, rest...) // who decodes it says what is wrong
		}
		whole := min((size+unix.RTA_ALIGNTO-1)&^(unix.RTA_ALIGNTO-1), len(rest))
		if isRead(attr &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)) {
			kept = append(kept, rest[:whole]...)
		}
		rest = rest[whole:]
	}
	return kept
}
