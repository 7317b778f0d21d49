// Package share publishes the sockets of sandboxes that share the host's addresses.
package share

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"netyard/kernel/core"
	"netyard/kernel/sandbox"
	"netyard/modes"
	"netyard/store"
	"netyard/yard"
	"netyard/yard/book"
	"netyard/yard/event"
	"netyard/yard/port"
)

const (
	// look is how often the sockets of a sandbox that shares the host's addresses are listed. The kernel tells nobody
	// of listen(2), and a listing costs a fifth of a millisecond.
	look = 250 * time.Millisecond
	// listen is how often the sockets of the host are listed, for programs that take a port which a container has.
	listen = time.Second
	// recall is how often the records are read for who has joined, without having been told.
	recall = 5 * time.Second
	// shareTime bounds the work for one endpoint.
	shareTime = 5 * time.Second
)

// Conflicts are the ports that an endpoint does not get, or not alone.
func Conflicts(y *yard.Yard, e modes.Endpoint) []book.Conflict {
	y.Sharing.Mu.Lock()
	defer y.Sharing.Mu.Unlock()
	return slices.Clone(y.Sharing.Conflicts[book.EndpointKey(e.NetworkID, e.ID)])
}

func setConflicts(y *yard.Yard, e modes.Endpoint, now []book.Conflict) (before []book.Conflict) {
	y.Sharing.Mu.Lock()
	defer y.Sharing.Mu.Unlock()
	key := book.EndpointKey(e.NetworkID, e.ID)
	before = y.Sharing.Conflicts[key]
	if len(now) > 0 {
		y.Sharing.Conflicts[key] = now
	} else {
		delete(y.Sharing.Conflicts, key)
	}
	return before
}

// A Watched is an endpoint whose sandbox the watcher looks into.
type Watched struct {
	Mode     modes.Mode
	Sharing  *modes.PortSharing // nil: it has a device of the host, and is only watched for its end
	Network  modes.Network
	Endpoint modes.Endpoint
	Sandbox  *sandbox.Sandbox
	last     []modes.Port
	// settled: what was wanted last is had. Until then, and while there are conflicts, every look is followed by work.
	// Of one that is only watched for its end: the card has been seen in its sandbox.
	settled bool
	// Judged is when those were last found living who have a port that it asks for.
	Judged map[book.Holder]time.Time
	// said is the last complaint: one is enough.
	said string
}

// WatchSandboxes gives the endpoints of networks that share the host's addresses the ports that their programs listen
// on, until ctx ends, and takes back what of the host's a sandbox has that died. What it gave stays in the kernel and
// in the records.
func WatchSandboxes(ctx context.Context, y *yard.Yard) error {
	tick := time.NewTicker(look)
	defer tick.Stop()
	all := map[string]*Watched{}
	defer func() {
		for _, w := range all {
			unwatch(y, w)
		}
	}()
	var read, heard time.Time
	var host []sandbox.Listener
	for {
		if len(all) > 0 && time.Since(heard) >= listen {
			host = HostChanged(y, all, host)
			heard = time.Now()
		}
		if since := time.Since(read); since >= recall {
			Rewatch(y, all)
			read = time.Now()
		}
		for _, w := range all {
			complain(ctx, y, w, Visit(ctx, y, w))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-y.Sharing.Poked:
			read = time.Time{}
		case <-tick.C:
		}
	}
}

// HostChanged has all endpoints looked at again if the host's sockets are others than they were.
func HostChanged(y *yard.Yard, all map[string]*Watched, before []sandbox.Listener) []sandbox.Listener {
	now, err := sandbox.Listeners(y.Config.Kernel.Handle)
	if err != nil {
		y.Config.Log.Warn("list the host's sockets", "err", err)
		return before
	}
	if !slices.Equal(before, now) {
		for _, w := range all {
			w.settled = w.settled && w.Sharing == nil
		}
	}
	return now
}

