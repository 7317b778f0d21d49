package cluster

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"netyard/cluster/etcd"
	"netyard/cluster/record"
)

// Enter finds the cluster in etcd, or creates it as want says. A host that belongs to a cluster already passes its ID
// in want, and gets that one or ErrOther: an etcd that lost its data must not make the host drop what it has.
func (c *Client) Enter(ctx context.Context, want record.Meta) (record.Meta, error) {
	const act = "enter the cluster"
	fresh := record.Meta{Schema: record.Schema, Cluster: record.NewID(), Port: want.Port, IPv6: want.IPv6}
	value, err := record.Encode(&fresh)
	if err != nil {
		return record.Meta{}, fmt.Errorf("%s: %w", act, err)
	}
	have, created, err := c.PutOnce(ctx, act, fresh.Key(), value, want.Cluster == "")
	switch {
	case err != nil:
		return record.Meta{}, err
	case have == nil:
		return record.Meta{}, fmt.Errorf("%s: %w: this host belongs to %.8s, and etcd has none", act, etcd.ErrOther,
			want.Cluster)
	}
	meta := &fresh
	if !created {
		r, err := record.Decode(fresh.Key(), have)
		if err != nil {
			return record.Meta{}, fmt.Errorf("%s: %w", act, err)
		}
		meta = r.(*record.Meta) //nolint:forcetypeassert // its key says so
	}
	if err := compatible(want, *meta); err != nil {
		return record.Meta{}, fmt.Errorf("%s: %w", act, err)
	}
	c.Guard(fresh.Key(), string(have))
	return *meta, nil
}

// compatible returns why a host that wants one cluster cannot be in another.
func compatible(want, have record.Meta) error {
	switch {
	case have.Schema > record.Schema:
		return fmt.Errorf("the cluster's records have schema %d, and this netyard knows %d; "+
			"upgrade netyard on this host", have.Schema, record.Schema)
	case want.Cluster != "" && want.Cluster != have.Cluster:
		return fmt.Errorf("%w: this host belongs to %.8s, and etcd has %.8s", etcd.ErrOther, want.Cluster, have.Cluster)
	case want.Port != have.Port:
		return fmt.Errorf("the cluster uses VXLAN port %d, and this host %d; set overlay.port to %d",
			have.Port, want.Port, have.Port)
	case want.IPv6 != have.IPv6:
		return fmt.Errorf("the cluster's hosts use %s, and this host %s; set overlay.address to an %s address",
			familyName(have.IPv6), familyName(want.IPv6), familyName(have.IPv6))
	}
	return nil
}

func familyName(v6 bool) string {
	if v6 {
		return "IPv6"
	}
	return "IPv4"
}

// Join makes the host a member of the cluster, or updates its record. It fails if another host has the name or the
// address. Then it gives up those that this host no longer has: of two hosts that exchange their addresses, each would
// else wait for the other for ever.
func (c *Client) Join(ctx context.Context, h record.Host) error {
	act := "join cluster as " + h.Name
	keys, err := c.joinKeys(ctx, act, h)
	if err != nil {
		return err
	}
	err = c.Change(ctx, act, keys, func(found etcd.Found) (etcd.Decision, error) { return join(h, keys, found) })
	if !errors.Is(err, ErrTaken) {
		return err
	}
	give := func(found etcd.Found) (d etcd.Decision, err error) {
		d.Delete = outdated(h, found)
		return d, nil
	}
	if failed := c.Change(ctx, act, keys, give); failed != nil {
		return fmt.Errorf("%w; its former name and address are not given up: %w", err, failed)
	}
	return err
}

