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

	"netyard/modes"
	"netyard/yard"
	"netyard/yard/attach"
	"netyard/yard/book"
	"netyard/yard/reconcile"
)

const (
	// resync is the pause between two looks at containerd that nothing called for: events are hints, and some are lost.
	resync = time.Minute
	// labelName is what nerdctl calls a container (nerdctl, pkg/labels).
	labelName = "nerdctl/name"
	// connectTime bounds one try to connect, and the pauses between tries.
	connectTime = 2 * time.Second
)

// dockersNamespaces are those in which containerd has Docker's containers and plugins: they come by Docker's own door.
func dockersNamespaces() []string { return []string{"moby", "plugins.moby"} }

// Containerd is one containerd, whose runtimes attach containers by CNI. But for when records are rebuilt only its
// metadata are asked for: a question about a task waits for the task, and that may wait for netyard.
type Containerd struct {
	// Address is its socket.
	Address string
	Yard    *yard.Yard
	Log     *slog.Logger

	client *containerd.Client
	poked  chan struct{}
	// rebuilt: this process has, as far as it can from here.
	rebuilt bool
}

// NewContainerd makes the watcher of a containerd; Run it, and Close it in the end. It connects when it is needed.
// Without an address it asks nobody, and there is nothing to run.
func NewContainerd(address string, log *slog.Logger) (c *Containerd, err error) {
	c = &Containerd{Address: address, Log: log, poked: make(chan struct{}, 1)}
	if address == "" {
		return c, nil
	}
	if c.client, err = containerd.New(address, containerd.WithTimeout(connectTime)); err != nil {
		return nil, fmt.Errorf("connect to containerd: %w", err)
	}
	return c, nil
}

// Close gives the connection up.
func (c *Containerd) Close() error {
	if c.client == nil {
		return nil
	}
	return c.client.Close()
}

// Poke says that something has changed and a look is worth while.
func (c *Containerd) Poke() {
	select {
	case c.poked <- struct{}{}:
	default:
	}
}

// Run keeps the records and containerd in agreement until ctx ends.
func (c *Containerd) Run(ctx context.Context) error {
	wait, silent := soon, false
	for {
		began := time.Now()
		err := c.follow(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(began) > resync { // it did answer
			wait, silent = soon, false
		}
		if !silent {
			c.Log.Info("containerd does not answer; netyard works without it", "containerd", c.Address, "err", err)
		}
		silent = true
		if !sleep(ctx, wait) {
			return nil
		}
		wait = min(2*wait, often)
	}
}

// follow looks at containerd, and again whenever something happens there, until the stream of events breaks.
func (c *Containerd) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Before the first look, or what happens in between would be missed.
	happened, broke := c.client.EventService().Subscribe(ctx, `topic=="/tasks/exit"`, `topic=="/containers/delete"`, `topic=="/containers/update"`)
	tick := time.NewTicker(resync)
	defer tick.Stop()
	if err := c.look(ctx); err != nil {
		return err
	}
	c.Log.Info("containerd answers", "containerd", c.Address)
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-broke:
			if err == nil {
				err = errors.New("the stream of events ended")
			}
			return err
		case e := <-happened:
			if err := c.hear(ctx, e); err != nil {
				c.Log.Warn("follow containerd", "topic", e.Topic, "err", err)
			}
			continue
		case <-tick.C:
		case <-c.poked:
			if !sleep(ctx, soon) {
				return nil
			}
		}
		if err := c.look(ctx); err != nil {
			return err
		}
	}
}

// hear acts on an event. An attachment is called by the namespace and the id of its container, by nerdctl as by ctr.
func (c *Containerd) hear(ctx context.Context, e *events.Envelope) error {
	if slices.Contains(dockersNamespaces(), e.Namespace) {
		return nil
	}
	v, err := typeurl.UnmarshalAny(e.Event)
	if err != nil {
		return fmt.Errorf("decode event: %w", err)
	}
	switch v := v.(type) {
	case *apievents.TaskExit:
		if v.ID != v.ContainerID { // of an exec
			return nil
		}
		return attach.ContainerExited(ctx, c.Yard, attachment(e.Namespace, v.ContainerID))
	case *apievents.ContainerDelete:
		return attach.ContainerGone(ctx, c.Yard, attachment(e.Namespace, v.ID))
	}
	c.Poke() // another name
	return nil
}

