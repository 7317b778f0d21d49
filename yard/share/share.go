// Package share publishes the sockets that programs open in sandboxes which share the host's addresses.
package share

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"netyard/kernel/sandbox"
	"netyard/modes"
	"netyard/store"
	"netyard/yard"
	"netyard/yard/book"
	"netyard/yard/event"
	"netyard/yard/live"
	"netyard/yard/port"
)

const (
	// sandboxInterval is how often the sockets of a sandbox that shares the host's addresses are listed. The kernel
	// does not report listen(2), and a listing costs a fifth of a millisecond.
	sandboxInterval = 250 * time.Millisecond
	// retryInterval is how often an endpoint tries to get ports that others have, without a notification.
	retryInterval = time.Second
	// hostInterval is how often the sockets of the host are listed, for programs that listen on a container's port.
	hostInterval = time.Second
	// recordInterval is how often the records are read for endpoints that have joined, without a notification.
	recordInterval = 5 * time.Second
	// shareTime bounds the work for one endpoint.
	shareTime = 5 * time.Second
	// MaxShared is how many ports one container shares: each is a record, a claim and an element of the firewall. A log
	// message of limit has the number, too.
	MaxShared = 1024
	// restFactor bounds the processor time that one sandbox takes, with however many sockets: after a visit it is left
	// alone for that many times as long as the visit took, up to maxRest.
	restFactor, maxRest = 60, 500 * time.Millisecond
)

// Conflicts returns the ports that an endpoint does not have, or that a program of the host listens on as well.
func Conflicts(y *yard.Yard, e modes.Endpoint) []book.Conflict {
	y.Sharing.Mu.Lock()
	defer y.Sharing.Mu.Unlock()
	return slices.Clone(y.Sharing.Conflicts[book.EndpointKey(e.NetworkID, e.ID)])
}

// setConflicts replaces the conflicts of an endpoint and returns the former ones.
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

// A Watched is an endpoint whose sandbox is watched.
type Watched struct {
	Mode     modes.Mode
	Sharing  *modes.PortSharing // nil: it has a device of the host, and is only watched for its sandbox's end
	Network  modes.Network
	Endpoint modes.Endpoint
	Sandbox  *sandbox.Sandbox
	last     []modes.Port
	// settled: the endpoint has all ports that were wanted last. While it is false, visits try again. For an endpoint
	// that is only watched for its sandbox's end: the device has been seen in its sandbox.
	settled bool
	// retry is when an endpoint tries again, of whose ports others have some.
	retry time.Time
	// Judged is when the holders of ports that it wants were last found alive.
	Judged map[book.Holder]time.Time
	// logged is the text of the last error, which is not logged again.
	logged string
	// limited: it wants more than MaxShared ports, which has been logged.
	limited bool
	// next is when it may be visited again.
	next time.Time
}

// Retry has the next visit try again to get what others have.
func (w *Watched) Retry() { w.retry = time.Time{} }

