package parent

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"netyard/kernel/core"
	"netyard/kernel/lan"
	"netyard/modes"
)

const (
	// What is kept of a network from when it was created: the names of the VLAN links that netyard makes for it, and
	// the hardware address of the host's link below them.
	settledVLANs = "vlans"
	settledMAC   = "parent_mac"
)

// Settle finds the parent, and the VLAN links to create on it. It refuses a link that cannot be a parent, and one that
// another network uses in another way.
func (k Kind) Settle(f modes.Facts, n modes.Network, others []modes.Network) (map[string]string, error) {
	settled, err := k.settle(f, n, others)
	if err != nil {
		return settled, err
	}
	return settled, k.checkBigTCP(f, n)
}

// checkBigTCP refuses large segments that the parent does not take. VLAN links that are not made yet take what the link
// below them does.
func (k Kind) checkBigTCP(f modes.Facts, n modes.Network) error {
	want := segments(n)
	if modes.BigTCP.Of(n) == "true" && want.Link != "" {
		bottom, _, _, err := find(f, want.Link)
		if err != nil {
			return err
		}
		want.Link = bottom
	}
	return modes.CheckBigTCP(f, n, want)
}

// settle is Settle without what the host's links take.
func (k Kind) settle(f modes.Facts, n modes.Network, others []modes.Network) (map[string]string, error) {
	if err := k.check(n); err != nil || n.Phase == modes.Ready {
		return n.Settled, err
	}
	if !f.HasKind(k.Name) {
		return nil, fmt.Errorf("this kernel has no %s: load or build the module of that name", k.Name)
	}
	if island(n) {
		return nil, nil
	}
	bottom, link, made, err := find(f, Parent.Of(n))
	if err != nil {
		return nil, err
	}
	if err := k.fit(f, n, bottom, link); err != nil {
		return nil, err
	}
	settled := map[string]string{settledMAC: link.MAC}
	if len(made) > 0 {
		settled[settledVLANs] = strings.Join(made, ",")
	}
	return settled, k.share(n, others)
}

// check refuses options that contradict each other.
func (k Kind) check(n modes.Network) error {
	if err := n.CheckMTU(mtu(n)); err != nil {
		return err
	}
	if err := n.CheckGateways(); err != nil {
		return err
	}
	mode, flag := k.Setting(n)
	for _, of := range []string{mode, flag} {
		if HostAccess.Of(n) && slices.Contains([]string{"private", "vepa", "passthru"}, of) {
			return HostAccess.Row().Refuse(n,
				"with %s, links on the parent do not reach each other, nor the host's", of)
		}
	}
	return k.checkPorts(n)
}

// find splits a parent's name into a link of the host and the VLAN links that netyard creates on it, from the bottom
// up. A link that exists and is not netyard's is the host's, whatever its name.
func find(f modes.Facts, parent string) (bottom string, link core.LinkInfo, made []string, err error) {
	for bottom = parent; ; {
		link, exists, err := f.FindLink(bottom)
		if err != nil {
			return "", link, nil, err
		}
		if exists && link.Alias != lan.ParentAlias {
			return bottom, link, made, nil
		}
		below, _, ok := splitVLAN(bottom)
		if !ok {
			return "", link, nil, noSuch(f, parent, bottom)
		}
		made = append([]string{bottom}, made...)
		bottom = below
	}
}

func noSuch(f modes.Facts, parent, link string) error {
	all, err := f.Links()
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(name string) bool { return name == "lo" || core.OwnName(name) })
	return modes.Refuse("parent=%s: the host has no link %s; it has %s",
		parent, link, strings.Join(all, ", "))
}

// splitVLAN splits eth0.50 (IEEE 802.1Q: 0 and 4095 are no VLANs).
func splitVLAN(name string) (below string, id int, ok bool) {
	dot := strings.LastIndexByte(name, '.')
	if dot < 1 {
		return "", 0, false
	}
	id, err := strconv.Atoi(name[dot+1:])
	return name[:dot], id, err == nil && id >= 1 && id <= 4094 && strconv.Itoa(id) == name[dot+1:]
}

