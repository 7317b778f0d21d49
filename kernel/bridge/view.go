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

// queuesOf returns the queues of a link. A narrow view reads only those.
func queuesOf(v *core.View, link netlink.Link) queues {
	if v.Narrow {
		q, _ := core.DumpOf(v, link.Attrs().Index, func(v *core.View) (queues, error) { return readQueuesOf(v, link) })
		return q
	}
	q, _ := core.Dump(v, readQueues)
	return q
}

func readQueues(v *core.View) (queues, error) {
	qdiscs, err := listQdiscs(v)
	all := queues{qdiscs, map[int]int{}}
	if err != nil {
		return all, err
	}
	for _, l := range v.Links() {
		if err := all.readRedirect(v.Handle, l); err != nil {
			return all, err
		}
	}
	return all, nil
}

// listQdiscs lists the token buckets and the ingress qdiscs of all links, by the index of the link.
func listQdiscs(v *core.View) (map[int][]netlink.Qdisc, error) {
	qdiscs, err := core.Retry(func() ([]netlink.Qdisc, error) { return v.Handle.NL.QdiscList(nil) })
	if err != nil {
		return nil, fmt.Errorf("list qdiscs: %w", err)
	}
	all := map[int][]netlink.Qdisc{}
	for _, q := range qdiscs {
		_, bucket := q.(*netlink.Tbf)
		if i := q.Attrs().LinkIndex; bucket || q.Attrs().Parent == netlink.HANDLE_INGRESS {
			all[i] = append(all[i], q)
		}
	}
	v.Note(len(qdiscs), nil)
	return all, nil
}

// readRedirect reads where a link of netyard's is redirected to, if it has an ingress qdisc.
func (q queues) readRedirect(k *core.Handle, l netlink.Link) (err error) {
	i := l.Attrs().Index
	hasIngress := slices.ContainsFunc(q.qdiscs[i], func(q netlink.Qdisc) bool {
		return q.Attrs().Parent == netlink.HANDLE_INGRESS
	})
	if hasIngress && strings.HasPrefix(l.Attrs().Alias, core.AliasPrefix) {
		q.redirects[i], err = redirected(k, l)
	}
	return err
}

// A Port is what its bridge knows of a port. It is read when somebody first asks.
type Port struct {
	index int
	load  func() (portFacts, error)
}

// PortOf returns what its bridge knows of the port that has an index. A narrow view reads only that port.
func PortOf(v *core.View, index int) Port {
	return Port{index, func() (portFacts, error) {
		if v.Narrow {
			return core.DumpOf(v, index, func(v *core.View) (portFacts, error) {
				f, err := readPort(v.Handle, index)
				v.Note(1+len(f.entries[index]), nil)
				return f, err
			})
		}
		return core.Dump(v, func(v *core.View) (portFacts, error) { return readPorts(v.Handle) })
	}}
}