// Rewatch makes the set of watched endpoints what the records say.
func Rewatch(y *yard.Yard, all map[string]*Watched) {
	ns, err := y.Networks()
	if err != nil {
		y.Config.Log.Error("look for endpoints that share the host's addresses", "err", err)
		return
	}
	have := map[string]bool{}
	for _, n := range ns {
		m, err := y.Mode(n.Mode)
		if err != nil {
			continue
		}
		t := m.Traits(n)
		if t.Sharing == nil && t.Device == "" {
			continue
		}
		es, err := y.EndpointsOf(n.ID)
		if err != nil {
			y.Config.Log.Error("look for endpoints that share the host's addresses", "network", n.ID, "err", err)
			return
		}
		for _, e := range es {
			if e.Phase != modes.Ready || e.Sandbox == "" || t.Sharing == nil && len(e.Kept) == 0 {
				continue
			}
			key := book.EndpointKey(e.NetworkID, e.ID)
			have[key] = true
			w := all[key]
			if w == nil || w.Endpoint.Sandbox != e.Sandbox {
				if w != nil {
					unwatch(y, w)
				}
				w = &Watched{Mode: m}
				all[key] = w
			}
			w.Network, w.Endpoint, w.Sharing = n, e, t.Sharing
		}
	}
	for key, w := range all {
		if !have[key] {
			unwatch(y, w)
			setConflicts(y, w.Endpoint, nil)
			delete(all, key)
		}
	}
}

func unwatch(y *yard.Yard, w *Watched) {
	if w.Sandbox == nil {
		return
	}
	if err := w.Sandbox.Close(); err != nil {
		y.Config.Log.Warn("close a sandbox", "endpoint", w.Endpoint.ID, "err", err)
	}
	w.Sandbox = nil
}

// complain logs an error of an endpoint that was not there at the last look.
func complain(ctx context.Context, y *yard.Yard, w *Watched, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != "" && text != w.said && ctx.Err() == nil {
		y.Config.Log.Warn("share the host with a container", "network", w.Network.ID, "endpoint", w.Endpoint.ID, "err", err)
	}
	w.said = text
}

// Visit looks into one sandbox and does what follows.
func Visit(ctx context.Context, y *yard.Yard, w *Watched) error {
	ctx, cancel := context.WithTimeout(ctx, shareTime)
	defer cancel()
	if w.Sharing == nil {
		if !w.settled && core.IsNamespace(w.Endpoint.Sandbox) {
			free, err := y.Unplugged(w.Mode, w.Network, w.Endpoint)
			w.settled = err == nil && !free
			return err
		}
		// An engine that is told of an end says so before it takes the namespace away.
		if !w.settled || core.IsNamespace(w.Endpoint.Sandbox) {
			return nil
		}
		w.Endpoint.Sandbox = "" // once, until the records are read again
		return y.Bury(ctx, w.Endpoint.NetworkID, w.Endpoint.ID)
	}
	ls, err := listening(y, w)
	if err != nil {
		return err
	}
	want := w.Sharing.Ports(w.Endpoint, ls)
	slices.SortFunc(want, port.ComparePorts)
	if w.settled && slices.Equal(want, w.last) {
		return nil
	}
	conflicts, err := grant(ctx, y, w, want)
	w.last, w.settled = want, err == nil && len(conflicts) == 0
	return err
}

// listening lists the sockets of a sandbox. One that is gone, or not yet there, has none.
func listening(y *yard.Yard, w *Watched) ([]sandbox.Listener, error) {
	if !core.IsNamespace(w.Endpoint.Sandbox) {
		unwatch(y, w)
		return nil, nil
	}
	if w.Sandbox == nil {
		s, err := sandbox.OpenSandbox(w.Endpoint.Sandbox)
		if err != nil {
			return nil, err
		}
		w.Sandbox = s
	}
	ls, err := w.Sandbox.Listeners()
	if err != nil {
		unwatch(y, w) // the next look opens it again
	}
	return ls, err
}

// grant gives an endpoint those of the wanted ports that nobody else has, and no others. The rest are conflicts.
// Dead endpoints that have one of them give way.
func grant(ctx context.Context, y *yard.Yard, w *Watched, want []modes.Port) (conflicts []book.Conflict, err error) {
	err = y.Past(ctx, func(j *book.Judge) error {
		for h, at := range w.Judged { // not at every look at a conflict that stays
			j.Living[h] = j.Living[h] || time.Since(at) < recall
		}
		conflicts, err = grantOnce(ctx, y, j, w, want)
		return err
	})
	return conflicts, err
}

