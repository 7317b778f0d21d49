// Package reconcile compares the records with the kernel and the engines, repairs the kernel, and removes orphans and
// strays.
package reconcile

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"slices"
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
	"netyard/yard/lease"
	"netyard/yard/pool"
)

// Audit compares the records with the kernel and with the censuses of those engines that answered. A healthy host has
// no findings.
func Audit(_ context.Context, y *yard.Yard, censuses []Census) ([]book.Finding, error) {
	out, strays, err := compare(y)
	if err != nil {
		return nil, err
	}
	for _, s := range strays {
		out = append(out, book.Finding{
			Kind: book.Stray, Text: s.Text + " belongs to no network or endpoint", Removable: true,
			Remove: func(context.Context) error { return s.Remove() },
		})
	}
	blocks, err := blocks(y)
	if err != nil {
		return nil, err
	}
	shared, err := sharedWithHost(y)
	if err != nil {
		return nil, err
	}
	unreachable, err := portsWithoutAddress(y)
	if err != nil {
		return nil, err
	}
	lost, err := y.PoliciesLost()
	if err != nil {
		return nil, err
	}
	if lost {
		out = append(out, book.Finding{Kind: book.Fault, Text: book.LostText})
	}
	changed, err := auditMACs(y)
	if err != nil {
		return nil, err
	}
	refused, err := refusals(y)
	if err != nil {
		return nil, err
	}
	small, err := smallSegments(y)
	if err != nil {
		return nil, err
	}
	records, err := auditRecords(y, censuses)
	return slices.Concat(out, blocks, shared, unreachable, changed, refused, small, records), err
}

// auditMACs finds containers whose link has got another hardware address: the guard cuts them off.
func auditMACs(y *yard.Yard) (out []book.Finding, err error) {
	es, err := y.Endpoints()
	if err != nil {
		return nil, err
	}
	inside := map[string][]sandbox.Found{}
	for _, e := range es {
		now, there := y.Config.Kernel.NamespaceAt(e.Sandbox)
		if e.Phase != modes.Ready || e.Sandbox == "" || !there || e.NS != (core.NamespaceID{}) && e.NS != now {
			continue
		}
		n, err := y.Network(e.NetworkID)
		if err != nil {
			continue // deleted meanwhile
		}
		wanted := y.GuardedMAC(n, e)
		if wanted == nil {
			continue
		}
		found, read := inside[e.Sandbox]
		if !read {
			if found, err = y.Config.Kernel.FindIn(e.Sandbox); err != nil {
				return nil, err
			}
			inside[e.Sandbox] = found
		}
		for _, f := range found {
			mac, err := net.ParseMAC(f.MAC)
			if err != nil || f.Network != e.NetworkID || f.Endpoint != e.ID {
				continue
			}
			if fault := sandbox.MACFault(f.Plug.Name, wanted, mac); fault != "" {
				out = append(out, book.Finding{
					Kind: book.Fault, Network: book.Label(n), Text: fmt.Sprintf("%s: %s", book.Owned(e), fault),
				})
			}
		}
	}
	return out, nil
}

