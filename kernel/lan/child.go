// Package lan makes links on a parent, which is a link of the host: VLANs, macvlan and ipvlan links, and the host's own
// link beside them (the shim). It also makes replies to the host come back through the shim.
package lan

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"netyard/kernel/core"
	"netyard/kernel/gso"
)

// A Child is a macvlan or ipvlan link on a parent. It is made on the host and then moved into a sandbox; from then on
// the host does not see it. It may be made and set up while the parent is down: its carrier is the parent's.
type Child struct {
	Name, Alias string
	Parent      Parent
	Kind        string           // macvlan, ipvlan
	Mode        string           // of macvlan: bridge, private, vepa, passthru; of ipvlan: l2, l3, l3s
	Flag        string           // of ipvlan: bridge, private, vepa
	MTU         int              // 0: the parent's
	MAC         net.HardwareAddr // of a macvlan; nil: the kernel's choice
	// Segments says how large the segments may be.
	Segments gso.Want
	// Sandbox is the path of the namespace that the link belongs in; empty if there is none.
	Sandbox string
	// NS is that namespace, if known: a path may later stand for another one.
	NS core.NamespaceID
}

// String names the link.
func (c Child) String() string { return "link " + c.Name }

// Lost reports whether the link cannot be restored: nothing puts one that is missing into a running sandbox.
func (c Child) Lost(*core.View) bool {
	there, err := c.inside(func(*netlink.Handle, netlink.Link) error { return nil })
	return c.Sandbox != "" && (err != nil || !there)
}

func (c Child) Ensure(k *core.Handle) error {
	link, err := k.Link(c.Name)
	if err != nil {
		return err
	}
	if link == nil {
		if plugged, err := c.inside(c.resize(k)); err != nil || plugged {
			return err
		}
		parent, err := FindParent(k, c.Parent)
		if err != nil {
			return err
		}
		limit, err := gso.Known(k, c.segmentsOn(parent))
		if err != nil {
			return err
		}
		if link, err = c.create(k, parent); err != nil {
			return err
		}
		if sizes := gso.Clip(parent, limit.Sizes); sizes.Big() {
			return gso.Mark(k, c.Name, c.Alias, sizes)
		}
		return c.mark(k, link)
	}
	if err := c.mark(k, link); err != nil {
		return err
	}
	return c.resize(k)(k.NL, link)
}

// inside calls f for the link in its sandbox, if it is there.
func (c Child) inside(f func(*netlink.Handle, netlink.Link) error) (there bool, err error) {
	err = core.InNamespace(c.Sandbox, c.NS, func(nl *netlink.Handle) error {
		link, err := core.ByAlias(nl, c.Alias)
		if err != nil || link == nil {
			return err
		}
		there = true
		return f(nl, link)
	})
	return there, err
}

// resize returns what sets the sizes of the link's segments.
func (c Child) resize(k *core.Handle) func(*netlink.Handle, netlink.Link) error {
	return func(nl *netlink.Handle, link netlink.Link) error {
		want := c.Segments
		if want.Link != "" {
			parent, err := FindParent(k, c.Parent)
			if err != nil {
				return nil //nolint:nilerr // its children go with it
			}
			want = c.segmentsOn(parent)
		}
		limit, err := gso.Known(k, want)
		if err != nil {
			return err
		}
		return gso.Ensure(nl, link, limit.Sizes)
	}
}

// segmentsOn returns what is wanted on the parent, which may have another name by now; nil: it is gone.
func (c Child) segmentsOn(parent netlink.Link) gso.Want {
	want := c.Segments
	if want.Link != "" && parent != nil {
		want.Link = parent.Attrs().Name
	}
	return want
}

// checkSegments reports if the link is set to other sizes than the parent takes.
func (c Child) checkSegments(s *core.View, link netlink.Link) []string {
	return gso.Check(c, link, gso.Of(s, c.segmentsOn(c.Parent.in(s))).Sizes)
}

func (c Child) mark(k *core.Handle, link netlink.Link) error {
	if err := core.EnsureAlias(k, link, c.Alias); err != nil {
		return fmt.Errorf("create %s: a link of that name exists and %w", c, err)
	}
	return nil
}

