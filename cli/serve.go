package cli

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
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/urfave/cli/v2"
	"go.yaml.in/yaml/v3"
	"golang.org/x/sync/errgroup"

	"netyard/cli/api"
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
	"netyard/yard/reconcile"
	"netyard/yard/share"
)

const (
	socketName = "netyard.sock"
	dbName     = "netyard.db"

	// goodbye is how long requests that are under way may take to end when the daemon is told to.
	goodbye = 10 * time.Second
)

func serveCommand() *cli.Command {
	return &cli.Command{
		Name: "serve", Usage: "run the daemon", Flags: serveFlags(),
		Action: func(c *cli.Context) error {
			cfg, err := loadConfig(c)
			if err != nil {
				return err
			}
			if c.Bool("check") {
				return printConfig(c.App.Writer, cfg)
			}
			log, err := cfg.logger(c.App.ErrWriter)
			if err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(c.Context, syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			return serve(ctx, cfg, log, c.App.Version)
		},
	}
}

func printConfig(w io.Writer, cfg Config) error {
	raw, err := yaml.Marshal(cfg)
	if err != nil {
		return fmt.Errorf("print configuration: %w", err)
	}
	_, err = w.Write(raw)
	return err
}

// serve wires the daemon together. The order matters: the database first, since only one daemon may have it; then the
// sockets, so that engines wait instead of failing; then the host is made to match the records; then the answers.
func serve(ctx context.Context, cfg Config, log *slog.Logger, version string) (err error) {
	st, err := openStore(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	doors, admin, runtimes, err := listenAll(ctx, cfg)
	if err != nil {
		return err
	}
	k, err := kernel.Open(log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, k.Close()) }()
	if cfg.Publish == publishHost {
		ports.ObeyHostFirewall(k.Handle)
	}
	if !cfg.ProtectRules {
		k.ShareTables()
	}
	docker := engines.NewDocker(cfg.DockerHost, log)
	runtime, err := engines.NewContainerd(cfg.ContainerdAddress, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, runtime.Close()) }()
	agent, err := newFabric(cfg, log, version, st, k) //nolint:contextcheck // the kernel answers at once, or not at all
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, agent.close()) }()
	y, err := newYard(cfg, log, st, k, agent.modes(), func() { docker.Poke(); runtime.Poke() })
	if err != nil {
		return err
	}
	docker.Yard, runtime.Yard = y, y
	docker.Beside = runtime.Rebuild
	if err := restore(ctx, y, st, log); err != nil {
		return err
	}
	if err := agent.keep(y); err != nil { //nolint:contextcheck // the kernel answers at once, or not at all
		return err
	}
	plugins := &door.Server{Yard: y, Log: log, Tombstones: cni.TombstoneDir(filepath.Join(cfg.RunDir, cni.SocketName))}
	plugins.Exhume(ctx)
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.Go(func() error { return k.Watch(ctx) })
	agent.run(ctx, tasks)
	tasks.Go(func() error { return y.Run(ctx) })
	tasks.Go(func() error { return share.WatchSandboxes(ctx, y) })
	tasks.Go(func() error { return lease.KeepLeases(ctx, y.Book) })
	tasks.Go(func() error { return reconcile.Mend(ctx, y) })
	if err := keepZone(ctx, tasks, k, log); err != nil {
		return err
	}
	server := &api.Server{Yard: y, Log: log, Version: version, Cluster: agent.admin()}
	if cfg.DockerHost != "" {
		server.Censuses = append(server.Censuses, docker.Census)
		tasks.Go(func() error { return docker.Run(ctx) })
	}
	if cfg.ContainerdAddress != "" {
		server.Censuses = append(server.Censuses, runtime.Census)
		plugins.Whose = runtime.Whose
		tasks.Go(func() error { return runtime.Run(ctx) })
	}
	serveOn(ctx, tasks, admin, server.Handler())
	tasks.Go(func() error { return plugins.Serve(ctx, runtimes) })
	tasks.Go(func() error { return plugins.Run(ctx) })
	for _, d := range doors {
		d.Yard, d.Log, d.Greeted = y, log, docker.Poke
		serveOn(ctx, tasks, d.listener, d.Handler())
	}
	log.Info("ready", "version", version, "modes", cfg.Modes, "plugins", cfg.PluginDir, "admin", filepath.Join(cfg.RunDir, socketName))
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReady) // nobody to notify is no error
	return tasks.Wait()
}