// WatchSandboxes publishes the ports that programs listen on in sandboxes which share the host's addresses, and returns
// devices of the host from sandboxes that have ended, until ctx ends. The published ports stay in the kernel and in the
// records then.
func WatchSandboxes(ctx context.Context, y *yard.Yard) error {
	tick := time.NewTicker(sandboxInterval)
	defer tick.Stop()
	all := map[string]*Watched{}
	defer func() {
		for _, w := range all {
			unwatch(y, w)
		}
	}()
	var read, listed time.Time
	var host []sandbox.Listener
	for {
		if len(all) > 0 && time.Since(listed) >= hostInterval {
			host = HostChanged(y, all, host)
			listed = time.Now()
		}
		if since := time.Since(read); since >= recordInterval {
			Refresh(y, all)
			read = time.Now()
		}
		for _, w := range all {
			if began := time.Now(); !began.Before(w.next) {
				logOnce(ctx, y, w, Visit(ctx, y, w))
				w.next = time.Now().Add(min(restFactor*time.Since(began), maxRest))
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-y.Sharing.Wake:
			read = time.Time{}
			for _, w := range all {
				w.Retry()
			}
		case <-tick.C:
		}
	}
}

// HostChanged lists the host's sockets. If they have changed, the ports of all watched endpoints are checked again.
func HostChanged(y *yard.Yard, all map[string]*Watched, before []sandbox.Listener) []sandbox.Listener {
	now, err := y.Config.Kernel.Listeners()
	if err != nil {
		y.Config.Log.Warn("host's sockets not listed", "err", err)
		return before
	}
	if !slices.Equal(before, now) {
		for _, w := range all {
			w.settled, w.retry = w.settled && w.Sharing == nil, time.Time{}
		}
	}
	return now
}

// Refresh updates the set of watched endpoints from the records.
func Refresh(y *yard.Yard, all map[string]*Watched) {
	ns, err := y.Networks()
	if err != nil {
		y.Config.Log.Error("watched sandboxes not listed", "err", err)
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
			y.Config.Log.Error("watched sandboxes not listed", "network", n.Name, "network_id", n.ID, "err", err)
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

// unwatch closes the sandbox of a watched endpoint.
func unwatch(y *yard.Yard, w *Watched) {
	if w.Sandbox == nil {
		return
	}
	if err := w.Sandbox.Close(); err != nil {
		y.Config.Log.Warn("sandbox not closed", "endpoint", w.Endpoint.ID, "err", err)
	}
	w.Sandbox = nil
}

// logOnce logs an error of an endpoint, unless the last visit returned the same one.
func logOnce(ctx context.Context, y *yard.Yard, w *Watched, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != "" && text != w.logged && ctx.Err() == nil {
		y.Config.Log.Warn("sandbox watch failed",
			"network", w.Network.Name, "network_id", w.Network.ID, "endpoint", w.Endpoint.ID,
			"container", w.Endpoint.Container.Name, "err", err)
	}
	w.logged = text
}

// Visit lists the sockets of one sandbox and updates the endpoint's ports. If the endpoint has a device of the host,
// Visit removes the endpoint when its sandbox has ended.
func Visit(ctx context.Context, y *yard.Yard, w *Watched) error {
	ctx, cancel := context.WithTimeout(ctx, shareTime)
	defer cancel()
	if w.Sharing == nil {
		if !w.settled && y.Config.Kernel.IsNamespace(w.Endpoint.Sandbox) {
			free, err := y.Unplugged(w.Mode, w.Network, w.Endpoint)
			w.settled = err == nil && !free
			return err
		}
		// An engine that stops the container itself leaves the network before it removes the namespace.
		if !w.settled || y.Config.Kernel.IsNamespace(w.Endpoint.Sandbox) {
			return nil
		}
		w.Endpoint.Sandbox = "" // until the records are read again
		return y.RemoveEndpoint(ctx, w.Endpoint.NetworkID, w.Endpoint.ID)
	}
	ls, err := listening(y, w)
	if err != nil {
		return err
	}
	want := w.limit(y, w.Sharing.Ports(w.Endpoint, ls))
	slices.SortFunc(want, port.ComparePorts)
	if slices.Equal(want, w.last) && (w.settled || time.Now().Before(w.retry)) {
		return nil
	}
	conflicts, err := grant(ctx, y, w, want)
	w.last, w.settled, w.retry = want, err == nil && len(conflicts) == 0, time.Time{}
	if err == nil {
		w.retry = time.Now().Add(retryInterval)
	}
	return err
}

// limit returns at most MaxShared of the wanted ports: first those that the endpoint has.
func (w *Watched) limit(y *yard.Yard, want []modes.Port) []modes.Port {
	over := len(want) > MaxShared
	if over && !w.limited {
		y.Config.Log.Warn("container listens on more than 1024 ports: the others are not shared; "+
			"name those to be shared with the network option include",
			"network", w.Network.Name, "network_id", w.Network.ID, "endpoint", w.Endpoint.ID,
			"container", w.Endpoint.Container.Name)
	}
	if w.limited = over; !over {
		return want
	}
	has := map[modes.Port]bool{}
	for _, p := range w.Endpoint.Ports {
		has[p] = true
	}
	slices.SortFunc(want, func(a, b modes.Port) int {
		if has[a] != has[b] {
			if has[a] {
				return -1
			}
			return 1
		}
		return port.ComparePorts(a, b)
	})
	return want[:MaxShared]
}

// listening lists the sockets of a sandbox. One that does not exist, or not yet, has none.
func listening(y *yard.Yard, w *Watched) ([]sandbox.Listener, error) {
	if !y.Enterable(w.Endpoint) {
		unwatch(y, w)
		return nil, nil
	}
	if w.Sandbox == nil {
		s, err := sandbox.OpenSandbox(w.Endpoint.Sandbox, w.Endpoint.NS)
		if err != nil {
			return nil, err
		}
		w.Sandbox = s
	}
	ls, err := w.Sandbox.Listeners()
	if err != nil {
		unwatch(y, w) // the next visit opens it again
	}
	return ls, err
}

// grant publishes those of the wanted ports that nobody else has, withdraws all others, and returns the rest as
// conflicts. Dead endpoints that have one of them are removed.
func grant(ctx context.Context, y *yard.Yard, w *Watched, want []modes.Port) (conflicts []book.Conflict, err error) {
	err = y.RetryWithoutDead(ctx, func(j *live.Check) error {
		for h, at := range w.Judged { // a lasting conflict is not judged at each visit
			j.Living[h] = j.Living[h] || time.Since(at) < recordInterval
		}
		conflicts, err = grantOnce(ctx, y, j, w, want)
		return err
	})
	return conflicts, err
}

func grantOnce(
	ctx context.Context, y *yard.Yard, j *live.Check, w *Watched, want []modes.Port,
) ([]book.Conflict, error) {
	h, err := y.Hold(ctx, w.Endpoint.NetworkID, w.Endpoint.ID)
	if errors.Is(err, book.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer h.Release()
	was := h.Endpoint
	if was.Phase != modes.Ready || was.Sandbox != w.Endpoint.Sandbox { // it left
		return nil, nil
	}
	c := &port.Choice{Y: y.Book, E: was, Judge: j}
	if len(want) > 0 {
		if c.Listeners, err = y.Config.Kernel.Listeners(); err != nil {
			return nil, err
		}
	}
	var get []modes.Port
	var conflicts []book.Conflict
	if err := y.Config.Store.View(func(tx store.Tx) error {
		get, conflicts, err = c.Sharable(tx, want)
		return err
	}); err != nil {
		return nil, err
	}
	if unjudged := c.Unjudged(); len(unjudged) > 0 {
		return nil, &book.HeldError{Err: book.ErrUnjudged, Holders: unjudged}
	}
	w.judgedNow(c.Holders)
	if !slices.Equal(get, was.Ports) {
		if conflicts, err = regrant(ctx, h, c, want); err != nil {
			return nil, err
		}
		w.Endpoint = h.Endpoint
	}
	tellShared(y, h, was, setConflicts(y, was, conflicts), conflicts)
	return conflicts, nil
}

// judgedNow notes when the holders were found alive; a time that is recent enough stays.
func (w *Watched) judgedNow(living []book.Holder) {
	before := w.Judged
	w.Judged = map[book.Holder]time.Time{}
	for _, h := range living {
		if w.Judged[h] = before[h]; time.Since(before[h]) >= recordInterval {
			w.Judged[h] = time.Now()
		}
	}
}

// regrant records the ports that an endpoint gets, and changes the kernel; if that fails, it undoes both.
func regrant(
	ctx context.Context, h *book.Held, c *port.Choice, want []modes.Port,
) (conflicts []book.Conflict, err error) {
	was := h.Endpoint
	err = h.Change("ports recorded", func(tx store.Tx, is *modes.Endpoint) error {
		c.Claims = nil
		is.Ports, conflicts, err = c.Sharable(tx, want)
		return err
	})
	if err != nil {
		return nil, err
	}
	is := h.Endpoint
	if err := port.Program(ctx, h, was, is); err != nil {
		back := h.Put("ports taken back", was)
		return nil, errors.Join(err, back, port.Program(context.WithoutCancel(ctx), h, is, was))
	}
	h.Book.Config.Changed()
	if len(is.Ports) < len(was.Ports) { // another container may want what is free now
		h.Book.Sharing.Wake.Send()
	}
	return conflicts, nil
}

// tellShared reports which ports of an endpoint were published or withdrawn, and which conflicts began or ended.
func tellShared(y *yard.Yard, h *book.Held, was modes.Endpoint, before, now []book.Conflict) {
	n, is := h.Network, h.Endpoint
	y.TellPorts(n, was, is, tellHealed(y, h, before, now))
	type cause struct {
		listener sandbox.Listener
		claim    string
	}
	known := map[modes.Port]book.Conflict{}
	for _, c := range before {
		known[c.Port] = c
	}
	var fresh []*book.Conflict
	for i := range now {
		c := &now[i]
		if old, ok := known[c.Port]; !ok || (cause{old.Listener, old.Claim}) != (cause{c.Listener, c.Claim}) {
			fresh = append(fresh, c)
		} else if c.Claim == "" {
			c.Owner = old.Owner
		}
	}
	nameOwners(fresh)
	groups, order := map[string][]*book.Conflict{}, []string{}
	for _, c := range fresh { // one line for each, or for all of one owner if there are too many
		key := fmt.Sprint(c.Owner, c.Shadow)
		if len(fresh) <= book.MaxTold {
			key += c.Port.String()
		}
		if groups[key] == nil {
			order = append(order, key)
		}
		groups[key] = append(groups[key], c)
	}
	for _, key := range order {
		tellConflict(y, h, groups[key])
	}
	setConflicts(y, is, now)
}

// nameOwners finds the programs behind conflicts: of the first ones only, since each takes a search of all processes.
func nameOwners(fresh []*book.Conflict) {
	searched := 0
	for _, c := range fresh {
		switch {
		case c.Claim != "":
		case searched < book.MaxTold:
			searched++
			c.Owner = c.Listener.Owner()
		default:
			c.Owner = "a program of the host"
		}
	}
}

// tellConflict reports new conflicts with one owner.
func tellConflict(y *yard.Yard, h *book.Held, all []*book.Conflict) {
	n, is, c := h.Network, h.Endpoint, all[0]
	name := c.Port.String()
	if len(all) > 1 {
		name = fmt.Sprintf("%s and %d more", name, len(all)-1)
	}
	text := fmt.Sprintf("port %s is not %s's: %s has it", name, book.Owned(is), c.Owner)
	if c.Shadow {
		text = fmt.Sprintf("port %s is %s's: %s listens on it too and receives nothing", name, book.Owned(is), c.Owner)
	}
	y.Config.Log.Warn("port conflict", "network", n.Name, "network_id", n.ID, "endpoint", is.ID,
		"container", is.Container.Name, "port", name, "owner", c.Owner)
	e := book.About(event.PortConflict, n, is, text)
	e.Port, e.Owner = name, c.Owner
	y.Tell(e)
}

// tellHealed reports which conflicts ended, and returns their ports.
func tellHealed(y *yard.Yard, h *book.Held, before, now []book.Conflict) map[modes.Port]bool {
	n, is := h.Network, h.Endpoint
	lasts, has, healed := map[modes.Port]bool{}, map[modes.Port]bool{}, map[modes.Port]bool{}
	for _, c := range now {
		lasts[c.Port] = true
	}
	for _, p := range is.Ports {
		has[p] = true
	}
	var ports []modes.Port
	owner := ""
	for _, c := range before {
		if lasts[c.Port] || !has[c.Port] && !c.Shadow {
			continue
		}
		healed[c.Port] = true
		ports = append(ports, c.Port)
		owner = c.Owner
	}
	former := map[string]string{}
	for _, c := range before {
		former[c.Port.String()] = c.Owner
	}
	for _, name := range book.PortNames(ports) {
		if len(ports) <= book.MaxTold {
			owner = former[name]
		}
		y.Config.Log.Info("port conflict ended", "network", n.Name, "network_id", n.ID, "endpoint", is.ID,
			"container", is.Container.Name, "port", name, "former", owner)
		e := book.About(event.PortHealed, n, is,
			fmt.Sprintf("port %s is %s's: %s has it no longer", name, book.Owned(is), owner))
		e.Port = name
		y.Tell(e)
	}
	return healed
}
