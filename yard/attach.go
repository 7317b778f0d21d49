package yard

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"
	"time"

	"netyard/ipam"
	"netyard/kernel"
	"netyard/modes"
	"netyard/store"
)

// An AttachRequest is what a CNI runtime wants for one interface of one container.
type AttachRequest struct {
	NetworkID string
	// Attachment is the container as the runtime calls it, and IfName the interface's name inside.
	Attachment, IfName string
	// Sandbox is the path of the container's network namespace, as far as the runtime knows one, and NS an open descriptor of it.
	Sandbox string
	NS      int
	// Pools are subnets of the network; one address is wanted from each group. Nil: one of each family the network has.
	Pools [][]netip.Prefix
	// Addrs are asked for by name; each stands for that of its group.
	Addrs   []netip.Addr
	MAC     string
	Options map[string]string // canonical names
	// Ports are published, but for those that another interface of the container has: a runtime asks for the same on each.
	Ports []Ask
	// Reserver is a process that listens on the ports for the runtime, to keep others off them; 0: there is none.
	Reserver int
	// Container is who it is, as far as that is known.
	Container modes.Container
	Aliases   []string
	// Routes says what routes a container with these addresses has beside those of the network, or, with OwnRoutes, instead of them.
	Routes    func(addrs []netip.Prefix) []modes.Route
	OwnRoutes bool
}

// Attached is an endpoint as it was plugged in.
type Attached struct {
	Network  modes.Network
	Endpoint modes.Endpoint
	HostLink string // empty when the mode has none
}

// attachments finds the endpoint of a container's interface.
var attachments = store.Bucket[string]{Name: "attachments"}

// attachmentKey begins with the container: all that a container has is found together. No part of it can contain the separator.
func attachmentKey(attachment, network, ifName string) string {
	return attachment + "|" + network + "|" + ifName
}

// Attach makes an endpoint and plugs it into its sandbox. The same attachment again replaces the former one, and keeps its addresses:
// a runtime that asks again has forgotten, or never heard, the first answer.
func (y *Yard) Attach(ctx context.Context, r AttachRequest) (a Attached, err error) {
	start := y.c.Now()
	ns, err := y.c.Kernel.SandboxID(r.NS)
	if err != nil {
		return a, err
	}
	// A runtime attaches the networks of a container all at once; their ports are for one of them.
	releaseKey, err := y.locks.hold(ctx, containerLock(r.Attachment), false)
	if err != nil {
		return a, err
	}
	defer releaseKey()
	e := modes.Endpoint{
		ID: randomID(), NetworkID: r.NetworkID, Attachment: r.Attachment, IfName: r.IfName, Sandbox: r.Sandbox, NS: ns,
		MAC: strings.ToLower(r.MAC), Options: r.Options, Container: r.Container, Aliases: r.Aliases, BootID: y.c.BootID, Into: r.NS,
	}
	seen, ok := kernel.NamespaceAt(r.Sandbox)
	e.Seen = ok && seen == ns
	release, err := y.hold(ctx, e.NetworkID, e.ID)
	if err != nil {
		return a, err
	}
	defer release()
	m, n, e, former, robbed, err := y.recordAttachment(r, e)
	if err != nil {
		return a, err
	}
	for _, was := range robbed {
		if err := y.withdraw(ctx, was); err != nil {
			return a, errors.Join(err, y.bury(context.WithoutCancel(ctx), m, n, e))
		}
	}
	if err := y.finishFormer(ctx, former, e); err != nil {
		return a, errors.Join(err, y.bury(context.WithoutCancel(ctx), m, n, e))
	}
	if a, err = y.plug(ctx, m, n, e, r); err != nil {
		return a, errors.Join(err, y.bury(context.WithoutCancel(ctx), m, n, e))
	}
	y.c.Log.Info("endpoint attached", "network", n.ID, "endpoint", e.ID, "mode", n.Mode, "container", r.Attachment, "took", y.c.Now().Sub(start))
	y.c.Changed()
	return a, nil
}

// containerLock is of all attachments of a container.
func containerLock(attachment string) string { return "container " + attachment }

func randomID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

// attachment finds the endpoint of a container's interface.
func (y *Yard) attachment(attachment, network, ifName string) (e modes.Endpoint, err error) {
	err = y.c.Store.View(func(tx store.Tx) error {
		e, err = getAttachment(tx, attachment, network, ifName)
		return err
	})
	return e, err
}

func getAttachment(tx store.Tx, attachment, network, ifName string) (modes.Endpoint, error) {
	id, err := attachments.Get(tx, attachmentKey(attachment, network, ifName))
	if errors.Is(err, store.ErrNotFound) {
		return modes.Endpoint{}, fmt.Errorf("attachment %s of container %s: %w", ifName, attachment, ErrNotFound)
	}
	if err != nil {
		return modes.Endpoint{}, err
	}
	return getEndpoint(tx, network, id)
}

