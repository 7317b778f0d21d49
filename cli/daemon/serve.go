// Package daemon is netyard serve: its configuration, its sockets, and the only place where all parts of netyard are
// put together.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/urfave/cli/v2"
	"go.yaml.in/yaml/v3"
	"golang.org/x/sync/errgroup"

	"netyard/cli/api"
	"netyard/cli/usage"
	"netyard/cluster"
	"netyard/cni"
	"netyard/cni/door"
	"netyard/driver"
	"netyard/engines"
	"netyard/firewalld"
	"netyard/ipam"
	"netyard/kernel"
	"netyard/kernel/core"
	"netyard/kernel/ports"
	"netyard/modes"
	"netyard/modes/all"
	"netyard/store"
	"netyard/yard"
	"netyard/yard/book"
	"netyard/yard/lease"
	"netyard/yard/plan"
	"netyard/yard/reconcile"
	"netyard/yard/repair"
	"netyard/yard/share"
)

const (
	dbName = "netyard.db"
	// shutdownTime bounds how long the daemon waits for requests in progress when it stops.
	shutdownTime = 10 * time.Second
)

// ServeCommand returns the command that runs the daemon.
func ServeCommand() *cli.Command {
	return &cli.Command{
		Name: "serve", Usage: "run the daemon", Flags: serveFlags(),
		Description: usage.Describe("",
			"netyard serve --log-level debug", "netyard serve --check --config ./netyard.yaml"),
		Action: func(c *cli.Context) error {
			hangups := make(chan os.Signal, 1)
			signal.Notify(hangups, syscall.SIGHUP)
			defer signal.Stop(hangups)
			cfg, err := loadConfig(c)
			if err != nil {
				return err
			}
			if c.Bool("check") {
				return printConfig(c.App.Writer, cfg)
			}
			ctx, stop := signal.NotifyContext(c.Context, syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			r := reloader{load: func() (config, error) { return loadConfig(c) }, hangups: hangups, out: c.App.ErrWriter}
			if r.sockets, err = newSockets(); err != nil {
				return err
			}
			return r.run(ctx, cfg, c.App.Version)
		},
	}
}

// printConfig prints the configuration as its file would have it.
func printConfig(w io.Writer, cfg config) error {
	raw, err := yaml.Marshal(cfg)
	if err != nil {
		return fmt.Errorf("print configuration: %w", err)
	}
	_, err = w.Write(raw)
	return err
}

// serve assembles and runs the daemon. The order matters: first the database, since only one daemon may open it; then
// the sockets, so that engines wait instead of failing; then the host is restored from the records; then requests are
// answered.
func serve(ctx context.Context, cfg config, log *slog.Logger, version string, from sockets) (err error) {
	st, err := openStore(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	doors, admin, runtimes, err := listenAll(ctx, cfg, from)
	if err != nil {
		return err
	}
	k, err := kernel.Open(log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, k.Close()) }()
	if cfg.Publish == publishHost {
		ports.LetHostFirewallDecide(k.Handle)
	}
	if !cfg.ProtectRules {
		k.LeaveTablesOpen()
	}
	docker := engines.NewDocker(cfg.DockerHost, log)
	runtime, err := engines.NewContainerd(cfg.ContainerdAddress, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, runtime.Close()) }()
	agent, err := newFabric(cfg, log, version, st, k) //nolint:contextcheck // the kernel answers at once or not at all
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, agent.close()) }()
	y, err := newYard(cfg, log, st, k, agent.modes(), func() { docker.Poke(); runtime.Poke() })
	if err != nil {
		return err
	}
	docker.Yard, runtime.Yard, runtime.Only = y, y, cfg.DockerHost == ""
	docker.RebuildOthers = runtime.Rebuild
	repairs, err := repair.Watch(ctx, y)
	if err != nil {
		return err
	}
	if err := restore(ctx, y, st, log); err != nil {
		return err
	}
	if err := agent.start(y); err != nil { //nolint:contextcheck // the kernel answers at once or not at all
		return err
	}
	plugins := &door.Server{Yard: y, Log: log, Tombstones: cni.TombstoneDir(filepath.Join(cfg.RunDir, cni.SocketName))}
	plugins.ProcessTombstones(ctx)
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.Go(func() error { return k.Watch(ctx) })
	agent.run(ctx, tasks)
	tasks.Go(func() error { return y.Run(ctx) })
	tasks.Go(func() error { return share.WatchSandboxes(ctx, y) })
	tasks.Go(func() error { return lease.KeepLeases(ctx, y.Book) })
	tasks.Go(func() error { return repairs.Run(ctx) })
	if err := runFirewalld(ctx, tasks, k, log); err != nil {
		return err
	}
	server := &api.Server{Yard: y, Log: log, Version: version, Cluster: agent.admin()}
	server.Findings = func() ([]book.Finding, error) { return deletedConflists(cni.ConfDir) }
	if cfg.DockerHost != "" {
		server.Censuses = append(server.Censuses, docker.Census)
		tasks.Go(func() error { return docker.Run(ctx) })
	}
	if cfg.DockerHost == "" && cfg.ContainerdAddress == "" {
		tasks.Go(func() error { return runtime.RebuildAlone(ctx) })
	}
	if cfg.ContainerdAddress != "" {
		server.Censuses = append(server.Censuses, runtime.Census)
		plugins.FindContainer = runtime.FindContainer
		tasks.Go(func() error { return runtime.Run(ctx) })
	}
	serveOn(ctx, tasks, admin, server.Handler())
	tasks.Go(func() error { return plugins.Serve(ctx, runtimes) })
	tasks.Go(func() error { return plugins.Run(ctx) })
	for _, d := range doors {
		d.Yard, d.Log, d.OnActivate, d.Alone = y, log, docker.Poke, docker.Alone
		serveOn(ctx, tasks, d.listener, d.Handler())
	}
	log.Info("ready", "version", version, "modes", cfg.Modes, "plugins", cfg.PluginDir,
		"admin", filepath.Join(cfg.RunDir, api.SocketName))
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReady) // not to run under systemd is no error
	return tasks.Wait()
}

