// Package engines finds out who the endpoints belong to, and what an engine has forgotten. It works in the background
// only: an engine that waits for netyard cannot answer netyard, so nothing on a request's path may ask one.
package engines

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"

	"netyard/modes"
	"netyard/yard"
	"netyard/yard/book"
	"netyard/yard/reconcile"
)

const (
	// answerTime is how long an engine may take to answer; a booting one does not answer at all.
	answerTime = 10 * time.Second
	// often is the pause between two looks at an engine nobody poked at.
	often = 30 * time.Second
	// soon is the pause before the first look after a poke, and the first of the pauses, each twice as long, while the
	// engine does not show yet what netyard was told of.
	soon = 200 * time.Millisecond
)

// Docker is one Docker engine.
type Docker struct {
	// Host is the engine's address, unix:///var/run/docker.sock.
	Host string
	Yard *yard.Yard
	Log  *slog.Logger

	// Beside makes the records of others' that were lost with the engine's; nil: there are none.
	Beside func(context.Context) error

	poked chan struct{}
}

// NewDocker makes the watcher of an engine; Run it.
func NewDocker(host string, log *slog.Logger) *Docker {
	return &Docker{Host: host, Log: log, poked: make(chan struct{}, 1)}
}

// Poke says that something has changed and a look is worth while.
func (d *Docker) Poke() {
	select {
	case d.poked <- struct{}{}:
	default:
	}
}