// fit refuses a link of the host that cannot be the parent, or the link below it.
func (k Kind) fit(f modes.Facts, n modes.Network, name string, link core.LinkInfo) error {
	bad := func(format string, args ...any) error {
		return modes.Refuse("parent=%s: %s %s", Parent.Of(n), name, fmt.Sprintf(format, args...))
	}
	owner, _, own := core.ParseAlias(link.Alias)
	switch {
	case own:
		return bad("is a link of netyard's own, of network %s", modes.Short(owner))
	case slices.Contains([]string{"macvlan", "macvtap", "ipvlan", "ipvtap"}, link.Kind):
		return bad("is a %s link itself; use the link it is on", link.Kind)
	case link.Encap != "ether":
		return bad("is no Ethernet link")
	case link.Master != "":
		return bad("is a port of %s, which receives all its frames; use parent=%[1]s, "+
			"or -d netyard-bridge -o bridge=%[1]s if that is a bridge", link.Master)
	case mtu(n) > link.MTU:
		return modes.MTURefusal(mtu(n), "parent %s has %d", name, link.MTU)
	}
	if err := k.Fit(f, n, name, link); err != nil {
		return err
	}
	return k.belongs(f, n, name)
}

// belongs refuses a subnet that an IPAM chose by itself and that is not the LAN's, where containers are members of it.
func (k Kind) belongs(f modes.Facts, n modes.Network, name string) error {
	if k.Routed(n) || len(n.Subnets) == 0 {
		return nil
	}
	addrs, err := f.LinkAddrs(name)
	if err != nil {
		return err
	}
	for _, s := range n.Subnets {
		var lan []string
		in := false
		for _, a := range addrs {
			if a.Addr().Is4() == s.Pool.Addr().Is4() {
				lan = append(lan, a.Masked().String())
				in = in || s.Pool.Contains(a.Addr())
			}
		}
		if s.Chosen && !in && len(lan) > 0 && name == Parent.Of(n) {
			return fmt.Errorf("the IPAM chose %s, but the LAN of parent %s is %s; give it with --subnet",
				s.Pool, name, strings.Join(lan, ", "))
		}
	}
	return nil
}

// share refuses a network on a parent that another network uses in another way.
func (k Kind) share(n modes.Network, others []modes.Network) error {
	for _, o := range others {
		onParent := (o.Mode == "macvlan" || o.Mode == "ipvlan") && !island(o) && Parent.Of(n) == Parent.Of(o)
		if o.ID == n.ID || !onParent {
			continue
		}
		who := o.Name
		if who == "" {
			who = modes.Short(o.ID)
		}
		if o.Mode != k.Name { // both want to be its one receive handler (netdev_rx_handler_register, net/core/dev.c)
			return Parent.Row().Refuse(n,
				"network %s uses it in mode %s, and a link cannot be the parent of both macvlan and ipvlan",
				who, o.Mode)
		}
		err := k.Share(n, o)
		if err == nil {
			err = sharePorts(n, o)
		}
		if err != nil {
			return modes.Refuse("network %s is on parent %s, and %w", who, Parent.Of(n), err)
		}
	}
	return nil
}

// island says whether a network has no parent.
func island(n modes.Network) bool { return Parent.Of(n) == "" }

// linkName returns the name of the link that containers' links are made on.
func linkName(n modes.Network) string {
	if island(n) {
		return core.Name(core.IslandPrefix, n.ID)
	}
	return Parent.Of(n)
}

// base returns the host's link at the bottom; a network without a parent has none.
func base(n modes.Network) lan.Parent {
	p := lan.Parent{Name: Parent.Of(n), MAC: n.Settled[settledMAC]}
	if made := n.Settled[settledVLANs]; made != "" {
		first, _, _ := strings.Cut(made, ",")
		p.Name, _, _ = splitVLAN(first)
	}
	return p
}

// vlans returns the VLAN links that netyard creates on base, from the bottom up.
func vlans(n modes.Network) (out []lan.VLAN) {
	if n.Settled[settledVLANs] == "" {
		return nil
	}
	below := base(n)
	for _, name := range strings.Split(n.Settled[settledVLANs], ",") {
		_, id, _ := splitVLAN(name)
		out = append(out, lan.VLAN{Name: name, Parent: below, ID: id, Owner: n.ID})
		below = lan.Parent{Name: name}
	}
	return out
}

// top returns the parent of containers' links.
func top(n modes.Network) lan.Parent {
	if v := vlans(n); island(n) || len(v) > 0 {
		return lan.Parent{Name: linkName(n)}
	}
	return base(n)
}