// recordAttachment records the endpoint with its addresses and ports, in place of a former one. robbed are the container's other
// endpoints, as they were when they had the ports.
func (y *Yard) recordAttachment(r AttachRequest, e modes.Endpoint) (
	m modes.Mode, n modes.Network, _ modes.Endpoint, former string, robbed []modes.Endpoint, err error,
) {
	ports := &choice{y: y, e: e, reserver: r.Reserver}
	if err := ports.look(y.onAddresses(r)); err != nil {
		return nil, n, e, "", nil, err
	}
	err = y.update("endpoint attaching", func(tx store.Tx) error {
		if n, err = getNetwork(tx, r.NetworkID); err != nil {
			return err
		}
		if n.Phase != modes.Ready {
			return fmt.Errorf("network %s is being created or deleted", label(n))
		}
		if m, err = y.mode(n.Mode); err != nil {
			return err
		}
		kept, old, err := y.inherit(tx, r)
		if err != nil {
			return err
		}
		former = old
		if e.Addrs, err = y.allot(tx, n, r, kept); err != nil {
			return err
		}
		if macer, ok := m.(modes.MACer); ok && e.MAC == "" {
			e.MAC = macer.MAC(n, e)
		}
		e.Phase, e.Created, e.Turned = modes.Pending, y.c.Now(), y.c.Now()
		if err := attachments.Put(tx, attachmentKey(r.Attachment, r.NetworkID, r.IfName), e.ID); err != nil {
			return err
		}
		if err := putEndpoint(tx, e); err != nil || len(r.Ports) == 0 {
			return err
		}
		asks, err := widen(m, n, e, r.Ports)
		if err != nil {
			return err
		}
		if robbed, err = rob(tx, e); err != nil {
			return err
		}
		if e.Ports, err = ports.ports(tx, unpublished(tx, e, asks)); err != nil {
			return err
		}
		return putEndpoint(tx, e)
	})
	return m, n, e, former, robbed, ports.explain(err)
}

// rob takes the ports of the container's interfaces behind this one: answers leave by the default route, which is the lowest one's, and
// from another network's address they would be taken for spoofed.
func rob(tx store.Tx, e modes.Endpoint) (robbed []modes.Endpoint, err error) {
	others, err := attachmentsOf(tx, e.Attachment)
	if err != nil {
		return nil, err
	}
	for _, other := range others {
		if other.ID == e.ID || len(other.Ports) == 0 || metric(other.IfName) <= metric(e.IfName) {
			continue
		}
		robbed = append(robbed, other)
		other.Ports = nil
		if err := putEndpoint(tx, other); err != nil {
			return nil, err
		}
	}
	return robbed, nil
}

// onAddresses are the ports with the host's addresses that they will be on: of a port that names none, those of its network.
func (y *Yard) onAddresses(r AttachRequest) (asks []Ask) {
	binds := []netip.Addr{netip.IPv4Unspecified()}
	if n, err := y.Network(r.NetworkID); err == nil {
		if p, ok := y.c.Modes[n.Mode].(modes.Publisher); ok {
			binds = append(binds, p.Binds(n)...)
		}
	}
	for _, a := range r.Ports {
		if a.HostIP.IsValid() {
			asks = append(asks, a)
			continue
		}
		for _, bind := range binds {
			a.HostIP = bind
			asks = append(asks, a)
		}
	}
	return asks
}

// unpublished are the ports that no other interface of the same container has already.
func unpublished(tx store.Tx, e modes.Endpoint, asks []Ask) []Ask {
	has := func(a Ask) bool {
		for _, key := range portClaims.Keys(tx, a.Proto+"/") {
			r, ok := parseClaim(key)
			if !ok || a.HostPort < r.first || a.HostPort > r.last || !sameAddr(r.addr, a.HostIP) {
				continue
			}
			c, err := portClaims.Get(tx, key)
			if err != nil {
				continue
			}
			if by, err := getEndpoint(tx, c.Network, c.Endpoint); err == nil && by.Attachment == e.Attachment && by.ID != e.ID {
				return true
			}
		}
		return false
	}
	return slices.DeleteFunc(asks, has)
}

// inherit returns the addresses that the attachment had, and the endpoint that had them, which is to go.
func (y *Yard) inherit(tx store.Tx, r AttachRequest) (kept []netip.Addr, former string, err error) {
	addrs := func(ps []netip.Prefix) {
		for _, p := range ps {
			kept = append(kept, p.Addr())
		}
	}
	h, found, err := takeHold(tx, r.Attachment, r.NetworkID, r.IfName)
	if err != nil {
		return nil, "", err
	}
	if found {
		addrs(h.Addrs)
	}
	old, err := getAttachment(tx, r.Attachment, r.NetworkID, r.IfName)
	if errors.Is(err, ErrNotFound) {
		return kept, "", nil
	}
	if err != nil {
		return nil, "", err
	}
	addrs(old.Addrs)
	old.Phase, old.Turned = modes.Deleting, y.c.Now()
	return kept, old.ID, putEndpoint(tx, old)
}