// runFirewalld starts the task that keeps netyard's bridges in their firewalld zone.
func runFirewalld(ctx context.Context, tasks *errgroup.Group, k *kernel.Kernel, log *slog.Logger) error {
	changes, err := k.ChangeSignal(ctx)
	if err != nil {
		return err
	}
	keeper := &firewalld.Syncer{Log: log, Bridges: k.BridgeNames, Ours: core.OwnName, Changes: changes}
	tasks.Go(func() error { return keeper.Run(ctx) })
	return nil
}

// openStore opens the database.
func openStore(ctx context.Context, cfg config) (*store.Store, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find the program: %w", err)
	}
	return store.Open(ctx, store.Config{
		Path: filepath.Join(cfg.StateDir, dbName), Verify: store.VerifyIn(exe, verifyName),
		// Engines may know what a new database lacks: until they answer, nothing is a stray.
		Init:          reconcile.MarkRecordsLost,
		CopiedBuckets: slices.Concat(book.KeptBuckets(), cluster.CopiedBuckets()),
	})
}

// restore makes the kernel match the records.
func restore(ctx context.Context, y *yard.Yard, st *store.Store, log *slog.Logger) error {
	logDamage(st, log)
	start := time.Now()
	keep := st.Fresh
	if !keep && reconcile.Rebuilding(y) {
		// A rebuild ends when the engines have answered, which one that is not on this host never does.
		var err error
		if keep, err = reconcile.HasStrays(y); err != nil {
			return fmt.Errorf("restore: %w", err)
		}
	}
	if err := reconcile.Restore(ctx, y, keep); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	debug.FreeOSMemory() // what was compared took several times what the daemon needs from now on
	log.Info("host restored from records", "took", time.Since(start))
	return nil
}

// logDamage logs what is wrong with the database and its copy.
func logDamage(st *store.Store, log *slog.Logger) {
	if st.Damaged != "" {
		log.Error("database damaged and set aside; rebuilding it from its copy, the kernel and the engines",
			"aside", st.Damaged)
	}
	if st.Copy.Damaged {
		log.Error("copy of policies, reservations and changes damaged")
	}
	if st.Copy.Newer {
		log.Warn("copy of policies, reservations and changes newer than the database; using the copy")
	}
	if st.Copy.Err != nil {
		log.Error("copy of policies, reservations and changes not written; they cannot be changed until it is",
			"err", st.Copy.Err)
	}
}

