package cli

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"netyard/cli/api"
	"netyard/cluster"
	"netyard/fabric"
	"netyard/kernel"
	"netyard/kernel/overlay"
	"netyard/kernel/ports"
	"netyard/modes"
	"netyard/names"
	"netyard/store"
	"netyard/yard"
	yoverlay "netyard/yard/overlay"
)

// overlays are this host's half of overlay networks; nil when no etcd is configured: then nothing is asked, and nothing
// runs.
type overlays struct {
	agent  *fabric.Agent
	client *cluster.Client
	names  *names.Server
	// yard is there before the Agent runs.
	yard *yard.Yard
}

func newFabric(cfg Config, log *slog.Logger, version string, st *store.Store, k *kernel.Kernel) (*overlays, error) {
	if !cfg.Etcd.Enabled() {
		return nil, nil //nolint:nilnil // none is an answer
	}
	vtep, err := netip.ParseAddr(cfg.Overlay.Address)
	if err != nil {
		return nil, fmt.Errorf("overlay.address: %w", err)
	}
	mtu := usualMTU
	link, err := overlay.CarrierOf(k.Handle, vtep)
	if err != nil { // at boot it may come later than netyard
		log.Warn("the address that the other hosts send to is not there", "overlay.address", vtep, "err", err)
	} else {
		mtu = link.MTU
	}
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	name, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("find the host's name: %w", err)
	}
	client, err := cluster.Open(cfg.Etcd)
	if err != nil {
		return nil, err
	}
	o := &overlays{client: client}
	o.agent, err = fabric.New(fabric.Config{
		Held: func(network string, a netip.Addr) bool {
			return o.yard == nil || yoverlay.Holds(o.yard.Book, network, a)
		},
		Log: log, Client: client, Store: st, Kernel: k, Port: cmp.Or(cfg.Overlay.Port, vxlanPort), BootID: boot, Cooldown: cfg.Cooldown,
		WireGuardPort: cfg.Overlay.WireGuardPort,
		Host:          cluster.Host{Name: cmp.Or(cfg.Overlay.Name, name), VTEP: vtep, MTU: mtu, Version: strings.ReplaceAll(version, " ", "-")},
		Fence: func(ctx context.Context, network string, why map[string]string) error {
			return o.yard.Fence(ctx, network, why)
		},
	})
	if err != nil {
		return nil, err
	}
	o.names = &names.Server{
		Log: log, Sockets: ports.Sockets{Handle: k.Handle}, Directory: directory{o.agent}, Changed: o.agent.Moved(), Port: modes.NamesPort,
		Resolvers: "/etc/resolv.conf", Upstream: modes.DNSPort,
	}
	return o, nil
}

// usualMTU is Ethernet's, bytes.
const usualMTU = 1500

// modes is the Agent as modes see it; nil when there is none.
func (o *overlays) modes() modes.Fabric {
	if o == nil {
		return nil
	}
	return fabric.Modes{A: o.agent}
}

// keep has the Agent forget the networks that are not on record any more.
func (o *overlays) keep(y *yard.Yard) error {
	if o == nil {
		return nil
	}
	o.yard = y
	ids, err := yoverlay.Overlays(y.Book)
	if err != nil {
		return err
	}
	return o.agent.Keep(ids)
}

func (o *overlays) run(ctx context.Context, tasks *errgroup.Group) {
	if o == nil {
		return
	}
	tasks.Go(func() error { return o.agent.Run(ctx) })
	tasks.Go(func() error { return o.names.Run(ctx) })
}

// directory is the Agent as resolvers see it.
type directory struct{ *fabric.Agent }

// Networks are those that are on this host.
func (d directory) Networks() (all []names.Network) {
	for _, b := range d.Here() {
		n := names.Network{ID: b.ID, Name: b.Name, Link: b.Bridge, Internal: b.Internal}
		for _, s := range b.Subnets {
			n.At, n.Subnets = append(n.At, s.Gateway), append(n.Subnets, s.Pool)
		}
		all = append(all, n)
	}
	return all
}

func (o *overlays) close() error {
	if o == nil {
		return nil
	}
	return o.client.Close()
}

// admin is what the admin can ask of the cluster; nil when there is none.
func (o *overlays) admin() api.Cluster {
	if o == nil {
		return nil
	}
	return o
}