func attachment(namespace, id string) string { return namespace + "-" + id }

func (c *Containerd) look(ctx context.Context) error {
	census, err := c.Census(ctx)
	if err != nil {
		return err
	}
	if !c.rebuilt && reconcile.Rebuilding(c.Yard) { // there may be no engine that would
		if err := c.Rebuild(ctx); err != nil {
			return err
		}
	}
	c.rebuilt = true
	if err := reconcile.Reconcile(ctx, c.Yard, census); err != nil {
		return fmt.Errorf("reconcile with %s: %w", book.Containerd, err)
	}
	return c.byProcess()
}

// Census asks containerd for all containers that can have attachments.
func (c *Containerd) Census(ctx context.Context) (reconcile.Census, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	census := reconcile.Census{Engine: book.Containerd, Endpoints: map[string]reconcile.SeenEndpoint{}, Attachments: map[string]bool{}}
	spaces, err := c.client.NamespaceService().List(ctx)
	if err != nil {
		return census, fmt.Errorf("list namespaces: %w", err)
	}
	who := map[string]modes.Container{}
	for _, ns := range spaces {
		if slices.Contains(dockersNamespaces(), ns) {
			continue
		}
		all, err := c.client.ContainerService().List(namespaces.WithNamespace(ctx, ns))
		if err != nil {
			return census, fmt.Errorf("list containers of namespace %s: %w", ns, err)
		}
		for _, o := range all {
			who[attachment(ns, o.ID)] = owner(o)
			census.Attachments[attachment(ns, o.ID)] = true
		}
	}
	es, err := c.Yard.Endpoints()
	if err != nil {
		return census, err
	}
	for _, e := range es {
		if w, ok := who[e.Attachment]; ok && e.Attachment != "" {
			census.Endpoints[e.ID] = reconcile.SeenEndpoint{NetworkID: e.NetworkID, Container: w}
		}
	}
	return census, nil
}

func owner(o containers.Container) modes.Container {
	w := modes.Container{Engine: book.Containerd, ID: o.ID, Name: o.Labels[labelName], Image: o.Image, Labels: map[string]string{}}
	for label, v := range o.Labels {
		if !ours(label) { // of those some may be its image's, see chosen
			w.Labels[label] = v
		}
	}
	if w.Name == "" {
		w.Name = o.ID // ctr's ids are names
	}
	return w
}

// processOf finds the process in a sandbox's path.
var processOf = regexp.MustCompile(`^/proc/(\d+)/ns/net$`)

// byProcess notes the processes of attachments.
func (c *Containerd) byProcess() error {
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
			err = reconcile.Identify(c.Yard, e.NetworkID, e.ID, modes.Container{PID: pid})
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Whose finds the container of an attachment that is being made, and the labels that whoever runs it chose.
func (c *Containerd) Whose(ctx context.Context, name string) (modes.Container, map[string]string, error) {
	client := c.client
	ns, o, err := c.find(ctx, client, name)
	if errdefs.IsUnavailable(err) { // the connection may only be waiting for its next try: containerd has just started
		fresh, fErr := containerd.New(c.Address, containerd.WithTimeout(connectTime))
		if fErr != nil {
			return modes.Container{}, nil, fErr
		}
		defer fresh.Close() //nolint:errcheck // nothing is written
		client = fresh
		ns, o, err = c.find(ctx, client, name)
	}
	if err != nil {
		return modes.Container{}, nil, err
	}
	return owner(o), c.chosen(namespaces.WithNamespace(ctx, ns), client, o), nil
}

// find looks an attachment's container up. Namespaces and ids may have dashes in them, so that there can be several
// readings; that of the last dash is right for the ids that nerdctl gives.
func (c *Containerd) find(ctx context.Context, client *containerd.Client, name string) (ns string, o containers.Container, err error) {
	err = errdefs.ErrNotFound
	for at := strings.LastIndexByte(name, '-'); at > 0; at = strings.LastIndexByte(name[:at], '-') {
		var id string
		ns, id = name[:at], name[at+1:]
		if slices.Contains(dockersNamespaces(), ns) {
			continue
		}
		o, err = client.ContainerService().Get(namespaces.WithNamespace(ctx, ns), id)
		if err == nil || !errdefs.IsNotFound(err) && !errdefs.IsInvalidArgument(err) {
			break
		}
	}
	return ns, o, err
}
