package yard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"netyard/ipam"
	"netyard/modes"
	"netyard/store"
)

// A Finding is one difference between the records, the kernel and the engines.
type Finding struct {
	// Kind is "fault" for what is missing or wrong, "stray" for what nobody wants, "orphan" for a record without an
	// owner.
	Kind    string `json:"kind"`
	Network string `json:"network,omitempty"`
	Text    string `json:"text"`
	// Removable: gc takes it away.
	Removable bool `json:"removable"`

	// Error is why gc could not.
	Error string `json:"error,omitempty"`

	remove func(context.Context) error
}

// The kinds of findings.
const (
	Fault  = "fault"
	Orphan = "orphan"
	StrayK = "stray"
)

// young is how long a change may be under way before it is a finding.
const young = 5 * time.Second

// Audit compares the records with the kernel and with those engines that could be asked. A healthy host has no
// findings.
func (y *Yard) Audit(_ context.Context, censuses []Census) ([]Finding, error) {
	out, strays, err := y.compare()
	if err != nil {
		return nil, err
	}
	for _, s := range strays {
		out = append(out, Finding{
			Kind: StrayK, Text: s.Text + " belongs to no network or endpoint", Removable: true,
			remove: func(context.Context) error { return s.Remove() },
		})
	}
	blocks, err := y.blocks()
	if err != nil {
		return nil, err
	}
	lost, err := y.policiesLost()
	if err != nil {
		return nil, err
	}
	if lost {
		out = append(out, Finding{Kind: Fault, Text: lostText})
	}
	records, err := y.auditRecords(censuses)
	return slices.Concat(out, blocks, records), err
}

func label(n modes.Network) string {
	if n.Name != "" {
		return n.Name
	}
	return modes.Short(n.ID)
}

// auditRecords finds the records that have lost their owner, and what an engine has that is not in the records.
func (y *Yard) auditRecords(censuses []Census) (out []Finding, err error) {
	ns, err := y.Networks()
	if err != nil {
		return nil, err
	}
	known := map[string]modes.Network{}
	for _, n := range ns {
		known[n.ID] = n
	}
	for _, c := range censuses {
		found, err := y.auditEngine(known, c)
		if err != nil {
			return nil, err
		}
		out = append(out, found...)
	}
	for _, n := range ns {
		if y.stuck(n.Phase, n.Turned, young) {
			out = append(out, Finding{
				Kind: Fault, Network: label(n), Text: fmt.Sprintf("network %s is stuck %s", label(n), n.Phase), Removable: true,
				remove: func(ctx context.Context) error { return y.DeleteNetwork(ctx, n.ID) },
			})
		}
	}
	es, err := y.Endpoints()
	if err != nil {
		return nil, err
	}
	for _, e := range es {
		if e.Fenced != "" && e.Sandbox != "" {
			out = append(out, Finding{Kind: Fault, Network: label(known[e.NetworkID]), Text: fmt.Sprintf("%s is fenced: %s", owned(e), e.Fenced)})
		}
		if y.stuck(e.Phase, e.Turned, young) {
			out = append(out, Finding{
				Kind: Fault, Network: label(known[e.NetworkID]), Text: fmt.Sprintf("endpoint %s is stuck %s", modes.Short(e.ID), e.Phase), Removable: true,
				remove: func(ctx context.Context) error { return y.Bury(ctx, e.NetworkID, e.ID) },
			})
		}
		text, removable := y.orphaned(e, censuses, young)
		if text == "" {
			continue
		}
		out = append(out, Finding{
			Kind: Orphan, Network: label(known[e.NetworkID]), Removable: removable,
			Text:   strings.TrimSuffix(fmt.Sprintf("endpoint %s (%s)", modes.Short(e.ID), e.Container.Name), " ()") + ": " + text,
			remove: func(ctx context.Context) error { return y.Bury(ctx, e.NetworkID, e.ID) },
		})
	}
	given, err := y.auditLeases()
	if err != nil {
		return nil, err
	}
	out = append(out, given...)
	leases, err := y.orphanLeases(young)
	for _, l := range leases {
		out = append(out, Finding{
			Kind: Orphan, Text: fmt.Sprintf("lease %s of pool %s belongs to no endpoint", l.Addr, l.Pool), Removable: true,
			remove: func(ctx context.Context) error { return y.ReleaseAddress(ctx, l.Pool, l.Addr) },
		})
	}
	return out, err
}

// auditEngine compares what is not an endpoint with an engine's.
func (y *Yard) auditEngine(known map[string]modes.Network, c Census) (out []Finding, err error) {
	if c.Networks != nil {
		if out, err = y.auditNetworks(known, c); err != nil {
			return nil, err
		}
	}
	hs, err := y.allHolds()
	for _, h := range hs {
		if !y.holdOver(h, c, young) {
			continue
		}
		out = append(out, Finding{
			Kind: Orphan, Network: label(known[h.NetworkID]), Removable: true,
			Text:   fmt.Sprintf("addresses held for container %s, which %s has no more", cmp.Or(h.Container.Name, h.Attachment), c.Engine),
			remove: func(context.Context) error { return y.endHold(h) },
		})
	}
	return out, err
}