// keepZone tells firewalld of the bridges.
func keepZone(ctx context.Context, tasks *errgroup.Group, k *kernel.Kernel, log *slog.Logger) error {
	changes, err := k.Changes(ctx)
	if err != nil {
		return err
	}
	keeper := &firewalld.Keeper{Log: log, Bridges: k.BridgeNames, Ours: core.OwnName, Changes: changes}
	tasks.Go(func() error { return keeper.Run(ctx) })
	return nil
}

func openStore(ctx context.Context, cfg Config) (*store.Store, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find the program: %w", err)
	}
	return store.Open(ctx, store.Config{
		Path: filepath.Join(cfg.StateDir, dbName), Verify: store.VerifyIn(exe, verifyName),
		Made: reconcile.LostRecords, // what it ought to know an engine may: ask, before anything is taken for a stray
		Kept: slices.Concat(book.KeptBuckets(), cluster.Kept()),
	})
}

func restore(ctx context.Context, y *yard.Yard, st *store.Store, log *slog.Logger) error {
	tellLoss(st, log)
	start := time.Now()
	keep := st.Fresh
	if !keep && reconcile.Rebuilding(y) { // an engine that is not on this host never says that nothing was lost
		var err error
		if keep, err = reconcile.Unknown(y); err != nil {
			return fmt.Errorf("restore: %w", err)
		}
	}
	if err := reconcile.Restore(ctx, y, keep); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	log.Info("the host matches the records", "took", time.Since(start))
	return nil
}

// tellLoss says what became of the database and the copy beside it.
func tellLoss(st *store.Store, log *slog.Logger) {
	if st.Damaged != "" {
		log.Error("the database was damaged; it is set aside and rebuilt from its copy, the kernel and the engine", "aside", st.Damaged)
	}
	if st.Kept.Damaged {
		log.Error("the copy of policies, reservations and changes beside the database was damaged")
	}
	if st.Kept.Newer {
		log.Warn("the copy of policies, reservations and changes was newer than the database, and counts")
	}
	if st.Kept.Err != nil {
		log.Error("write the copy of policies, reservations and changes; they cannot be changed until it can be written", "err", st.Kept.Err)
	}
}

func newYard(cfg Config, log *slog.Logger, st *store.Store, k *kernel.Kernel, f modes.Fabric, changed func()) (*yard.Yard, error) {
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
	table := all.On(modes.Env{Fabric: f}) // those not offered too: networks of theirs may be there
	return yard.New(book.Config{
		Log: log, Store: st, Kernel: k, Copies: filepath.Join(cfg.StateDir, "networks"), Modes: table, Offered: cfg.Modes,
		BootID: boot, Fabric: f, Changed: changed, Step: failpoint(), HostID: id,
		IPAM: ipam.New(ipam.Config{Bases: bases, ULA: ula, Cooldown: cooldown(cfg.Cooldown)}),
	}), nil
}

// cooldown says none as ipam does: there 0 is the default.
func cooldown(d time.Duration) time.Duration {
	if d == 0 {
		return -1
	}
	return d
}

// machineID is what the host's IPv6 prefix is made from: machine-id(5), or, on a host without, one that is kept with
// the state.
func machineID(cfg Config) (string, error) {
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
		return "", fmt.Errorf("make a machine id: %w", err)
	}
	return strings.TrimSpace(string(fresh)), nil
}

// A plugin is one of Docker's: its socket and what is behind it.
type plugin struct {
	driver.Door
	listener net.Listener
}

// listenAll opens every socket, or none.
func listenAll(ctx context.Context, cfg Config) (doors []*plugin, admin, runtimes net.Listener, err error) {
	s, err := newSockets()
	if err != nil {
		return nil, nil, nil, err
	}
	var open []net.Listener
	defer func() {
		if err != nil {
			for _, l := range open {
				err = errors.Join(err, l.Close())
			}
		}
	}()
	for name, to := range map[string]*net.Listener{socketName: &admin, cni.SocketName: &runtimes} {
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
			err = fmt.Errorf("systemd handed over sockets that nobody would answer on: %s; is a mode missing in the configuration?", strings.Join(unused, ", "))
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
		doors = append(doors, &plugin{Door: driver.Door{Name: name, Mode: mode, DHCP: name == driver.DHCPName}, listener: l})
	}
	return doors, admin, runtimes, nil
}

// serveOn answers on a socket until ctx ends, and then lets what is under way come to its end.
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
		bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), goodbye)
		defer cancel()
		if err := s.Shutdown(bye); err != nil {
			return errors.Join(fmt.Errorf("stop serving on %s: %w", l.Addr(), err), s.Close())
		}
		return nil
	})
}
