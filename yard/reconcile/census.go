package reconcile

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"os"
	"slices"
	"time"

	"netyard/ipam"
	"netyard/kernel/sandbox"
	"netyard/modes"
	"netyard/store"
	"netyard/yard"
	"netyard/yard/book"
	"netyard/yard/enforce"
	"netyard/yard/overlay"
	"netyard/yard/pool"
)

// A Census is all that an engine has on netyard's networks at one moment. It is always complete: if a part cannot be
// read, there is no census.
type Census struct {
	Engine string
	// Networks are the engine's networks of netyard's drivers, by ID. Nil: the engine makes no networks, requests no
	// pools or addresses, and its census says nothing about them.
	Networks map[string]SeenNetwork
	// Endpoints are those of running containers, by ID.
	Endpoints map[string]SeenEndpoint
	// Pools are the subnets of all networks whose IPAM is netyard's, whatever their driver.
	Pools map[netip.Prefix]bool
	// Wanted are the static addresses of containers, running or stopped, by WantedKey.
	Wanted map[string]bool
	// Bridges are those of the engine's networks of its own drivers.
	Bridges []string
	// Attachments are the IDs of the containers that may have attachments, running or stopped, if the engine serves a
	// CNI runtime.
	Attachments map[string]bool
}

// A SeenNetwork is a network as its engine has it, with all that is needed to rebuild its record.
type SeenNetwork struct {
	Name    string
	Network modes.Network // without what only netyard knows
	// Swarm: the engine lists it for the whole swarm, and requests it from netyard with the first container here.
	Swarm bool
	// Pools are the requests for its pools, one for each subnet, if its IPAM is netyard's.
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
	Options   map[string]string // those of this endpoint alone
	// Attachment and IfName identify an attachment, and Inside is the configuration in its sandbox. Said are options as
	// the container's labels or annotations have them.
	Attachment, IfName string
	Inside             sandbox.Plug
	Said               map[string]string
}

// here reports whether the engine has a network on this host.
func (c Census) here(id string) bool {
	if !c.Networks[id].Swarm {
		return true
	}
	for _, e := range c.Endpoints {
		if e.NetworkID == id {
			return true
		}
	}
	return false
}

// nameTime bounds the wait for the locks of what is named: a request about it may be in progress. The next census names
// what this one could not.
const nameTime = 3 * time.Second

// WantedKey returns the key of an address in Census.Wanted.
func WantedKey(network string, a netip.Addr) string { return book.ClaimKey(network, a) }

// Reconcile takes over names and owners from an engine's census, and removes what the engine no longer has. A record is
// removed only if it is missing in two censuses in a row, is older than the grace period, since an engine lists a thing
// later than it requests it from netyard, and is not in use, in case another engine owns it.
func Reconcile(ctx context.Context, y *yard.Yard, c Census) error {
	if err := RecordNames(ctx, y, c); err != nil {
		return err
	}
	if err := enforce.Enforce(ctx, y.Book); err != nil { // policies select endpoints by their owners
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

// reapHolds releases the addresses that are held for containers which the engine no longer has.
func reapHolds(y *yard.Yard, c Census, round *book.Round) error {
	return y.ReleaseHolds(func(h book.Hold) bool {
		return holdOver(y, h, c, y.Config.Grace) && round.Again("hold "+h.Key())
	})
}

// holdOver reports whether a hold of at least that age is for a container that its engine no longer has.
func holdOver(y *yard.Yard, h book.Hold, c Census, age time.Duration) bool {
	return h.Container.Engine == c.Engine && !c.Attachments[h.Attachment] && y.Config.Now().Sub(h.Since) >= age
}

// reapEndpoints removes the endpoints that the engine no longer has.
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
		errs = append(errs, y.RemoveEndpoint(ctx, e.NetworkID, e.ID))
	}
	return errors.Join(errs...)
}

// reapNetworks removes the networks that the engine no longer has, or whose creation it never got the answer to.
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
			err := y.DeleteNetwork(ctx, n.ID)
			if err == nil {
				y.Config.Log.Info("orphaned network removed",
					"network", n.Name, "network_id", n.ID, "engine", n.Engine)
			}
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// knows reports whether the engine has any network that is on record. One that has none may be a different engine than
// the one that sends the requests, so its census proves nothing. The admin can still remove the orphans with gc.
func knows(y *yard.Yard, c Census) (bool, error) {
	ns, err := y.Networks()
	return slices.ContainsFunc(ns, func(n modes.Network) bool {
		_, ok := c.Networks[n.ID]
		return ok
	}), err
}

