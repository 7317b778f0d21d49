package daemon

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
	"netyard/cluster/record"
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

// overlays has the parts of the daemon that serve overlay networks. It is nil if no etcd is configured; the methods
// that serve calls accept that.
type overlays struct {
	agent  *fabric.Agent
	client *cluster.Client
	names  *names.Server
	// yard is set before the Agent runs.
	yard *yard.Yard
}

// newFabric connects the host to its cluster. It returns nil if no etcd is configured.
func newFabric(cfg config, log *slog.Logger, version string, st *store.Store, k *kernel.Kernel) (*overlays, error) {
	if !cfg.Etcd.Enabled() {
		return nil, nil //nolint:nilnil // a nil *overlays is valid
	}
	vtep, err := netip.ParseAddr(cfg.Overlay.Address)
	if err != nil {
		return nil, fmt.Errorf("overlay.address: %w", err)
	}
	mtu := usualMTU
	link, err := overlay.UnderlayOf(k.Handle, vtep)
	if err != nil { // at boot, the address may appear later
		log.Warn("overlay address not found on this host", "overlay.address", vtep, "err", err)
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
			return o.yard == nil || yoverlay.HasAddress(o.yard.Book, network, a)
		},
		Log: log, Client: client, Store: st, Kernel: k, BootID: boot, Cooldown: cfg.Cooldown,
		Port: cmp.Or(cfg.Overlay.Port, vxlanPort), WireGuardPort: cfg.Overlay.WireGuardPort,
		Host: record.Host{
			Name: cmp.Or(cfg.Overlay.Name, name), VTEP: vtep, MTU: mtu, Version: strings.ReplaceAll(version, " ", "-"),
		},
		Fence: func(ctx context.Context, network string, why map[string]string) error {
			return o.yard.Fence(ctx, network, why)
		},
	})
	if err != nil {
		return nil, err
	}
	o.names = &names.Server{
		Log: log, Sockets: ports.Sockets{Handle: k.Handle}, Directory: directory{o.agent},
		Changed: o.agent.NetworkChanges(),
		Port:    modes.NamesPort, Resolvers: "/etc/resolv.conf", Upstream: modes.DNSPort,
	}
	return o, nil
}

// usualMTU is the MTU of Ethernet, in bytes.
const usualMTU = 1500

// modes returns the Agent as modes use it; nil if there is none.
func (o *overlays) modes() modes.Fabric {
	if o == nil {
		return nil
	}
	return fabric.Modes{A: o.agent}
}

// start tells the Agent which networks are on record; it forgets the others.
func (o *overlays) start(y *yard.Yard) error {
	if o == nil {
		return nil
	}
	o.yard = y
	ids, err := yoverlay.Overlays(y.Book)
	if err != nil {
		return err
	}
	return o.agent.UnbindExcept(ids)
}

// run starts the tasks of the Agent and of the name server.
func (o *overlays) run(ctx context.Context, tasks *errgroup.Group) {
	if o == nil {
		return
	}
	tasks.Go(func() error { return o.agent.Run(ctx) })
	tasks.Go(func() error { return o.names.Run(ctx) })
}

// directory is the Agent as the name server uses it.
type directory struct{ *fabric.Agent }

// Networks returns the overlays that are on this host.
func (d directory) Networks() (all []names.Network) {
	for _, b := range d.Agent.Networks() {
		n := names.Network{ID: b.ID, Name: b.Name, Link: b.Bridge, Internal: b.Internal}
		for _, s := range b.Subnets {
			n.At, n.Subnets = append(n.At, s.Gateway), append(n.Subnets, s.Pool)
		}
		all = append(all, n)
	}
	return all
}

// close ends the connection to etcd.
func (o *overlays) close() error {
	if o == nil {
		return nil
	}
	return o.client.Close()
}

// admin returns the cluster as the admin socket serves it; nil if there is none.
func (o *overlays) admin() api.Cluster {
	if o == nil {
		return nil
	}
	return o
}

