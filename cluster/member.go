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

// NewID is an id that nobody has.
func NewID() string {
	var b [idLen / 2]byte
	_, _ = rand.Read(b[:]) // it never fails
	return hex.EncodeToString(b[:])
}

// Enter finds the cluster in etcd, or founds it as want says. A host that belongs to one already gives its id in want,
// and gets that one or ErrOther: an etcd that lost its data must not make it drop what it has.
func (c *Client) Enter(ctx context.Context, want Meta) (Meta, error) {
	const act = "enter the cluster"
	key := c.prefix + metaKey
	fresh := Meta{Schema: Schema, Cluster: NewID(), Port: want.Port, IPv6: want.IPv6}
	value, err := Encode(&fresh)
	if err != nil {
		return Meta{}, fmt.Errorf("%s: %w", act, err)
	}
	found := clientv3.OpPut(key, value)
	if want.Cluster != "" {
		found = clientv3.OpGet(key)
	}
	var resp *clientv3.TxnResponse
	err = c.call(ctx, act, func(ctx context.Context, conn *clientv3.Client) error {
		resp, err = conn.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(key), "=", 0)).Then(found).Else(clientv3.OpGet(key)).Commit()
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
	if err := want.fits(*have); err != nil {
		return Meta{}, fmt.Errorf("%s: %w", act, err)
	}
	c.mu.Lock()
	c.meta = value
	c.mu.Unlock()
	return *have, nil
}

// fits says why a host cannot be in a cluster.
func (m Meta) fits(have Meta) error {
	switch {
	case have.Schema > Schema:
		return fmt.Errorf("its records are of schema %d, of a newer netyard; this one knows %d", have.Schema, Schema)
	case m.Cluster != "" && m.Cluster != have.Cluster:
		return fmt.Errorf("%w: this host belongs to %.8s, and etcd has %.8s", ErrOther, m.Cluster, have.Cluster)
	case m.Port != have.Port:
		return fmt.Errorf("the hosts take VXLAN at port %d, and this one would at %d", have.Port, m.Port)
	case m.IPv6 != have.IPv6:
		return fmt.Errorf("the hosts speak %s to each other, and this one would speak %s", familyName(have.IPv6), familyName(m.IPv6))
	}
	return nil
}

func familyName(v6 bool) string {
	if v6 {
		return "IPv6"
	}
	return "IPv4"
}

// claims are the names that a host has for itself.
func (h Host) claims() []*Claim {
	return []*Claim{{claimHostname, h.Name, h.ID}, {claimVTEP, formatAddr(h.VTEP), h.ID}}
}

// Join makes the host a member, or its record what it is now. Its name and its address are its own: somebody else's are
// refused.
func (c *Client) Join(ctx context.Context, h Host) error {
	own, tomb := h.Key(), Tomb{Host: h.ID}.Key()
	keys := []string{own, tomb}
	for _, cl := range h.claims() {
		keys = append(keys, cl.Key())
	}
	return c.change(ctx, "join as "+h.Name, keys, func(found map[string]held) (d decision, err error) {
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
				return d, fmt.Errorf("%s %s %w%s", what(cl.Kind), said(cl), ErrTaken, by(has))
			}
		}
		if old == nil {
			return d, nil
		}
		for _, cl := range old.claims() { // what it was known by
			if !slices.ContainsFunc(h.claims(), func(now *Claim) bool { return *now == *cl }) {
				d.delete = append(d.delete, cl.Key())
			}
		}
		return d, nil
	})
}

// what is a kind of claim for people.
func what(kind string) string {
	return map[string]string{claimHostname: "host name", claimVTEP: "address", claimNetname: "network name", claimVNI: "VNI"}[kind]
}

func said(c *Claim) string {
	if c.Kind == claimVTEP {
		return parseAddr(c.What).String()
	}
	return c.What
}

func by(c *Claim) string {
	if c == nil {
		return " by a record that cannot be read"
	}
	return " by " + c.ID[:12]
}

// Forget takes a host out: what it had is free, and it will not go on with it when it comes back. It can be said again,
// should it not have got to its end.
func (c *Client) Forget(ctx context.Context, host, by string) error {
	act := "forget host " + host[:min(len(host), 12)]
	own, tomb := Host{ID: host}.Key(), &Tomb{Host: host, By: by}
	err := c.change(ctx, act, []string{own, tomb.Key()}, func(found map[string]held) (d decision, err error) {
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
				if err := c.drop(ctx, act, cl.Key(), func(r Record) bool { now, ok := r.(*Claim); return ok && now.ID == host }); err != nil {
					return err
				}
			}
		}
	}
	return c.leaveAll(ctx, host)
}