// auditRecords finds records that are stuck or have lost their owner, fenced endpoints, and networks that an engine has
// and the records do not.
func auditRecords(y *yard.Yard, censuses []Census) (out []book.Finding, err error) {
	ns, err := y.Networks()
	if err != nil {
		return nil, err
	}
	known := map[string]modes.Network{}
	for _, n := range ns {
		known[n.ID] = n
	}
	for _, c := range censuses {
		found, err := auditEngine(y, known, c)
		if err != nil {
			return nil, err
		}
		out = append(out, found...)
	}
	for _, n := range ns {
		if y.Stuck(n.Phase, n.Turned, book.Young) {
			out = append(out, book.Finding{
				Kind: book.Fault, Network: book.Label(n), Removable: true,
				Text:   fmt.Sprintf("network %s is stuck %s", book.Label(n), n.Phase),
				Remove: func(ctx context.Context) error { return y.DeleteNetwork(ctx, n.ID) },
			})
		}
	}
	es, err := y.Endpoints()
	if err != nil {
		return nil, err
	}
	for _, e := range es {
		network := book.Label(known[e.NetworkID])
		if e.Fenced != "" && e.Sandbox != "" {
			out = append(out, book.Finding{
				Kind: book.Fault, Network: network, Text: fmt.Sprintf("%s is fenced: %s", book.Owned(e), e.Fenced),
			})
		}
		if y.Stuck(e.Phase, e.Turned, book.Young) {
			out = append(out, book.Finding{
				Kind: book.Fault, Network: network, Removable: true,
				Text:   fmt.Sprintf("endpoint %s is stuck %s", modes.Short(e.ID), e.Phase),
				Remove: func(ctx context.Context) error { return y.RemoveEndpoint(ctx, e.NetworkID, e.ID) },
			})
		}
		text, removable := orphaned(y, e, censuses, book.Young)
		if text == "" {
			continue
		}
		label := strings.TrimSuffix(fmt.Sprintf("endpoint %s (%s)", modes.Short(e.ID), e.Container.Name), " ()")
		out = append(out, book.Finding{
			Kind: book.Orphan, Network: network, Removable: removable,
			Text:   label + ": " + text,
			Remove: func(ctx context.Context) error { return y.RemoveEndpoint(ctx, e.NetworkID, e.ID) },
		})
	}
	given, err := lease.AuditLeases(y.Book)
	if err != nil {
		return nil, err
	}
	out = append(out, given...)
	leases, err := orphanLeases(y, book.Young)
	for _, l := range leases {
		out = append(out, book.Finding{
			Kind: book.Orphan, Removable: true,
			Text:   fmt.Sprintf("lease %s of pool %s belongs to no endpoint", l.Addr, l.Pool),
			Remove: func(ctx context.Context) error { return pool.ReleaseAddress(ctx, y, l.Pool, l.Addr) },
		})
	}
	return out, err
}

// auditEngine compares networks, pools and holds with the census of an engine.
func auditEngine(y *yard.Yard, known map[string]modes.Network, c Census) (out []book.Finding, err error) {
	if c.Networks != nil {
		if out, err = auditNetworks(y, known, c); err != nil {
			return nil, err
		}
	}
	hs, err := y.AllHolds()
	for _, h := range hs {
		if !holdOver(y, h, c, book.Young) {
			continue
		}
		out = append(out, book.Finding{
			Kind: book.Orphan, Network: book.Label(known[h.NetworkID]), Removable: true,
			Text: fmt.Sprintf("addresses are held for container %s, which %s no longer has",
				cmp.Or(h.Container.Name, h.Attachment), c.Engine),
			Remove: func(context.Context) error { return y.EndHold(h) },
		})
	}
	return out, err
}

// auditNetworks compares networks and pools with the census of an engine.
func auditNetworks(y *yard.Yard, known map[string]modes.Network, c Census) (out []book.Finding, err error) {
	for id, s := range c.Networks {
		if _, ok := known[id]; !ok && c.here(id) {
			out = append(out, book.Finding{
				Kind: book.Fault, Network: s.Name,
				Text: fmt.Sprintf("network %s of %s is not in netyard's records", s.Name, c.Engine),
			})
		}
	}
	lost, err := orphanNetworks(y, c, book.Young)
	if err != nil {
		return nil, err
	}
	for _, n := range lost {
		out = append(out, book.Finding{
			Kind: book.Orphan, Network: book.Label(n), Removable: true,
			Text:   fmt.Sprintf("network %s is not known to %s", book.Label(n), c.Engine),
			Remove: func(ctx context.Context) error { return y.DeleteNetwork(ctx, n.ID) },
		})
	}
	pools, err := orphanPools(y, c, book.Young)
	for _, p := range pools {
		out = append(out, book.Finding{
			Kind: book.Orphan, Text: "pool " + p.ID + " belongs to no network", Removable: true,
			Remove: func(ctx context.Context) error { return pool.ReleasePool(ctx, y, p.ID) },
		})
	}
	return out, err
}

