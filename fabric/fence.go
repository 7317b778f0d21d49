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
)

// join makes this host a member of a network, by which the others let its frames in. One that had addresses there and
// is none any more was taken out, and some of them may be others' by now: it keeps to itself until that is known. One
// that etcd has not because it went back in time was not; nor do the others take it for that.
func (a *Agent) join(ctx context.Context, n *network, m cluster.Member, own []Own) error {
	out := a.members.Get(m.Key()) == nil && slices.ContainsFunc(own, func(o Own) bool { return o.Synced })
	if out {
		a.mu.Lock()
		n.shut = true
		err := a.inform(n) //nolint:contextcheck // the kernel answers at once, or not at all
		a.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return a.enroll(ctx, m, n.Network)
}

// fence has the endpoints cut off that have another host's address, before this host is heard again.
func (a *Agent) fence(ctx context.Context, n *network) error {
	if err := a.mute(n.ID); err != nil {
		return err
	}
	own, err := a.Own(n.ID)
	if err != nil {
		return err
	}
	fenced := map[string]string{}
	for _, o := range own {
		if o.fences() {
			fenced[o.Endpoint] = fmt.Sprintf("address %s is %s's now", o.Addr, a.holder(n, o))
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

// errLost says that an address was found to be another host's: all is to be looked at again.
var errLost = errors.New("an address is another host's now")

// fences says whether an address is the reason for its endpoint to be fenced.
func (o Own) fences() bool { return o.Lost && !o.Gone && o.Endpoint != "" }

// mute has the other addresses of fenced endpoints lead to nobody, and those of others to their endpoints again.
func (a *Agent) mute(network string) error {
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
	return a.edit(network, func(o *Own) bool {
		if o.Mute == fenced[o.Endpoint] {
			return false
		}
		o.Mute, o.Synced = fenced[o.Endpoint], false
		return true
	})
}

func rank(first bool) int {
	if first {
		return 0
	}
	return 1
}

// open lets the host be heard again on a network: all addresses that it has there are its own, or fenced.
func (a *Agent) open(n *network) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if n.shut && a.reason == nil {
		n.shut, n.unsure = false, true
		a.poke()
	}
}

// isOthers says whether an address is another host's, as far as is known.
func (a *Agent) isOthers(n *network, addr netip.Addr) bool {
	rec, _ := n.addrs.Get(cluster.Address{Network: n.ID, Addr: addr}.Key()).(*cluster.Address)
	return rec != nil && rec.Host != a.self
}

// holder is the host that has an address which this one lost, as people call it.
func (a *Agent) holder(n *network, o Own) string {
	rec, _ := n.addrs.Get(o.record("").Key()).(*cluster.Address)
	if rec == nil {
		return "another host"
	}
	host, _ := a.hosts.Get(cluster.Host{ID: rec.Host}.Key()).(*cluster.Host)
	if host == nil {
		return fmt.Sprintf("host %.12s", rec.Host)
	}
	return "host " + cmp.Or(host.Name, rec.Host)
}
