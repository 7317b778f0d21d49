// Package attach attaches and detaches containers for CNI runtimes. Each of a container's interfaces has one endpoint,
// whose addresses are held while the container is stopped.
package attach

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strings"
	"time"

	"netyard/kernel/core"
	"netyard/kernel/sandbox"
	"netyard/modes"
	"netyard/store"
	"netyard/yard"
	"netyard/yard/book"
	"netyard/yard/enforce"
	"netyard/yard/event"
	"netyard/yard/lease"
	"netyard/yard/port"
	"netyard/yard/source"
)

// Attach makes an endpoint and moves its link into the sandbox. If the attachment exists already, Attach replaces it
// and keeps its addresses: a runtime that repeats the request has lost, or never got, the first answer. Dead endpoints
// that have what it asks for are removed.
func Attach(ctx context.Context, y *yard.Yard, r book.AttachRequest) (a book.Attached, err error) {
	err = y.RetryWithoutDead(ctx, func(j *book.LiveCheck) error {
		a, err = attachOnce(ctx, y, j, r)
		return err
	})
	return a, err
}

func attachOnce(
	ctx context.Context, y *yard.Yard, j *book.LiveCheck, r book.AttachRequest,
) (a book.Attached, err error) {
	start := y.Config.Now()
	ns, err := y.Config.Kernel.SandboxID(r.NS)
	if err != nil {
		return a, err
	}
	// A runtime attaches a container to all its networks at the same time; the ports are for one of them.
	releaseKey, err := y.Locks.Hold(ctx, book.ContainerLock(r.Attachment), false)
	if err != nil {
		return a, err
	}
	defer releaseKey()
	e := endpointOf(y, r, ns)
	if err := refuseSecond(y, r, e); err != nil {
		return a, err
	}
	got, err := source.Acquire(ctx, j, r, e.ID) // it may take seconds, so the network is not locked yet
	if err != nil {
		return a, err
	}
	t, err := hold(ctx, y, r, e.ID)
	if err == nil {
		defer t.Release()
		err = t.record(ctx, j, e, got)
	}
	got.Release(err == nil)
	if err != nil {
		return a, err
	}
	if a, err = t.finish(ctx); err != nil {
		return a, errors.Join(err, y.Remove(context.WithoutCancel(ctx), t.Held))
	}
	y.Config.Log.Info("endpoint attached", "network", t.Network.Name, "network_id", t.Network.ID,
		"endpoint", e.ID, "mode", t.Network.Mode, "container", e.Container.Name, "container_id", r.Attachment,
		"took", y.Config.Now().Sub(start))
	tellAttached(y, t.Network, t.Endpoint)
	pokeSharing(y, t.Held)
	y.Config.Changed()
	return a, nil
}

// refuseSecond refuses a second interface of a container on one network with guards: the answers of both addresses
// leave by the interface with the lower metric, and its port takes them only from one.
func refuseSecond(y *yard.Yard, r book.AttachRequest, e modes.Endpoint) error {
	own, err := y.Interfaces(r.Attachment)
	if err != nil {
		return err
	}
	for _, i := range own {
		if i.Network != r.Network.ID || i.IfName == r.IfName {
			continue
		}
		o, err := y.Endpoint(i.Network, i.Endpoint)
		if err != nil || o.Phase != modes.Ready || o.NS != e.NS || len(o.Addrs) == 0 ||
			y.GuardedMAC(r.Network, o) == nil || y.GuardedMAC(r.Network, e) == nil {
			continue // gone, of a sandbox before this one, or free to send from any address
		}
		return modes.Refuse("interface %s: container %s is on network %s already, by interface %s: what it sends "+
			"leaves by one of them, and antispoof drops answers from the other's address; use another network, "+
			"or set antispoof=false",
			r.IfName, cmp.Or(r.Container.Name, r.Attachment), book.Label(r.Network), i.IfName)
	}
	return nil
}

// endpointOf returns the endpoint of a request. ns is its sandbox.
func endpointOf(y *yard.Yard, r book.AttachRequest, ns core.NamespaceID) modes.Endpoint {
	seen, ok := y.Config.Kernel.NamespaceAt(r.Sandbox)
	return modes.Endpoint{
		ID: book.RandomID(), NetworkID: r.Network.ID, Attachment: r.Attachment, Config: r.Config, IfName: r.IfName,
		Sandbox: r.Sandbox, NS: ns, Into: r.NS, Seen: ok && seen == ns, BootID: y.Config.BootID,
		MAC: strings.ToLower(r.MAC), Options: r.Options, Container: r.Container, Aliases: r.Aliases,
	}
}

// An attaching is an attachment that is being made. Its Held is the new endpoint.
type attaching struct {
	*book.Held

	yard    *yard.Yard
	request book.AttachRequest
	// former is the endpoint that it replaces; nil: there is none.
	former *book.Held
	// reclaimed are the container's other endpoints whose ports it gets.
	reclaimed []*book.Held
}

