// Package others is about networks of other programs: which of the host's links lead to them, and the guard, which
// keeps the host from forwarding for anybody else where netyard turned forwarding on.
package others

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/kernel/nft"
	"netyard/kernel/rule"
)

// foreignBridge matches the bridges of other managers of containers and virtual machines: Docker, podman, CNI, nerdctl,
// libvirt, LXC, LXD and Incus. It does not match a bridge of the host's owner, such as br-lan.
var foreignBridge = regexp.MustCompile(
	`^(docker0|docker_gwbridge|br-[0-9a-f]{12}|(podman|cni|nerdctl|virbr|lxcbr|lxdbr|incusbr)[0-9a-z-]*)$`)

// named has the names of the bridges that engines make for networks of their own.
type named struct {
	mu sync.Mutex
	by map[string][]string // by the name of the engine
}

// formerly is in the place of the engine's name for what an earlier process was told.
const formerly = ""

// NameBridges records the bridges of an engine's own networks, as the engine tells them. The watcher then updates the
// sets.
func NameBridges(k *core.Handle, engine string, bridges []string) {
	slices.Sort(bridges)
	n := core.Stored[named](k)
	n.mu.Lock()
	defer n.mu.Unlock()
	if had, told := n.by[engine]; told && slices.Equal(had, bridges) {
		return
	}
	if n.by == nil {
		n.by = map[string][]string{}
	}
	delete(n.by, formerly)
	n.by[engine] = bridges
	k.RequestCheck()
}

// Recall counts the bridges that the kernel's set has as told, until an engine answers: an earlier process has added
// them.
func Recall(k *core.Handle) error {
	have, err := nft.Of(k).ReadElements(func(s rule.SetName) bool { return s == bridge.Foreign })
	if err != nil {
		return err
	}
	n := core.Stored[named](k)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.by != nil {
		return nil
	}
	n.by = map[string][]string{}
	for key := range have[bridge.Foreign] {
		n.by[formerly] = append(n.by[formerly], linkName(key))
	}
	return nil
}

// isNamed reports whether an engine says that a bridge is one of its networks'.
func isNamed(k *core.Handle, name string) bool {
	n := core.Stored[named](k)
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, bridges := range n.by {
		if slices.Contains(bridges, name) {
			return true
		}
	}
	return false
}

// Sync updates the sets of other programs' links from the links of the host.
func Sync(ctx context.Context, k *core.Handle) error {
	links, err := k.ListLinks()
	if err != nil {
		return err
	}
	h := &host{k: k, ports: map[int][]netlink.Link{}}
	for _, l := range links {
		if master := l.Attrs().MasterIndex; master != 0 {
			h.ports[master] = append(h.ports[master], l)
		}
	}
	have := map[nft.ElementID]bool{}
	var fresh, gone []nft.Element
	for _, l := range links {
		wants, err := h.elements(l)
		if err != nil {
			return err
		}
		for _, e := range wants {
			have[e.ID()], fresh = true, append(fresh, e)
		}
	}
	for _, e := range nft.Of(k).Wanted() {
		if slices.Contains(Filled(), e.Set) && !have[e.ID()] {
			gone = append(gone, e)
		}
	}
	if err := nft.Of(k).Remove(gone); err != nil {
		return err
	}
	return nft.Of(k).Add(ctx, fresh)
}

// Filled returns the sets that Sync fills.
func Filled() []rule.SetName { return []rule.SetName{bridge.Foreign, bridge.Same, bridge.Others} }

// A host has what the links of others are known by.
type host struct {
	k     *core.Handle
	ports map[int][]netlink.Link // by the index of the bridge
	// byLink are the routes of the main table, by the index of their link; nil until somebody asks.
	byLink map[int][]netlink.Route
}

