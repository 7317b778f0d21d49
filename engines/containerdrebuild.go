package engines

import (
	"context"
	"fmt"
	"slices"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"netyard/wake"
	"netyard/yard/book"
	"netyard/yard/reconcile"
)

// Rebuild makes the lost records of netyard's own networks again, and those of all attachments of containerd's
// containers and of other runtimes.
func (c *Containerd) Rebuild(ctx context.Context) error {
	census := reconcile.Census{Engine: book.Containerd, Endpoints: map[string]reconcile.SeenEndpoint{}}
	if c.client != nil && exists(c.Address) {
		ctx, cancel := context.WithTimeout(ctx, answerTimeout)
		defer cancel()
		if err := c.addRunning(ctx, census); err != nil {
			return fmt.Errorf("rebuild records from %s: %w", book.Containerd, err)
		}
	}
	if err := addCached(c.Yard, cniCache, census); err != nil {
		return err
	}
	return reconcile.RebuildOwn(ctx, c.Yard, census)
}

// RebuildAlone rebuilds lost records on a host that has no engine to ask, and ends when the rebuild does.
func (c *Containerd) RebuildAlone(ctx context.Context) error {
	if !reconcile.Rebuilding(c.Yard) {
		return nil
	}
	err := c.Rebuild(ctx)
	for {
		if err == nil {
			err = reconcile.EndRebuild(ctx, c.Yard)
		}
		if err != nil {
			c.Log.Error("records not rebuilt", "err", err)
			return nil
		}
		if !reconcile.Rebuilding(c.Yard) || !wake.Sleep(ctx, resyncInterval) {
			return nil
		}
	}
}

// addRunning adds the endpoints of containerd's running containers to the census: it finds netyard's links in their
// sandboxes.
func (c *Containerd) addRunning(ctx context.Context, census reconcile.Census) error {
	spaces, err := c.client.NamespaceService().List(ctx)
	if err != nil {
		return fmt.Errorf("list namespaces: %w", err)
	}
	owners := owners{c, c.client, map[string]map[string]string{}}
	for _, ns := range spaces {
		if slices.Contains(dockerNamespaces(), ns) {
			continue
		}
		ctx := namespaces.WithNamespace(ctx, ns)
		running, err := c.client.TaskService().List(ctx, &tasks.ListTasksRequest{})
		if err != nil {
			return fmt.Errorf("list tasks of namespace %s: %w", ns, err)
		}
		for _, t := range running.Tasks {
			if t.Pid == 0 {
				continue
			}
			found, err := reconcile.FindIn(c.Yard, fmt.Sprintf("/proc/%d/ns/net", t.Pid))
			if err != nil {
				return err
			}
			o, err := c.client.ContainerService().Get(ctx, t.ID)
			if err != nil {
				continue // the container was removed meanwhile
			}
			name := attachmentOf(ns, o)
			if name == "" {
				continue // the links are its pod's
			}
			owner, labels := owners.of(ctx, ns, o)
			owner.PID = int(t.Pid)
			for id, s := range found {
				s.Container, s.Attachment = owner, name
				s.Said = labelOptions(labels)
				census.Endpoints[id] = s
			}
		}
	}
	return nil
}
