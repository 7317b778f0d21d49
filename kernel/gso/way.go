package gso

import (
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"netyard/kernel/core"
)

// A Limit is how large segments of a network may be, and what keeps them from being larger.
type Limit struct {
	Sizes
	// Reason is empty if nothing does.
	Reason string
}

// String writes the sizes, and the reason if there is one.
func (l Limit) String() string {
	if l.Reason == "" {
		return l.Sizes.String()
	}
	return l.Sizes.String() + ": " + l.Reason
}

// unwanted is the limit of a network that is not to have big segments.
func unwanted() Limit { return Limit{Sizes: small(), Reason: "not wanted"} }

// A Way is what is known of the links by which packets leave the host.
type Way struct {
	links  map[string]netlink.Link // without those of netyard's endpoints
	index  map[int]netlink.Link
	ports  map[int][]netlink.Link // by the index of their bridge or bond
	routed Limit                  // of what the host forwards
	out    map[string]bool        // the links that this depends on, by name
	old    bool                   // the kernel has no sizes of IPv4
}

// NewWay computes the way out from the links of a host and its routes, by the index of their link.
func NewWay(links []netlink.Link, routes map[int][]netlink.Route) *Way {
	w := &Way{links: map[string]netlink.Link{}, index: map[int]netlink.Link{}, ports: map[int][]netlink.Link{}}
	for _, l := range links {
		a := l.Attrs()
		w.old = w.old || a.GSOIPv4MaxSize == 0 || a.TSOMaxSize == 0
		if isOwn(l) && slices.Contains([]string{"veth", "ifb"}, l.Type()) {
			continue
		}
		w.links[a.Name], w.index[a.Index] = l, l
		if a.MasterIndex != 0 {
			w.ports[a.MasterIndex] = append(w.ports[a.MasterIndex], l)
		}
	}
	var out []netlink.Link
	for i, rs := range byLink(routes) {
		if l := w.index[i]; l != nil && !isOwn(l) && w.leavesHost(l, rs) {
			out = append(out, l)
		}
	}
	w.routed = w.along(out...)
	w.out = map[string]bool{}
	w.below(out, func(l netlink.Link) { w.out[l.Attrs().Name] = true })
	return w
}

// isOwn reports whether netyard made a link.
func isOwn(l netlink.Link) bool {
	_, _, own := core.ParseAlias(l.Attrs().Alias)
	return own || core.OwnName(l.Attrs().Name)
}

// byLink sorts routes by the links that they lead to: one with several hops leads to several.
func byLink(routes map[int][]netlink.Route) map[int][]netlink.Route {
	all := map[int][]netlink.Route{}
	for i, rs := range routes {
		for _, r := range rs {
			if r.Type != 0 && r.Type != unix.RTN_UNICAST {
				continue
			}
			if i != 0 {
				all[i] = append(all[i], r)
			}
			for _, hop := range r.MultiPath {
				all[hop.LinkIndex] = append(all[hop.LinkIndex], r)
			}
		}
	}
	return all
}

// leavesHost reports whether the routes by a link lead out of the host. Those to containers and virtual machines of
// others do not: they are by a bridge that has no other ports, or to one address each.
func (w *Way) leavesHost(l netlink.Link, routes []netlink.Route) bool {
	if l.Attrs().Flags&net.FlagLoopback != 0 {
		return false
	}
	onHost := l.Type() == "dummy" || l.Type() == "bridge" && !slices.ContainsFunc(w.ports[l.Attrs().Index],
		func(p netlink.Link) bool { return !inSandbox(p) })
	return slices.ContainsFunc(routes, func(r netlink.Route) bool {
		if r.Dst == nil {
			return true
		}
		ones, bits := r.Dst.Mask.Size()
		switch {
		case ones == 0:
			return true
		case onHost || r.Dst.IP.IsLinkLocalUnicast() || r.Dst.IP.IsMulticast():
			return false
		}
		return ones < bits || !inSandbox(l)
	})
}

// inSandbox reports whether the other end of a link is in a container or a virtual machine.
func inSandbox(l netlink.Link) bool {
	return slices.Contains([]string{"veth", "netkit", "tuntap", "dummy"}, l.Type())
}

// along returns the limit of what goes by all of the links, and by those that are below them.
func (w *Way) along(links ...netlink.Link) Limit {
	limit := Limit{Sizes: Sizes{Big, Big}}
	if w.old {
		return Limit{Sizes: small(), Reason: "this kernel has no segments of more than 64 KiB for IPv4; Linux 6.3 has"}
	}
	var worst []string
	w.below(links, func(l netlink.Link) {
		a := l.Attrs()
		if s := sizesOf(a); s.V4 < Big || s.V6 < Big {
			limit.Sizes = limit.least(s)
			worst = append(worst, why(a, s))
		}
	})
	slices.Sort(worst)
	limit.Reason = strings.Join(worst, "; ")
	return limit
}

// below calls visit once with each of the links, and with those that are below them.
func (w *Way) below(links []netlink.Link, visit func(netlink.Link)) {
	seen := map[int]bool{}
	var each func(l netlink.Link)
	each = func(l netlink.Link) {
		a := l.Attrs()
		if seen[a.Index] {
			return
		}
		seen[a.Index] = true
		visit(l)
		for _, p := range w.ports[a.Index] {
			each(p)
		}
		if parent := w.index[a.ParentIndex]; parent != nil && a.NetNsID < 0 && l.Type() != "veth" {
			each(parent)
		}
	}
	for _, l := range links {
		each(l)
	}
}

// why says what a link on the way out takes, and how it would take more.
func why(a *netlink.LinkAttrs, s Sizes) string {
	text := fmt.Sprintf("link %s, on the way out, takes segments of %s", a.Name, s)
	if most := min(a.TSOMaxSize, Big); most > Small && (s.V4 < most || s.V6 < most) {
		text += fmt.Sprintf(", and could take %d: ip link set dev %s gso_max_size %[1]d gso_ipv4_max_size %[1]d",
			most, a.Name)
	}
	return text
}

// Limit returns how large the segments of a network may be.
func (w *Way) Limit(want Want) Limit {
	if !want.Big {
		return unwanted()
	}
	limit := w.along()
	if want.Routed {
		limit = w.routed
	}
	if want.Link == "" {
		return limit
	}
	l := w.links[want.Link]
	if l == nil {
		return Limit{Sizes: small(), Reason: fmt.Sprintf("link %s does not exist", want.Link)}
	}
	other := w.along(l)
	if other.Reason != "" && other.Reason != limit.Reason {
		limit.Reason = strings.TrimPrefix(limit.Reason+"; "+other.Reason, "; ")
	}
	limit.Sizes = limit.least(other.Sizes)
	return limit
}

// MayTell reports whether a message about a route may be about a way out of the host: a default route of the main table
// (struct rtmsg, rtnetlink(7)).
func MayTell(rtmsg []byte) bool {
	const length, table, kind = 1, 4, 7
	return len(rtmsg) > kind && rtmsg[length] == 0 && rtmsg[table] == unix.RT_TABLE_MAIN &&
		rtmsg[kind] == unix.RTN_UNICAST
}
