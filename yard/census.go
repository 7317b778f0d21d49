package yard

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"netyard/ipam"
	"netyard/kernel"
	"netyard/modes"
	"netyard/store"
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
	Inside             kernel.Plug
	Said               map[string]string
}

// WantedKey is how Census.Wanted names an address.
func WantedKey(network string, a netip.Addr) string { return claimKey(network, a) }

// Reconcile takes over what an engine knows better, and drops what it has forgotten: a thing has to be missing twice,
// to be older than the grace period, since an engine shows a thing later than it tells netyard of it, and to be in
// nobody's use, in case that this is not the engine whose it is.
func (y *Yard) Reconcile(ctx context.Context, c Census) error {
	if err := y.TakeNames(c); err != nil {
		return err
	}
	if err := y.enforce(ctx); err != nil { // now that it is known whose the endpoints are
		return err
	}
	round := y.suspects.begin(c.Engine)
	defer y.suspects.end(c.Engine, round)
	errs := []error{y.reapEndpoints(ctx, c, round), y.reapLeases(ctx, round), y.reapHolds(c, round)}
	if c.Networks != nil {
		errs = append(errs, y.reapNetworks(ctx, c, round), y.reapHeld(c, round), y.reapPools(ctx, c, round))
	}
	return errors.Join(errs...)
}

// reapHolds frees the addresses that are held for containers which the engine has no more.
func (y *Yard) reapHolds(c Census, round *round) error {
	return y.releaseHolds(func(h hold) bool { return y.holdOver(h, c, y.c.Grace) && round.again("hold "+h.key()) })
}

// holdOver says whether a hold of at least that age is for a container that its engine has no more.
func (y *Yard) holdOver(h hold, c Census, age time.Duration) bool {
	return h.Container.Engine == c.Engine && !c.Attachments[h.Attachment] && y.c.Now().Sub(h.Since) >= age
}

// reapEndpoints drops the endpoints that the engine has forgotten.
func (y *Yard) reapEndpoints(ctx context.Context, c Census, round *round) error {
	es, err := y.Endpoints()
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range es {
		reason, removable := y.orphaned(e, []Census{c}, y.c.Grace)
		if reason == "" || !removable || !round.again("endpoint "+e.ID) {
			continue
		}
		errs = append(errs, y.Bury(ctx, e.NetworkID, e.ID))
	}
	return errors.Join(errs...)
}

// reapNetworks drops the networks that the engine has forgotten, or never heard the answer about.
func (y *Yard) reapNetworks(ctx context.Context, c Census, round *round) error {
	ns, err := y.orphanNetworks(c, y.c.Grace)
	if err != nil {
		return err
	}
	known, err := y.knows(c)
	if err != nil || !known {
		return err
	}
	var errs []error
	for _, n := range ns {
		if round.again("network " + n.ID) {
			y.c.Log.Info("drop a network that its engine does not know", "network", n.ID, "engine", n.Engine)
			errs = append(errs, y.DeleteNetwork(ctx, n.ID))
		}
	}
	return errors.Join(errs...)
}

// knows says whether the engine has any network that is on record: one that has none may be another engine than the one
// that sends the requests, and its silence says nothing. The admin can still have the orphans collected.
func (y *Yard) knows(c Census) (bool, error) {
	ns, err := y.Networks()
	return slices.ContainsFunc(ns, func(n modes.Network) bool {
		_, ok := c.Networks[n.ID]
		return ok
	}), err
}