func (c Child) create(k *core.Handle, parent netlink.Link) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.ParentIndex, attrs.HardwareAddr = c.Name, c.MTU, parent.Attrs().Index, c.MAC
	var link netlink.Link
	if c.Kind == "ipvlan" {
		link = &netlink.IPVlan{LinkAttrs: attrs, Mode: ipvlanModes()[c.Mode], Flag: ipvlanFlags()[c.Flag]}
	} else {
		link = &netlink.Macvlan{LinkAttrs: attrs, Mode: macvlanModes()[c.Mode]}
	}
	err := k.NL.LinkAdd(link)
	if err == nil {
		return link, nil
	}
	why := ""
	switch name, mtu := parent.Attrs().Name, parent.Attrs().MTU; {
	case errors.Is(err, unix.EOPNOTSUPP):
		why = "this kernel has no " + c.Kind + ": "
	case errors.Is(err, unix.EBUSY): // a link has one receive handler (netdev_rx_handler_register, net/core/dev.c)
		const format = "%s is already a port of a bridge or bond, or the parent of links of another kind than %s: "
		why = fmt.Sprintf(format, name, c.Kind)
	case errors.Is(err, unix.EINVAL) && c.MTU > mtu:
		why = fmt.Sprintf("MTU %d is more than the %d of %s: ", c.MTU, mtu, name)
	case errors.Is(err, unix.EINVAL) && c.Mode == "passthru":
		why = fmt.Sprintf("passthru is for one container at a time, and %s has one: ", name)
	}
	return nil, fmt.Errorf("create %s on %s: %s%w", c, c.Parent, why, err)
}

// Remove deletes the link, also from a sandbox that still has it. Mostly it has gone with its sandbox before.
func (c Child) Remove(k *core.Handle) error {
	if err := k.DeleteLink(c.Name, c.Alias); err != nil {
		return err
	}
	return core.InNamespace(c.Sandbox, c.NS, func(nl *netlink.Handle) error {
		link, err := core.ByAlias(nl, c.Alias)
		if err != nil || link == nil {
			return err
		}
		if err := nl.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("delete %s from its sandbox: %w", c, err)
		}
		return nil
	})
}

// Check looks into the sandbox, too. A sandbox that no longer exists lacks nothing.
func (c Child) Check(s *core.View) []string {
	if link := s.Link(c.Name); link != nil {
		if link.Attrs().Alias != c.Alias {
			return []string{c.String() + " has another alias"}
		}
		return c.checkSegments(s, link)
	}
	if now, ok := core.NamespaceAt(c.Sandbox); !ok || c.NS != (core.NamespaceID{}) && c.NS != now {
		return nil
	}
	var faults []string
	plugged, err := c.inside(func(_ *netlink.Handle, link netlink.Link) error {
		faults = c.checkSegments(s, link)
		return nil
	})
	switch {
	case err != nil:
		return []string{fmt.Sprintf("%s: %v", c, err)}
	case !plugged:
		return []string{c.String() + " is missing from its sandbox"}
	}
	return faults
}

func macvlanModes() map[string]netlink.MacvlanMode {
	return map[string]netlink.MacvlanMode{
		"bridge": netlink.MACVLAN_MODE_BRIDGE, "private": netlink.MACVLAN_MODE_PRIVATE,
		"vepa": netlink.MACVLAN_MODE_VEPA, "passthru": netlink.MACVLAN_MODE_PASSTHRU,
	}
}

func ipvlanModes() map[string]netlink.IPVlanMode {
	return map[string]netlink.IPVlanMode{
		"l2": netlink.IPVLAN_MODE_L2, "l3": netlink.IPVLAN_MODE_L3, "l3s": netlink.IPVLAN_MODE_L3S,
	}
}

func ipvlanFlags() map[string]netlink.IPVlanFlag {
	return map[string]netlink.IPVlanFlag{
		"bridge": netlink.IPVLAN_FLAG_BRIDGE, "private": netlink.IPVLAN_FLAG_PRIVATE, "vepa": netlink.IPVLAN_FLAG_VEPA,
	}
}
