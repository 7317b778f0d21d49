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
	"netyard/modes"
	"netyard/store"
	"netyard/yard"
)

// overlays are this host's half of overlay networks; nil when no etcd is configured: then nothing is asked, and nothing runs.
type overlays struct {
	agent  *fabric.Agent
	client *cluster.Client
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
	_, mtu, err := k.Carrier(vtep)
	if err != nil { // at boot it may come later than netyard
		log.Warn("the address that the other hosts send to is not there", "overlay.address", vtep, "err", err)
		mtu = usualMTU
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
		Log: log, Client: client, Store: st, Kernel: k, Port: cmp.Or(cfg.Overlay.Port, vxlanPort), BootID: boot, Cooldown: cfg.Cooldown,
		Host: cluster.Host{Name: cmp.Or(cfg.Overlay.Name, name), VTEP: vtep, MTU: mtu, Version: strings.ReplaceAll(version, " ", "-")},
		Fence: func(ctx context.Context, network string, why map[string]string) error {
			return o.yard.Fence(ctx, network, why)
		},
	})
	return o, err
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
	ids, err := y.Overlays()
	if err != nil {
		return err
	}
	return o.agent.Keep(ids)
}

func (o *overlays) run(ctx context.Context, tasks *errgroup.Group) {
	if o != nil {
		tasks.Go(func() error { return o.agent.Run(ctx) })
	}
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
		Rejected: s.Hosts.Rejected + s.Members.Rejected, Networks: []api.ClusterNetwork{},
	}
	for _, n := range s.Networks {
		w := api.ClusterNetwork{Name: n.Name, Peers: n.Peers, Warm: n.Warm, Waiting: n.Waiting, Lost: n.Lost, Read: n.Addresses.Compared, Refused: map[string]string{}}
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
	return views, err
}

func hostView(m fabric.Member) api.ClusterHost {
	return api.ClusterHost{ID: m.ID, Name: m.Name, Address: m.VTEP.String(), Alive: m.Alive, Networks: m.Networks, Version: m.Version}
}

// bootID tells one life of the host's kernel from the next.
func bootID() (string, error) {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return strings.TrimSpace(string(raw)), nil
}