// leaveAll gives up all that a host has on networks.
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

// drop deletes a key if what is under it is still meant.
func (c *Client) drop(ctx context.Context, act, key string, meant func(Record) bool) error {
	return c.change(ctx, act, []string{key}, func(found map[string]held) (d decision, err error) {
		if at := found[key]; at.there && meant(at.Record) {
			d.delete = []string{key}
		}
		return d, nil
	})
}

// Return lets a host that was taken out join again, without anything it had.
func (c *Client) Return(ctx context.Context, host string) error {
	return c.drop(ctx, "return to the cluster", Tomb{Host: host}.Key(), func(Record) bool { return true })
}

// CreateNetwork makes a network, with a number that nobody has. If the name is there already, that network is the
// answer, unless it differs from what is asked for: then the error names both. Without subnets it is only looked for.
func (c *Client) CreateNetwork(ctx context.Context, n Network) (Network, error) {
	if err := checkName("name", n.Name); err != nil {
		return n, fmt.Errorf("create network: %w", err)
	}
	there, err := c.FindNetwork(ctx, n.Name)
	if err == nil {
		return there, n.agrees(there)
	}
	if len(n.Subnets) == 0 || !isNotFound(err) {
		return n, err
	}
	act := "create network " + n.Name
	n.ID = NewID()
	for range races {
		n.VNI = randomVNI()
		name := &Claim{claimNetname, n.Name, n.ID}
		vni := &Claim{claimVNI, fmt.Sprintf("%06x", n.VNI), n.ID}
		taken, faster := false, false
		err := c.change(ctx, act, []string{name.Key(), vni.Key()}, func(found map[string]held) (d decision, err error) {
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
			return there, cmp.Or(err, n.agrees(there))
		case !taken:
			return n, nil
		}
	}
	return n, fmt.Errorf("%s: no free VNI in %d tries", act, races)
}

// randomVNI is one of those that networks get.
func randomVNI() uint32 {
	var b [4]byte
	_, _ = rand.Read(b[:]) // it never fails
	v := uint32(b[0])<<16 | uint32(b[1])<<8 | uint32(b[2])
	return MinVNI + v%(MaxVNI-MinVNI)
}

// agrees says how what is asked for differs from what is there.
func (n Network) agrees(there Network) error {
	if len(n.Subnets) > 0 && !slices.Equal(n.Subnets, there.Subnets) {
		return fmt.Errorf("network %s: it was to have %s, and the cluster's has %s", n.Name, subnetNames(n.Subnets), subnetNames(there.Subnets))
	}
	if n.MTU != 0 && n.MTU != there.MTU {
		return fmt.Errorf("network %s: it was to have MTU %d, and the cluster's has %d", n.Name, n.MTU, there.MTU)
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

// FindNetwork is the network of a name.
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
		return Network{}, fmt.Errorf("network %s %w: its record is damaged", name, ErrNotFound)
	}
	return *n, nil
}

// DeleteNetwork removes a network that is on no host any more.
func (c *Client) DeleteNetwork(ctx context.Context, n Network) error {
	name, vni := Claim{Kind: claimNetname, What: n.Name}.Key(), Claim{Kind: claimVNI, What: fmt.Sprintf("%06x", n.VNI)}.Key()
	return c.change(ctx, "delete network "+n.Name, []string{n.Key(), name, vni}, func(found map[string]held) (d decision, err error) {
		if !found[n.Key()].there {
			return d, nil
		}
		d.delete = []string{n.Key()}
		for _, k := range []string{name, vni} {
			if cl, ok := found[k].Record.(*Claim); ok && cl.ID == n.ID {
				d.delete = append(d.delete, k)
			}
		}
		d.deleteAll, d.empty = []string{addrKind + "/" + n.ID + "/"}, []string{memberKind + "/" + n.ID + "/"}
		return d, nil
	})
}

// JoinNetwork says that a network is on a host.
func (c *Client) JoinNetwork(ctx context.Context, m Member) error {
	net, host := Network{ID: m.Network}.Key(), Host{ID: m.Host}.Key()
	return c.change(ctx, "join network", []string{net, host, m.Key()}, func(found map[string]held) (d decision, err error) {
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

// LeaveNetwork gives up the addresses that a host has on a network, and says that it is not on it any more. In this
// order: who is still on it can leave again.
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
	return c.drop(ctx, "leave network", m.Key(), func(Record) bool { return true })
}
