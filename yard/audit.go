package yard

import (
	"context"
	"errors"
	"fmt"
	"time"

	"netyard/ipam"
	"netyard/modes"
	"netyard/store"
)

// A Finding is one difference between the records, the kernel and the engines.
type Finding struct {
	// Kind is "fault" for what is missing or wrong, "stray" for what nobody wants, "orphan" for a record without an owner.
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

// Audit compares the records with the kernel and, when the engines could be asked, with them. A healthy host has no findings.
func (y *Yard) Audit(ctx context.Context, census *Census) ([]Finding, error) {
	w, err := y.wanted()
	if err != nil {
		return nil, err
	}
	faults, strays, err := y.c.Kernel.Audit(w.objects, w.passing...)
	if err != nil {
		return nil, err
	}
	var out []Finding
	for _, f := range faults {
		finding := Finding{Kind: Fault, Text: f.Text}
		if f.Object >= 0 {
			finding.Network = label(w.networks[f.Object])
		}
		out = append(out, finding)
	}
	for _, s := range strays {
		out = append(out, Finding{
			Kind: StrayK, Text: s.Text + " belongs to no network or endpoint", Removable: true,
			remove: func(context.Context) error { return s.Remove() },
		})
	}
	records, err := y.auditRecords(ctx, census)
	return append(out, records...), err
}

func label(n modes.Network) string {
	if n.Name != "" {
		return n.Name
	}
	return modes.Short(n.ID)
}

// auditRecords finds endpoints without a sandbox and leases without an endpoint.
func (y *Yard) auditRecords(_ context.Context, census *Census) (out []Finding, err error) {
	ns, err := y.Networks()
	if err != nil {
		return nil, err
	}
	known := map[string]modes.Network{}
	for _, n := range ns {
		known[n.ID] = n
		if census != nil && n.Phase == modes.Ready && y.old(n.Created) && !census.Networks[n.ID].there() {
			out = append(out, Finding{Kind: Orphan, Network: label(n), Text: "network " + label(n) + " is not known to " + census.Engine})
		}
	}
	if census != nil {
		for id, s := range census.Networks {
			if _, ok := known[id]; !ok {
				out = append(out, Finding{Kind: Fault, Network: s.Name, Text: fmt.Sprintf("network %s of %s is not in netyard's records", s.Name, census.Engine)})
			}
		}
	}
	es, err := y.Endpoints()
	if err != nil {
		return nil, err
	}
	for _, e := range es {
		if text := y.orphaned(e, census); text != "" {
			out = append(out, Finding{
				Kind: Orphan, Network: label(known[e.NetworkID]), Removable: true,
				Text:   fmt.Sprintf("endpoint %s (%s): %s", modes.Short(e.ID), e.Container.Name, text),
				remove: func(ctx context.Context) error { return y.Bury(ctx, e.NetworkID, e.ID) },
			})
		}
	}
	if census != nil {
		pools, err := y.orphanPools(*census, young)
		if err != nil {
			return nil, err
		}
		for _, p := range pools {
			out = append(out, Finding{
				Kind: Orphan, Text: "pool " + p.ID + " belongs to no network", Removable: true,
				remove: func(ctx context.Context) error { return y.ReleasePool(ctx, p.ID) },
			})
		}
	}
	leases, err := y.orphanLeases(young)
	for _, l := range leases {
		out = append(out, Finding{
			Kind: Orphan, Text: fmt.Sprintf("lease %s of pool %s belongs to no endpoint", l.Addr, l.Pool), Removable: true,
			remove: func(ctx context.Context) error { return y.ReleaseAddress(ctx, l.Pool, l.Addr) },
		})
	}
	return out, err
}

func (y *Yard) old(t time.Time) bool { return y.c.Now().Sub(t) > young }

// orphaned says why an endpoint has lost its owner; empty when it has not.
func (y *Yard) orphaned(e modes.Endpoint, census *Census) string {
	if e.Phase != modes.Ready || !y.old(e.Created) {
		return ""
	}
	if y.dead(e) {
		return "its sandbox " + e.Sandbox + " is gone"
	}
	if census == nil || !y.old(e.Joined) {
		return ""
	}
	if _, ok := census.Endpoints[e.ID]; !ok {
		return "no container of " + census.Engine + " has it"
	}
	return ""
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

// GC removes what Audit calls removable and returns it; dryRun only returns it.
func (y *Yard) GC(ctx context.Context, census *Census, dryRun bool) ([]Finding, error) {
	all, err := y.Audit(ctx, census)
	if err != nil {
		return nil, err
	}
	var done []Finding
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
	e, err := y.Endpoint(network, id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	n, err := y.Network(network)
	if err != nil {
		return err
	}
	m, err := y.mode(n.Mode)
	if err != nil {
		return err
	}
	return y.bury(ctx, m, n, e)
}
