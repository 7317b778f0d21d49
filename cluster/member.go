package cluster

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// NewID returns a new random ID.
func NewID() string {
	var b [idLen / 2]byte
	_, _ = rand.Read(b[:]) // it never fails
	return hex.EncodeToString(b[:])
}

// Enter finds the cluster in etcd, or creates it as want says. A host that belongs to a cluster already passes its ID
// in want, and gets that one or ErrOther: an etcd that lost its data must not make the host drop what it has.
func (c *Client) Enter(ctx context.Context, want Meta) (Meta, error) {
	const act = "enter the cluster"
	key := c.prefix + metaKey
	fresh := Meta{Schema: Schema, Cluster: NewID(), Port: want.Port, IPv6: want.IPv6}
	value, err := Encode(&fresh)
	if err != nil {
		return Meta{}, fmt.Errorf("%s: %w", act, err)
	}
	create := clientv3.OpPut(key, value)
	if want.Cluster != "" {
		create = clientv3.OpGet(key)
	}
	var resp *clientv3.TxnResponse
	err = c.call(ctx, act, func(ctx context.Context, conn *clientv3.Client) error {
		isFree := clientv3.Compare(clientv3.CreateRevision(key), "=", 0)
		resp, err = conn.Txn(ctx).If(isFree).Then(create).Else(clientv3.OpGet(key)).Commit()
		return err
	})
	if err != nil {
		return Meta{}, err
	}
	have := &fresh
	switch {
	case resp.Succeeded && want.Cluster != "":
		return Meta{}, fmt.Errorf("%s: %w: this host belongs to %.8s, and etcd has none", act, ErrOther, want.Cluster)
	case !resp.Succeeded:
		raw := resp.Responses[0].GetResponseRange().Kvs[0].Value
		r, err := Decode(metaKey, raw)
		if err != nil {
			return Meta{}, fmt.Errorf("%s: %w", act, err)
		}
		have, value = r.(*Meta), string(raw)
	}
	if err := want.compatible(*have); err != nil {
		return Meta{}, fmt.Errorf("%s: %w", act, err)
	}
	c.mu.Lock()
	c.meta = value
	c.mu.Unlock()
	return *have, nil
}

// compatible returns why a host that wants m cannot be in the cluster have.
func (m Meta) compatible(have Meta) error {
	switch {
	case have.Schema > Schema:
		return fmt.Errorf("its records have schema %d, and this netyard knows %d; upgrade it", have.Schema, Schema)
	case m.Cluster != "" && m.Cluster != have.Cluster:
		return fmt.Errorf("%w: this host belongs to %.8s, and etcd has %.8s", ErrOther, m.Cluster, have.Cluster)
	case m.Port != have.Port:
		return fmt.Errorf("the cluster uses VXLAN port %d, and this host %d", have.Port, m.Port)
	case m.IPv6 != have.IPv6:
		return fmt.Errorf("the cluster's hosts use %s, and this host %s", familyName(have.IPv6), familyName(m.IPv6))
	}
	return nil
}

func familyName(v6 bool) string {
	if v6 {
		return "IPv6"
	}
	return "IPv4"
}

// claims returns the claims to a host's name and VTEP.
func (h Host) claims() []*Claim {
	return []*Claim{{claimHostname, h.Name, h.ID}, {claimVTEP, formatAddr(h.VTEP), h.ID}}
}

// Join makes the host a member of the cluster, or updates its record. It fails if another host has the name or the
// address.
func (c *Client) Join(ctx context.Context, h Host) error {
	own, tomb := h.Key(), Tomb{Host: h.ID}.Key()
	keys := []string{own, tomb}
	for _, cl := range h.claims() {
		keys = append(keys, cl.Key())
	}
	return c.change(ctx, "join cluster as "+h.Name, keys, func(found map[string]entry) (d decision, err error) {
		if found[tomb].there {
			return d, ErrForgotten
		}
		old, _ := found[own].Record.(*Host)
		if old != nil && *old != h || old == nil {
			d.put = append(d.put, &h)
		}
		for _, cl := range h.claims() {
			at := found[cl.Key()]
			if !at.there {
				d.put = append(d.put, cl)
			} else if has, ok := at.Record.(*Claim); !ok || has.ID != h.ID {
				return d, fmt.Errorf("%s %s %w%s", claimLabel(cl.Kind), claimText(cl), ErrTaken, ownerText(has))
			}
		}
		if old == nil {
			return d, nil
		}
		for _, cl := range old.claims() { // its former name or address
			if !slices.ContainsFunc(h.claims(), func(now *Claim) bool { return *now == *cl }) {
				d.delete = append(d.delete, cl.Key())
			}
		}
		return d, nil
	})
}

