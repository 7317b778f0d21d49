package kernel

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// IslandPrefix begins the names of parents that lead nowhere, and of VLAN links until they are marked.
	IslandPrefix = "nyd-"

	// ParentAlias is the alias of a VLAN link: several networks may share it, so it names none.
	ParentAlias = AliasPrefix + "parent"
)

// A Parent is the link that macvlan or ipvlan links are made on. It is the host's owner's: netyard changes nothing of it.
type Parent struct {
	Name string
	// MAC finds it when it has another name by now; empty: only the name counts.
	MAC string
}

// String names the link.
func (p Parent) String() string { return "parent " + p.Name }

func (p Parent) ensure(k *Kernel) error {
	_, err := k.parent(p)
	return err
}

func (Parent) remove(*Kernel) error { return nil }

func (p Parent) check(s *snapshot) []string {
	links := make([]netlink.Link, 0, len(s.links))
	for _, l := range s.links {
		links = append(links, l)
	}
	link := p.among(links)
	if link == nil {
		return []string{p.String() + " is missing"}
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		return []string{p.String() + " is down"}
	}
	return nil
}

// among finds the parent: by its name or an alternative one, else by its hardware address, which only one link may have that is
// not stacked on another.
func (p Parent) among(links []netlink.Link) netlink.Link {
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

// parent finds the link of a parent.
func (k *Kernel) parent(p Parent) (netlink.Link, error) {
	link, err := k.link(p.Name)
	if err != nil || link != nil {
		return link, err
	}
	links, err := retry(k.nl.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	if link := p.among(links); link != nil {
		return link, nil
	}
	return nil, fmt.Errorf("find %s: %w", p, unix.ENODEV)
}

// upParent is parent for who needs it up: nothing on a link that is down can be set up.
func (k *Kernel) upParent(p Parent) (netlink.Link, error) {
	link, err := k.parent(p)
	if err == nil && link.Attrs().Flags&net.FlagUp == 0 {
		return nil, fmt.Errorf("use %s: %w; ip link set %s up", p, unix.ENETDOWN, link.Attrs().Name)
	}
	return link, err
}

// A VLAN is an IEEE 802.1Q link of netyard's on a parent. Networks share it: it goes with the last of them.
type VLAN struct {
	Name   string
	Parent Parent
	ID     int
	// Owner is the network that wants it.
	Owner string
}

// String names the link.
func (v VLAN) String() string { return "VLAN link " + v.Name }

func (v VLAN) owner() string { return v.Owner }

func (v VLAN) ensure(k *Kernel) error {
	k.shared.mu.Lock()
	defer k.shared.mu.Unlock()
	k.shared.claim(v)
	link, err := k.link(v.Name)
	if err != nil {
		return err
	}
	if link != nil && link.Attrs().Alias != ParentAlias {
		return nil // the host's owner has come to have one of that name, which does as well
	}
	if link == nil {
		if link, err = v.create(k); err != nil {
			return err
		}
	}
	if err := k.nl.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", v, err)
	}
	return nil
}

// create gives the link its name last: until it is marked it has one that only netyard gives.
func (v VLAN) create(k *Kernel) (netlink.Link, error) {
	parent, err := k.upParent(v.Parent)
	if err != nil {
		return nil, err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex = Name(IslandPrefix, hashID(v.Name)), parent.Attrs().Index
	link := &netlink.Vlan{LinkAttrs: attrs, VlanId: v.ID, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}
	switch err := k.nl.LinkAdd(link); {
	case errors.Is(err, unix.EOPNOTSUPP):
		return nil, fmt.Errorf("create %s: this kernel has no 802.1Q VLANs (module 8021q): %w", v, err)
	case errors.Is(err, unix.EEXIST):
		return nil, fmt.Errorf("create %s: %s has a link for VLAN %d by another name: %w", v, v.Parent, v.ID, err)
	case err != nil:
		return nil, fmt.Errorf("create %s: %w", v, err)
	}
	if err := k.nl.LinkSetAlias(link, ParentAlias); err != nil {
		return nil, errors.Join(fmt.Errorf("mark %s: %w", v, err), k.nl.LinkDel(link))
	}
	if err := k.nl.LinkSetName(link, v.Name); err != nil {
		return nil, errors.Join(fmt.Errorf("name %s: %w", v, err), k.nl.LinkDel(link))
	}
	return link, nil
}

func (v VLAN) remove(k *Kernel) error {
	k.shared.mu.Lock()
	defer k.shared.mu.Unlock()
	if k.shared.disclaim(v) {
		return nil
	}
	return k.deleteLink(v.Name, ParentAlias)
}

func (v VLAN) check(s *snapshot) []string { return checkUp(s, v, v.Name) }

// checkUp wants a link to be there and up.
func checkUp(s *snapshot, o Object, name string) []string {
	link := s.links[name]
	if link == nil {
		return []string{o.String() + " is missing"}
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		return []string{o.String() + " is down"}
	}
	return nil
}

// An Island is a parent that leads nowhere: what is made on it reaches only each other.
type Island struct{ Name, Alias string }

// String names the link.
func (i Island) String() string { return "link " + i.Name }

func (i Island) ensure(k *Kernel) error {
	link, err := k.link(i.Name)
	if err != nil {
		return err
	}
	if link == nil {
		if link, err = i.create(k); err != nil {
			return fmt.Errorf("create %s: %w", i, err)
		}
	}
	switch alias := link.Attrs().Alias; alias {
	case i.Alias:
	case "":
		if err := k.nl.LinkSetAlias(link, i.Alias); err != nil {
			return fmt.Errorf("mark %s: %w", i, err)
		}
	default:
		return fmt.Errorf("create %s: a link of that name exists and %w", i, ErrForeign)
	}
	noIPv6 := Sysctl{Path: []string{"net", "ipv6", "conf", i.Name, "disable_ipv6"}, Value: "1", Optional: true}
	if err := noIPv6.ensure(k); err != nil {
		return err
	}
	if err := k.nl.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", i, err)
	}
	return nil
}

// create makes a dummy, or on a kernel without them an ifb, which drops what it is given all the same: only what a tc rule
// redirected to it goes anywhere (drivers/net/ifb.c). Both always have a carrier, which a bridge without ports has not.
func (i Island) create(k *Kernel) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = i.Name
	err := k.nl.LinkAdd(&netlink.Dummy{LinkAttrs: attrs})
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = k.nl.LinkAdd(&netlink.Ifb{LinkAttrs: attrs})
	}
	if err != nil {
		return nil, err
	}
	return k.nl.LinkByName(i.Name)
}