// joinKeys returns the keys that Join depends on: the host's own, those of its claims and of its former ones, and the
// hosts that have these claims.
func (c *Client) joinKeys(ctx context.Context, act string, h record.Host) ([]string, error) {
	own := h.Key()
	keys := []string{own, record.Tomb{Host: h.ID}.Key()}
	for _, cl := range h.Claims() {
		keys = append(keys, cl.Key())
	}
	found, err := c.Read(ctx, act, keys)
	if err != nil {
		return nil, err
	}
	if old, ok := found[own].Record.(*record.Host); ok {
		for _, cl := range old.Claims() {
			keys = append(keys, cl.Key())
		}
	}
	for _, cl := range h.Claims() {
		if has, ok := found[cl.Key()].Record.(*record.Claim); ok {
			keys = append(keys, record.Host{ID: has.ID}.Key())
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys), nil
}

// join decides what Join writes, given what these keys have.
func join(h record.Host, keys []string, found etcd.Found) (d etcd.Decision, err error) {
	if found[record.Tomb{Host: h.ID}.Key()].There {
		return d, ErrForgotten
	}
	if old, _ := found[h.Key()].Record.(*record.Host); old == nil || *old != h {
		d.Put = append(d.Put, &h)
	}
	for _, cl := range h.Claims() {
		at := found[cl.Key()]
		has, ok := at.Record.(*record.Claim)
		switch {
		case !at.There || ok && has.ID != h.ID && dead(has, keys, found):
			d.Put = append(d.Put, cl)
		case !ok || has.ID != h.ID:
			return d, fmt.Errorf("%s %w%s", cl, ErrTaken, ownerText(has))
		}
	}
	d.Delete = outdated(h, found)
	return d, nil
}

// dead says whether the host of a claim is not in the cluster, or has another name or address in its record.
func dead(cl *record.Claim, keys []string, found etcd.Found) bool {
	key := record.Host{ID: cl.ID}.Key()
	if !slices.Contains(keys, key) { // the claim has changed hands since the keys were chosen
		return false
	}
	if !found[key].There {
		return true
	}
	owner, ok := found[key].Record.(*record.Host)
	return ok && !slices.ContainsFunc(owner.Claims(), func(c *record.Claim) bool { return *c == *cl })
}

// outdated returns the keys of a host's claims to a former name and address. They may be another host's by now.
func outdated(h record.Host, found etcd.Found) (keys []string) {
	old, ok := found[h.Key()].Record.(*record.Host)
	if !ok {
		return nil
	}
	for _, cl := range old.Claims() {
		has, ok := found[cl.Key()].Record.(*record.Claim)
		kept := slices.ContainsFunc(h.Claims(), func(now *record.Claim) bool { return now.Key() == cl.Key() })
		if ok && has.ID == h.ID && !kept {
			keys = append(keys, cl.Key())
		}
	}
	return keys
}

// ownerText returns who has a claim, as the end of an error.
func ownerText(c *record.Claim) string {
	if c == nil {
		return " by an invalid record"
	}
	return " by " + c.ID[:12]
}

// Forget removes a host from the cluster: what it had becomes free, and its tombstone keeps it from using that when it
// comes back. After a failure it can be called again.
func (c *Client) Forget(ctx context.Context, host, by string) error {
	act := "forget host " + host[:min(len(host), 12)]
	own, tomb := record.Host{ID: host}.Key(), &record.Tomb{Host: host, By: by}
	err := c.Change(ctx, act, []string{own, tomb.Key()}, func(found etcd.Found) (d etcd.Decision, err error) {
		if !found[own].There && !found[tomb.Key()].There {
			return d, fmt.Errorf("host %s %w", host, ErrNotFound)
		}
		if !found[tomb.Key()].There {
			d.Put = []record.Record{tomb}
		}
		if found[own].There {
			d.Delete = []string{own, record.Alive{Host: host}.Key()}
		}
		return d, nil
	})
	if err != nil {
		return err
	}
	for _, kind := range []string{record.ClaimHostname, record.ClaimVTEP} {
		claims, err := c.List(ctx, kind+"/")
		if err != nil {
			return err
		}
		for _, r := range claims {
			if cl, ok := r.(*record.Claim); ok && cl.ID == host {
				owned := func(r record.Record) bool { now, ok := r.(*record.Claim); return ok && now.ID == host }
				if err := c.deleteIf(ctx, act, cl.Key(), owned); err != nil {
					return err
				}
			}
		}
	}
	return c.leaveAll(ctx, host)
}

// leaveAll makes a host leave all its networks.
func (c *Client) leaveAll(ctx context.Context, host string) error {
	members, err := c.List(ctx, record.MemberKind+"/")
	if err != nil {
		return err
	}
	for _, r := range members {
		if m, ok := r.(*record.Member); ok && m.Host == host {
			if err := c.LeaveNetwork(ctx, *m); err != nil {
				return err
			}
		}
	}
	return nil
}

// deleteIf deletes a key if its record matches.
func (c *Client) deleteIf(ctx context.Context, act, key string, match func(record.Record) bool) error {
	return c.Change(ctx, act, []string{key}, func(found etcd.Found) (d etcd.Decision, err error) {
		if at := found[key]; at.There && match(at.Record) {
			d.Delete = []string{key}
		}
		return d, nil
	})
}

// Readmit lets a host that was removed join again; what it had is not given back.
func (c *Client) Readmit(ctx context.Context, host string) error {
	return c.deleteIf(ctx, "rejoin cluster", record.Tomb{Host: host}.Key(), func(record.Record) bool { return true })
}

// CreateNetwork creates a network with a free VNI. If there is one with this name already, it returns that one, and an
// error that names both values if they differ. Without subnets it only looks for the network.
func (c *Client) CreateNetwork(ctx context.Context, n record.Network) (record.Network, error) {
	if err := record.CheckName("name", n.Name); err != nil {
		return n, fmt.Errorf("create network: %w", err)
	}
	there, err := c.FindNetwork(ctx, n.Name)
	if err == nil {
		return there, n.Matches(there)
	}
	if len(n.Subnets) == 0 || !errors.Is(err, ErrNotFound) {
		return n, err
	}
	act := "create network " + n.Name
	n.ID = record.NewID()
	for range etcd.MaxAttempts {
		n.VNI = randomVNI()
		claims := n.Claims()
		name, vni := claims[0], claims[1]
		taken, faster := false, false
		keys := []string{name.Key(), vni.Key()}
		err := c.Change(ctx, act, keys, func(found etcd.Found) (d etcd.Decision, err error) {
			faster, taken = found[name.Key()].There, found[vni.Key()].There
			if taken || faster {
				return d, nil
			}
			d.Put = []record.Record{&n, name, vni}
			for _, s := range n.Subnets {
				d.Put = append(d.Put, &record.Address{Network: n.ID, Addr: s.Gateway, Use: record.Gateway})
			}
			return d, nil
		})
		switch {
		case err != nil:
			return n, err
		case faster:
			there, err := c.FindNetwork(ctx, n.Name)
			return there, cmp.Or(err, n.Matches(there))
		case !taken:
			return n, nil
		}
	}
	return n, fmt.Errorf("%s: no free VNI in %d attempts; try again", act, etcd.MaxAttempts)
}

// randomVNI returns a random VNI from MinVNI on.
func randomVNI() uint32 {
	var b [4]byte
	_, _ = rand.Read(b[:]) // it never fails
	v := uint32(b[0])<<16 | uint32(b[1])<<8 | uint32(b[2])
	return record.MinVNI + v%(record.MaxVNI-record.MinVNI)
}

// FindNetwork returns the network with a name.
func (c *Client) FindNetwork(ctx context.Context, name string) (record.Network, error) {
	act := "find network " + name
	claim := record.Claim{Kind: record.ClaimNetname, What: name}.Key()
	found, err := c.Read(ctx, act, []string{claim})
	if err != nil {
		return record.Network{}, err
	}
	cl, ok := found[claim].Record.(*record.Claim)
	if !ok {
		return record.Network{}, fmt.Errorf("network %s %w", name, ErrNotFound)
	}
	key := record.Network{ID: cl.ID}.Key()
	if found, err = c.Read(ctx, act, []string{key}); err != nil {
		return record.Network{}, err
	}
	n, ok := found[key].Record.(*record.Network)
	if !ok || n.Name != name {
		return record.Network{}, fmt.Errorf("network %s %w: its record is missing or invalid", name, ErrNotFound)
	}
	return *n, nil
}

// DeleteNetwork deletes a network that is on no host any more.
func (c *Client) DeleteNetwork(ctx context.Context, n record.Network) error {
	claims := n.Claims()
	keys := []string{n.Key(), claims[0].Key(), claims[1].Key()}
	return c.Change(ctx, "delete network "+n.Name, keys, func(found etcd.Found) (d etcd.Decision, err error) {
		if !found[n.Key()].There {
			return d, nil
		}
		d.Delete = []string{n.Key()}
		for _, k := range keys[1:] {
			if cl, ok := found[k].Record.(*record.Claim); ok && cl.ID == n.ID {
				d.Delete = append(d.Delete, k)
			}
		}
		d.DeleteAll = []string{record.AddrKind + "/" + n.ID + "/"}
		d.Empty = []string{record.MemberKind + "/" + n.ID + "/"}
		return d, nil
	})
}

// JoinNetwork records that a network is on a host.
func (c *Client) JoinNetwork(ctx context.Context, m record.Member) error {
	net, host := record.Network{ID: m.Network}.Key(), record.Host{ID: m.Host}.Key()
	keys := []string{net, host, m.Key()}
	return c.Change(ctx, "join network", keys, func(found etcd.Found) (d etcd.Decision, err error) {
		for _, k := range []string{net, host} {
			if !found[k].There {
				return d, fmt.Errorf("%s %w", k, ErrNotFound)
			}
		}
		if !found[m.Key()].There {
			d.Put = []record.Record{&m}
		}
		return d, nil
	})
}

// LeaveNetwork releases the addresses that a host has on a network, and then deletes its membership. In this order, a
// failed call can be repeated while the host is still a member.
func (c *Client) LeaveNetwork(ctx context.Context, m record.Member) error {
	all, err := c.List(ctx, record.AddrKind+"/"+m.Network+"/")
	if err != nil {
		return err
	}
	var own []netip.Addr
	for _, r := range all {
		if a, ok := r.(*record.Address); ok && a.Host == m.Host {
			own = append(own, a.Addr)
		}
	}
	if err := c.Release(ctx, m, own...); err != nil {
		return err
	}
	return c.deleteIf(ctx, "leave network", m.Key(), func(record.Record) bool { return true })
}
