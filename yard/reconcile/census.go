package reconcile

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"time"

	"netyard/ipam"
	"netyard/kernel/core"
	"netyard/kernel/sandbox"
	"netyard/modes"
	"netyard/store"
	"netyard/yard"
	"netyard/yard/book"
	"netyard/yard/enforce"
	"netyard/yard/overlay"
	"netyard/yard/pool"
)

// A Census is all an engine has to do with netyard, at one moment. It is complete, or it is not made.
type Census struct {
	Engine string
	// Networks are the engine's networks of netyard's drivers, by id. Nil: the engine makes no networks and asks for no
	// pools and addresses, and says nothing of them.
	Networks map[string]SeenNetwork
	// Endpoints are those of running containers, by id.
	Endpoints map[string]SeenEndpoint
	// Pools are the subnets of all networks whose IPAM is netyard's, whatever their driver.
	Pools map[netip.Prefix]bool
	// Wanted are the addresses that containers, also stopped ones, ask for by name, see WantedKey.
	Wanted map[string]bool
	// Attachments are the containers that may have attachments, also stopped ones: of an engine that is a CNI
	// runtime's.
	Attachments map[string]bool
}

// A SeenNetwork is a network as its engine has it: enough to make its record again.
type SeenNetwork struct {
	Name    string
	Network modes.Network // without what only netyard knows
	// Pools are what its own IPAM was asked for, one a subnet, if that is netyard.
	Pools []ipam.PoolRequest
}

// A SeenEndpoint is an endpoint as its engine has it.
type SeenEndpoint struct {
	NetworkID string
	Container modes.Container
	Sandbox   string
	MAC       string
	Addrs     []netip.Prefix
	Gateways  []netip.Addr
	Options   map[string]string // what was said for it alone
	// Attachment and IfName are for one that came by CNI, and Inside is what its sandbox has. Said are options in its
	// container's words.
	Attachment, IfName string
	Inside             sandbox.Plug
	Said               map[string]string
}

// WantedKey is how Census.Wanted names an address.
func WantedKey(network string, a netip.Addr) string { return book.ClaimKey(network, a) }

// Reconcile takes over what an engine knows better, and drops what it has forgotten: a thing has to be missing twice,
// to be older than the grace period, since an engine shows a thing later than it tells netyard of it, and to be in
// nobody's use, in case that this is not the engine whose it is.
func Reconcile(ctx context.Context, y *yard.Yard, c Census) error {
	if err := TakeNames(y, c); err != nil {
		return err
	}
	if err := enforce.Enforce(ctx, y.Book); err != nil { // now that it is known whose the endpoints are
		return err
	}
	round := y.Suspects.Begin(c.Engine)
	defer y.Suspects.End(c.Engine, round)
	errs := []error{reapEndpoints(ctx, y, c, round), reapLeases(ctx, y, round), reapHolds(y, c, round)}
	if c.Networks != nil {
		errs = append(errs, reapNetworks(ctx, y, c, round), reapHeld(y, c, round), reapPools(ctx, y, c, round))
	}
	return errors.Join(errs...)
}

// reapHolds frees the addresses that are held for containers which the engine has no more.
func reapHolds(y *yard.Yard, c Census, round *book.Round) error {
	return y.ReleaseHolds(func(h book.Hold) bool { return holdOver(y, h, c, y.Config.Grace) && round.Again("hold "+h.Key()) })
}

// holdOver says whether a hold of at least that age is for a container that its engine has no more.
func holdOver(y *yard.Yard, h book.Hold, c Census, age time.Duration) bool {
	return h.Container.Engine == c.Engine && !c.Attachments[h.Attachment] && y.Config.Now().Sub(h.Since) >= age
}

