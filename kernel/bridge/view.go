package bridge

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"netyard/kernel/core"
	"netyard/kernel/rule"
)

// Sets returns the sets about bridges and their ports.
func Sets() []rule.Set {
	pair := nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIFName)
	return append([]rule.Set{
		{Name: Bridges, Type: nftables.TypeIFName},
		{Name: Internal, Type: nftables.TypeIFName},
		{Name: Foreign, Type: nftables.TypeIFName},
		{Name: Others, Type: nftables.TypeIFName},
		{Name: Reachable, Type: pair, Concat: true},
		{Name: Same, Type: pair, Concat: true},
		{Name: NAT4, Type: nftables.TypeIPAddr, Interval: true},
		{Name: NAT6, Type: nftables.TypeIP6Addr, Interval: true},
		{Name: Own, Type: pair, Concat: true},
	}, guardSets()...)
}

// Names returns the name of the link.
func (b Bridge) Names() []string { return []string{b.Name} }

// Names returns the names of both ends.
func (v Veth) Names() []string { return []string{v.Name, v.Peer} }

// Names returns the name of the shaper, if there is one.
func (l Limits) Names() []string {
	if l.Egress == 0 {
		return nil
	}
	return []string{l.Shaper}
}

// HostLink returns the link by which the host sees the endpoint.
func (v Veth) HostLink() string { return v.Name }

// Plugged reports whether the inner end is in a sandbox: the outer end is on the host and the inner one is not.
func (v Veth) Plugged(k *core.Handle) (bool, error) {
	outer, err := k.Link(v.Name)
	if err != nil || outer == nil {
		return false, err
	}
	inner, err := k.Link(v.Peer)
	return inner == nil, err
}

// queues are the token buckets and the ingress qdiscs of each link, and for redirected links of netyard's the index of
// the target.
type queues struct {
	qdiscs    map[int][]netlink.Qdisc
	redirects map[int]int
}

// ReadLimits reads what Limits are compared with.
func ReadLimits(v *core.View) error {
	_, err := core.Dump(v, readQueues)
	return err
}

func queuesOf(v *core.View) queues {
	q, _ := core.Dump(v, readQueues)
	return q
}

func readQueues(v *core.View) (queues, error) {
	all := queues{map[int][]netlink.Qdisc{}, map[int]int{}}
	qdiscs, err := core.Retry(func() ([]netlink.Qdisc, error) { return v.Handle.NL.QdiscList(nil) })
	if err != nil {
		return all, fmt.Errorf("list qdiscs: %w", err)
	}
	for _, q := range qdiscs {
		_, ours := q.(*netlink.Tbf)
		if i := q.Attrs().LinkIndex; ours || q.Attrs().Parent == netlink.HANDLE_INGRESS {
			all.qdiscs[i] = append(all.qdiscs[i], q)
		}
	}
	for _, l := range v.Links {
		i := l.Attrs().Index
		hasIngress := slices.ContainsFunc(all.qdiscs[i], func(q netlink.Qdisc) bool {
			return q.Attrs().Parent == netlink.HANDLE_INGRESS
		})
		if !hasIngress || !strings.HasPrefix(l.Attrs().Alias, core.AliasPrefix) {
			continue
		}
		if all.redirects[i], err = redirected(v.Handle, l); err != nil {
			return all, err
		}
	}
	return all, nil
}

// ReadProxies reads what ProxyNeigh is compared with.
func ReadProxies(v *core.View) error {
	_, err := core.Dump(v, readProxies)
	return err
}

func proxiesOf(v *core.View) map[proxyID]bool {
	all, _ := core.Dump(v, readProxies)
	return all
}

func readProxies(v *core.View) (map[proxyID]bool, error) { return proxies(v.Handle) }

// Ports is what the bridges know of their ports. It is read when somebody first asks.
type Ports struct {
	load func() (portFacts, error)
}

// PortsOf returns what the bridges of a view know of their ports.
func PortsOf(v *core.View) Ports {
	return Ports{func() (portFacts, error) {
		return core.Dump(v, func(v *core.View) (portFacts, error) { return readPorts(v.Handle) })
	}}
}
