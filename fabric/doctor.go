package fabric

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"netyard/cluster"
	"netyard/cluster/etcd"
	cpeers "netyard/cluster/peers"
	"netyard/cluster/record"
	"netyard/kernel/overlay"
)

// A Symptom is a problem of the cluster that an admin should know, as this host sees it.
type Symptom struct {
	Of      string // etcd, host, network
	Network string // its name in the cluster; empty: all networks
	Text    string
}

// Doctor looks for problems of etcd, of this host as a member, and of the paths to the other hosts: on each network it
// sends each host a small packet and one as large as the network's MTU.
func (a *Agent) Doctor(ctx context.Context) (all []Symptom, err error) {
	s, err := a.Status()
	if err != nil {
		return nil, err
	}
	if s.Reason != "" {
		all = append(all, Symptom{Of: "host", Text: "this host is not a member of the cluster: " + s.Reason})
	}
	if err := overlay.CheckKernel(); err != nil {
		all = append(all, Symptom{Of: "host", Text: err.Error()})
	}
	advice, err := a.c.Client.Advise(ctx)
	if err != nil && !errors.Is(err, etcd.ErrUnreachable) { // reported already
		return nil, err
	}
	for _, text := range advice {
		all = append(all, Symptom{Of: "etcd", Text: text})
	}
	all = append(all, s.symptoms()...)
	away, err := a.probe(ctx)
	return append(all, away...), err
}

// symptoms returns the problems that the host knows without asking etcd.
func (s Status) symptoms() (all []Symptom) {
	if n := s.Hosts.Rejected + s.Members.Rejected; n > 0 {
		all = append(all, Symptom{Of: "etcd", Text: fmt.Sprintf("%d host records rejected; see the log", n)})
	}
	byName := func(a, b NetworkStatus) int { return cmp.Compare(a.Name, b.Name) }
	for _, n := range slices.SortedFunc(maps.Values(s.Networks), byName) {
		say := func(format string, args ...any) {
			all = append(all, Symptom{Of: "network", Network: n.Name, Text: fmt.Sprintf(format, args...)})
		}
		if n.Addresses.Rejected > 0 {
			say("%d address records rejected; see the log", n.Addresses.Rejected)
		}
		if len(n.Left) > 0 {
			say("these hosts cannot encrypt, and are not reached: %s", strings.Join(n.Left, ", "))
		}
		for _, addr := range slices.SortedFunc(maps.Keys(n.Refused), netip.Addr.Compare) {
			say("address %s is no peer: %s", addr, n.Refused[addr])
		}
	}
	return all
}

// A remoteHost is another host's own address on a network.
type remoteHost struct {
	network, host string // names
	addr          netip.Addr
	at            netip.AddrPort // where it receives packets from other hosts
	mtu           int
}

// probe sends packets to the hosts that are alive and returns which of them do not answer.
func (a *Agent) probe(ctx context.Context) (all []Symptom, err error) {
	hosts := a.remoteHosts(downHosts(ctx, a.c.Client))
	var echoes []overlay.Probe
	for _, f := range hosts {
		echoes = append(echoes, overlay.Probe{To: f.addr}, overlay.Probe{To: f.addr, Size: f.mtu})
	}
	back, err := a.kernel.Echoes(ctx, echoes)
	if err != nil {
		return nil, err
	}
	for i, f := range hosts {
		small, large := back[2*i], back[2*i+1]
		switch {
		case !small && !large:
			all = append(all, Symptom{Of: "network", Network: f.network, Text: fmt.Sprintf(
				"host %s does not answer at %s: UDP port %d of %s is not reached, or answers come by a link that "+
					"has no route back, or its firewall drops ICMP", f.host, f.addr, f.at.Port(), f.at.Addr())})
		case !large:
			all = append(all, Symptom{Of: "network", Network: f.network, Text: fmt.Sprintf(
				"packets of %d bytes do not get to host %s (%s), small ones do: "+
					"a link on the path to %s has too small an MTU", f.mtu, f.host, f.addr, f.at.Addr())})
		}
	}
	return all, nil
}

// downHosts returns the hosts that are known to be down; while etcd is away, none.
func downHosts(ctx context.Context, c *cluster.Client) map[string]bool {
	down := map[string]bool{}
	all, err := c.Members(ctx)
	if err != nil {
		return down
	}
	for _, m := range all {
		down[m.ID] = !m.Alive
	}
	return down
}

// remoteHosts returns the own addresses of other hosts, on the networks that are on this host.
func (a *Agent) remoteHosts(down map[string]bool) (all []remoteHost) {
	port := a.Port()
	for _, n := range a.on() {
		found := n.plane.Peers()
		n.claims.Each(func(r record.Record) {
			addr, ok := r.(*record.Address)
			if !ok || addr.Use != record.OfHost || down[addr.Host] || found[addr.Addr] == (cpeers.Peer{}) {
				return
			}
			f := remoteHost{
				network: n.Name, host: addr.Host, addr: addr.Addr, mtu: n.MTU,
				at: netip.AddrPortFrom(found[addr.Addr].VTEP, port),
			}
			if h, ok := a.hosts.Get(record.Host{ID: addr.Host}.Key()).(*record.Host); ok {
				f.host = h.Name
				if n.Encrypted {
					f.at = netip.AddrPortFrom(h.VTEP, h.WireGuardPort)
				}
			}
			all = append(all, f)
		})
	}
	slices.SortFunc(all, func(a, b remoteHost) int {
		return cmp.Or(cmp.Compare(a.network, b.network), a.addr.Compare(b.addr))
	})
	return all
}