// newYard makes the yard, with an instance of each mode.
func newYard(
	cfg config, log *slog.Logger, st *store.Store, k *kernel.Kernel, f modes.Fabric, changed func(),
) (*yard.Yard, error) {
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	id, err := machineID(cfg)
	if err != nil {
		return nil, err
	}
	bases, err := cfg.bases()
	if err != nil {
		return nil, err
	}
	ula, err := cfg.ula(id)
	if err != nil {
		return nil, err
	}
	table := all.On(modes.Env{Fabric: f}) // also modes that are not offered: they may have networks
	return yard.New(book.Config{
		Log: log, Store: st, Kernel: plan.Host{Kernel: k}, Handle: k.Handle,
		Copies: filepath.Join(cfg.StateDir, "networks"),
		Modes:  table, Offered: cfg.Modes,
		BootID: boot, Fabric: f, Changed: changed, Step: failpoint(), HostID: id,
		IPAM: ipam.New(ipam.Config{Bases: bases, ULA: ula, Cooldown: cooldown(cfg.Cooldown)}),
	}), nil
}

// cooldown converts the configured time to package ipam's: there, 0 is the default and -1 is none.
func cooldown(d time.Duration) time.Duration {
	if d == 0 {
		return -1
	}
	return d
}

// machineID returns the ID that the host's IPv6 prefix is derived from: machine-id(5), or, on a host without one, a
// random ID that is kept in the state directory.
func machineID(cfg config) (string, error) {
	raw, err := os.ReadFile("/etc/machine-id")
	if id := strings.TrimSpace(string(raw)); err == nil && id != "" {
		return id, nil
	}
	file := filepath.Join(cfg.StateDir, "machine-id")
	if raw, err := os.ReadFile(file); err == nil {
		return strings.TrimSpace(string(raw)), nil
	}
	fresh, err := os.ReadFile("/proc/sys/kernel/random/uuid")
	if err == nil {
		err = os.WriteFile(file, fresh, 0o600)
	}
	if err != nil {
		return "", fmt.Errorf("create a machine ID: %w", err)
	}
	return strings.TrimSpace(string(fresh)), nil
}

// A plugin is a Docker plugin: its socket and its handler.
type plugin struct {
	driver.Door
	listener net.Listener
}

// listenAll opens all sockets, or none.
func listenAll(
	ctx context.Context, cfg config, s sockets,
) (doors []*plugin, admin, runtimes net.Listener, err error) {
	var open []net.Listener
	defer func() {
		if err != nil {
			for _, l := range open {
				err = errors.Join(err, l.Close())
			}
		}
	}()
	for name, to := range map[string]*net.Listener{api.SocketName: &admin, cni.SocketName: &runtimes} {
		if *to, err = s.listen(ctx, filepath.Join(cfg.RunDir, name), 0o700); err != nil {
			return nil, nil, nil, err
		}
		open = append(open, *to)
	}
	table := all.Modes()
	for name := range table {
		if !slices.Contains(cfg.Modes, name) {
			delete(table, name)
		}
	}
	defer func() {
		if unused := s.unused(); err == nil && len(unused) > 0 {
			err = fmt.Errorf("take sockets from systemd: nothing serves %s; add the mode to the configuration, "+
				"or remove the socket from netyard.socket", strings.Join(unused, ", "))
		}
	}()
	names := driver.Modes(table)
	names[driver.DHCPName] = ""
	for name, mode := range names {
		l, err := s.listen(ctx, filepath.Join(cfg.PluginDir, name+".sock"), 0o755)
		if err != nil {
			return nil, nil, nil, err
		}
		open = append(open, l)
		door := driver.Door{Name: name, Mode: mode, DHCP: name == driver.DHCPName}
		doors = append(doors, &plugin{Door: door, listener: l})
	}
	return doors, admin, runtimes, nil
}

// serveOn serves HTTP on a socket until ctx ends, and then waits for requests in progress.
func serveOn(ctx context.Context, tasks *errgroup.Group, l net.Listener, h http.Handler) {
	const headerTime = 10 * time.Second
	s := &http.Server{Handler: h, ReadHeaderTimeout: headerTime, ConnContext: driver.WithCaller}
	tasks.Go(func() error {
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve on %s: %w", l.Addr(), err)
		}
		return nil
	})
	tasks.Go(func() error {
		<-ctx.Done()
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTime)
		defer cancel()
		if err := s.Shutdown(limit); err != nil {
			return errors.Join(fmt.Errorf("stop serving on %s: %w", l.Addr(), err), s.Close())
		}
		return nil
	})
}