// Status says how this host fares as a member.
func (o *overlays) Status() (api.ClusterStatus, error) {
	s, err := o.agent.Status()
	v := api.ClusterStatus{
		Host: s.Host, Cluster: s.Meta.Cluster, Reason: s.Reason, Advice: s.Advice, Down: s.Health.Down, Hosts: s.Hosts.Records,
		WriteMedian: milliseconds(s.Health.Median), WriteWorst: milliseconds(s.Health.Worst),
		Rejected: s.Hosts.Rejected + s.Members.Rejected, Clear: s.Clear, Networks: []api.ClusterNetwork{},
	}
	for _, n := range s.Networks {
		w := api.ClusterNetwork{Name: n.Name, Peers: n.Peers, Warm: n.Warm, Waiting: n.Waiting, Lost: n.Lost, Read: n.Addresses.Compared, Refused: map[string]string{}}
		w.Encrypted, w.Left = n.Encrypted, n.Left
		for a, why := range n.Refused {
			w.Refused[a.String()] = why
		}
		for id, why := range n.Fenced {
			w.Fenced = append(w.Fenced, o.yard.Owner(id)+": "+why)
		}
		slices.Sort(w.Fenced)
		v.Rejected += n.Addresses.Rejected
		v.Networks = append(v.Networks, w)
	}
	slices.SortFunc(v.Networks, func(a, b api.ClusterNetwork) int { return strings.Compare(a.Name, b.Name) })
	return v, err
}

// Hosts are the members, as etcd has them.
func (o *overlays) Hosts(ctx context.Context) ([]api.ClusterHost, error) {
	all, err := o.agent.Members(ctx)
	views := []api.ClusterHost{}
	for _, m := range all {
		views = append(views, hostView(m))
	}
	return views, err
}

// Rejoin has this host back that was taken out.
func (o *overlays) Rejoin(ctx context.Context) error { return o.agent.Rejoin(ctx) }

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// Forget takes a host out.
func (o *overlays) Forget(ctx context.Context, host string) (api.ClusterHost, error) {
	m, err := o.agent.Forget(ctx, host)
	return hostView(m), err
}

// Doctor looks for what is wrong.
func (o *overlays) Doctor(ctx context.Context) ([]api.ClusterSymptom, error) {
	found, err := o.agent.Doctor(ctx)
	views := []api.ClusterSymptom{}
	for _, s := range found {
		views = append(views, api.ClusterSymptom(s))
	}
	for _, t := range o.names.Troubles() {
		views = append(views, api.ClusterSymptom{Of: "network", Network: t.Network, Text: t.Text})
	}
	return views, err
}

// Overlays are the networks of the cluster, as etcd has them.
func (o *overlays) Overlays(ctx context.Context) ([]api.Overlay, error) {
	all, err := o.agent.Overlays(ctx)
	views := []api.Overlay{}
	for _, n := range all {
		v := api.Overlay{ID: n.ID, Name: n.Name, VNI: n.VNI, MTU: n.MTU, Internal: n.Internal, Hosts: append([]string{}, n.Hosts...), Subnets: []api.Subnet{}}
		for _, s := range n.Subnets {
			v.Subnets = append(v.Subnets, api.Subnet{Pool: s.Pool.String(), Gateway: s.Gateway.String(), IPAM: yoverlay.OverlaySpace})
		}
		views = append(views, v)
	}
	return views, err
}

// RemoveOverlay takes a network out that no host has.
func (o *overlays) RemoveOverlay(ctx context.Context, name string) error {
	return o.agent.RemoveOverlay(ctx, name)
}

// Reach are the endpoints of a network, on whatever host.
func (o *overlays) Reach(id string) (views []api.Reached) {
	for _, r := range o.agent.Reach(id) {
		views = append(views, api.Reached{
			Address: r.Addr.String(), Host: cmp.Or(r.HostName, r.Host), Container: r.Name, Aliases: r.Aliases, MAC: string(r.MAC), Endpoint: r.Endpoint,
		})
	}
	return views
}

// RotateKey gives this host another key.
func (o *overlays) RotateKey(ctx context.Context) (api.ClusterKey, error) {
	key, err := o.agent.RotateKey(ctx)
	return api.ClusterKey{Public: string(key)}, err
}

func hostView(m fabric.Member) api.ClusterHost {
	return api.ClusterHost{ID: m.ID, Name: m.Name, Address: m.VTEP.String(), Alive: m.Alive, Networks: m.Networks, Encrypts: m.WireGuard != "", Version: m.Version}
}

// bootID tells one life of the host's kernel from the next.
func bootID() (string, error) {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return strings.TrimSpace(string(raw)), nil
}
