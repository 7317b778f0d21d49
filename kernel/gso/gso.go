// Package gso sets how large the segments are that TCP hands to a link. A segment of more than 64 KiB (BIG TCP) costs
// as much as a smaller one at each hop on the way, but a link that does not take it makes the kernel cut it into
// packets in software, which costs more than it saves (ADR 33).
package gso

import (
	"errors"
	"fmt"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"netyard/kernel/core"
)

const (
	// Small is what the kernel gives every link (GSO_LEGACY_MAX_SIZE, include/linux/netdevice.h).
	Small = 65536
	// Big is what netyard gives a link whose segments meet no smaller one. Larger ones gain nothing that is measurable.
	Big = 262144
)

// Sizes are the largest segments that a link is given, in bytes, by family.
type Sizes struct{ V4, V6 uint32 }

// String writes the sizes of both families.
func (s Sizes) String() string {
	if s.V4 == s.V6 {
		return fmt.Sprintf("%d bytes", s.V4)
	}
	return fmt.Sprintf("%d bytes (IPv4) and %d (IPv6)", s.V4, s.V6)
}

// Big reports whether they are more than 64 KiB in a family.
func (s Sizes) Big() bool { return s.V4 > Small || s.V6 > Small }

// least returns the smaller sizes, by family.
func (s Sizes) least(t Sizes) Sizes { return Sizes{min(s.V4, t.V4), min(s.V6, t.V6)} }

// small are the sizes that a link has of itself.
func small() Sizes { return Sizes{Small, Small} }

// sizesOf returns the sizes that a link is set to. A kernel before 6.3 does not tell those of IPv4.
func sizesOf(a *netlink.LinkAttrs) Sizes {
	return Sizes{max(a.GSOIPv4MaxSize, Small), max(a.GSOMaxSize, Small)}
}

// clip returns as much of wanted sizes as a link can be set to. A bridge that never had a port takes only small ones.
func clip(a *netlink.LinkAttrs, want Sizes) Sizes {
	most := max(a.TSOMaxSize, Small)
	return want.least(Sizes{most, most})
}

// Clip returns as much of wanted sizes as a link on another one can be set to.
func Clip(below netlink.Link, want Sizes) Sizes { return clip(below.Attrs(), want) }

// Fits reports whether a link is set to the sizes.
func Fits(link netlink.Link, want Sizes) bool { return sizesOf(link.Attrs()) == want }

// Ensure sets a link to the sizes, or as much of them as it takes. nl is the handle of its namespace.
func Ensure(nl *netlink.Handle, link netlink.Link, want Sizes) error {
	a := link.Attrs()
	want = clip(a, want)
	if sizesOf(a) == want {
		return nil
	}
	// Setting a small size for IPv6 sets it for IPv4 as well (netif_set_gso_max_size, net/core/dev.h).
	err := errors.Join(nl.LinkSetGSOMaxSize(link, int(want.V6)), nl.LinkSetGROMaxSize(link, int(want.V6)),
		nl.LinkSetGSOIPv4MaxSize(link, int(want.V4)), nl.LinkSetGROIPv4MaxSize(link, int(want.V4)))
	if err != nil {
		return fmt.Errorf("let link %s take segments of %s: %w", a.Name, want, err)
	}
	return nil
}

// EnsureInner sets the inner end of a veth pair: in its sandbox, or on the host, where it waits for one. Without a
// sandbox there is nothing to do.
func EnsureInner(k *core.Handle, outer netlink.Link, sandbox string, ns core.NamespaceID, want Sizes) error {
	a := outer.Attrs()
	find := func(nl *netlink.Handle) error {
		inner, err := nl.LinkByIndex(a.ParentIndex)
		if core.IsNoLink(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("find the inner end of link %s: %w", a.Name, err)
		}
		if inner.Type() != "veth" || inner.Attrs().ParentIndex != a.Index {
			return nil
		}
		return Ensure(nl, inner, want)
	}
	if a.NetNsID < 0 {
		return find(k.NL)
	}
	return core.InNamespace(sandbox, ns, find)
}

// Check reports if the link of an object is set to other sizes.
func Check(o core.Object, link netlink.Link, want Sizes) []string {
	a := link.Attrs()
	if got, want := sizesOf(a), clip(a, want); got != want {
		return []string{fmt.Sprintf("%s takes segments of %s instead of %s", o, got, want)}
	}
	return nil
}

// Attrs returns the netlink attributes that set a link to the sizes, in the order in which they have to be set.
func Attrs(s Sizes) []*nl.RtAttr {
	return []*nl.RtAttr{
		nl.NewRtAttr(unix.IFLA_GSO_MAX_SIZE, nl.Uint32Attr(s.V6)),
		nl.NewRtAttr(unix.IFLA_GRO_MAX_SIZE, nl.Uint32Attr(s.V6)),
		nl.NewRtAttr(unix.IFLA_GSO_IPV4_MAX_SIZE, nl.Uint32Attr(s.V4)),
		nl.NewRtAttr(unix.IFLA_GRO_IPV4_MAX_SIZE, nl.Uint32Attr(s.V4)),
	}
}

// Mark gives a new link on another one its alias and its sizes, in one request. It cannot be made with them: it takes
// over what the link below takes only when it is made (macvlan_init, drivers/net/macvlan.c).
func Mark(k *core.Handle, name, alias string, s Sizes) error {
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	req.Sockets = k.Sockets
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(alias)))
	for _, attr := range Attrs(s) {
		req.AddData(attr)
	}
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("mark link %s and let it take segments of %s: %w", name, s, err)
	}
	return nil
}

// A Want says how large the segments of a network's links may be, as data of a plan. The zero Want: small.
type Want struct {
	// Big: as large as every link takes by which packets leave the network. If the fields below are empty, none do.
	Big bool
	// Routed: the host forwards packets of the network, by its routes.
	Routed bool
	// Link is the host's link that the network's links are on, or are ports of.
	Link string
}

// String writes it for people.
func (w Want) String() string {
	var words []string
	if w.Big {
		words = append(words, "big")
	}
	if w.Routed {
		words = append(words, "routed")
	}
	if w.Link != "" {
		words = append(words, "on "+w.Link)
	}
	return strings.Join(words, " ")
}
