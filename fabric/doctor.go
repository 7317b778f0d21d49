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
	"netyard/kernel/overlay"
)

// A Symptom is something that somebody ought to know of the cluster, as this host sees it.
type Symptom struct {
	Of      string // etcd, host, network
	Network string // its name in the cluster; empty: of all
	Text    string
}

// Doctor looks for what is wrong with etcd, with this host as a member, and with the way to the others: on each network
// it sends each of them a small packet and one as large as the network allows.
func (a *Agent) Doctor(ctx context.Context) (all []Symptom, err error) {
	s, err := a.Status()
	if err != nil {
		return nil, err
	}
	if s.Reason != "" {
		all = append(all, Symptom{Of: "host", Text: "this host is no member: " + s.Reason})
	}
	if err := overlay.TellsDevices(); err != nil {
		all = append(all, Symptom{Of: "host", Text: err.Error()})
	}
	advice, err := a.c.Client.Advise(ctx)
	if err != nil && !errors.Is(err, cluster.ErrUnreachable) { // that is said already
		return nil, err
	}
	for _, text := range advice {
		all = append(all, Symptom{Of: "etcd", Text: text})
	}
	all = append(all, s.symptoms()...)
	away, err := a.probe(ctx)
	return append(all, away...), err
}

// symptoms are of what the host knows without asking.
func (s Status) symptoms() (all []Symptom) {
	if n := s.Hosts.Rejected + s.Members.Rejected; n > 0 {
		all = append(all, Symptom{Of: "etcd", Text: fmt.Sprintf("%d records of hosts are not let in; the log names them", n)})
	}
	for _, n := range slices.SortedFunc(maps.Values(s.Networks), func(a, b NetworkStatus) int { return cmp.Compare(a.Name, b.Name) }) {
		say := func(format string, args ...any) {
			all = append(all, Symptom{Of: "network", Network: n.Name, Text: fmt.Sprintf(format, args...)})
		}
		if n.Addresses.Rejected > 0 {
			say("%d records are not let in; the log names them", n.Addresses.Rejected)
		}
		if len(n.Left) > 0 {
			say("these hosts cannot encrypt, and are not spoken to: %s", strings.Join(n.Left, ", "))
		}
		for _, addr := range slices.SortedFunc(maps.Keys(n.Refused), netip.Addr.Compare) {
			say("address %s is no peer: %s", addr, n.Refused[addr])
		}
	}
	return all
}

// A far is the address that another host speaks by on a network.
type far struct {
	network, host string // names
	addr          netip.Addr
	at            netip.AddrPort // where it takes what is for it
	mtu           int
}

// probe asks the hosts that are alive whether packets get to them.
func (a *Agent) probe(ctx context.Context) (all []Symptom, err error) {
	fars := a.fars(a.dead(ctx))
	var echoes []overlay.Echo
	for _, f := range fars {
		echoes = append(echoes, overlay.Echo{To: f.addr}, overlay.Echo{To: f.addr, Size: f.mtu})
	}
	back, err := overlay.Echoes(ctx, a.c.Kernel.Handle, echoes)
	if err != nil {
		return nil, err
	}
	for i, f := range fars {
		small, large := back[2*i], back[2*i+1]
		switch {
		case !small && !large:
			all = append(all, Symptom{Of: "network", Network: f.network, Text: fmt.Sprintf(
				"host %s does not answer at %s: nothing comes back from %s at UDP port %d, or it comes by a link that "+
					"does not lead back, or its firewall drops ICMP", f.host, f.addr, f.at.Addr(), f.at.Port())})
		case !large:
			all = append(all, Symptom{Of: "network", Network: f.network, Text: fmt.Sprintf(
				"packets of %d bytes do not get to host %s (%s), small ones do: something on the way to %s carries less than it should", f.mtu, f.host, f.addr, f.at.Addr())})
		}
	}
	return all, nil
}

// dead are the hosts that are known to be away; without etcd nobody is.
func (a *Agent) dead(ctx context.Context) map[string]bool {
	dead := map[string]bool{}
	all, err := a.Members(ctx)
	if err != nil {
		return dead
	}
	for _, m := range all {
		dead[m.ID] = !m.Alive
	}
	return dead
}

// fars are the addresses of other hosts themselves, on the networks that are here.
func (a *Agent) fars(dead map[string]bool) (all []far) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, n := range a.networks {
		peers := n.book.Peers()
		n.addrs.Each(func(r cluster.Record) {
			addr, ok := r.(*cluster.Address)
			if !ok || addr.Use != cluster.OfHost || dead[addr.Host] || peers[addr.Addr] == (cluster.Peer{}) {
				return
			}
			f := far{network: n.Name, host: addr.Host, addr: addr.Addr, at: netip.AddrPortFrom(peers[addr.Addr].VTEP, a.port()), mtu: n.MTU}
			if h, ok := a.hosts.Get(cluster.Host{ID: addr.Host}.Key()).(*cluster.Host); ok {
				f.host = h.Name
				if n.Encrypted {
					f.at = netip.AddrPortFrom(h.VTEP, h.WireGuardPort)
				}
			}
			all = append(all, f)
		})
	}
	slices.SortFunc(all, func(a, b far) int { return cmp.Or(cmp.Compare(a.network, b.network), a.addr.Compare(b.addr)) })
	return all
}