// hold holds the new endpoint and those that change with it. The caller has the container's lock.
func hold(ctx context.Context, y *yard.Yard, r book.AttachRequest, id string) (*attaching, error) {
	own, err := y.Interfaces(r.Attachment)
	if err != nil {
		return nil, err
	}
	of := []book.Holder{{Network: r.Network.ID, Endpoint: id}}
	for _, i := range own {
		same := i.Network == r.Network.ID && i.IfName == r.IfName
		if same || len(r.Ports) > 0 && port.Reclaims(r.IfName, i.IfName) {
			of = append(of, i.Holder)
		}
	}
	all, err := y.HoldAll(ctx, of...)
	if err != nil {
		return nil, err
	}
	t := &attaching{Held: all[0], yard: y, request: r}
	if n := t.Network; n.Phase != modes.Ready || !n.Created.Equal(r.Network.Created) { // or was created anew
		t.Release()
		return nil, fmt.Errorf("network %s is being created or deleted", book.Label(n))
	}
	t.request.Network = t.Network
	for _, h := range all[1:] {
		switch e := h.Endpoint; {
		case e.ID == "":
		case e.NetworkID == r.Network.ID && e.IfName == r.IfName:
			t.former = h
		case len(e.Ports) > 0:
			t.reclaimed = append(t.reclaimed, h)
		}
	}
	return t, nil
}

// pokeSharing wakes the watcher of sandboxes, if it watches this endpoint's.
func pokeSharing(y *yard.Yard, h *book.Held) {
	if h.Traits().Sharing != nil || len(h.Endpoint.Kept) > 0 {
		y.Sharing.Wake()
	}
}

// tellAttached reports the events of a new attachment.
func tellAttached(y *yard.Yard, n modes.Network, e modes.Endpoint) {
	y.Tell(book.About(event.EndpointJoined, n, e, fmt.Sprintf("%s joined network %s", book.Owned(e), book.Label(n))))
	if len(e.Kept) > 0 {
		y.Tell(book.About(event.DeviceTaken, n, e, fmt.Sprintf("%s has device %s", book.Owned(e), e.Inside.Link)))
	}
	y.TellPorts(n, modes.Endpoint{}, e, nil)
}

// record records the endpoint with its addresses and ports, in place of a former one.
func (t *attaching) record(
	ctx context.Context, j *book.LiveCheck, e modes.Endpoint, got *source.Acquired,
) (err error) {
	y, r := t.yard, t.request
	if e.Kept, err = t.claimDevice(ctx, e); err != nil {
		return y.WithLinkHolders(t.With(e), err)
	}
	ports := &port.Choice{Y: y.Book, Reserver: r.Reserver, Judge: j}
	if err := ports.ReadHost(port.OnAddresses(t.Held, r.Ports)); err != nil {
		return err
	}
	err = t.Change("endpoint attaching", func(tx store.Tx, now *modes.Endpoint) error {
		*now = e
		had, err := t.inherit(tx)
		if err != nil {
			return err
		}
		if err := got.Keep(tx, had, now); err != nil {
			return err
		}
		if err := source.KeepMAC(y.Book, tx, t.Network, now); err != nil {
			return err
		}
		now.Phase, now.Created, now.Turned = modes.Pending, y.Config.Now(), y.Config.Now()
		key := book.AttachmentKey(r.Attachment, t.Network.ID, r.IfName)
		if err := book.Attachments.Put(tx, key, e.ID); err != nil {
			return err
		}
		return t.takePorts(tx, ports, now)
	})
	if err == nil && t.former != nil {
		t.former.Endpoint.Phase = modes.Deleting
	}
	return ports.Explain(err)
}

// takePorts gives the endpoint the ports that it publishes, and takes them from the container's other endpoints.
func (t *attaching) takePorts(tx store.Tx, ports *port.Choice, e *modes.Endpoint) error {
	wanted, h := t.request.Ports, t.With(*e)
	if len(wanted) == 0 {
		return nil
	}
	if t.Traits().Sharing != nil {
		port.Ignore(h, wanted)
		return nil
	}
	asks, own, err := port.ExpandAddresses(h, wanted)
	if err != nil {
		return err
	}
	if own, err = port.OwnPorts(tx, h, own); err != nil {
		return err
	}
	if err := port.Reclaim(tx, t.reclaimed); err != nil {
		return err
	}
	ports.E = *e
	if e.Ports, err = ports.Ports(tx, port.Unpublished(tx, *e, asks)); err != nil {
		return err
	}
	e.Ports = append(e.Ports, own...)
	return nil
}

// finish makes what was recorded true: what others lost to the endpoint is removed, and its link made and moved into
// the sandbox.
func (t *attaching) finish(ctx context.Context) (a book.Attached, err error) {
	for _, h := range t.reclaimed {
		if err := port.Withdraw(ctx, h, h.Endpoint); err != nil {
			return a, err
		}
	}
	if err := t.finishFormer(ctx); err != nil {
		return a, err
	}
	if a, err = t.plug(ctx); err != nil {
		return a, t.yard.WithLinkHolders(t.Held, err)
	}
	return a, nil
}

