package engines

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"netyard/yard/book"
	"netyard/yard/reconcile"
)

// Rebuild makes the records of netyard's own networks again, and of what containerd's containers have of any, and those
// of other runtimes.
func (c *Containerd) Rebuild(ctx context.Context) error {
	census := reconcile.Census{Engine: book.Containerd, Endpoints: map[string]reconcile.SeenEndpoint{}}
	if _, err := os.Stat(c.Address); c.client != nil && !errors.Is(err, fs.ErrNotExist) {
		ctx, cancel := context.WithTimeout(ctx, answerTime)
		defer cancel()
		if err := c.lookInside(ctx, census); err != nil {
			return fmt.Errorf("rebuild the records from %s: %w", book.Containerd, err)
		}
	}
	if err := lookBeside(c.Yard, cniCache, census); err != nil {
		return err
	}
	return reconcile.RebuildOwn(ctx, c.Yard, census)
}

// lookInside finds the links of netyard's in the sandboxes of all running containers.
func (c *Containerd) lookInside(ctx context.Context, census reconcile.Census) error {
	spaces, err := c.client.NamespaceService().List(ctx)
	if err != nil {
		return fmt.Errorf("list namespaces: %w", err)
	}
	for _, ns := range spaces {
		if slices.Contains(dockersNamespaces(), ns) {
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
				continue // it has gone meanwhile
			}
			who := owner(o)
			who.PID = int(t.Pid)
			for id, s := range found {
				s.Container, s.Attachment, s.Said = who, attachment(ns, t.ID), said(c.chosen(ctx, c.client, o))
				census.Endpoints[id] = s
			}
		}
	}
	return nil
}
