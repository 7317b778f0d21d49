package engines

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/client"

	"netyard/modes"
	"netyard/wake"
	"netyard/yard/book"
	"netyard/yard/enforce"
	"netyard/yard/reconcile"
)

const (
	// lookInterval is the time from an event to a look at its container, and between two such looks. An engine lists a
	// change up to some milliseconds after its event.
	lookInterval = 25 * time.Millisecond
	// looks is how often a container is looked at after an event; the check that the event asks for comes after them.
	looks = 6
)

// follow records names as the engine tells of them, until ctx ends. It connects again when a check has found that the
// engine answers.
func (d *Docker) follow(ctx context.Context) error {
	for wait := pokeDelay; ; wait = min(2*wait, pollInterval) {
		select {
		case <-ctx.Done():
			return nil
		case <-d.answers:
		}
		began := time.Now()
		if err := d.followEvents(ctx); err != nil && ctx.Err() == nil {
			d.Log.Debug("stream of engine events ended", "engine", d.Host, "err", err)
		}
		if time.Since(began) > pollInterval {
			wait = pokeDelay
		}
		if !wake.Sleep(ctx, wait) { // an engine may answer and refuse to tell of events
			return nil
		}
	}
}

// followEvents handles the engine's events until their stream ends.
func (d *Docker) followEvents(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c, err := d.client()
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // its requests end with ctx
	stream := c.Events(ctx, client.EventsListOptions{Filters: make(client.Filters).
		Add("type", string(events.ContainerEventType), string(events.NetworkEventType)).
		Add("event", string(events.ActionStart), string(events.ActionRename), string(events.ActionDie),
			string(events.ActionCreate), string(events.ActionConnect))})
	d.Poke() // for what happened before
	left := map[string]int{}
	tick := time.NewTicker(lookInterval)
	defer tick.Stop()
	for {
		due := tick.C
		if len(left) == 0 {
			due = nil
		}
		select {
		case err := <-stream.Err:
			return errors.Join(errors.New("the stream of events ended"), err)
		case m := <-stream.Messages:
			if id := d.handle(ctx, m); id != "" {
				left[id] = looks
			}
		case <-due:
			if err := d.nameContainers(ctx, c, slices.Collect(maps.Keys(left))); err != nil {
				return err
			}
			for id := range left {
				left[id]--
			}
			maps.DeleteFunc(left, func(_ string, n int) bool { return n == 0 })
		}
	}
}

// handle acts on an event. It returns the ID of the container that has a new name or endpoint; empty: none has.
func (d *Docker) handle(ctx context.Context, m events.Message) (container string) {
	switch {
	case m.Type == events.ContainerEventType && m.Action == events.ActionCreate: // it has no endpoint before it starts
		return ""
	case m.Type == events.NetworkEventType && m.Action == events.ActionCreate:
		named := reconcile.Census{Engine: book.Docker, Networks: map[string]reconcile.SeenNetwork{
			m.Actor.ID: {Name: m.Actor.Attributes["name"]},
		}}
		if err := d.record(ctx, named); err != nil {
			d.Log.Warn("name of a network not recorded", "network_id", m.Actor.ID, "err", err)
		}
		if m.Actor.Attributes["type"] == "bridge" { // the event does not tell the name of Docker's bridge
			d.Poke()
		}
		return ""
	}
	d.Poke()
	switch {
	case m.Action == events.ActionDie:
		return ""
	case m.Type == events.NetworkEventType:
		return m.Actor.Attributes["container"]
	}
	return m.Actor.ID
}

// nameContainers records which endpoints some containers have, and their names. Unlike a check it costs the same
// however many containers there are.
func (d *Docker) nameContainers(ctx context.Context, c *client.Client, ids []string) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	listed, err := c.ContainerList(ctx, client.ContainerListOptions{
		All: true, Filters: make(client.Filters).Add("id", ids...),
	})
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	ns, err := d.Yard.Networks()
	if err != nil {
		return err
	}
	census := reconcile.Census{
		Engine: book.Docker, Networks: map[string]reconcile.SeenNetwork{},
		Endpoints: map[string]reconcile.SeenEndpoint{}, Wanted: map[string]bool{},
	}
	for _, n := range ns {
		if n.Engine == book.Docker {
			census.Networks[n.ID] = reconcile.SeenNetwork{Name: n.Name}
		}
	}
	for _, item := range listed.Items {
		if item.NetworkSettings == nil {
			continue
		}
		for _, s := range item.NetworkSettings.Networks {
			addEndpoint(&census, item, s)
		}
	}
	if !d.news(census) {
		return nil
	}
	d.addLabels(ctx, c, census, listed.Items)
	return d.record(ctx, census)
}

// record records names, and enforces policies, which select by them.
func (d *Docker) record(ctx context.Context, c reconcile.Census) error {
	if err := reconcile.RecordNames(ctx, d.Yard, c); err != nil {
		return err
	}
	return enforce.Enforce(ctx, d.Yard.Book)
}

// news reports whether an endpoint's record has another container, or another name of it, than the engine, or no labels
// yet.
func (d *Docker) news(c reconcile.Census) bool {
	es, err := d.Yard.Endpoints()
	return err != nil || slices.ContainsFunc(es, func(e modes.Endpoint) bool {
		s, ok := c.Endpoints[e.ID]
		return ok && (s.Container.ID != e.Container.ID || s.Container.Name != e.Container.Name ||
			e.Container.Labels == nil)
	})
}