// orphanNetworks returns the engine's networks of at least that age that it no longer has, and that have no endpoint.
func orphanNetworks(y *yard.Yard, c Census, age time.Duration) (out []modes.Network, err error) {
	ns, err := y.Networks()
	if err != nil {
		return nil, err
	}
	for _, n := range ns {
		_, known := c.Networks[n.ID]
		if known || n.Engine != c.Engine || n.Phase != modes.Ready || y.Config.Now().Sub(n.Created) < age {
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

// RecordNames records the names of networks and the containers of endpoints. What it cannot record, since a request
// about it takes long, is left to the next census.
func RecordNames(ctx context.Context, y *yard.Yard, c Census) error {
	ns, err := y.Networks()
	if err != nil {
		return err
	}
	es, err := y.Endpoints()
	if err != nil {
		return err
	}
	for _, n := range ns {
		s, ok := c.Networks[n.ID]
		if !ok || s.Name == n.Name {
			continue
		}
		if err := nameNetwork(ctx, y, n.ID, s.Name); err != nil {
			y.Config.Log.Warn("name of a network not recorded", "network", n.ID, "name", s.Name, "err", err)
		}
	}
	for _, e := range es {
		s, ok := c.Endpoints[e.ID]
		if !ok || s.Container.ID == "" {
			continue
		}
		if err := Identify(ctx, y, e, s.Container); err != nil {
			y.Config.Log.Warn("container of an endpoint not recorded",
				"network", e.NetworkID, "endpoint", e.ID, "container", s.Container.Name, "err", err)
		}
	}
	return ctx.Err()
}

// nameNetwork records the name of a network.
func nameNetwork(ctx context.Context, y *yard.Yard, id, name string) error {
	ctx, cancel := context.WithTimeout(ctx, nameTime)
	defer cancel()
	h, err := y.HoldNetwork(ctx, id)
	if errors.Is(err, book.ErrNotFound) { // it was removed meanwhile
		return nil
	}
	if err != nil {
		return err
	}
	defer h.Release()
	return h.ChangeNetwork("network named", func(_ store.Tx, n *modes.Network) error {
		n.Name = name
		return nil
	})
}

// Identify records the container of an endpoint. Fields that are unknown this time keep their recorded value.
func Identify(ctx context.Context, y *yard.Yard, e modes.Endpoint, who modes.Container) error {
	who.Hostname = hostnameOf(y, who.PID)
	seen := e.Seen || y.Config.Kernel.IsNamespace(e.Sandbox)
	if merge(e.Container, who).Equal(e.Container) && seen == e.Seen {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, nameTime)
	defer cancel()
	h, err := y.Hold(ctx, e.NetworkID, e.ID)
	if errors.Is(err, book.ErrNotFound) { // it was removed meanwhile
		return nil
	}
	if err != nil {
		return err
	}
	defer h.Release()
	defer y.Keeper.Wake.Send() // the DHCP client may send the name
	err = h.Change("endpoint identified", func(_ store.Tx, now *modes.Endpoint) error {
		if now.Sandbox != e.Sandbox { // it left meanwhile; the process is not one of the new sandbox
			who.PID = 0
		}
		now.Container = merge(now.Container, who)
		now.Seen = now.Seen || seen && now.Sandbox == e.Sandbox
		return nil
	})
	if err != nil {
		return err
	}
	return overlay.NameInCluster(h)
}

// hostnameOf returns the hostname of a container, as its process sees it; empty: unknown. A process that is only being
// started still has the hostname of the host.
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

// merge returns old with the fields that fresh has; if they are different containers, it returns fresh.
func merge(old, fresh modes.Container) modes.Container {
	if fresh.ID != "" && fresh.ID != old.ID {
		return fresh
	}
	for _, f := range []struct{ to, from *string }{
		{&old.Engine, &fresh.Engine},
		{&old.ID, &fresh.ID},
		{&old.Name, &fresh.Name},
		{&old.Namespace, &fresh.Namespace},
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
		old.Labels, old.ImageLabels = labelsOf(old, fresh)
	}
	return old
}

// labelsOf returns the labels of a container, its own and those from its image, as an engine now tells them apart. One
// that was the image's stays so: containerd knows an image by a name, which may by now stand for another image.
func labelsOf(old, fresh modes.Container) (own, fromImage map[string]string) {
	own, fromImage = maps.Clone(fresh.Labels), maps.Clone(fresh.ImageLabels)
	for k, v := range old.ImageLabels {
		if now, ok := own[k]; ok && now == v {
			delete(own, k)
			if fromImage == nil {
				fromImage = map[string]string{}
			}
			fromImage[k] = v
		}
	}
	return own, fromImage
}

// reapLeases releases the leases in networks' pools that belong to no endpoint: the request for the address was
// answered, but the endpoint was never created.
func reapLeases(ctx context.Context, y *yard.Yard, round *book.Round) error {
	leases, err := orphanLeases(y, y.Config.Grace)
	if err != nil {
		return err
	}
	for _, l := range leases {
		if round.Again("lease " + l.Pool + " " + l.Addr.String()) {
			if err := pool.ReleaseAddress(ctx, y, l.Pool, l.Addr); err != nil {
				return err
			}
			y.Config.Log.Info("orphaned lease released", "pool", l.Pool, "address", l.Addr)
		}
	}
	return nil
}

// reapHeld releases the held static addresses that no container, running or stopped, has any more.
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
		wanted := c.Wanted[WantedKey(network[l.Pool], l.Addr)]
		if l.State != ipam.StateHeld || wanted || y.Config.Now().Sub(l.Freed) < y.Config.Grace {
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

// reapPools releases the pools whose network was never created.
func reapPools(ctx context.Context, y *yard.Yard, c Census, round *book.Round) error {
	pools, err := orphanPools(y, c, y.Config.Grace)
	if err != nil {
		return err
	}
	for _, p := range pools {
		if round.Again("pool " + p.ID) {
			if err := pool.ReleasePool(ctx, y, p.ID); err != nil {
				return err
			}
			y.Config.Log.Info("orphaned pool released", "pool", p.ID)
		}
	}
	return nil
}

// orphanPools returns the pools of at least that age that belong to no network on record or of the engine: the request
// for the pool was answered, but the network was never created.
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