// reapEndpoints drops the endpoints that the engine has forgotten.
func reapEndpoints(ctx context.Context, y *yard.Yard, c Census, round *book.Round) error {
	es, err := y.Endpoints()
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range es {
		reason, removable := orphaned(y, e, []Census{c}, y.Config.Grace)
		if reason == "" || !removable || !round.Again("endpoint "+e.ID) {
			continue
		}
		errs = append(errs, y.Bury(ctx, e.NetworkID, e.ID))
	}
	return errors.Join(errs...)
}

// reapNetworks drops the networks that the engine has forgotten, or never heard the answer about.
func reapNetworks(ctx context.Context, y *yard.Yard, c Census, round *book.Round) error {
	ns, err := orphanNetworks(y, c, y.Config.Grace)
	if err != nil {
		return err
	}
	known, err := knows(y, c)
	if err != nil || !known {
		return err
	}
	var errs []error
	for _, n := range ns {
		if round.Again("network " + n.ID) {
			y.Config.Log.Info("drop a network that its engine does not know", "network", n.ID, "engine", n.Engine)
			errs = append(errs, y.DeleteNetwork(ctx, n.ID))
		}
	}
	return errors.Join(errs...)
}

// knows says whether the engine has any network that is on record: one that has none may be another engine than the one
// that sends the requests, and its silence says nothing. The admin can still have the orphans collected.
func knows(y *yard.Yard, c Census) (bool, error) {
	ns, err := y.Networks()
	return slices.ContainsFunc(ns, func(n modes.Network) bool {
		_, ok := c.Networks[n.ID]
		return ok
	}), err
}

// orphanNetworks are the engine's networks of at least that age which it does not know, and which nobody is on.
func orphanNetworks(y *yard.Yard, c Census, age time.Duration) (out []modes.Network, err error) {
	ns, err := y.Networks()
	if err != nil {
		return nil, err
	}
	for _, n := range ns {
		if _, known := c.Networks[n.ID]; known || n.Engine != c.Engine || n.Phase != modes.Ready || y.Config.Now().Sub(n.Created) < age {
			continue
		}
		es, err := y.EndpointsOf(n.ID)
		if err != nil {
			return nil, err
		}
		if len(es) == 0 {
			out = append(out, n)
		}
	}
	return out, nil
}

// TakeNames writes down the names of networks and who the endpoints belong to.
func TakeNames(y *yard.Yard, c Census) error {
	ns, err := y.Networks()
	if err != nil {
		return err
	}
	es, err := y.Endpoints()
	if err != nil {
		return err
	}
	for _, n := range ns {
		if s, ok := c.Networks[n.ID]; !ok || s.Name == n.Name {
			continue
		}
		err := y.Config.Store.Update(func(tx store.Tx) error {
			n, err := book.GetNetwork(tx, n.ID)
			if err != nil {
				return nil //nolint:nilerr // it went meanwhile
			}
			n.Name = c.Networks[n.ID].Name
			return book.Networks.Put(tx, n.ID, n)
		})
		if err != nil {
			return err
		}
	}
	for _, e := range es {
		if s, ok := c.Endpoints[e.ID]; ok && s.Container.ID != "" {
			if err := Identify(y, e.NetworkID, e.ID, s.Container); err != nil {
				return err
			}
		}
	}
	return nil
}

// Identify writes down who an endpoint belongs to. What is not known this time stays as it was known before.
func Identify(y *yard.Yard, network, id string, who modes.Container) error {
	e, err := y.Endpoint(network, id)
	if errors.Is(err, book.ErrNotFound) {
		return nil
	}
	who.Hostname = hostnameOf(y, who.PID)
	seen := e.Seen || core.IsNamespace(e.Sandbox)
	if merged := merge(e.Container, who); err != nil || merged.Equal(e.Container) && seen == e.Seen {
		return err
	}
	defer y.PokeLeases() // a DHCP server may be told the name
	err = y.Config.Store.Update(func(tx store.Tx) error {
		now, err := book.GetEndpoint(tx, network, id)
		if err != nil {
			return nil //nolint:nilerr // it went meanwhile
		}
		if now.Sandbox != e.Sandbox { // it left meanwhile, and its process is none of the next sandbox
			who.PID = 0
		}
		now.Container = merge(now.Container, who)
		now.Seen = now.Seen || seen && now.Sandbox == e.Sandbox
		return book.PutEndpoint(tx, now)
	})
	if err != nil {
		return err
	}
	return overlay.NameInCluster(y.Book, network, id)
}

