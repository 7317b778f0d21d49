package fabric

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"netyard/cluster"
	"netyard/cluster/mirror"
	"netyard/cluster/record"
	"netyard/fabric/address"
)

// join makes this host a member of a network, so that the others accept its frames. If the host had addresses there but
// is no member any more, it was removed from the cluster, and some of them may be other hosts' by now: its traffic is
// blocked until that is known. This does not apply to a membership that is missing because etcd was restored from an
// old backup; the other hosts keep it as well.
func (a *Agent) join(ctx context.Context, n *network) error {
	if a.network(n.ID) != n {
		return fmt.Errorf("join network %s: %w", n.Name, errUnbound)
	}
	m := record.Member{Network: n.ID, Host: a.self}
	own, err := a.addresses.List(n.ID)
	if err != nil {
		return err
	}
	if a.members.Get(m.Key()) == nil && slices.ContainsFunc(own, func(o address.Own) bool { return o.Synced }) {
		if err := n.plane.Shut(); err != nil { //nolint:contextcheck // the kernel answers at once
			return err
		}
	}
	return a.enroll(ctx, m, n.Network)
}

// enroll makes this host a member of a network, and restores the network if etcd does not have it any more.
func (a *Agent) enroll(ctx context.Context, m record.Member, n record.Network) error {
	err := a.c.Client.JoinNetwork(ctx, m)
	if !errors.Is(err, cluster.ErrNotFound) {
		return err
	}
	if err := a.c.Client.RestoreNetwork(ctx, n); err != nil {
		a.c.Log.Warn("network not restored in etcd", "network", n.Name, "network_id", n.ID, "err", err)
		return err
	}
	return a.c.Client.JoinNetwork(ctx, m)
}

// fence calls Fence with the endpoints that have another host's address, before traffic of this host is allowed again.
func (a *Agent) fence(ctx context.Context, n *network) error {
	lost, err := n.addrs.Fenced()
	if err != nil {
		return err
	}
	fenced := map[string]string{}
	for endpoint, addr := range lost {
		fenced[endpoint] = fmt.Sprintf("address %s is %s's now", addr, ownerName(a.hosts, n, addr))
	}
	a.mu.Lock()
	was := n.fenced
	a.mu.Unlock()
	if was == nil || !maps.Equal(fenced, was) {
		if err := a.c.Fence(ctx, n.ID, fenced); err != nil {
			return err
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	n.fenced = fenced
	return nil
}

// ownerName names the host that has an address which this host lost.
func ownerName(hosts *mirror.Mirror, n *network, addr netip.Addr) string {
	rec, _ := n.claims.Get(record.Address{Network: n.ID, Addr: addr}.Key()).(*record.Address)
	if rec == nil {
		return "another host"
	}
	host, _ := hosts.Get(record.Host{ID: rec.Host}.Key()).(*record.Host)
	if host == nil {
		return fmt.Sprintf("host %.12s", rec.Host)
	}
	return "host " + cmp.Or(host.Name, rec.Host)
}

// reopen allows traffic of a network again: all addresses that the host has there are its own, or fenced.
func (a *Agent) reopen(n *network) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.reason == nil {
		n.plane.Reopen()
	}
}
