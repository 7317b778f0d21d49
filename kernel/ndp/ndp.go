// Package ndp lets the host answer for addresses of containers on a link: IPv6 neighbour discovery by proxy.
package ndp

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"netyard/kernel/core"
)

// A Proxy is an NDP proxy entry (RFC 4389): the host answers neighbour solicitations on a link for an IPv6 address
// that is reached through the host, as if the address were on the link itself. The entry carries the protocol number of
// netyard's routes.
//
// Ensure turns proxy_ndp on for the link, and nothing turns it off again: without entries it has no effect, and netyard
// cannot know who else has entries there.
type Proxy struct {
	Link string
	Addr netip.Addr
}

// String names the entry as ip(8) does.
func (p Proxy) String() string { return fmt.Sprintf("NDP proxy %s on %s", p.Addr, p.Link) }

func (p Proxy) sysctl() core.Sysctl {
	return core.Sysctl{Path: []string{"net", "ipv6", "conf", p.Link, "proxy_ndp"}, Value: "1"}
}

func (p Proxy) Ensure(k *core.Handle) error {
	link, err := k.NL.LinkByName(p.Link)
	if err != nil {
		return fmt.Errorf("add %s: %w", p, err)
	}
	if err := p.sysctl().Ensure(k); err != nil {
		return err
	}
	if err := changeProxy(k, unix.RTM_NEWNEIGH, link.Attrs().Index, p.Addr); err != nil {
		return fmt.Errorf("add %s: %w", p, err)
	}
	return nil
}

func (p Proxy) Remove(k *core.Handle) error {
	link, err := k.Link(p.Link)
	if err != nil || link == nil {
		return err
	}
	have, err := proxies(k)
	if err != nil {
		return err
	}
	index := link.Attrs().Index
	if !have[proxy{index, p.Addr}] { // of somebody else, or missing
		return nil
	}
	if err := changeProxy(k, unix.RTM_DELNEIGH, index, p.Addr); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove %s: %w", p, err)
	}
	return nil
}

func (p Proxy) Check(s *core.View) []string {
	link := s.Link(p.Link)
	if link == nil {
		return []string{fmt.Sprintf("%s: link %s is missing", p, p.Link)}
	}
	if !proxiesOf(s)[proxy{link.Attrs().Index, p.Addr}] {
		return []string{p.String() + " is missing"}
	}
	return p.sysctl().Check(s)
}

// A proxy identifies one entry.
type proxy struct {
	link int
	addr netip.Addr
}

// Strays returns the entries of netyard's that no object wants.
func Strays(s *core.View, wanted []core.Object) (strays []core.Stray) {
	names, want := map[int]string{}, map[proxy]bool{}
	for name, l := range s.Links() {
		names[l.Attrs().Index] = name
	}
	for _, o := range wanted {
		if p, ok := o.(Proxy); ok && s.Link(p.Link) != nil {
			want[proxy{s.Link(p.Link).Attrs().Index, p.Addr}] = true
		}
	}
	for id, own := range proxiesOf(s) {
		if p := (Proxy{names[id.link], id.addr}); own && !want[id] && p.Link != "" {
			strays = append(strays, core.Stray{Text: p.String(), Drop: func() error { return p.Remove(s.Handle) }})
		}
	}
	sort.Slice(strays, func(i, j int) bool { return strays[i].Text < strays[j].Text })
	return strays
}

// Read reads what a Proxy is compared with.
func Read(v *core.View) error {
	_, err := core.Dump(v, read)
	return err
}

func proxiesOf(v *core.View) map[proxy]bool {
	all, _ := core.Dump(v, read)
	return all
}

func read(v *core.View) (map[proxy]bool, error) { return proxies(v.Handle) }

// changeProxy adds or removes one entry. The netlink library can neither set the protocol of an entry nor list entries.
func changeProxy(k *core.Handle, verb, link int, addr netip.Addr) error {
	flags := unix.NLM_F_ACK
	if verb == unix.RTM_NEWNEIGH {
		flags |= unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	}
	_, err := requestProxies(k, verb, flags, link, nl.NewRtAttr(netlink.NDA_DST, addr.AsSlice()),
		nl.NewRtAttr(netlink.NDA_PROTOCOL, []byte{core.RouteProtocol}))
	return err
}

// Has reports whether a link has an NDP proxy entry, whoever made it.
func Has(s *core.View, link int, a netip.Addr) bool {
	_, ok := proxiesOf(s)[proxy{link, a}]
	return ok
}

// proxies returns the entries, and of each whether it has netyard's protocol number.
func proxies(k *core.Handle) (map[proxy]bool, error) {
	raw, err := core.Retry(func() ([][]byte, error) { return requestProxies(k, unix.RTM_GETNEIGH, unix.NLM_F_DUMP, 0) })
	if err != nil {
		return nil, fmt.Errorf("list NDP proxies: %w", err)
	}
	all := map[proxy]bool{}
	for _, m := range raw {
		n, err := netlink.NeighDeserialize(m)
		if err != nil {
			return nil, fmt.Errorf("read an NDP proxy: %w", err)
		}
		attrs, err := nl.ParseRouteAttr(m[(&netlink.Ndmsg{}).Len():])
		if err != nil {
			return nil, fmt.Errorf("read an NDP proxy: %w", err)
		}
		if addr, ok := netip.AddrFromSlice(n.IP); ok {
			all[proxy{n.LinkIndex, addr}] = slices.ContainsFunc(attrs, func(a syscall.NetlinkRouteAttr) bool {
				return a.Attr.Type == netlink.NDA_PROTOCOL && a.Value[0] == core.RouteProtocol
			})
		}
	}
	return all, nil
}

// requestProxies sends one request about proxy entries of IPv6, and returns the answers.
func requestProxies(k *core.Handle, verb, flags, link int, attrs ...*nl.RtAttr) ([][]byte, error) {
	sock, err := nl.GetNetlinkSocketAt(k.NS, netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	defer sock.Close()
	limit := unix.NsecToTimeval(core.NetlinkTimeout.Nanoseconds())
	if err := errors.Join(sock.SetSendTimeout(&limit), sock.SetReceiveTimeout(&limit)); err != nil {
		return nil, err
	}
	req := nl.NewNetlinkRequest(verb, flags)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: sock}}
	req.AddData(&netlink.Ndmsg{
		Family: unix.AF_INET6, Index: uint32(link), //nolint:gosec // an index
		State: unix.NUD_PERMANENT, Flags: unix.NTF_PROXY,
	})
	for _, a := range attrs {
		req.AddData(a)
	}
	return req.Execute(unix.NETLINK_ROUTE, 0)
}