// auditNetworks compares networks and pools with an engine's.
func (y *Yard) auditNetworks(known map[string]modes.Network, c Census) (out []Finding, err error) {
	for id, s := range c.Networks {
		if _, ok := known[id]; !ok {
			out = append(out, Finding{Kind: Fault, Network: s.Name, Text: fmt.Sprintf("network %s of %s is not in netyard's records", s.Name, c.Engine)})
		}
	}
	lost, err := y.orphanNetworks(c, young)
	if err != nil {
		return nil, err
	}
	for _, n := range lost {
		out = append(out, Finding{
			Kind: Orphan, Network: label(n), Text: fmt.Sprintf("network %s is not known to %s", label(n), c.Engine), Removable: true,
			remove: func(ctx context.Context) error { return y.DeleteNetwork(ctx, n.ID) },
		})
	}
	pools, err := y.orphanPools(c, young)
	for _, p := range pools {
		out = append(out, Finding{
			Kind: Orphan, Text: "pool " + p.ID + " belongs to no network", Removable: true,
			remove: func(ctx context.Context) error { return y.ReleasePool(ctx, p.ID) },
		})
	}
	return out, err
}

// orphaned says why an endpoint of at least that age has lost its owner, empty when it has not; it is removable if no
// sandbox has its link.
func (y *Yard) orphaned(e modes.Endpoint, censuses []Census, age time.Duration) (reason string, removable bool) {
	now := y.c.Now()
	if e.Phase != modes.Ready || now.Sub(e.Created) < age {
		return "", false
	}
	if y.dead(e) {
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
	m, err := y.mode(n.Mode)
	if err != nil {
		return reason, false
	}
	if free, err := y.unplugged(m, n, e); err != nil || !free {
		return reason + ", but some sandbox has its link", false
	}
	return reason, true
}

// stuck says whether a change has not come to its end for that long.
func (y *Yard) stuck(p modes.Phase, since time.Time, age time.Duration) bool {
	return p != modes.Ready && y.c.Now().Sub(since) >= age
}

// retry takes up again the changes that failed half-way: the kernel may have had its reasons then.
func (y *Yard) retry(ctx context.Context) {
	ns, err := y.Networks()
	if err != nil {
		y.c.Log.Error("look for unfinished changes", "err", err)
		return
	}
	es, err := y.Endpoints()
	if err != nil {
		y.c.Log.Error("look for unfinished changes", "err", err)
		return
	}
	for _, e := range es {
		if y.stuck(e.Phase, e.Turned, y.c.Grace) {
			if err := y.Bury(ctx, e.NetworkID, e.ID); err != nil {
				y.c.Log.Error("take an endpoint's link away", "network", e.NetworkID, "endpoint", e.ID, "err", err)
			}
		}
	}
	for _, n := range ns {
		if y.stuck(n.Phase, n.Turned, y.c.Grace) {
			if err := y.DeleteNetwork(ctx, n.ID); err != nil {
				y.c.Log.Error("take a network down", "network", n.ID, "err", err)
			}
		}
	}
}

// orphanLeases are the active leases of networks' pools that no endpoint claims and that are older than age.
func (y *Yard) orphanLeases(age time.Duration) (out []ipam.Lease, err error) {
	err = y.c.Store.View(func(tx store.Tx) error {
		pools, err := y.c.IPAM.Pools(tx)
		if err != nil {
			return err
		}
		network := map[string]string{}
		for _, p := range pools {
			network[p.ID] = p.Network
		}
		leases, err := y.c.IPAM.Leases(tx)
		if err != nil {
			return err
		}
		for _, l := range leases {
			endpoint := l.Kind == ipam.KindDynamic || l.Kind == ipam.KindStatic
			if !endpoint || l.State != ipam.StateActive || network[l.Pool] == "" || y.c.Now().Sub(l.Since) < age {
				continue
			}
			if has, err := claimed(tx, network[l.Pool], l.Addr); err != nil {
				return err
			} else if !has {
				out = append(out, l)
			}
		}
		return nil
	})
	return out, err
}

// policiesAll ends the time in which the kernel knows more of policies than the records: the admin has decided that
// those are all. It says which.
func (y *Yard) policiesAll(dryRun bool) (done []Finding, err error) {
	lost, err := y.policiesLost()
	if err != nil || !lost {
		return nil, err
	}
	ps, err := y.Policies()
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
	f := Finding{Kind: Fault, Text: "what the kernel has of lost policies: those on record count as all from then on: " + names, Removable: true}
	if !dryRun {
		y.c.Log.Warn("the policies on record count as all; what the kernel has of others is removed", "policies", names)
		err = y.policiesComplete()
	}
	return []Finding{f}, err
}

// GC removes what Audit calls removable and returns it; dryRun only returns it.
func (y *Yard) GC(ctx context.Context, censuses []Census, dryRun bool) ([]Finding, error) {
	done, err := y.policiesAll(dryRun)
	if err != nil {
		return nil, err
	}
	all, err := y.Audit(ctx, censuses)
	if err != nil {
		return nil, err
	}
	for _, f := range all {
		if !f.Removable {
			continue
		}
		if !dryRun {
			y.c.Log.Info("collect garbage", "kind", f.Kind, "object", f.Text)
			if err := f.remove(ctx); err != nil {
				f.Error = err.Error()
			}
		}
		done = append(done, f)
	}
	if !dryRun && y.Rebuilding() { // the admin has decided about what the lost records would have said
		return done, y.RecordsRebuilt()
	}
	return done, nil
}

// Bury drops an endpoint without its engine having asked for it, with its link and leases.
func (y *Yard) Bury(ctx context.Context, network, id string) error {
	release, err := y.hold(ctx, network, id)
	if err != nil {
		return err
	}
	defer release()
	m, n, e, err := y.whole(network, id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return y.bury(ctx, m, n, e)
}