// orphaned returns why an endpoint of at least that age has lost its owner; empty: it has not. An orphan is removable
// if no sandbox has its link.
func orphaned(y *yard.Yard, e modes.Endpoint, censuses []Census, age time.Duration) (reason string, removable bool) {
	now := y.Config.Now()
	if e.Phase != modes.Ready || now.Sub(e.Created) < age {
		return "", false
	}
	if y.Dead(e) {
		return "its sandbox " + e.Sandbox + " is gone", true
	}
	at := slices.IndexFunc(censuses, func(c Census) bool { return c.Engine == e.Container.Engine })
	if at < 0 || now.Sub(e.Joined) < age {
		return "", false
	}
	if _, ok := censuses[at].Endpoints[e.ID]; ok {
		return "", false
	}
	reason = "no container of " + e.Container.Engine + " has it"
	n, err := y.Network(e.NetworkID)
	if err != nil {
		return reason, false
	}
	m, err := y.Mode(n.Mode)
	if err != nil {
		return reason, false
	}
	if free, err := y.Unplugged(m, n, e); err != nil || !free {
		return reason + ", but a sandbox has its link", false
	}
	return reason, true
}

// orphanLeases returns the active leases in networks' pools that belong to no endpoint and are at least that old.
func orphanLeases(y *yard.Yard, age time.Duration) (out []ipam.Lease, err error) {
	err = y.Config.Store.View(func(tx store.Tx) error {
		pools, err := y.Config.IPAM.Pools(tx)
		if err != nil {
			return err
		}
		network := map[string]string{}
		for _, p := range pools {
			network[p.ID] = p.Network
		}
		leases, err := y.Config.IPAM.Leases(tx)
		if err != nil {
			return err
		}
		for _, l := range leases {
			endpoint := l.Kind == ipam.KindDynamic || l.Kind == ipam.KindStatic
			if !endpoint || l.State != ipam.StateActive || network[l.Pool] == "" || y.Config.Now().Sub(l.Since) < age {
				continue
			}
			if has, err := book.Claimed(tx, network[l.Pool], l.Addr); err != nil {
				return err
			} else if !has {
				out = append(out, l)
			}
		}
		return nil
	})
	return out, err
}

// completePolicies ends the state after lost policies, in which policy rules without a record stay in the kernel: by
// running gc, the admin declares the policies on record complete. The finding names them.
func completePolicies(y *yard.Yard, dryRun bool) (done []book.Finding, err error) {
	lost, err := y.PoliciesLost()
	if err != nil || !lost {
		return nil, err
	}
	ps, err := enforce.Policies(y.Book)
	if err != nil {
		return nil, err
	}
	names := "none"
	for i, p := range ps {
		if i == 0 {
			names = p.Name
		} else {
			names += ", " + p.Name
		}
	}
	f := book.Finding{
		Kind: book.Fault, Removable: true,
		Text: "kernel rules of lost policies; after their removal, the policies on record count as complete: " + names,
	}
	if !dryRun {
		if err = y.PoliciesComplete(); err == nil {
			y.Config.Log.Warn("lost policies given up; their rules will be removed", "policies", names)
		}
	}
	return []book.Finding{f}, err
}

// GC removes the findings of Audit that are removable, and returns them. dryRun: it only returns them.
func GC(ctx context.Context, y *yard.Yard, censuses []Census, dryRun bool) ([]book.Finding, error) {
	done, err := completePolicies(y, dryRun)
	if err != nil {
		return nil, err
	}
	all, err := Audit(ctx, y, censuses)
	if err != nil {
		return nil, err
	}
	for _, f := range all {
		if !f.Removable {
			continue
		}
		if !dryRun {
			if err := f.Remove(ctx); err != nil {
				f.Error = err.Error()
			} else {
				y.Config.Log.Info("finding removed", "kind", f.Kind, "object", f.Text)
			}
		}
		done = append(done, f)
	}
	if !dryRun && Rebuilding(y) { // by running gc, the admin gives up the lost records that were not rebuilt
		return done, RecordsRebuilt(y)
	}
	return done, nil
}
