package yard

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strings"
	"time"

	"netyard/ipam"
	"netyard/ipam/dhcp"
	"netyard/kernel"
	"netyard/modes"
	"netyard/store"
)

// An AttachRequest is what a CNI runtime wants for one interface of one container.
type AttachRequest struct {
	NetworkID string
	// Attachment is the container as the runtime calls it, and IfName the interface's name inside.
	Attachment, IfName string
	// Config is the name of the configuration that the runtime attaches it by.
	Config string
	// Sandbox is the path of the container's network namespace, as far as the runtime knows one, and NS an open
	// descriptor of it.
	Sandbox string
	NS      int
	// Pools are subnets of the network; one address is wanted from each group. Nil: one of each family the network has.
	Pools [][]netip.Prefix
	// Addrs are asked for by name; each stands for that of its group.
	Addrs   []netip.Addr
	MAC     string
	Options map[string]string // canonical names
	// Ports are published, but for those that another interface of the container has: a runtime asks for the same on
	// each.
	Ports []Ask
	// Reserver is a process that listens on the ports for the runtime, to keep others off them; 0: there is none.
	Reserver int
	// Container is who it is, as far as that is known.
	Container modes.Container
	Aliases   []string
	// Routes says what routes a container with these addresses has beside those of the network, or, with OwnRoutes,
	// instead of them.
	Routes    func(addrs []netip.Prefix) []modes.Route
	OwnRoutes bool
	// leased are addresses that a DHCP server gave for it, allotted those that are claimed in a cluster.
	leased   []netip.Prefix
	allotted allotment
}

// Attached is an endpoint as it was plugged in.
type Attached struct {
	Network  modes.Network
	Endpoint modes.Endpoint
	HostLink string // empty when the mode has none
	// Lease is what a DHCP server gave; the zero Lease where none did.
	Lease dhcp.Lease
}

// attachments finds the endpoint of a container's interface.
var attachments = store.Bucket[string]{Name: "attachments"}

// attachmentKey begins with the container: all that a container has is found together. No part of it can contain the
// separator.
func attachmentKey(attachment, network, ifName string) string {
	return attachment + "|" + network + "|" + ifName
}

// Attach makes an endpoint and plugs it into its sandbox. The same attachment again replaces the former one, and keeps
// its addresses: a runtime that asks again has forgotten, or never heard, the first answer. Dead endpoints that have
// what it asks for give way.
func (y *Yard) Attach(ctx context.Context, r AttachRequest) (a Attached, err error) {
	err = y.past(ctx, func(j *judge) error {
		a, err = y.attachOnce(ctx, j, r)
		return err
	})
	return a, err
}

func (y *Yard) attachOnce(ctx context.Context, j *judge, r AttachRequest) (a Attached, err error) {
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
	if r.leased, err = y.lease4(ctx, j, r); err != nil { // before the network is locked: it may take seconds
		return a, err
	}
	e := modes.Endpoint{
		ID: randomID(), NetworkID: r.NetworkID, Attachment: r.Attachment, Config: r.Config, IfName: r.IfName, Sandbox: r.Sandbox, NS: ns,
		MAC: strings.ToLower(r.MAC), Options: r.Options, Container: r.Container, Aliases: r.Aliases, BootID: y.c.BootID, Into: r.NS,
	}
	seen, ok := kernel.NamespaceAt(r.Sandbox)
	e.Seen = ok && seen == ns
	if r.allotted, err = y.grantAll(ctx, r, e.ID); err != nil { // it may take a while, too
		held := y.c.Store.View(func(tx store.Tx) error { return heldAllotment(tx, r, err) })
		return a, errors.Join(held, y.notAttached(r))
	}
	release, err := y.hold(ctx, e.NetworkID, e.ID)
	if err != nil {
		return a, errors.Join(err, y.notAttached(r))
	}
	defer release()
	if e.Kept, err = y.take(ctx, e); err != nil {
		return a, y.heldBeside(e, err)
	}
	m, n, e, former, robbed, err := y.recordAttachment(j, r, e)
	if err != nil {
		return a, errors.Join(err, y.notAttached(r))
	}
	if err := y.giveUp(n, r.allotted.spare...); err != nil {
		return a, errors.Join(err, y.bury(context.WithoutCancel(ctx), m, n, e))
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
		return a, errors.Join(y.heldBeside(e, err), y.bury(context.WithoutCancel(ctx), m, n, e))
	}
	y.c.Log.Info("endpoint attached", "network", n.ID, "endpoint", e.ID, "mode", n.Mode, "container", r.Attachment, "took", y.c.Now().Sub(start))
	y.tellAttached(n, a.Endpoint)
	y.pokeSharing(m, n, a.Endpoint)
	y.c.Changed()
	return a, nil
}