// Run keeps the records and the engine in agreement until ctx ends.
func (d *Docker) Run(ctx context.Context) error {
	wait, silent := soon, false
	for {
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-d.poked:
			timer.Stop()
			if !sleep(ctx, soon) {
				return nil
			}
			wait = soon
		case <-timer.C:
		}
		unnamed, err := d.look(ctx)
		if err != nil && !silent {
			d.Log.Info("the engine does not answer; netyard works without it", "engine", d.Host, "err", err)
		}
		silent = err != nil
		if unnamed || err != nil {
			wait = min(2*wait, often)
		} else {
			wait = often
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// look asks the engine once. unnamed says that there are endpoints whose container is not known yet.
func (d *Docker) look(ctx context.Context) (unnamed bool, err error) {
	if err := d.Yard.BuryLost(ctx); err != nil {
		d.Log.Warn("drop what an engine left that was killed", "err", err)
	}
	c, err := d.Census(ctx)
	if err != nil {
		return d.bySandbox(), err
	}
	if reconcile.Rebuilding(d.Yard) {
		if err := d.fillSandboxes(ctx, &c); err != nil {
			return true, err
		}
		if err := reconcile.Rebuild(ctx, d.Yard, c, d.Beside); err != nil {
			return true, err
		}
	}
	if err := reconcile.Reconcile(ctx, d.Yard, c); err != nil {
		return true, fmt.Errorf("reconcile with %s: %w", book.Docker, err)
	}
	return d.bySandbox() || d.nameless(), nil
}

// nameless says whether there are networks of the engine whose names it has not told yet.
func (d *Docker) nameless() bool {
	ns, err := d.Yard.Networks()
	return err == nil && slices.ContainsFunc(ns, func(n modes.Network) bool { return n.Engine == book.Docker && n.Name == "" })
}

// bySandbox finds the processes of endpoints that are not known yet, without asking anybody.
func (d *Docker) bySandbox() (unnamed bool) {
	es, err := d.Yard.Endpoints()
	if err != nil {
		return false
	}
	var open []modes.Endpoint
	for _, e := range es {
		if e.Attachment == "" && e.Sandbox != "" && e.Phase == modes.Ready && (!e.Seen || e.Container.PID == 0 || e.Container.Name == "" || e.Container.Hostname == "") {
			open = append(open, e)
		}
	}
	if len(open) == 0 {
		return false
	}
	inhabitants := inhabitants()
	for _, e := range open {
		if who, ok := inhabitants.of(e.Sandbox); ok {
			if err := reconcile.Identify(d.Yard, e.NetworkID, e.ID, who); err != nil {
				d.Log.Warn("note an endpoint's container", "endpoint", e.ID, "err", err)
			}
			unnamed = unnamed || e.Container.Name == "" || e.Container.Hostname == ""
		} else {
			unnamed = true
		}
	}
	return unnamed
}

func (d *Docker) client() (*client.Client, error) {
	c, err := client.New(client.WithHost(d.Host))
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", d.Host, err)
	}
	return c, nil
}

// Census asks the engine for all it has to do with netyard.
func (d *Docker) Census(ctx context.Context) (reconcile.Census, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	c, err := d.client()
	if err != nil {
		return reconcile.Census{}, err
	}
	defer c.Close() //nolint:errcheck // nothing is written
	// Containers first: a network that is made in between is merely not missed.
	containers, err := c.ContainerList(ctx, client.ContainerListOptions{All: true})
	if err != nil {
		return reconcile.Census{}, fmt.Errorf("list containers: %w", err)
	}
	networks, err := c.NetworkList(ctx, client.NetworkListOptions{})
	if err != nil {
		return reconcile.Census{}, fmt.Errorf("list networks: %w", err)
	}
	census := reconcile.Census{
		Engine: book.Docker, Networks: map[string]reconcile.SeenNetwork{}, Endpoints: map[string]reconcile.SeenEndpoint{},
		Pools: map[netip.Prefix]bool{}, Wanted: map[string]bool{},
	}
	for _, n := range networks.Items {
		if _, own := doorMode(n.IPAM.Driver); own {
			for _, c := range n.IPAM.Config {
				census.Pools[c.Subnet.Masked()] = true
			}
		}
		if mode, ok := doorMode(n.Driver); ok {
			census.Networks[n.ID] = d.seenNetwork(mode, n.Network)
		}
	}
	for _, item := range containers.Items {
		if item.NetworkSettings == nil {
			continue
		}
		for _, s := range item.NetworkSettings.Networks {
			addEndpoint(&census, item, s)
		}
	}
	return census, nil
}

// doorMode takes a driver's name apart; ok is false when it is not one of netyard's.
func doorMode(name string) (mode string, ok bool) {
	name, _, _ = strings.Cut(name, ":") // a managed plugin's has a tag
	if name == "netyard" {
		return "", true
	}
	return strings.CutPrefix(name, "netyard-")
}

func (d *Docker) seenNetwork(door string, n network.Network) reconcile.SeenNetwork {
	s := reconcile.SeenNetwork{Name: n.Name, Network: modes.Network{ID: n.ID, Name: n.Name, Engine: book.Docker, Internal: n.Internal, IPv6: n.EnableIPv6}}
	var err error
	if s.Network.Mode, s.Network.Options, err = d.Yard.Resolve(door, n.Options); err != nil {
		d.Log.Warn("the engine has a network that netyard would refuse", "network", n.Name, "err", err)
	}
	_, own := doorMode(n.IPAM.Driver)
	for _, c := range n.IPAM.Config {
		if !c.Subnet.IsValid() || c.Subnet.Bits() == 0 {
			continue
		}
		sub := modes.Subnet{Pool: c.Subnet.Masked()}
		if c.Gateway.IsValid() {
			sub.Gateway = netip.PrefixFrom(c.Gateway, c.Subnet.Bits())
		}
		for name, a := range c.AuxAddress {
			if sub.Aux == nil {
				sub.Aux = map[string]netip.Prefix{}
			}
			sub.Aux[name] = netip.PrefixFrom(a, c.Subnet.Bits())
		}
		if own {
			sub.Space = book.Space
			if r, err := yard.PoolRequest(c.Subnet.String(), "", n.IPAM.Options); err == nil {
				r.Range = c.IPRange
				s.Pools = append(s.Pools, r)
			}
		}
		s.Network.Subnets = append(s.Network.Subnets, sub)
	}
	return s
}

func addEndpoint(c *reconcile.Census, item container.Summary, s *network.EndpointSettings) {
	if _, ours := c.Networks[s.NetworkID]; !ours {
		return
	}
	if s.IPAMConfig != nil {
		for _, a := range []netip.Addr{s.IPAMConfig.IPv4Address, s.IPAMConfig.IPv6Address} {
			if a.IsValid() {
				c.Wanted[reconcile.WantedKey(s.NetworkID, a)] = true
			}
		}
	}
	if s.EndpointID == "" { // it does not run
		return
	}
	who := modes.Container{Engine: book.Docker, ID: item.ID, Image: item.Image, Labels: item.Labels}
	if who.Labels == nil { // none are known, which is not that none is known
		who.Labels = map[string]string{}
	}
	if len(item.Names) > 0 {
		who.Name = strings.TrimPrefix(item.Names[0], "/")
	}
	e := reconcile.SeenEndpoint{NetworkID: s.NetworkID, Container: who, MAC: s.MacAddress.String()}
	if s.IPAddress.IsValid() {
		e.Addrs = append(e.Addrs, netip.PrefixFrom(s.IPAddress, s.IPPrefixLen))
	}
	for _, gw := range []netip.Addr{s.Gateway, s.IPv6Gateway} {
		if gw.IsValid() {
			e.Gateways = append(e.Gateways, gw)
		}
	}
	if s.GlobalIPv6Address.IsValid() {
		e.Addrs = append(e.Addrs, netip.PrefixFrom(s.GlobalIPv6Address, s.GlobalIPv6PrefixLen))
	}
	c.Endpoints[s.EndpointID] = e
}

// fillSandboxes asks for each container where its sandbox is, and what was said for its endpoints; only lost records
// make that worth the calls.
func (d *Docker) fillSandboxes(ctx context.Context, census *reconcile.Census) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	c, err := d.client()
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // nothing is written
	for id, e := range census.Endpoints {
		got, err := c.ContainerInspect(ctx, e.Container.ID, client.ContainerInspectOptions{})
		if errdefs.IsNotFound(err) { // it went meanwhile
			delete(census.Endpoints, id)
			continue
		}
		if err != nil {
			return fmt.Errorf("inspect container %s: %w", e.Container.Name, err)
		}
		if s := got.Container.NetworkSettings; s != nil {
			e.Sandbox = s.SandboxKey
			e.Options = d.endpointOptions(census.Networks[e.NetworkID].Network.Mode, id, s.Networks)
		}
		census.Endpoints[id] = e
	}
	return nil
}

// endpointOptions are what --driver-opt said for an endpoint, without the engine's own keys.
func (d *Docker) endpointOptions(mode, id string, settings map[string]*network.EndpointSettings) map[string]string {
	for _, s := range settings {
		if s.EndpointID != id {
			continue
		}
		given := maps.Clone(s.DriverOpts)
		maps.DeleteFunc(given, func(key, _ string) bool { return strings.HasPrefix(key, "com.docker.network.") })
		options, err := d.Yard.Options.ResolveEndpoint(mode, given)
		if err != nil {
			d.Log.Warn("the engine has an endpoint that netyard would refuse", "endpoint", id, "err", err)
		}
		return options
	}
	return nil
}