// hostnameOf is the name of the host as a container's process believes it to be. One that is only being started still
// believes what this one does.
func hostnameOf(y *yard.Yard, pid int) string {
	if pid == 0 {
		return ""
	}
	name, err := y.Config.Kernel.Hostname(pid)
	if own, _ := os.Hostname(); err != nil || name == own {
		return ""
	}
	return name
}

func merge(old, fresh modes.Container) modes.Container {
	if fresh.ID != "" && fresh.ID != old.ID {
		return fresh
	}
	for _, f := range []struct{ to, from *string }{
		{&old.Engine, &fresh.Engine},
		{&old.ID, &fresh.ID},
		{&old.Name, &fresh.Name},
		{&old.Image, &fresh.Image},
		{&old.Hostname, &fresh.Hostname},
	} {
		if *f.from != "" {
			*f.to = *f.from
		}
	}
	if fresh.PID != 0 {
		old.PID = fresh.PID
	}
	if fresh.Labels != nil {
		old.Labels = fresh.Labels
	}
	return old
}

// reapLeases gives back the leases of networks' pools that no endpoint ever claimed: their request was answered, and
// the endpoint that was to follow was never made.
func reapLeases(ctx context.Context, y *yard.Yard, round *book.Round) error {
	leases, err := orphanLeases(y, y.Config.Grace)
	if err != nil {
		return err
	}
	for _, l := range leases {
		if round.Again("lease " + l.Pool + " " + l.Addr.String()) {
			y.Config.Log.Info("release a lease without an endpoint", "pool", l.Pool, "address", l.Addr)
			if err := pool.ReleaseAddress(ctx, y, l.Pool, l.Addr); err != nil {
				return err
			}
		}
	}
	return nil
}

// reapHeld frees the static addresses that no container, running or stopped, asks for any more.
func reapHeld(y *yard.Yard, c Census, round *book.Round) error {
	leases, pools, err := pool.Leases(y)
	if err != nil {
		return err
	}
	network := map[string]string{}
	for _, p := range pools {
		network[p.ID] = p.Network
	}
	for _, l := range leases {
		if l.State != ipam.StateHeld || c.Wanted[WantedKey(network[l.Pool], l.Addr)] || y.Config.Now().Sub(l.Freed) < y.Config.Grace {
			continue
		}
		if round.Again("held " + l.Pool + " " + l.Addr.String()) {
			if err := pool.Forget(y, l.Pool, l.Addr); err != nil {
				return err
			}
		}
	}
	return nil
}

// reapPools gives back the pools whose network was never made.
func reapPools(ctx context.Context, y *yard.Yard, c Census, round *book.Round) error {
	pools, err := orphanPools(y, c, y.Config.Grace)
	if err != nil {
		return err
	}
	for _, p := range pools {
		if round.Again("pool " + p.ID) {
			y.Config.Log.Info("release a pool without a network", "pool", p.ID)
			if err := pool.ReleasePool(ctx, y, p.ID); err != nil {
				return err
			}
		}
	}
	return nil
}

// orphanPools are the pools older than age that no network has and the engine knows nothing of: their request was
// answered, and the network that was to follow was never made.
func orphanPools(y *yard.Yard, c Census, age time.Duration) (out []ipam.Pool, err error) {
	_, pools, err := pool.Leases(y)
	if err != nil {
		return nil, err
	}
	for _, p := range pools {
		if p.Network == "" && !c.Pools[p.Subnet] && y.Config.Now().Sub(p.Created) >= age {
			out = append(out, p)
		}
	}
	return out, nil
}