// orphanNetworks are the engine's networks of at least that age which it does not know, and which nobody is on.
func (y *Yard) orphanNetworks(c Census, age time.Duration) (out []modes.Network, err error) {
	ns, err := y.Networks()
	if err != nil {
		return nil, err
	}
	for _, n := range ns {
		if _, known := c.Networks[n.ID]; known || n.Engine != c.Engine || n.Phase != modes.Ready || y.c.Now().Sub(n.Created) < age {
			continue
		}
		es, err := y.endpointsOf(n.ID)
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
func (y *Yard) TakeNames(c Census) error {
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
		err := y.c.Store.Update(func(tx store.Tx) error {
			n, err := getNetwork(tx, n.ID)
			if err != nil {
				return nil //nolint:nilerr // it went meanwhile
			}
			n.Name = c.Networks[n.ID].Name
			return networks.Put(tx, n.ID, n)
		})
		if err != nil {
			return err
		}
	}
	for _, e := range es {
		if s, ok := c.Endpoints[e.ID]; ok && s.Container.ID != "" {
			if err := y.Identify(e.NetworkID, e.ID, s.Container); err != nil {
				return err
			}
		}
	}
	return nil
}

// Identify writes down who an endpoint belongs to. What is not known this time stays as it was known before.
func (y *Yard) Identify(network, id string, who modes.Container) error {
	e, err := y.Endpoint(network, id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	who.Hostname = y.hostnameOf(who.PID)
	seen := e.Seen || kernel.IsNamespace(e.Sandbox)
	if merged := merge(e.Container, who); err != nil || merged.Equal(e.Container) && seen == e.Seen {
		return err
	}
	defer y.pokeLeases() // a DHCP server may be told the name
	err = y.c.Store.Update(func(tx store.Tx) error {
		now, err := getEndpoint(tx, network, id)
		if err != nil {
			return nil //nolint:nilerr // it went meanwhile
		}
		if now.Sandbox != e.Sandbox { // it left meanwhile, and its process is none of the next sandbox
			who.PID = 0
		}
		now.Container = merge(now.Container, who)
		now.Seen = now.Seen || seen && now.Sandbox == e.Sandbox
		return putEndpoint(tx, now)
	})
	if err != nil {
		return err
	}
	return y.nameInCluster(network, id)
}

// hostnameOf is the name of the host as a container's process believes it to be. One that is only being started still
// believes what this one does.
func (y *Yard) hostnameOf(pid int) string {
	if pid == 0 {
		return ""
	}
	name, err := y.c.Kernel.Hostname(pid)
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
func (y *Yard) reapLeases(ctx context.Context, round *round) error {
	leases, err := y.orphanLeases(y.c.Grace)
	if err != nil {
		return err
	}
	for _, l := range leases {
		if round.again("lease " + l.Pool + " " + l.Addr.String()) {
			y.c.Log.Info("release a lease without an endpoint", "pool", l.Pool, "address", l.Addr)
			if err := y.ReleaseAddress(ctx, l.Pool, l.Addr); err != nil {
				return err
			}
		}
	}
	return nil
}

// reapHeld frees the static addresses that no container, running or stopped, asks for any more.
func (y *Yard) reapHeld(c Census, round *round) error {
	leases, pools, err := y.Leases()
	if err != nil {
		return err
	}
	network := map[string]string{}
	for _, p := range pools {
		network[p.ID] = p.Network
	}
	for _, l := range leases {
		if l.State != ipam.StateHeld || c.Wanted[WantedKey(network[l.Pool], l.Addr)] || y.c.Now().Sub(l.Freed) < y.c.Grace {
			continue
		}
		if round.again("held " + l.Pool + " " + l.Addr.String()) {
			if err := y.Forget(l.Pool, l.Addr); err != nil {
				return err
			}
		}
	}
	return nil
}

// reapPools gives back the pools whose network was never made.
func (y *Yard) reapPools(ctx context.Context, c Census, round *round) error {
	pools, err := y.orphanPools(c, y.c.Grace)
	if err != nil {
		return err
	}
	for _, p := range pools {
		if round.again("pool " + p.ID) {
			y.c.Log.Info("release a pool without a network", "pool", p.ID)
			if err := y.ReleasePool(ctx, p.ID); err != nil {
				return err
			}
		}
	}
	return nil
}

// orphanPools are the pools older than age that no network has and the engine knows nothing of: their request was
// answered, and the network that was to follow was never made.
func (y *Yard) orphanPools(c Census, age time.Duration) (out []ipam.Pool, err error) {
	_, pools, err := y.Leases()
	if err != nil {
		return nil, err
	}
	for _, p := range pools {
		if p.Network == "" && !c.Pools[p.Subnet] && y.c.Now().Sub(p.Created) >= age {
			out = append(out, p)
		}
	}
	return out, nil
}

// suspects remembers what each engine's census missed the last time.
type suspects struct {
	mu   sync.Mutex
	last map[string]map[string]bool
}

// A round is one look; what it finds missing and the last one did not is only suspected.
type round struct {
	last, now map[string]bool
}

func (s *suspects) begin(engine string) *round {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &round{last: s.last[engine], now: map[string]bool{}}
}

func (r *round) again(what string) bool {
	r.now[what] = true
	return r.last[what]
}

func (s *suspects) end(engine string, r *round) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == nil {
		s.last = map[string]map[string]bool{}
	}
	s.last[engine] = r.now
}
