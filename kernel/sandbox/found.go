// Package sandbox is about what is in a container's network namespace: links plugged in and set up, found again, and
// sockets that listen.
package sandbox

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"netyard/kernel/core"
)

// A Found is a link of netyard's that a sandbox has, as it is there.
type Found struct {
	Network, Endpoint string
	MAC               string
	Plug              Plug
}

// FindIn lists the links of netyard's in the sandbox behind a path: where records were lost, that is where they can be
// read. A link that was moved in carries its alias; of a pair the outer end does, and each end has the other's number.
func FindIn(k *core.Handle, path string) (all []Found, err error) {
	links, err := core.Retry(k.NL.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	outer := map[int]netlink.Link{}
	for _, l := range links {
		if l.Type() == "veth" {
			outer[l.Attrs().Index] = l
		}
	}
	err = core.Visit(path, func(nl *netlink.Handle) error {
		inner, err := core.Retry(nl.LinkList)
		if err != nil {
			return fmt.Errorf("list links of a sandbox: %w", err)
		}
		for _, l := range inner {
			alias := l.Attrs().Alias
			if o := outer[l.Attrs().ParentIndex]; alias == "" && l.Type() == "veth" && o != nil && o.Attrs().ParentIndex == l.Attrs().Index {
				alias = o.Attrs().Alias
			}
			network, endpoint, ours := core.ParseAlias(alias)
			if !ours || endpoint == "" {
				continue
			}
			f := Found{Network: network, Endpoint: endpoint, MAC: l.Attrs().HardwareAddr.String()}
			if f.Plug, err = plugOf(nl, l, alias); err != nil {
				return err
			}
			all = append(all, f)
		}
		return nil
	})
	return all, err
}

// plugOf reads what PlugIn set up.
func plugOf(nl *netlink.Handle, l netlink.Link, alias string) (p Plug, err error) {
	p = Plug{Link: l.Attrs().Name, Name: l.Attrs().Name, Alias: alias, MTU: l.Attrs().MTU}
	addrs, err := core.Retry(func() ([]netlink.Addr, error) { return nl.AddrList(l, netlink.FAMILY_ALL) })
	if err != nil {
		return p, fmt.Errorf("list addresses of %s in the sandbox: %w", p.Name, err)
	}
	for _, a := range addrs {
		if a.Scope == unix.RT_SCOPE_UNIVERSE {
			p.Addrs = append(p.Addrs, core.PrefixOf(a.IPNet))
		}
	}
	routes, err := core.Retry(func() ([]netlink.Route, error) { return nl.RouteList(l, netlink.FAMILY_ALL) })
	if err != nil {
		return p, fmt.Errorf("list routes of %s in the sandbox: %w", p.Name, err)
	}
	for _, r := range routes {
		if r.Protocol == unix.RTPROT_KERNEL || r.Dst == nil {
			continue
		}
		via, _ := netip.AddrFromSlice(r.Gw) // none: it is on the link
		p.Routes = append(p.Routes, Route{Dst: core.PrefixOf(r.Dst), Via: via.Unmap()})
	}
	return p, nil
}