func grantOnce(ctx context.Context, y *yard.Yard, j *book.Judge, w *Watched, want []modes.Port) ([]book.Conflict, error) {
	release, err := y.Hold(ctx, w.Endpoint.NetworkID, w.Endpoint.ID)
	if err != nil {
		return nil, err
	}
	defer release()
	was, err := y.Endpoint(w.Endpoint.NetworkID, w.Endpoint.ID)
	if errors.Is(err, book.ErrNotFound) || err == nil && (was.Phase != modes.Ready || was.Sandbox != w.Endpoint.Sandbox) {
		return nil, nil // it has left meanwhile
	}
	if err != nil {
		return nil, err
	}
	c := &port.Choice{Y: y.Book, E: was, Judge: j}
	if len(want) > 0 {
		if c.Listeners, err = sandbox.Listeners(y.Config.Kernel.Handle); err != nil {
			return nil, err
		}
	}
	is := was
	var conflicts []book.Conflict
	if err := y.Config.Store.View(func(tx store.Tx) error {
		is.Ports, conflicts, err = c.Sharable(tx, want)
		return err
	}); err != nil {
		return nil, err
	}
	if unjudged := c.Unjudged(); len(unjudged) > 0 {
		return nil, &book.HeldError{Err: book.ErrUnjudged, Holders: unjudged}
	}
	w.judgedNow(c.Holders)
	if !slices.Equal(is.Ports, was.Ports) {
		if is, conflicts, err = regrant(ctx, y, w, c, was, want); err != nil {
			return nil, err
		}
		w.Endpoint = is
	}
	tellShared(y, w.Network, was, is, setConflicts(y, is, conflicts), conflicts)
	return conflicts, nil
}

// judgedNow notes who has been found living, unless that was just now.
func (w *Watched) judgedNow(living []book.Holder) {
	before := w.Judged
	w.Judged = map[book.Holder]time.Time{}
	for _, h := range living {
		if w.Judged[h] = before[h]; time.Since(before[h]) >= recall {
			w.Judged[h] = time.Now()
		}
	}
}

// regrant records the ports that an endpoint gets, and makes them so.
func regrant(ctx context.Context, y *yard.Yard, w *Watched, c *port.Choice, was modes.Endpoint, want []modes.Port) (is modes.Endpoint, conflicts []book.Conflict, err error) {
	err = y.Update("ports recorded", func(tx store.Tx) error {
		if is, err = book.GetEndpoint(tx, was.NetworkID, was.ID); err != nil {
			return err
		}
		c.Claims = nil
		if is.Ports, conflicts, err = c.Sharable(tx, want); err != nil {
			return err
		}
		return book.PutEndpoint(tx, is)
	})
	if err != nil {
		return is, nil, err
	}
	if err := port.Program(ctx, y.Book, w.Mode, w.Network, was, is); err != nil {
		back := y.Update("ports taken back", func(tx store.Tx) error { return book.PutEndpoint(tx, was) })
		return was, nil, errors.Join(err, back, port.Program(context.WithoutCancel(ctx), y.Book, w.Mode, w.Network, is, was))
	}
	y.Config.Changed()
	return is, conflicts, nil
}

// tellShared says what has changed for an endpoint, and finds out whose the sockets are that are in the way: that takes
// a look through all processes, so only for those that are new.
func tellShared(y *yard.Yard, n modes.Network, was, is modes.Endpoint, before, now []book.Conflict) {
	say := func(kind string, p modes.Port, owner, text string) {
		e := book.About(kind, n, is, text)
		e.Port, e.Owner = p.String(), owner
		y.Tell(e)
	}
	healed := map[modes.Port]bool{}
	for _, c := range before {
		if !slices.ContainsFunc(now, func(d book.Conflict) bool { return d.Port == c.Port }) && (slices.Contains(is.Ports, c.Port) || c.Shadow) {
			healed[c.Port] = true
			y.Config.Log.Info("a port of the host is free for its container", "network", n.ID, "endpoint", is.ID, "port", c.Port.String(), "former", c.Owner)
			say(event.PortHealed, c.Port, "", fmt.Sprintf("port %s is %s's: %s has it no longer", c.Port, book.Owned(is), c.Owner))
		}
	}
	y.TellPorts(n, was, is, healed)
	for i := range now {
		c := &now[i]
		at := slices.IndexFunc(before, func(d book.Conflict) bool { return d.Port == c.Port && d.Listener == c.Listener && d.Claim == c.Claim })
		if at >= 0 {
			if c.Claim == "" {
				c.Owner = before[at].Owner
			}
			continue
		}
		if c.Claim == "" {
			c.Owner = c.Listener.Owner()
		}
		text := fmt.Sprintf("port %s is not %s's: %s has it", c.Port, book.Owned(is), c.Owner)
		if c.Shadow {
			text = fmt.Sprintf("port %s is %s's: %s listens on it too, and hears nothing", c.Port, book.Owned(is), c.Owner)
		}
		y.Config.Log.Warn("conflict about a port of the host", "network", n.ID, "endpoint", is.ID, "port", c.Port.String(), "owner", c.Owner)
		say(event.PortConflict, c.Port, c.Owner, text)
	}
	setConflicts(y, is, now)
}