// Status returns this host's membership, the state of its overlays, and whether etcd accepts writes now.
func (o *overlays) Status(ctx context.Context) (api.ClusterStatus, error) {
	s, err := o.agent.Status()
	v := api.ClusterStatus{
		Host: s.Host, Cluster: s.Meta.Cluster, Reason: s.Reason, Advice: s.Advice, Clear: s.Clear,
		Hosts: s.Hosts.Records, Rejected: s.Hosts.Rejected + s.Members.Rejected, Networks: []api.ClusterNetwork{},
		Down: s.Health.Down, WriteMedian: milliseconds(s.Health.Median), WriteWorst: milliseconds(s.Health.Worst),
	}
	if v.Down.IsZero() {
		if err := o.client.TryWrite(ctx); err != nil {
			v.Refused = err.Error()
		}
	}
	for _, n := range s.Networks {
		w := api.ClusterNetwork{
			Name: n.Name, Peers: n.Peers, Warm: n.Warm, Waiting: n.Waiting, Lost: n.Lost, Read: n.Addresses.Compared,
			Encrypted: n.Encrypted, Left: n.Left, Refused: map[string]string{},
		}
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

// Hosts returns the hosts of the cluster from etcd.
func (o *overlays) Hosts(ctx context.Context) ([]api.ClusterHost, error) {
	all, err := o.client.Members(ctx)
	views := []api.ClusterHost{}
	for _, m := range all {
		views = append(views, hostView(m))
	}
	return views, err
}

// Rejoin re-admits this host after it was removed from the cluster.
func (o *overlays) Rejoin(ctx context.Context) error { return o.agent.Rejoin(ctx) }

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// Forget removes a host from the cluster.
func (o *overlays) Forget(ctx context.Context, host string) (api.ClusterHost, error) {
	m, err := o.agent.Forget(ctx, host)
	return hostView(m), err
}

// Doctor checks etcd, this host, the paths to the others, and the name server.
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

// Overlays returns the networks of the cluster from etcd.
func (o *overlays) Overlays(ctx context.Context) ([]api.Overlay, error) {
	all, err := o.client.Overlays(ctx)
	views := []api.Overlay{}
	for _, n := range all {
		v := api.Overlay{
			ID: n.ID, Name: n.Name, VNI: n.VNI, MTU: n.MTU, Internal: n.Internal,
			Hosts: append([]string{}, n.Hosts...), Subnets: []api.Subnet{},
		}
		for _, s := range n.Subnets {
			v.Subnets = append(v.Subnets, api.Subnet{
				Pool: s.Pool.String(), Gateway: s.Gateway.String(), IPAM: yoverlay.Space,
			})
		}
		views = append(views, v)
	}
	return views, err
}

// RemoveOverlay removes a network from the cluster that is on no host.
func (o *overlays) RemoveOverlay(ctx context.Context, name string) error {
	return o.client.RemoveOverlay(ctx, name)
}

// Reach returns the endpoints of a network on all hosts.
func (o *overlays) Reach(id string) (views []api.Reached) {
	for _, r := range o.agent.Endpoints(id) {
		views = append(views, api.Reached{
			Address: r.Addr.String(), Host: cmp.Or(r.HostName, r.Host), Container: r.Name, Aliases: r.Aliases,
			MAC: string(r.MAC), Endpoint: r.Endpoint,
		})
	}
	return views
}

// RotateKey replaces this host's WireGuard key.
func (o *overlays) RotateKey(ctx context.Context) (api.ClusterKey, error) {
	key, err := o.agent.RotateKey(ctx)
	return api.ClusterKey{Public: string(key)}, err
}

func hostView(m cluster.Member) api.ClusterHost {
	return api.ClusterHost{
		ID: m.ID, Name: m.Name, Address: m.VTEP.String(), Alive: m.Alive, Networks: m.Networks,
		Encrypts: m.WireGuard != "", Version: m.Version,
	}
}

// bootID returns an ID that differs for every boot of the host.
func bootID() (string, error) {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the boot ID: %w", err)
	}
	return strings.TrimSpace(string(raw)), nil
}
