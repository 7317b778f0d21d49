// Package sandbox sets up links inside a container's network namespace, finds them again, and lists the sockets that
// listen there. It also finds the processes that live in sandboxes.
package sandbox

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"netyard/kernel/core"
)

// A Found is a link of netyard's inside a sandbox, as it is configured there.
type Found struct {
	Network, Endpoint string
	MAC               string
	Plug              Plug
}

// FindIn lists netyard's links in the sandbox at a path, to rebuild records that were lost. A link that was moved into
// the sandbox has its alias there. Of a veth pair the host end has it, and each end has the other's index as its
// parent.
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
	err = core.InNamespace(path, core.NamespaceID{}, func(nl *netlink.Handle) error {
		inner, err := core.Retry(nl.LinkList)
		if err != nil {
			return fmt.Errorf("list links of a sandbox: %w", err)
		}
		for _, l := range inner {
			alias := l.Attrs().Alias
			if alias == "" && l.Type() == "veth" {
				o := outer[l.Attrs().ParentIndex]
				if o != nil && o.Attrs().ParentIndex == l.Attrs().Index {
					alias = o.Attrs().Alias
				}
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

// plugOf reads a link's configuration in the sandbox, as PlugIn has set it up.
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
		via, _ := netip.AddrFromSlice(r.Gw) // invalid if there is no gateway
		p.Routes = append(p.Routes, Route{Dst: core.PrefixOf(r.Dst), Via: via.Unmap()})
	}
	return p, nil
}
