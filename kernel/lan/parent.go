package lan

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"netyard/kernel/core"
)

// ParentAlias is the alias of VLAN links. Several networks may share one, so it names none of them.
const ParentAlias = core.AliasPrefix + "parent"

// A Parent is the link of the host that macvlan or ipvlan links are made on. It is the admin's: netyard changes nothing
// of it.
type Parent struct {
	Name string
	// MAC finds the link after it was renamed; empty: only the name counts.
	MAC string
}

// String names the link.
func (p Parent) String() string { return "parent " + p.Name }

func (p Parent) Ensure(k *core.Handle) error {
	_, err := FindParent(k, p)
	return err
}

func (Parent) Remove(*core.Handle) error { return nil }

func (p Parent) Check(s *core.View) []string {
	link := p.in(s)
	if link == nil {
		return []string{p.String() + " is missing"}
	}
	if isDown(link) {
		return []string{fmt.Sprintf("%s is down, and what is on it has no carrier; ip link set %s up",
			p, link.Attrs().Name)}
	}
	return nil
}

// Lost reports that nothing of a parent can be restored, since it is the admin's.
func (Parent) Lost(*core.View) bool { return true }

// downIn reports whether the parent is there and down.
func (p Parent) downIn(s *core.View) bool {
	link := p.in(s)
	return link != nil && isDown(link)
}

func isDown(link netlink.Link) bool { return !core.DeviceUp(link.Attrs()) }

// findIn finds the parent in a list of links: by its name or an alternative name, else by its hardware address, if
// exactly one link has it that is not stacked on another.
func (p Parent) findIn(links []netlink.Link) netlink.Link {
	var same []netlink.Link
	for _, l := range links {
		a := l.Attrs()
		if a.Name == p.Name || slices.Contains(a.AltNames, p.Name) {
			return l
		}
		stacked := []string{"vlan", "macvlan", "macvtap", "ipvlan", "ipvtap", "bridge", "bond", "team"}
		if p.MAC != "" && a.HardwareAddr.String() == p.MAC && !slices.Contains(stacked, l.Type()) {
			same = append(same, l)
		}
	}
	if len(same) == 1 {
		return same[0]
	}
	return nil
}

// DependsOn reports whether a link is the parent.
func (p Parent) DependsOn(l core.LinkID) bool {
	return l.Name == p.Name || p.MAC != "" && l.MAC == p.MAC
}

// DependsOn reports whether a link is the VLAN link, or its parent.
func (v VLAN) DependsOn(l core.LinkID) bool { return l.Name == v.Name || v.Parent.DependsOn(l) }

// in finds the parent in a view.
func (p Parent) in(s *core.View) netlink.Link {
	if link := s.Link(p.Name); link != nil {
		return link
	}
	return p.findIn(slices.Collect(maps.Values(s.Links())))
}