// claimLabel names a kind of claim in errors.
func claimLabel(kind string) string {
	return map[string]string{
		claimHostname: "host name", claimVTEP: "address", claimNetname: "network name", claimVNI: "VNI",
	}[kind]
}

// claimText returns what is claimed, as errors print it.
func claimText(c *Claim) string {
	if c.Kind == claimVTEP {
		return parseAddr(c.What).String()
	}
	return c.What
}

// ownerText returns who has a claim, as the end of an error.
func ownerText(c *Claim) string {
	if c == nil {
		return " by an invalid record"
	}
	return " by " + c.ID[:12]
}

// Forget removes a host from the cluster: what it had becomes free, and its tombstone keeps it from using that when it
// comes back. After a failure it can be called again.
func (c *Client) Forget(ctx context.Context, host, by string) error {
	act := "forget host " + host[:min(len(host), 12)]
	own, tomb := Host{ID: host}.Key(), &Tomb{Host: host, By: by}
	err := c.change(ctx, act, []string{own, tomb.Key()}, func(found map[string]entry) (d decision, err error) {
		if !found[own].there && !found[tomb.Key()].there {
			return d, fmt.Errorf("host %s %w", host, ErrNotFound)
		}
		if !found[tomb.Key()].there {
			d.put = []Record{tomb}
		}
		if found[own].there {
			d.delete = []string{own, Alive{Host: host}.Key()}
		}
		return d, nil
	})
	if err != nil {
		return err
	}
	for _, kind := range []string{claimHostname, claimVTEP} {
		claims, err := c.List(ctx, kind+"/")
		if err != nil {
			return err
		}
		for _, r := range claims {
			if cl, ok := r.(*Claim); ok && cl.ID == host {
				owned := func(r Record) bool { now, ok := r.(*Claim); return ok && now.ID == host }
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
	members, err := c.List(ctx, memberKind+"/")
	if err != nil {
		return err
	}
	for _, r := range members {
		if m, ok := r.(*Member); ok && m.Host == host {
			if err := c.LeaveNetwork(ctx, *m); err != nil {
				return err
			}
		}
	}
	return nil
}

// deleteIf deletes a key if its record matches.
func (c *Client) deleteIf(ctx context.Context, act, key string, match func(Record) bool) error {
	return c.change(ctx, act, []string{key}, func(found map[string]entry) (d decision, err error) {
		if at := found[key]; at.there && match(at.Record) {
			d.delete = []string{key}
		}
		return d, nil
	})
}

// Readmit lets a host that was removed join again; what it had is not given back.
func (c *Client) Readmit(ctx context.Context, host string) error {
	return c.deleteIf(ctx, "rejoin cluster", Tomb{Host: host}.Key(), func(Record) bool { return true })
}

// CreateNetwork creates a network with a free VNI. If there is one with this name already, it returns that one, and an
// error that names both values if they differ. Without subnets it only looks for the network.
func (c *Client) CreateNetwork(ctx context.Context, n Network) (Network, error) {
	if err := checkName("name", n.Name); err != nil {
		return n, fmt.Errorf("create network: %w", err)
	}
	there, err := c.FindNetwork(ctx, n.Name)
	if err == nil {
		return there, n.matches(there)
	}
	if len(n.Subnets) == 0 || !isNotFound(err) {
		return n, err
	}
	act := "create network " + n.Name
	n.ID = NewID()
	for range maxAttempts {
		n.VNI = randomVNI()
		name := &Claim{claimNetname, n.Name, n.ID}
		vni := &Claim{claimVNI, fmt.Sprintf("%06x", n.VNI), n.ID}
		taken, faster := false, false
		keys := []string{name.Key(), vni.Key()}
		err := c.change(ctx, act, keys, func(found map[string]entry) (d decision, err error) {
			faster, taken = found[name.Key()].there, found[vni.Key()].there
			if taken || faster {
				return d, nil
			}
			d.put = []Record{&n, name, vni}
			for _, s := range n.Subnets {
				d.put = append(d.put, &Address{Network: n.ID, Addr: s.Gateway, Use: Gateway})
			}
			return d, nil
		})
		switch {
		case err != nil:
			return n, err
		case faster:
			there, err := c.FindNetwork(ctx, n.Name)
			return there, cmp.Or(err, n.matches(there))
		case !taken:
			return n, nil
		}
	}
	return n, fmt.Errorf("%s: no free VNI in %d attempts; try again", act, maxAttempts)
}

// randomVNI returns a random VNI from MinVNI on.
func randomVNI() uint32 {
	var b [4]byte
	_, _ = rand.Read(b[:]) // it never fails
	v := uint32(b[0])<<16 | uint32(b[1])<<8 | uint32(b[2])
	return MinVNI + v%(MaxVNI-MinVNI)
}

// matches returns how a requested network differs from the one that is there.
func (n Network) matches(there Network) error {
	if len(n.Subnets) > 0 && !slices.Equal(n.Subnets, there.Subnets) {
		return fmt.Errorf("network %s: subnets %s differ from the cluster's %s",
			n.Name, subnetNames(n.Subnets), subnetNames(there.Subnets))
	}
	if n.MTU != 0 && n.MTU != there.MTU {
		return fmt.Errorf("network %s: MTU %d differs from the cluster's %d", n.Name, n.MTU, there.MTU)
	}
	if n.Internal != there.Internal {
		return fmt.Errorf("network %s: internal is %t in the cluster", n.Name, there.Internal)
	}
	return nil
}

func subnetNames(subnets []Subnet) (text string) {
	for i, s := range subnets {
		if i > 0 {
			text += ", "
		}
		text += fmt.Sprintf("%s (gateway %s)", s.Pool, s.Gateway)
	}
	return text
}

// FindNetwork returns the network with a name.
func (c *Client) FindNetwork(ctx context.Context, name string) (Network, error) {
	act := "find network " + name
	claim := Claim{Kind: claimNetname, What: name}.Key()
	found, err := c.read(ctx, act, []string{claim})
	if err != nil {
		return Network{}, err
	}
	cl, ok := found[claim].Record.(*Claim)
	if !ok {
		return Network{}, fmt.Errorf("network %s %w", name, ErrNotFound)
	}
	key := Network{ID: cl.ID}.Key()
	if found, err = c.read(ctx, act, []string{key}); err != nil {
		return Network{}, err
	}
	n, ok := found[key].Record.(*Network)
	if !ok || n.Name != name {
		return Network{}, fmt.Errorf("network %s %w: its record is missing or invalid", name, ErrNotFound)
	}
	return *n, nil
}

// DeleteNetwork deletes a network that is on no host any more.
func (c *Client) DeleteNetwork(ctx context.Context, n Network) error {
	name := Claim{Kind: claimNetname, What: n.Name}.Key()
	vni := Claim{Kind: claimVNI, What: fmt.Sprintf("%06x", n.VNI)}.Key()
	keys := []string{n.Key(), name, vni}
	return c.change(ctx, "delete network "+n.Name, keys, func(found map[string]entry) (d decision, err error) {
		if !found[n.Key()].there {
			return d, nil
		}
		d.delete = []string{n.Key()}
		for _, k := range []string{name, vni} {
			if cl, ok := found[k].Record.(*Claim); ok && cl.ID == n.ID {
				d.delete = append(d.delete, k)
			}
		}
		d.deleteAll = []string{addrKind + "/" + n.ID + "/"}
		d.empty = []string{memberKind + "/" + n.ID + "/"}
		return d, nil
	})
}

// JoinNetwork records that a network is on a host.
func (c *Client) JoinNetwork(ctx context.Context, m Member) error {
	net, host := Network{ID: m.Network}.Key(), Host{ID: m.Host}.Key()
	keys := []string{net, host, m.Key()}
	return c.change(ctx, "join network", keys, func(found map[string]entry) (d decision, err error) {
		for _, k := range []string{net, host} {
			if !found[k].there {
				return d, fmt.Errorf("%s %w", k, ErrNotFound)
			}
		}
		if !found[m.Key()].there {
			d.put = []Record{&m}
		}
		return d, nil
	})
}

// LeaveNetwork releases the addresses that a host has on a network, and then deletes its membership. In this order, a
// failed call can be repeated while the host is still a member.
func (c *Client) LeaveNetwork(ctx context.Context, m Member) error {
	all, err := c.List(ctx, addrKind+"/"+m.Network+"/")
	if err != nil {
		return err
	}
	var own []netip.Addr
	for _, r := range all {
		if a, ok := r.(*Address); ok && a.Host == m.Host {
			own = append(own, a.Addr)
		}
	}
	if err := c.Release(ctx, m, own...); err != nil {
		return err
	}
	return c.deleteIf(ctx, "leave network", m.Key(), func(Record) bool { return true })
}
