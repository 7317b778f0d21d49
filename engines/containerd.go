package engines

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/grpc"

	"netyard/modes"
	"netyard/wake"
	"netyard/yard"
	"netyard/yard/attach"
	"netyard/yard/book"
	"netyard/yard/reconcile"
)

const (
	// resyncInterval is the time between two checks of containerd without an event or a Poke: events can be lost.
	resyncInterval = time.Minute
	// labelName is the label with the name that nerdctl gives a container (nerdctl, pkg/labels).
	labelName = "nerdctl/name"
	// connectTimeout bounds one attempt to connect, and the time between attempts.
	connectTimeout = 2 * time.Second
	// unreachable is the log message of a containerd that does not run.
	unreachable = "containerd not reachable; netyard works without it"
)

// dockerNamespaces returns the namespaces in which containerd has Docker's containers and plugins. These use Docker's
// door.
func dockerNamespaces() []string { return []string{"moby", "plugins.moby"} }

// Containerd watches one containerd, whose runtimes attach containers by CNI. Except to rebuild records it reads only
// containerd's metadata: a question about a task waits for the task, which may wait for netyard.
type Containerd struct {
	// Address is the path of containerd's socket.
	Address string
	Yard    *yard.Yard
	Log     *slog.Logger

	client *containerd.Client
	poked  wake.Signal
	// Only: there is no Docker engine, whose answer would end a rebuild.
	Only bool
	// rebuilt says that this process has rebuilt what it can from containerd, or that there was nothing to rebuild.
	rebuilt bool
}

// NewContainerd returns the watcher of a containerd. Call Run to start it and Close at the end. It connects on first
// use. Without an address it has no containerd, and must not be run.
func NewContainerd(address string, log *slog.Logger) (c *Containerd, err error) {
	c = &Containerd{Address: address, Log: log, poked: wake.New()}
	if address == "" {
		return c, nil
	}
	c.client, err = containerd.New(address, containerd.WithTimeout(connectTimeout),
		containerd.WithExtraDialOpts([]grpc.DialOption{dialOnce(address)}))
	if err != nil {
		return nil, fmt.Errorf("connect to containerd: %w", err)
	}
	return c, nil
}

// Close closes the connection.
func (c *Containerd) Close() error {
	if c.client == nil {
		return nil
	}
	return c.client.Close()
}

// Poke has containerd checked soon, since something has changed. It does not wait.
func (c *Containerd) Poke() {
	c.poked.Send()
}

// Run reconciles the records with containerd until ctx ends.
func (c *Containerd) Run(ctx context.Context) error {
	wait, silent := pokeDelay, false
	for {
		if !exists(c.Address) {
			if !silent {
				c.Log.Info(unreachable, "containerd", c.Address, "err", "it does not run: there is no socket")
			}
			if err := awaitFile(ctx, c.Address); err == nil {
				wait = pokeDelay
			} else if ctx.Err() == nil {
				c.Log.Warn("containerd's socket not watched", "containerd", c.Address, "err", err)
			}
			silent = true
		}
		began := time.Now()
		err := c.follow(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(began) > resyncInterval { // it was connected for that long
			wait, silent = pokeDelay, false
		}
		if !silent {
			c.Log.Info(unreachable, "containerd", c.Address, "err", err)
		}
		silent = true
		if !wake.Sleep(ctx, wait) {
			return nil
		}
		wait = min(2*wait, pollInterval)
	}
}

// follow checks containerd, and again after events, until the stream of events ends.
func (c *Containerd) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Subscribe before the first check, so that no event in between is missed.
	stream, errs := c.client.EventService().Subscribe(ctx,
		`topic=="/tasks/exit"`, `topic=="/containers/delete"`, `topic=="/containers/update"`,
		// A pod is attached before its container exists, and so without its labels.
		`topic=="/containers/create",namespace=="`+criNamespace+`"`)
	tick := time.NewTicker(resyncInterval)
	defer tick.Stop()
	if err := c.check(ctx); err != nil {
		return err
	}
	c.Log.Info("containerd connected", "containerd", c.Address)
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-errs:
			if err == nil {
				err = errors.New("the stream of events ended")
			}
			return err
		case e := <-stream:
			if err := c.handle(ctx, e); err != nil {
				c.Log.Warn("containerd event not handled", "topic", e.Topic, "err", err)
			}
			continue
		case <-tick.C:
		case <-c.poked:
			if !wake.Sleep(ctx, pokeDelay) {
				return nil
			}
		}
		if err := c.check(ctx); err != nil {
			return err
		}
	}
}

// handle acts on an event: it detaches a container that exited or was deleted, and checks containerd soon after an
// update.
func (c *Containerd) handle(ctx context.Context, e *events.Envelope) error {
	if slices.Contains(dockerNamespaces(), e.Namespace) {
		return nil
	}
	v, err := typeurl.UnmarshalAny(e.Event)
	if err != nil {
		return fmt.Errorf("decode event: %w", err)
	}
	switch v := v.(type) {
	case *apievents.TaskExit:
		if v.ID != v.ContainerID { // the exit of an exec
			return nil
		}
		return eachName(e.Namespace, v.ContainerID, func(name string) error {
			return attach.ContainerExited(ctx, c.Yard, name)
		})
	case *apievents.ContainerDelete:
		return eachName(e.Namespace, v.ID, func(name string) error { return attach.ContainerGone(ctx, c.Yard, name) })
	}
	c.Poke() // an update may change the name
	return nil
}