// plug makes the endpoint's link, moves it into the sandbox, and records the endpoint as ready.
func (t *attaching) plug(ctx context.Context) (a book.Attached, err error) {
	y := t.yard
	// Policies first, or there would be a moment without them.
	if err := enforce.Enforce(ctx, y.Book); err != nil {
		return a, err
	}
	n, e := t.Network, t.Endpoint
	link, err := y.Plan().Attach(ctx, t.Mode, n, e)
	if errors.Is(err, fs.ErrExist) && t.finishIn(ctx) {
		link, err = y.Plan().Attach(ctx, t.Mode, n, e)
	}
	if err != nil {
		return a, err
	}
	if err := lease.ApplyLease(y.Book, n, e, &link); err != nil {
		return a, err
	}
	y.Config.Step("after endpoint attached")
	p := insideOf(n, e, link, t.request)
	if p.Link != "" {
		if err := y.Config.Kernel.PlugIn(ctx, e.Into, p); err != nil {
			return a, err
		}
	}
	y.Config.Step("after endpoint plugged in")
	if err := ctx.Err(); err != nil {
		return a, fmt.Errorf("attach container %s: %w", e.Attachment, err)
	}
	e.Phase, e.Turned, e.Joined, e.Inside = modes.Ready, time.Time{}, y.Config.Now(), p
	if err := t.Attached(e); err != nil {
		return a, err
	}
	l, _, err := lease.Of(y.Book, e)
	return book.Attached{Network: n, Endpoint: e, HostEnd: y.HostEnd(n, e), Lease: l.Lease}, err
}

// finishFormer removes the endpoint that the new one replaces: now if it is in the same sandbox and so in the way, or
// else in the background.
func (t *attaching) finishFormer(ctx context.Context) error {
	if t.former == nil {
		return nil
	}
	old := t.former.Endpoint
	if old.NS == t.Endpoint.NS {
		return t.finishNow(ctx, t.former, t.Endpoint.Into)
	}
	err := port.Withdraw(ctx, t.former, old)
	t.former.Release()
	t.yard.FinishLater(old.NetworkID, old.ID) //nolint:contextcheck // the caller does not wait for it
	return err
}

// finishNow removes the link and the record of an endpoint that is Deleting. into is an open descriptor of the sandbox.
func (t *attaching) finishNow(ctx context.Context, old *book.Held, into int) error {
	defer old.Release()
	e := old.Endpoint
	if err := t.yard.Forget(ctx, old); err != nil {
		return err
	}
	return t.yard.Config.Kernel.Unplug(into, sandbox.Plug{Name: e.IfName, Alias: core.Alias(e.NetworkID, e.ID)})
}

// finishOther does the same for an endpoint that is not held yet. One that is no longer Deleting stays.
func (t *attaching) finishOther(ctx context.Context, old modes.Endpoint, into int) error {
	hold := t.yard.Hold
	if old.NetworkID == t.Network.ID {
		hold = func(ctx context.Context, _, id string) (*book.Held, error) { return t.HoldOther(ctx, id) }
	}
	h, err := hold(ctx, old.NetworkID, old.ID)
	if errors.Is(err, book.ErrNotFound) {
		inside := sandbox.Plug{Name: old.IfName, Alias: core.Alias(old.NetworkID, old.ID)}
		return t.yard.Config.Kernel.Unplug(into, inside)
	}
	if err != nil {
		return err
	}
	defer h.Release()
	if h.Endpoint.Phase != modes.Deleting {
		return nil
	}
	return t.finishNow(ctx, h, into)
}

// finishIn removes now the endpoints with the same interface name in the same sandbox that were to be removed in the
// background. done: it removed one.
func (t *attaching) finishIn(ctx context.Context) (done bool) {
	y := t.yard
	all, err := y.Endpoints()
	if err != nil {
		return false
	}
	e := t.Endpoint
	for _, old := range all {
		if old.Phase != modes.Deleting || old.NS != e.NS || old.IfName != e.IfName {
			continue
		}
		if err := t.finishOther(ctx, old, e.Into); err != nil {
			y.LogOf(old.NetworkID).Error("endpoint removal failed", "endpoint", old.ID, "err", err)
			continue
		}
		done = true
	}
	return done
}

// insideOf returns how a mode's link is configured inside the sandbox.
func insideOf(n modes.Network, e modes.Endpoint, link modes.Link, r book.AttachRequest) sandbox.Plug {
	p := sandbox.Plug{
		Link: link.SrcName, Name: e.IfName, Alias: core.Alias(n.ID, e.ID), MTU: link.MTU,
		Addrs: e.Addrs, Metric: book.Metric(e.IfName),
	}
	if !r.OwnRoutes {
		for _, r := range link.Routes {
			p.Routes = append(p.Routes, sandbox.Route(r))
		}
		for _, gw := range link.Gateways {
			p.Routes = append(p.Routes, sandbox.Route{Dst: netip.PrefixFrom(book.Unspecified(gw), 0), Via: gw})
		}
	}
	if r.Routes != nil {
		for _, route := range r.Routes(e.Addrs) {
			p.Routes = append(p.Routes, sandbox.Route(route))
		}
	}
	return p
}
