package fabric

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"netyard/cluster/record"
)

// join makes this host a member of a network, so that the others accept its frames. If the host had addresses there but
// is no member any more, it was removed from the cluster, and some of them may be other hosts' by now: its traffic is
// blocked until that is known. This does not apply to a membership that is missing because etcd was restored from an
// old backup; the other hosts keep it as well.
func (a *Agent) join(ctx context.Context, n *network, m record.Member, own []Own) error {
	out := a.members.Get(m.Key()) == nil && slices.ContainsFunc(own, func(o Own) bool { return o.Synced })
	if out {
		a.mu.Lock()
		n.shut = true
		err := a.updateKernel(n) //nolint:contextcheck // the kernel answers at once
		a.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return a.enroll(ctx, m, n.Network)
}

// fence calls Fence with the endpoints that have another host's address, before traffic of this host is allowed again.
func (a *Agent) fence(ctx context.Context, n *network) error {
	if err := a.updateMute(n.ID); err != nil {
		return err
	}
	own, err := a.Own(n.ID)
	if err != nil {
		return err
	}
	fenced := map[string]string{}
	for _, o := range own {
		if o.fences() {
			fenced[o.Endpoint] = fmt.Sprintf("address %s is %s's now", o.Addr, a.ownerName(n, o))
		}
	}
	if n.fenced == nil || !maps.Equal(fenced, n.fenced) {
		if err := a.c.Fence(ctx, n.ID, fenced); err != nil {
			return err
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	n.fenced = fenced
	return nil
}

// errTaken says that an address turned out to be another host's, so that the network must be synced again.
var errTaken = errors.New("an address is another host's now")

// fences says whether an address is the reason for its endpoint to be fenced.
func (o Own) fences() bool { return o.Lost && !o.Gone && o.Endpoint != "" }

// updateMute mutes the other addresses of fenced endpoints, and unmutes those of endpoints that are not fenced.
func (a *Agent) updateMute(network string) error {
	own, err := a.Own(network)
	if err != nil {
		return err
	}
	fenced := map[string]bool{}
	for _, o := range own {
		fenced[o.Endpoint] = fenced[o.Endpoint] || o.fences()
	}
	if !slices.ContainsFunc(own, func(o Own) bool { return o.Mute != fenced[o.Endpoint] }) {
		return nil
	}
	return a.updateOwns(network, func(o *Own) bool {
		if o.Mute == fenced[o.Endpoint] {
			return false
		}
		o.Mute, o.Synced = fenced[o.Endpoint], false
		return true
	})
}

// rank is a sort key that puts those for which first is true first.
func rank(first bool) int {
	if first {
		return 0
	}
	return 1
}

// reopenNetwork allows traffic of a network again: all addresses that the host has there are its own, or fenced.
func (a *Agent) reopenNetwork(n *network) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if n.shut && a.reason == nil {
		n.shut, n.unsure = false, true
		a.wakeUp()
	}
}

// isOthers says whether an address is another host's, as far as is known.
func (a *Agent) isRemote(n *network, addr netip.Addr) bool {
	rec, _ := n.addrs.Get(record.Address{Network: n.ID, Addr: addr}.Key()).(*record.Address)
	return rec != nil && rec.Host != a.self
}

// ownerName names the host that has an address which this host lost.
func (a *Agent) ownerName(n *network, o Own) string {
	rec, _ := n.addrs.Get(o.record("").Key()).(*record.Address)
	if rec == nil {
		return "another host"
	}
	host, _ := a.hosts.Get(record.Host{ID: rec.Host}.Key()).(*record.Host)
	if host == nil {
		return fmt.Sprintf("host %.12s", rec.Host)
	}
	return "host " + cmp.Or(host.Name, rec.Host)
}