// FindParent returns the link of a parent.
func FindParent(k *core.Handle, p Parent) (netlink.Link, error) {
	link, err := k.Link(p.Name)
	if err != nil || link != nil {
		return link, err
	}
	links, err := core.Retry(k.NL.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	if link := p.findIn(links); link != nil {
		return link, nil
	}
	return nil, fmt.Errorf("find %s: %w", p, unix.ENODEV)
}

// FindUpParent returns the link of a parent, which has to be up: on one that is down nobody can be reached.
func FindUpParent(k *core.Handle, p Parent) (netlink.Link, error) {
	link, err := FindParent(k, p)
	if err == nil && isDown(link) {
		return nil, fmt.Errorf("use %s: %w; ip link set %s up", p, unix.ENETDOWN, link.Attrs().Name)
	}
	return link, err
}

// A VLAN is an IEEE 802.1Q link of netyard's on a parent. Networks share it; it is removed with the last of them.
type VLAN struct {
	Name   string
	Parent Parent
	ID     int
	// Owner is the network that wants the link.
	Owner string
}

// String names the link.
func (v VLAN) String() string { return "VLAN link " + v.Name }

func (v VLAN) WantedBy() string { return v.Owner }

func (v VLAN) Ensure(k *core.Handle) error {
	k.Shared.Mu.Lock()
	defer k.Shared.Mu.Unlock()
	k.Shared.AddOwner(v)
	link, err := k.Link(v.Name)
	if err != nil {
		return err
	}
	if link != nil && link.Attrs().Alias != ParentAlias {
		return nil // the admin has made a link of that name since, which will do
	}
	if link == nil {
		if link, err = v.create(k); err != nil {
			return err
		}
	}
	// On a link that is down it stays down, and the kernel sets it up together with that one (vlan_device_event,
	// net/8021q/vlan.c).
	if err := k.NL.LinkSetUp(link); err != nil && !errors.Is(err, unix.ENETDOWN) {
		return fmt.Errorf("set %s up: %w", v, err)
	}
	return nil
}

// Lost reports whether the link cannot be set up, since the one below it is down.
func (v VLAN) Lost(s *core.View) bool { return s.Link(v.Name) != nil && v.Parent.downIn(s) }

// create gives the link its name last: until the link is marked it has a name that only netyard uses.
func (v VLAN) create(k *core.Handle) (netlink.Link, error) {
	parent, err := FindParent(k, v.Parent)
	if err != nil {
		return nil, err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex = core.Name(core.IslandPrefix, core.HashID(v.Name)), parent.Attrs().Index
	link := &netlink.Vlan{LinkAttrs: attrs, VlanId: v.ID, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}
	switch err := k.NL.LinkAdd(link); {
	case errors.Is(err, unix.EOPNOTSUPP):
		return nil, fmt.Errorf("create %s: this kernel has no 802.1Q VLANs (module 8021q): %w", v, err)
	case errors.Is(err, unix.EEXIST):
		return nil, fmt.Errorf("create %s: %s already has VLAN %d under another name: %w", v, v.Parent, v.ID, err)
	case err != nil:
		return nil, fmt.Errorf("create %s: %w", v, err)
	}
	if err := k.NL.LinkSetAlias(link, ParentAlias); err != nil {
		return nil, errors.Join(fmt.Errorf("mark %s: %w", v, err), k.NL.LinkDel(link))
	}
	if err := k.NL.LinkSetName(link, v.Name); err != nil {
		return nil, errors.Join(fmt.Errorf("name %s: %w", v, err), k.NL.LinkDel(link))
	}
	return link, nil
}

func (v VLAN) Remove(k *core.Handle) error {
	k.Shared.Mu.Lock()
	defer k.Shared.Mu.Unlock()
	if k.Shared.RemoveOwner(v) {
		return nil
	}
	return k.DeleteLink(v.Name, ParentAlias)
}

func (v VLAN) Check(s *core.View) []string { return checkUp(s, v, v.Name) }

// checkUp reports a link that is missing or down.
func checkUp(s *core.View, o core.Object, name string) []string {
	link := s.Link(name)
	if link == nil {
		return []string{o.String() + " is missing"}
	}
	if isDown(link) {
		return []string{o.String() + " is down"}
	}
	return nil
}

// An IsolatedParent is a parent that leads nowhere: the links on it reach only each other.
type IsolatedParent struct{ Name, Alias string }

// String names the link.
func (i IsolatedParent) String() string { return "link " + i.Name }

func (i IsolatedParent) Ensure(k *core.Handle) error {
	link, err := k.Link(i.Name)
	if err != nil {
		return err
	}
	if link == nil {
		if link, err = i.create(k); err != nil {
			return fmt.Errorf("create %s: %w", i, err)
		}
	}
	if err := core.EnsureAlias(k, link, i.Alias); err != nil {
		return fmt.Errorf("create %s: a link of that name exists and %w", i, err)
	}
	if err := core.NoIPv6(i.Name).Ensure(k); err != nil {
		return err
	}
	if err := k.NL.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", i, err)
	}
	return nil
}

// create makes a dummy link, or on a kernel without them an ifb, which drops what it is given as well: only what a tc
// rule redirected to it goes anywhere (drivers/net/ifb.c). Both always have a carrier, unlike a bridge without ports.
func (i IsolatedParent) create(k *core.Handle) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = i.Name
	err := k.NL.LinkAdd(&netlink.Dummy{LinkAttrs: attrs})
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = k.NL.LinkAdd(&netlink.Ifb{LinkAttrs: attrs})
	}
	if err != nil {
		return nil, err
	}
	return k.NL.LinkByName(i.Name)
}

func (i IsolatedParent) Remove(k *core.Handle) error { return k.DeleteLink(i.Name, i.Alias) }

func (i IsolatedParent) Check(s *core.View) []string {
	if link := s.Link(i.Name); link != nil && link.Attrs().Alias != i.Alias {
		return []string{i.String() + " has another alias"}
	}
	if faults := checkUp(s, i, i.Name); len(faults) > 0 {
		return faults
	}
	return core.NoIPv6(i.Name).Check(s)
}