// pokeSharing has the sandboxes looked at anew, if this one is among those that are.
func (y *Yard) pokeSharing(m modes.Mode, n modes.Network, e modes.Endpoint) {
	if _, shares := sharesHost(m, n); shares || len(e.Kept) > 0 {
		y.sharing.poke()
	}
}

func (y *Yard) tellAttached(n modes.Network, e modes.Endpoint) {
	y.tell(about(EndpointJoined, n, e, fmt.Sprintf("%s joined network %s", owned(e), label(n))))
	if len(e.Kept) > 0 {
		y.tell(about(DeviceTaken, n, e, fmt.Sprintf("%s has device %s", owned(e), e.Inside.Link)))
	}
	y.tellPorts(n, modes.Endpoint{}, e, nil)
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

// recordAttachment records the endpoint with its addresses and ports, in place of a former one. robbed are the
// container's other endpoints, as they were when they had the ports.
func (y *Yard) recordAttachment(j *judge, r AttachRequest, e modes.Endpoint) (
	m modes.Mode, n modes.Network, _ modes.Endpoint, former string, robbed []modes.Endpoint, err error,
) {
	ports := &choice{y: y, e: e, reserver: r.Reserver, judge: j}
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
			if !errors.Is(err, ipam.ErrTaken) && !errors.Is(err, ipam.ErrExhausted) {
				return err
			}
			return heldAllotment(tx, r, err)
		}
		if e, err = y.takeLease(tx, n, e); err != nil {
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
		if _, shares := sharesHost(m, n); shares {
			y.ignore(n, e, r.Ports)
			return nil
		}
		asks, own, err := widen(m, n, e, r.Ports)
		if err != nil {
			return err
		}
		if own, err = firstOf(tx, m, n, e, own); err != nil {
			return err
		}
		if robbed, err = rob(tx, e); err != nil {
			return err
		}
		if e.Ports, err = ports.ports(tx, unpublished(tx, e, asks)); err != nil {
			return err
		}
		e.Ports = append(e.Ports, own...)
		return putEndpoint(tx, e)
	})
	return m, n, e, former, robbed, ports.explain(err)
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
	if err := y.dress(n, e, &link); err != nil {
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
	if err := y.attached(e); err != nil {
		return a, err
	}
	l, _, err := y.leaseOf(e)
	return Attached{Network: n, Endpoint: e, HostLink: y.HostLink(n, e), Lease: l.Lease}, err
}

// finishFormer takes the link of the attachment away whose place a new one takes: now, if it is in the way, in the same
// sandbox.
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

// finishNow is finish for who holds the network's lock already, and cannot wait for it a second time: somebody who
// wants it alone may be waiting in between. into is an open descriptor of the sandbox.
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

// finishIn takes away now what was to go from the endpoint's place in its sandbox in the background; done says that
// there was such.
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
		for _, r := range link.Routes {
			p.Routes = append(p.Routes, kernel.Route(r))
		}
		for _, gw := range link.Gateways {
			p.Routes = append(p.Routes, kernel.Route{Dst: netip.PrefixFrom(unspecified(gw), 0), Via: gw})
		}
	}
	if r.Routes != nil {
		for _, route := range r.Routes(e.Addrs) {
			p.Routes = append(p.Routes, kernel.Route(route))
		}
	}
	return p
}

func unspecified(like netip.Addr) netip.Addr {
	if like.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// metric is the number at the end of an interface's name: of several networks with a default route eth0's is the one,
// in whatever order they were attached. Runtimes attach the networks of a container at the same time.
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