// elements returns the elements that a link of another program belongs in.
func (h *host) elements(l netlink.Link) (all []nft.Element, err error) {
	a := l.Attrs()
	if _, _, ours := core.ParseAlias(a.Alias); ours || core.OwnName(a.Name) {
		return nil, nil
	}
	others := false
	if l.Type() == "bridge" {
		all = append(all, nft.InterfaceIn(bridge.Same, a.Name, a.Name))
		foreign := foreignBridge.MatchString(a.Name)
		if !foreign {
			lan, err := h.onLAN(l)
			if err != nil {
				return nil, err
			}
			foreign, others = !lan && isNamed(h.k, a.Name), !lan && h.onlySandboxes(l)
		}
		if foreign {
			all = append(all, nft.InterfaceIn(bridge.Foreign, a.Name))
		}
		others = others || foreign
	} else if others, err = h.pointToPoint(l); err != nil {
		return nil, err
	}
	if others {
		all = append(all, nft.InterfaceIn(bridge.Others, a.Name))
	}
	return all, nil
}

// onLAN reports whether a bridge is the host's way to a LAN: a card or a link on one is among its ports, or a router is
// behind it.
func (h *host) onLAN(l netlink.Link) (bool, error) {
	cards := []string{"device", "bond", "team", "vlan", "macvlan", "macvtap", "ipvlan", "ipvtap"}
	for _, p := range h.ports[l.Attrs().Index] {
		if slices.Contains(cards, p.Type()) {
			return true, nil
		}
	}
	routes, err := h.routes(l)
	return slices.ContainsFunc(routes, isDefault), err
}

// onlySandboxes reports whether a bridge has no ports but such as lead to containers and virtual machines.
func (h *host) onlySandboxes(l netlink.Link) bool {
	return !slices.ContainsFunc(h.ports[l.Attrs().Index], func(p netlink.Link) bool {
		return !slices.Contains([]string{"veth", "netkit", "tuntap", "dummy"}, p.Type())
	})
}

// pointToPoint reports whether a link leads to one container or virtual machine, without a bridge. Somebody has given
// it routes, and neither the address of a subnet nor a router, as the host's link to a LAN has.
func (h *host) pointToPoint(l netlink.Link) (bool, error) {
	tun, isTun := l.(*netlink.Tuntap)
	pair := l.Type() == "veth" || l.Type() == "netkit" || isTun && tun.Mode == netlink.TUNTAP_MODE_TAP
	if !pair || l.Attrs().MasterIndex != 0 {
		return false, nil
	}
	routes, err := h.routes(l)
	if err != nil {
		return false, err
	}
	found := false
	for _, r := range routes {
		if isDefault(r) {
			return false, nil
		}
		if r.Dst.IP.IsLinkLocalUnicast() || r.Dst.IP.IsMulticast() {
			continue
		}
		ones, bits := r.Dst.Mask.Size()
		if r.Protocol == unix.RTPROT_KERNEL && ones < bits {
			return false, nil
		}
		found = true
	}
	return found, nil
}

func isDefault(r netlink.Route) bool {
	if r.Dst == nil {
		return true
	}
	ones, _ := r.Dst.Mask.Size()
	return ones == 0
}

// routes returns the routes of the main table by a link. A router may have very many, so they are read only if a link
// is there that they decide about.
func (h *host) routes(l netlink.Link) ([]netlink.Route, error) {
	if h.byLink != nil {
		return h.byLink[l.Attrs().Index], nil
	}
	all, err := core.Retry(func() ([]netlink.Route, error) { return h.k.NL.RouteList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	h.byLink = map[int][]netlink.Route{}
	for _, r := range all {
		h.byLink[r.LinkIndex] = append(h.byLink[r.LinkIndex], r)
		for _, hop := range r.MultiPath {
			h.byLink[hop.LinkIndex] = append(h.byLink[hop.LinkIndex], r)
		}
	}
	return h.byLink[l.Attrs().Index], nil
}

// MayTell reports whether a message about routes may be about one that a link of another program is known by. Routes of
// routing daemons are not: a router has many, and they change all the time.
func MayTell(m syscall.NetlinkMessage) bool {
	const table, protocol, kind = 4, 5, 7 // struct rtmsg (rtnetlink(7))
	known := []byte{unix.RTPROT_KERNEL, unix.RTPROT_BOOT, unix.RTPROT_STATIC}
	return len(m.Data) > kind && m.Data[table] == unix.RT_TABLE_MAIN && m.Data[kind] == unix.RTN_UNICAST &&
		slices.Contains(known, m.Data[protocol])
}
