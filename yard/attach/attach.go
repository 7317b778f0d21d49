// Package attach attaches and detaches containers for CNI runtimes. Each of a container's interfaces has one endpoint,
// whose addresses are held while the container is stopped.
package attach

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strings"
	"time"

	"netyard/ipam"
	"netyard/kernel/core"
	"netyard/kernel/sandbox"
	"netyard/modes"
	"netyard/store"
	"netyard/yard"
	"netyard/yard/book"
	"netyard/yard/enforce"
	"netyard/yard/event"
	"netyard/yard/lease"
	"netyard/yard/overlay"
	"netyard/yard/port"
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
	// A lease may take seconds: get it before the network is locked.
	if r.Leased, err = lease.RequestLeases(ctx, y.Book, j, r); err != nil {
		return a, err
	}
	e := modes.Endpoint{
		ID: book.RandomID(), NetworkID: r.NetworkID, Attachment: r.Attachment, Config: r.Config, IfName: r.IfName,
		Sandbox: r.Sandbox, NS: ns, Into: r.NS, BootID: y.Config.BootID,
		MAC: strings.ToLower(r.MAC), Options: r.Options, Container: r.Container, Aliases: r.Aliases,
	}
	seen, ok := y.Config.Kernel.NamespaceAt(r.Sandbox)
	e.Seen = ok && seen == ns
	if r.Allotted, err = overlay.GrantAll(ctx, y.Book, r, e.ID); err != nil { // may take long, too
		held := y.Config.Store.View(func(tx store.Tx) error { return withHolders(tx, r, err) })
		return a, errors.Join(held, lease.ReleaseUnattached(y.Book, r))
	}
	release, err := y.Hold(ctx, e.NetworkID, e.ID)
	if err != nil {
		return a, errors.Join(err, lease.ReleaseUnattached(y.Book, r))
	}
	defer release()
	if e.Kept, err = claimDevice(ctx, y, e); err != nil {
		return a, y.WithLinkHolders(e, err)
	}
	m, n, e, former, withdrawn, err := recordAttachment(y, j, r, e)
	if err != nil {
		return a, errors.Join(err, lease.ReleaseUnattached(y.Book, r))
	}
	if err := overlay.ReleaseUnused(y.Book, n, r.Allotted.Spare...); err != nil {
		return a, errors.Join(err, y.RemoveLocked(context.WithoutCancel(ctx), m, n, e))
	}
	for _, was := range withdrawn {
		if err := port.Withdraw(ctx, y.Book, was); err != nil {
			return a, errors.Join(err, y.RemoveLocked(context.WithoutCancel(ctx), m, n, e))
		}
	}
	if err := finishFormer(ctx, y, former, e); err != nil {
		return a, errors.Join(err, y.RemoveLocked(context.WithoutCancel(ctx), m, n, e))
	}
	if a, err = plug(ctx, y, m, n, e, r); err != nil {
		return a, errors.Join(y.WithLinkHolders(e, err), y.RemoveLocked(context.WithoutCancel(ctx), m, n, e))
	}
	y.Config.Log.Info("endpoint attached",
		"network", n.ID, "endpoint", e.ID, "mode", n.Mode, "container", r.Attachment, "took", y.Config.Now().Sub(start))
	tellAttached(y, n, a.Endpoint)
	pokeSharing(y, m, n, a.Endpoint)
	y.Config.Changed()
	return a, nil
}

