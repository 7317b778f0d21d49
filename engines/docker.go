// Package engines finds the containers that endpoints belong to, and the endpoints and networks that an engine no
// longer has. It works in the background only: an engine that waits for netyard cannot answer netyard, so nothing on a
// request's path may ask one, except Alone.
package engines

import (
	"cmp"
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
	"golang.org/x/sync/errgroup"

	"netyard/kernel/others"
	"netyard/modes"
	"netyard/wake"
	"netyard/yard"
	"netyard/yard/book"
	"netyard/yard/reconcile"
)

const (
	// answerTimeout bounds an engine's answer; while an engine starts it does not answer at all.
	answerTimeout = 10 * time.Second
	// pollInterval is the time between two checks of an engine without a Poke, and the longest between two retries.
	pollInterval = 30 * time.Second
	// pokeDelay is the time from a Poke to the check. It is also the first interval between retries, which double while
	// the engine does not answer, or does not list yet what netyard has from it.
	pokeDelay = 200 * time.Millisecond
)

// Docker watches one Docker engine.
type Docker struct {
	// Host is the engine's address, as in unix:///var/run/docker.sock.
	Host string
	Yard *yard.Yard
	Log  *slog.Logger

	// RebuildOthers rebuilds the records of endpoints of other engines, after the records were lost; nil if there are
	// none.
	RebuildOthers func(context.Context) error

	poked wake.Signal
	// answers wakes follow when the engine has answered.
	answers wake.Signal
}

// NewDocker returns the watcher of an engine. Call Run to start it.
func NewDocker(host string, log *slog.Logger) *Docker {
	return &Docker{Host: host, Log: log, poked: wake.New(), answers: wake.New()}
}

// Poke has the engine checked soon, since something has changed. It does not wait.
func (d *Docker) Poke() {
	d.poked.Send()
}

// Run follows the engine's events and reconciles the records with it, until ctx ends.
func (d *Docker) Run(ctx context.Context) error {
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.Go(func() error { return d.follow(ctx) })
	tasks.Go(func() error { return d.checkOften(ctx) })
	return tasks.Wait()
}

// checkOften checks the engine soon after each Poke, and otherwise now and then, until ctx ends.
func (d *Docker) checkOften(ctx context.Context) error {
	wait, silent := pokeDelay, false
	for {
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-d.poked:
			timer.Stop()
			if !wake.Sleep(ctx, pokeDelay) {
				return nil
			}
			wait = pokeDelay
		case <-timer.C:
		}
		unnamed, err := d.check(ctx)
		if err != nil && !silent {
			d.Log.Info("engine not reachable; netyard works without it", "engine", d.Host, "err", err)
		}
		silent = err != nil
		if unnamed || err != nil {
			wait = min(2*wait, pollInterval)
		} else {
			wait = pollInterval
		}
	}
}

// check asks the engine once and reconciles the records with its answer. unnamed says that the container of an endpoint
// or the name of a network is not known yet.
func (d *Docker) check(ctx context.Context) (unnamed bool, err error) {
	if err := d.Yard.RemoveLost(ctx); err != nil {
		d.Log.Warn("endpoints of a killed engine not removed", "err", err)
	}
	if err := d.recordVersion(ctx); err != nil {
		return d.identifyBySandbox(ctx), err
	}
	c, err := d.Census(ctx)
	if err != nil {
		return d.identifyBySandbox(ctx), err
	}
	d.answers.Send()
	if h := d.Yard.Config.Handle; h != nil {
		others.NameBridges(h, book.Docker, c.Bridges)
	}
	if reconcile.Rebuilding(d.Yard) {
		if err := d.fillSandboxes(ctx, &c); err != nil {
			return true, err
		}
		if err := reconcile.Rebuild(ctx, d.Yard, c, d.RebuildOthers); err != nil {
			return true, err
		}
	}
	if err := reconcile.Reconcile(ctx, d.Yard, c); err != nil {
		return true, fmt.Errorf("reconcile with %s: %w", book.Docker, err)
	}
	return d.identifyBySandbox(ctx) || d.hasUnnamedNetwork(), nil
}

// hasUnnamedNetwork reports whether the name of one of the engine's networks is not known yet.
func (d *Docker) hasUnnamedNetwork() bool {
	ns, err := d.Yard.Networks()
	return err == nil && slices.ContainsFunc(ns, func(n modes.Network) bool {
		return n.Engine == book.Docker && n.Name == ""
	})
}