// check reads containerd's containers and reconciles the records with them.
func (c *Containerd) check(ctx context.Context) error {
	census, err := c.Census(ctx)
	if err != nil {
		return err
	}
	if !c.rebuilt && reconcile.Rebuilding(c.Yard) { // there may be no Docker engine, which would do it too
		if err := c.Rebuild(ctx); err != nil {
			return err
		}
	}
	if c.Only { // also later, when containers that nobody knew have ended
		if err := reconcile.EndRebuild(ctx, c.Yard); err != nil {
			return err
		}
	}
	c.rebuilt = true
	if err := reconcile.Reconcile(ctx, c.Yard, census); err != nil {
		return fmt.Errorf("reconcile with %s: %w", book.Containerd, err)
	}
	return c.recordProcesses(ctx)
}

// Census asks containerd for all containers that can have attachments.
func (c *Containerd) Census(ctx context.Context) (reconcile.Census, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	census := reconcile.Census{
		Engine:      book.Containerd,
		Endpoints:   map[string]reconcile.SeenEndpoint{},
		Attachments: map[string]bool{},
	}
	spaces, err := c.client.NamespaceService().List(ctx)
	if err != nil {
		return census, fmt.Errorf("list namespaces: %w", err)
	}
	owners, found := owners{c, c.client, map[string]map[string]string{}}, map[string]modes.Container{}
	for _, ns := range spaces {
		if slices.Contains(dockerNamespaces(), ns) {
			continue
		}
		all, err := c.client.ContainerService().List(namespaces.WithNamespace(ctx, ns))
		if err != nil {
			return census, fmt.Errorf("list containers of namespace %s: %w", ns, err)
		}
		for _, o := range all {
			if name := attachmentOf(ns, o); name != "" {
				found[name], _ = owners.of(ctx, ns, o)
				census.Attachments[name] = true
			}
		}
	}
	es, err := c.Yard.Endpoints()
	if err != nil {
		return census, err
	}
	for _, e := range es {
		if c, ok := found[e.Attachment]; ok && e.Attachment != "" {
			census.Endpoints[e.ID] = reconcile.SeenEndpoint{NetworkID: e.NetworkID, Container: c}
		}
	}
	return census, nil
}

// processOf matches a sandbox's path that has a process ID.
var processOf = regexp.MustCompile(`^/proc/(\d+)/ns/net$`)

// recordProcesses records the processes of attachments whose sandbox's path has a process ID.
func (c *Containerd) recordProcesses(ctx context.Context) error {
	es, err := c.Yard.Endpoints()
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range es {
		m := processOf.FindStringSubmatch(e.Sandbox)
		if e.Attachment == "" || m == nil || e.Container.PID != 0 || e.Phase != modes.Ready {
			continue
		}
		pid, err := strconv.Atoi(m[1])
		if err == nil {
			err = reconcile.Identify(ctx, c.Yard, e, modes.Container{PID: pid})
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// FindContainer returns the container of an attachment that is being made, and its labels (see owners.of).
func (c *Containerd) FindContainer(ctx context.Context, name string) (modes.Container, map[string]string, error) {
	if !exists(c.Address) { // a host of podman or CRI-O: do not wait for it
		return modes.Container{}, nil, errdefs.ErrNotFound
	}
	client := c.client
	ns, o, err := c.find(ctx, client, name)
	if errdefs.IsUnavailable(err) { // containerd may have just started, and the connection not tried again yet
		fresh, fErr := containerd.New(c.Address, containerd.WithTimeout(connectTimeout))
		if fErr != nil {
			return modes.Container{}, nil, fErr
		}
		defer fresh.Close() //nolint:errcheck // all answers were read
		client = fresh
		ns, o, err = c.find(ctx, client, name)
	}
	if err != nil {
		return modes.Container{}, nil, err
	}
	owner, labels := owners{c, client, map[string]map[string]string{}}.of(ctx, ns, o)
	if owner.Labels == nil {
		c.Log.Warn("container labels ignored: they may come from its image", "container_id", o.ID, "image", o.Image)
	}
	return owner, labels, nil
}

// find looks up an attachment's container. Namespaces and IDs may contain dashes, so it tries each dash as the
// separator, the last one first, which is right for the IDs that nerdctl gives. Without a dash it may be a pod's.
func (c *Containerd) find(
	ctx context.Context, client *containerd.Client, name string,
) (ns string, o containers.Container, err error) {
	err = errdefs.ErrNotFound
	if !strings.Contains(name, "-") {
		o, err = client.ContainerService().Get(namespaces.WithNamespace(ctx, criNamespace), name)
		if err == nil && attachmentOf(criNamespace, o) != name {
			err = errdefs.ErrNotFound
		}
		return criNamespace, o, err
	}
	for at := strings.LastIndexByte(name, '-'); at > 0; at = strings.LastIndexByte(name[:at], '-') {
		var id string
		ns, id = name[:at], name[at+1:]
		if slices.Contains(dockerNamespaces(), ns) {
			continue
		}
		o, err = client.ContainerService().Get(namespaces.WithNamespace(ctx, ns), id)
		if err == nil || !errdefs.IsNotFound(err) && !errdefs.IsInvalidArgument(err) {
			break
		}
	}
	return ns, o, err
}