func (i Island) remove(k *Kernel) error { return k.deleteLink(i.Name, i.Alias) }

func (i Island) check(s *snapshot) []string { return checkUp(s, i, i.Name) }

// A sharedObject is wanted by several networks at once, and goes with the last of them.
type sharedObject interface {
	fmt.Stringer
	owner() string
}

// sharedObjects knows who wants which.
type sharedObjects struct {
	// mu is held while one is made or removed: it must not go while another network comes to want it.
	mu     sync.Mutex
	owners map[string]map[string]bool // by the object's name
}

func (s *sharedObjects) claim(o sharedObject) {
	if s.owners == nil {
		s.owners = map[string]map[string]bool{}
	}
	if s.owners[o.String()] == nil {
		s.owners[o.String()] = map[string]bool{}
	}
	s.owners[o.String()][o.owner()] = true
}

// disclaim undoes claim and says whether others still want it.
func (s *sharedObjects) disclaim(o sharedObject) bool {
	delete(s.owners[o.String()], o.owner())
	return len(s.owners[o.String()]) > 0
}

// Claim notes which networks want the shared ones among objects, before any of them can be removed: after a restart nothing is known.
func (k *Kernel) Claim(objects ...Object) {
	k.shared.mu.Lock()
	defer k.shared.mu.Unlock()
	for _, o := range objects {
		if s, ok := o.(sharedObject); ok {
			k.shared.claim(s)
		}
	}
}

// HasKind says whether the kernel can make links of a kind that needs a parent, loading its module if that is all it lacks. It asks
// for one on the loopback link, which no kernel makes.
func (k *Kernel) HasKind(kind string) bool {
	attrs := netlink.NewLinkAttrs()
	const loopback = 1 // in every namespace (loopback_net_init, drivers/net/loopback.c)
	attrs.Name, attrs.ParentIndex = PeerPrefix+"probe", loopback
	err := k.nl.LinkAdd(&netlink.GenericLink{LinkAttrs: attrs, LinkType: kind})
	return !errors.Is(err, unix.EOPNOTSUPP)
}

// Links lists the names of all links, in order.
func (k *Kernel) Links() ([]string, error) {
	links, err := retry(k.nl.LinkList)
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