// allot chooses the addresses of an attachment: one of each group, the one that was asked for, the one it had, or the next free one.
func (y *Yard) allot(tx store.Tx, n modes.Network, r AttachRequest, kept []netip.Addr) (addrs []netip.Prefix, err error) {
	groups := r.Pools
	if groups == nil {
		groups = families(n)
	}
	if err := ownPools(n); err != nil {
		return nil, err
	}
	for _, group := range groups {
		a, err := y.allotOne(tx, n, r, group, kept)
		if err != nil {
			return nil, err
		}
		addrs = append(addrs, a)
	}
	for _, a := range r.Addrs {
		if !slices.ContainsFunc(addrs, func(p netip.Prefix) bool { return p.Addr() == a }) {
			return nil, fmt.Errorf("address %s: network %s has no subnet for it", a, label(n))
		}
	}
	for _, a := range kept {
		if !slices.ContainsFunc(addrs, func(p netip.Prefix) bool { return p.Addr() == a }) {
			if err := y.releaseLease(tx, n, a, true); err != nil {
				return nil, err
			}
		}
	}
	return addrs, nil
}

// families are the subnets of a network, those of IPv4 and those of IPv6: a container gets an address of each.
func families(n modes.Network) (groups [][]netip.Prefix) {
	for _, v4 := range []bool{true, false} {
		var group []netip.Prefix
		for _, s := range n.Subnets {
			if s.Pool.Addr().Is4() == v4 {
				group = append(group, s.Pool)
			}
		}
		if group != nil {
			groups = append(groups, group)
		}
	}
	return groups
}

// ownPools refuses a network whose addresses another IPAM hands out: nobody could tell it of those that are given here.
func ownPools(n modes.Network) error {
	for _, s := range n.Subnets {
		if s.Space != Space {
			return fmt.Errorf("network %s: the addresses of %s are given by %s's own IPAM; only a network that was created with --ipam-driver netyard can be shared",
				label(n), s.Pool, n.Engine)
		}
	}
	return nil
}

// Shareable says why containers cannot be attached to a network by CNI; nil when they can.
func Shareable(n modes.Network) error { return ownPools(n) }

func (y *Yard) allotOne(tx store.Tx, n modes.Network, r AttachRequest, group []netip.Prefix, kept []netip.Addr) (a netip.Prefix, err error) {
	name := r.Container.Name
	if name == "" {
		name = r.Attachment
	}
	in := func(addrs []netip.Addr) (netip.Addr, netip.Prefix, bool) {
		for _, a := range addrs {
			for _, p := range group {
				if p.Contains(a) {
					return a, p, true
				}
			}
		}
		return netip.Addr{}, netip.Prefix{}, false
	}
	had, of, again := in(kept)
	if asked, p, ok := in(r.Addrs); ok && (!again || asked != had) {
		pool, err := y.c.IPAM.PoolOf(tx, p, n.ID)
		if err != nil {
			return a, err
		}
		return y.c.IPAM.RequestAddress(tx, ipam.AddressRequest{Pool: pool.ID, Addr: asked, Name: name})
	}
	if again {
		return netip.PrefixFrom(had, of.Bits()), nil
	}
	err = ipam.ErrExhausted
	for _, p := range group {
		pool, poolErr := y.c.IPAM.PoolOf(tx, p, n.ID)
		if poolErr != nil {
			return a, poolErr
		}
		if a, err = y.c.IPAM.RequestAddress(tx, ipam.AddressRequest{Pool: pool.ID, Name: name}); !errors.Is(err, ipam.ErrExhausted) {
			break
		}
	}
	return a, err
}

// plug makes the endpoint's link, plugs it in, and records that it is so.
func (y *Yard) plug(ctx context.Context, m modes.Mode, n modes.Network, e modes.Endpoint, r AttachRequest) (a Attached, err error) {
	if err := y.enforce(ctx); err != nil { // first, or there would be a moment in which no policy is about it
		return a, err
	}
	link, err := m.Attach(ctx, n, e)
	if errors.Is(err, fs.ErrExist) && y.finishIn(ctx, e) {
		link, err = m.Attach(ctx, n, e)
	}
	if err != nil {
		return a, err
	}
	y.c.Step("after endpoint attached")
	p := insideOf(n, e, link, r)
	if p.Link != "" {
		if err := y.c.Kernel.PlugIn(ctx, r.NS, p); err != nil {
			return a, err
		}
	}
	y.c.Step("after endpoint plugged in")
	if err := ctx.Err(); err != nil {
		return a, fmt.Errorf("attach container %s: %w", r.Attachment, err)
	}
	e.Phase, e.Turned, e.Joined, e.Inside = modes.Ready, time.Time{}, y.c.Now(), p
	err = y.update("endpoint ready", func(tx store.Tx) error { return putEndpoint(tx, e) })
	return Attached{Network: n, Endpoint: e, HostLink: y.HostLink(n, e)}, err
}