// identifyBySandbox finds the processes and container IDs of endpoints whose container is not fully known, without
// asking the engine. unnamed says that the container of one of them remains unknown or unnamed.
func (d *Docker) identifyBySandbox(ctx context.Context) (unnamed bool) {
	es, err := d.Yard.Endpoints()
	if err != nil {
		return false
	}
	var unknown []modes.Endpoint
	for _, e := range es {
		c := e.Container
		known := e.Seen && c.PID != 0 && c.Name != "" && c.Hostname != ""
		if e.Attachment == "" && e.Sandbox != "" && e.Phase == modes.Ready && !known {
			unknown = append(unknown, e)
		}
	}
	if len(unknown) == 0 {
		return false
	}
	first := scanProcesses()
	for _, e := range unknown {
		if c, ok := first.container(e.Sandbox); ok {
			if err := reconcile.Identify(ctx, d.Yard, e, c); err != nil {
				d.Log.Warn("endpoint's container not recorded", "endpoint", e.ID, "err", err)
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

// recordVersion records the engine's version, which decides what it takes from a plugin.
func (d *Docker) recordVersion(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	c, err := d.client()
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // the answer was read
	v, err := c.ServerVersion(ctx, client.ServerVersionOptions{})
	if err != nil {
		return fmt.Errorf("ask for the engine's version: %w", err)
	}
	return reconcile.RecordEngineVersion(d.Yard, book.Docker, v.Version)
}

// Census asks the engine for all its networks and endpoints of netyard's drivers.
func (d *Docker) Census(ctx context.Context) (reconcile.Census, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	c, err := d.client()
	if err != nil {
		return reconcile.Census{}, err
	}
	defer c.Close() //nolint:errcheck // all answers were read
	// Containers are listed first, so that a network made in between is not missing from the census.
	containers, err := c.ContainerList(ctx, client.ContainerListOptions{All: true})
	if err != nil {
		return reconcile.Census{}, fmt.Errorf("list containers: %w", err)
	}
	networks, err := c.NetworkList(ctx, client.NetworkListOptions{})
	if err != nil {
		return reconcile.Census{}, fmt.Errorf("list networks: %w", err)
	}
	census := reconcile.Census{
		Engine:    book.Docker,
		Networks:  map[string]reconcile.SeenNetwork{},
		Endpoints: map[string]reconcile.SeenEndpoint{},
		Pools:     map[netip.Prefix]bool{},
		Wanted:    map[string]bool{},
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
		if name := bridgeOf(n.Network); name != "" {
			census.Bridges = append(census.Bridges, name)
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
	d.addLabels(ctx, c, census, containers.Items)
	return census, nil
}

// addLabels adds the containers' labels to the census. Those of a container whose image the engine does not tell stay
// unknown: they may be the image's.
func (d *Docker) addLabels(ctx context.Context, c *client.Client, census reconcile.Census, all []container.Summary) {
	items := map[string]container.Summary{}
	for _, item := range all {
		items[item.ID] = item
	}
	images := map[string]map[string]string{}
	for id, e := range census.Endpoints {
		item := items[e.Container.ID]
		image, known := images[item.ImageID]
		if !known && len(item.Labels) > 0 {
			got, err := c.ImageInspect(ctx, item.ImageID)
			if err != nil {
				d.Log.Debug("labels of an image not read", "container_id", item.ID, "image", item.Image, "err", err)
				continue
			}
			if got.Config != nil {
				image = got.Config.Labels
			}
			images[item.ImageID] = image
		}
		e.Container.Labels, e.Container.ImageLabels = splitLabels(item.Labels, image)
		census.Endpoints[id] = e
	}
}

// doorMode returns the mode in the name of a driver; ok is false if the driver is not netyard's.
func doorMode(name string) (mode string, ok bool) {
	name, _, _ = strings.Cut(name, ":") // the name of a managed plugin has a tag
	if name == "netyard" {
		return "", true
	}
	return strings.CutPrefix(name, "netyard-")
}

// bridgeOf returns the name of the bridge of a network of Docker's own driver; empty: it has none.
func bridgeOf(n network.Network) string {
	if n.Driver != "bridge" {
		return ""
	}
	const digits = 12
	return cmp.Or(n.Options["com.docker.network.bridge.name"], "br-"+n.ID[:min(digits, len(n.ID))])
}

// seenNetwork returns the network that an engine lists for a driver of the mode.
func (d *Docker) seenNetwork(mode string, n network.Network) reconcile.SeenNetwork {
	s := reconcile.SeenNetwork{Name: n.Name, Swarm: n.Scope == "swarm", Network: modes.Network{
		ID: n.ID, Name: n.Name, Engine: book.Docker, Internal: n.Internal, IPv6: n.EnableIPv6,
	}}
	var err error
	if s.Network.Mode, s.Network.Options, err = d.Yard.ResolveFromEngine(mode, n.Options); err != nil {
		d.Log.Warn("invalid options on a network of the engine", "network", n.Name, "network_id", n.ID, "err", err)
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

// addEndpoint adds a container's endpoint to the census, if it is on one of netyard's networks, and the addresses that
// the user requested for it.
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
	if s.EndpointID == "" { // the container does not run
		return
	}
	who := modes.Container{Engine: book.Docker, ID: item.ID, Image: item.Image}
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

// fillSandboxes adds the sandbox paths and the options of all endpoints to the census. It needs a call for each
// container, which only lost records are worth.
func (d *Docker) fillSandboxes(ctx context.Context, census *reconcile.Census) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	c, err := d.client()
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // all answers were read
	for id, e := range census.Endpoints {
		got, err := c.ContainerInspect(ctx, e.Container.ID, client.ContainerInspectOptions{})
		if errdefs.IsNotFound(err) { // it was removed meanwhile
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

// endpointOptions returns the options that --driver-opt set for an endpoint, without the engine's own keys.
func (d *Docker) endpointOptions(mode, id string, settings map[string]*network.EndpointSettings) map[string]string {
	for _, s := range settings {
		if s.EndpointID != id {
			continue
		}
		given := maps.Clone(s.DriverOpts)
		maps.DeleteFunc(given, func(key, _ string) bool { return strings.HasPrefix(key, "com.docker.network.") })
		options, err := d.Yard.Options.ResolveEndpoint(mode, given)
		if err != nil {
			d.Log.Warn("invalid options on an endpoint of the engine", "endpoint", id, "err", err)
		}
		return options
	}
	return nil
}