// pokeSharing wakes the watcher of sandboxes, if it watches this endpoint's.
func pokeSharing(y *yard.Yard, m modes.Mode, n modes.Network, e modes.Endpoint) {
	if m.Traits(n).Sharing != nil || len(e.Kept) > 0 {
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

// recordAttachment records the endpoint with its addresses and ports, in place of a former one. It returns the
// container's other endpoints whose ports it took over as withdrawn, as they were when they had them.
func recordAttachment(y *yard.Yard, j *book.LiveCheck, r book.AttachRequest, e modes.Endpoint) (
	m modes.Mode, n modes.Network, _ modes.Endpoint, former string, withdrawn []modes.Endpoint, err error,
) {
	ports := &port.Choice{Y: y.Book, E: e, Reserver: r.Reserver, Judge: j}
	if err := ports.ReadHost(port.OnAddresses(y.Book, r)); err != nil {
		return nil, n, e, "", nil, err
	}
	err = y.Update("endpoint attaching", func(tx store.Tx) error {
		if n, err = book.GetNetwork(tx, r.NetworkID); err != nil {
			return err
		}
		if n.Phase != modes.Ready {
			return fmt.Errorf("network %s is being created or deleted", book.Label(n))
		}
		if m, err = y.Mode(n.Mode); err != nil {
			return err
		}
		kept, old, err := inherit(y, tx, r)
		if err != nil {
			return err
		}
		former = old
		if e.Addrs, err = allot(y, tx, n, r, kept); err != nil {
			if !errors.Is(err, ipam.ErrTaken) && !errors.Is(err, ipam.ErrExhausted) {
				return err
			}
			return withHolders(tx, r, err)
		}
		if e, err = lease.AssignLease(tx, n, e); err != nil {
			return err
		}
		traits := m.Traits(n)
		if e.MAC == "" {
			e.MAC = traits.MAC.Default(e)
		}
		e.Phase, e.Created, e.Turned = modes.Pending, y.Config.Now(), y.Config.Now()
		if err := book.Attachments.Put(tx, book.AttachmentKey(r.Attachment, r.NetworkID, r.IfName), e.ID); err != nil {
			return err
		}
		if err := book.PutEndpoint(tx, e); err != nil || len(r.Ports) == 0 {
			return err
		}
		if traits.Sharing != nil {
			port.Ignore(y.Book, n, e, r.Ports)
			return nil
		}
		asks, own, err := port.ExpandAddresses(m, n, e, r.Ports)
		if err != nil {
			return err
		}
		if own, err = port.OwnPorts(tx, m, n, e, own); err != nil {
			return err
		}
		if withdrawn, err = port.ReclaimPorts(tx, e); err != nil {
			return err
		}
		if e.Ports, err = ports.Ports(tx, port.Unpublished(tx, e, asks)); err != nil {
			return err
		}
		e.Ports = append(e.Ports, own...)
		return book.PutEndpoint(tx, e)
	})
	return m, n, e, former, withdrawn, ports.Explain(err)
}

// plug makes the endpoint's link, moves it into the sandbox, and records the endpoint as ready.
func plug(
	ctx context.Context, y *yard.Yard, m modes.Mode, n modes.Network, e modes.Endpoint, r book.AttachRequest,
) (a book.Attached, err error) {
	// Policies first, or there would be a moment without them.
	if err := enforce.Enforce(ctx, y.Book); err != nil {
		return a, err
	}
	link, err := y.Plan().Attach(ctx, m, n, e)
	if errors.Is(err, fs.ErrExist) && finishIn(ctx, y, e) {
		link, err = y.Plan().Attach(ctx, m, n, e)
	}
	if err != nil {
		return a, err
	}
	if err := lease.ApplyLease(y.Book, n, e, &link); err != nil {
		return a, err
	}
	y.Config.Step("after endpoint attached")
	p := insideOf(n, e, link, r)
	if p.Link != "" {
		if err := y.Config.Kernel.PlugIn(ctx, r.NS, p); err != nil {
			return a, err
		}
	}
	y.Config.Step("after endpoint plugged in")
	if err := ctx.Err(); err != nil {
		return a, fmt.Errorf("attach container %s: %w", r.Attachment, err)
	}
	e.Phase, e.Turned, e.Joined, e.Inside = modes.Ready, time.Time{}, y.Config.Now(), p
	if err := y.Attached(e); err != nil {
		return a, err
	}
	l, _, err := lease.Of(y.Book, e)
	return book.Attached{Network: n, Endpoint: e, HostLink: y.HostLink(n, e), Lease: l.Lease}, err
}

// finishFormer removes the endpoint that a new one replaces: now if it is in the same sandbox and so in the way, or
// else in the background.
func finishFormer(ctx context.Context, y *yard.Yard, former string, e modes.Endpoint) error {
	if former == "" {
		return nil
	}
	old, err := y.Endpoint(e.NetworkID, former)
	if err != nil {
		return err
	}
	if old.NS != e.NS {
		y.FinishLater(e.NetworkID, former) //nolint:contextcheck // the caller does not wait for it
		return port.Withdraw(ctx, y.Book, old)
	}
	return finishNow(ctx, y, old, e.NetworkID, e.Into)
}

// finishNow removes the link and the record of an endpoint that is Deleting. The caller holds the lock of network held
// and must not wait for it a second time: a request for the exclusive lock may be waiting in between. into is an open
// descriptor of the sandbox.
func finishNow(ctx context.Context, y *yard.Yard, old modes.Endpoint, held string, into int) error {
	hold := y.Hold
	if old.NetworkID == held {
		hold = func(ctx context.Context, network, id string) (func(), error) {
			return y.Locks.Hold(ctx, book.EndpointKey(network, id), false)
		}
	}
	release, err := hold(ctx, old.NetworkID, old.ID)
	if err != nil {
		return err
	}
	defer release()
	if err := y.FinishLocked(ctx, old.NetworkID, old.ID); err != nil {
		return err
	}
	return y.Config.Kernel.Unplug(into, sandbox.Plug{Name: old.IfName, Alias: core.Alias(old.NetworkID, old.ID)})
}

// finishIn removes now the endpoints with the same interface name in the same sandbox that were to be removed in the
// background. done: it removed one.
func finishIn(ctx context.Context, y *yard.Yard, e modes.Endpoint) (done bool) {
	all, err := y.Endpoints()
	if err != nil {
		return false
	}
	for _, old := range all {
		if old.Phase != modes.Deleting || old.NS != e.NS || old.IfName != e.IfName {
			continue
		}
		if err := finishNow(ctx, y, old, e.NetworkID, e.Into); err != nil {
			y.Config.Log.Error("endpoint removal failed", "network", old.NetworkID, "endpoint", old.ID, "err", err)
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