// finishFormer takes the link of the attachment away whose place a new one takes: now, if it is in the way, in the same sandbox.
func (y *Yard) finishFormer(ctx context.Context, former string, e modes.Endpoint) error {
	if former == "" {
		return nil
	}
	old, err := y.Endpoint(e.NetworkID, former)
	if err != nil {
		return err
	}
	if old.NS != e.NS {
		y.finishLater(e.NetworkID, former) //nolint:contextcheck // the caller does not wait for it
		return y.withdraw(ctx, old)
	}
	return y.finishNow(ctx, old, e.NetworkID, e.Into)
}

// finishNow is finish for who holds the network's lock already, and cannot wait for it a second time: somebody who wants it alone may
// be waiting in between. into is an open descriptor of the sandbox.
func (y *Yard) finishNow(ctx context.Context, old modes.Endpoint, held string, into int) error {
	hold := y.hold
	if old.NetworkID == held {
		hold = func(ctx context.Context, network, id string) (func(), error) {
			return y.locks.hold(ctx, endpointKey(network, id), false)
		}
	}
	release, err := hold(ctx, old.NetworkID, old.ID)
	if err != nil {
		return err
	}
	defer release()
	if err := y.finishHeld(ctx, old.NetworkID, old.ID); err != nil {
		return err
	}
	return y.c.Kernel.Unplug(into, kernel.Plug{Name: old.IfName, Alias: kernel.Alias(old.NetworkID, old.ID)})
}

// finishIn takes away now what was to go from the endpoint's place in its sandbox in the background; done says that there was such.
func (y *Yard) finishIn(ctx context.Context, e modes.Endpoint) (done bool) {
	all, err := y.Endpoints()
	if err != nil {
		return false
	}
	for _, old := range all {
		if old.Phase != modes.Deleting || old.NS != e.NS || old.IfName != e.IfName {
			continue
		}
		if err := y.finishNow(ctx, old, e.NetworkID, e.Into); err != nil {
			y.c.Log.Error("take an endpoint's link away", "network", old.NetworkID, "endpoint", old.ID, "err", err)
			continue
		}
		done = true
	}
	return done
}

// insideOf is what a mode's link has to become inside.
func insideOf(n modes.Network, e modes.Endpoint, link modes.Link, r AttachRequest) kernel.Plug {
	p := kernel.Plug{
		Link: link.SrcName, Name: e.IfName, Alias: kernel.Alias(n.ID, e.ID), MTU: link.MTU, Addrs: e.Addrs, Metric: metric(e.IfName),
	}
	if !r.OwnRoutes {
		p.Routes = append(p.Routes, link.Routes...)
		for _, gw := range link.Gateways {
			p.Routes = append(p.Routes, modes.Route{Dst: netip.PrefixFrom(unspecified(gw), 0), Via: gw})
		}
	}
	if r.Routes != nil {
		p.Routes = append(p.Routes, r.Routes(e.Addrs)...)
	}
	return p
}

func unspecified(like netip.Addr) netip.Addr {
	if like.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// metric is the number at the end of an interface's name: of several networks with a default route eth0's is the one, in whatever order
// they were attached. Runtimes attach the networks of a container at the same time.
func metric(ifName string) int {
	const most = 10000
	n := 0
	for _, c := range strings.TrimLeft(ifName, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_.-") {
		if c < '0' || c > '9' || n > most {
			return most
		}
		n = n*10 + int(c-'0')
	}
	return n
}

// errTried undoes what was only tried.
var errTried = errors.New("only tried")

// Room says why a network could not give the next container its addresses; nil when it could.
func (y *Yard) Room(network string) error {
	n, err := y.Network(network)
	if err != nil {
		return err
	}
	if n.Phase != modes.Ready {
		return fmt.Errorf("network %s is being created or deleted", label(n))
	}
	err = y.c.Store.Update(func(tx store.Tx) error {
		if _, err := y.allot(tx, n, AttachRequest{NetworkID: n.ID, Attachment: "-"}, nil); err != nil {
			return err
		}
		return errTried
	})
	if errors.Is(err, errTried) {
		return nil
	}
	return err
}
