package yard

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"netyard/kernel"
	"netyard/modes"
	"netyard/store"
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

// A Conflict is a port that an endpoint wants to share with the host, and somebody else has.
type Conflict struct {
	Port modes.Port
	// Owner is who has it, in words.
	Owner string
	// Shadow says that the endpoint has the port, and a program of the host listens on it all the same, and hears
	// nothing.
	Shadow bool

	listener kernel.Listener // if a program of the host has it
	claim    string          // if an endpoint has
}

// sharing is what the watcher of sandboxes and the rest of the yard tell each other.
type sharing struct {
	poked     chan struct{}
	mu        sync.Mutex
	conflicts map[string][]Conflict // by endpoint
}

// poke has the watcher read the records.
func (s *sharing) poke() {
	select {
	case s.poked <- struct{}{}:
	default:
	}
}

// Conflicts are the ports that an endpoint does not get, or not alone.
func (y *Yard) Conflicts(e modes.Endpoint) []Conflict {
	y.sharing.mu.Lock()
	defer y.sharing.mu.Unlock()
	return slices.Clone(y.sharing.conflicts[endpointKey(e.NetworkID, e.ID)])
}

func (y *Yard) setConflicts(e modes.Endpoint, now []Conflict) (before []Conflict) {
	y.sharing.mu.Lock()
	defer y.sharing.mu.Unlock()
	key := endpointKey(e.NetworkID, e.ID)
	before = y.sharing.conflicts[key]
	if len(now) > 0 {
		y.sharing.conflicts[key] = now
	} else {
		delete(y.sharing.conflicts, key)
	}
	return before
}

// sharesHost says whether the endpoints of a network share the host's addresses.
func sharesHost(m modes.Mode, n modes.Network) (modes.PortSharer, bool) {
	s, ok := m.(modes.PortSharer)
	return s, ok && s.Shares(n)
}

// A watched is an endpoint whose sandbox the watcher looks into.
type watched struct {
	mode     modes.Mode
	sharer   modes.PortSharer // nil: it has something of the host's, see modes.Taker, and is only watched for its end
	network  modes.Network
	endpoint modes.Endpoint
	sandbox  *kernel.Sandbox
	last     []modes.Port
	// settled: what was wanted last is had. Until then, and while there are conflicts, every look is followed by work.
	// Of one that is only watched for its end: the card has been seen in its sandbox.
	settled bool
	// judged is when those were last found living who have a port that it asks for.
	judged map[holder]time.Time
	// said is the last complaint: one is enough.
	said string
}

// WatchSandboxes gives the endpoints of networks that share the host's addresses the ports that their programs listen
// on, until ctx ends, and takes back what of the host's a sandbox has that died. What it gave stays in the kernel and
// in the records.
func (y *Yard) WatchSandboxes(ctx context.Context) error {
	tick := time.NewTicker(look)
	defer tick.Stop()
	all := map[string]*watched{}
	defer func() {
		for _, w := range all {
			y.unwatch(w)
		}
	}()
	var read, heard time.Time
	var host []kernel.Listener
	for {
		if len(all) > 0 && time.Since(heard) >= listen {
			host = y.hostChanged(all, host)
			heard = time.Now()
		}
		if since := time.Since(read); since >= recall {
			y.rewatch(all)
			read = time.Now()
		}
		for _, w := range all {
			y.complain(ctx, w, y.visit(ctx, w))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-y.sharing.poked:
			read = time.Time{}
		case <-tick.C:
		}
	}
}

// hostChanged has all endpoints looked at again if the host's sockets are others than they were.
func (y *Yard) hostChanged(all map[string]*watched, before []kernel.Listener) []kernel.Listener {
	now, err := y.c.Kernel.Listeners()
	if err != nil {
		y.c.Log.Warn("list the host's sockets", "err", err)
		return before
	}
	if !slices.Equal(before, now) {
		for _, w := range all {
			w.settled = w.settled && w.sharer == nil
		}
	}
	return now
}

// rewatch makes the set of watched endpoints what the records say.
func (y *Yard) rewatch(all map[string]*watched) {
	ns, err := y.Networks()
	if err != nil {
		y.c.Log.Error("look for endpoints that share the host's addresses", "err", err)
		return
	}
	have := map[string]bool{}
	for _, n := range ns {
		m, err := y.mode(n.Mode)
		if err != nil {
			continue
		}
		sharer, shares := sharesHost(m, n)
		_, keeps := m.(modes.Taker)
		if !shares && !keeps {
			continue
		}
		es, err := y.endpointsOf(n.ID)
		if err != nil {
			y.c.Log.Error("look for endpoints that share the host's addresses", "network", n.ID, "err", err)
			return
		}
		for _, e := range es {
			if e.Phase != modes.Ready || e.Sandbox == "" || !shares && len(e.Kept) == 0 {
				continue
			}
			key := endpointKey(e.NetworkID, e.ID)
			have[key] = true
			w := all[key]
			if w == nil || w.endpoint.Sandbox != e.Sandbox {
				if w != nil {
					y.unwatch(w)
				}
				w = &watched{mode: m}
				if shares {
					w.sharer = sharer
				}
				all[key] = w
			}
			w.network, w.endpoint = n, e
		}
	}
	for key, w := range all {
		if !have[key] {
			y.unwatch(w)
			y.setConflicts(w.endpoint, nil)
			delete(all, key)
		}
	}
}

func (y *Yard) unwatch(w *watched) {
	if w.sandbox == nil {
		return
	}
	if err := w.sandbox.Close(); err != nil {
		y.c.Log.Warn("close a sandbox", "endpoint", w.endpoint.ID, "err", err)
	}
	w.sandbox = nil
}

// complain logs an error of an endpoint that was not there at the last look.
func (y *Yard) complain(ctx context.Context, w *watched, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != "" && text != w.said && ctx.Err() == nil {
		y.c.Log.Warn("share the host with a container", "network", w.network.ID, "endpoint", w.endpoint.ID, "err", err)
	}
	w.said = text
}

// visit looks into one sandbox and does what follows.
func (y *Yard) visit(ctx context.Context, w *watched) error {
	ctx, cancel := context.WithTimeout(ctx, shareTime)
	defer cancel()
	if w.sharer == nil {
		if !w.settled && kernel.IsNamespace(w.endpoint.Sandbox) {
			free, err := y.unplugged(w.mode, w.network, w.endpoint)
			w.settled = err == nil && !free
			return err
		}
		// An engine that is told of an end says so before it takes the namespace away.
		if !w.settled || kernel.IsNamespace(w.endpoint.Sandbox) {
			return nil
		}
		w.endpoint.Sandbox = "" // once, until the records are read again
		return y.Bury(ctx, w.endpoint.NetworkID, w.endpoint.ID)
	}
	ls, err := y.listening(w)
	if err != nil {
		return err
	}
	want := w.sharer.Shared(w.network, w.endpoint, ls)
	slices.SortFunc(want, comparePorts)
	if w.settled && slices.Equal(want, w.last) {
		return nil
	}
	conflicts, err := y.grant(ctx, w, want)
	w.last, w.settled = want, err == nil && len(conflicts) == 0
	return err
}

// listening lists the sockets of a sandbox. One that is gone, or not yet there, has none.
func (y *Yard) listening(w *watched) ([]kernel.Listener, error) {
	if !kernel.IsNamespace(w.endpoint.Sandbox) {
		y.unwatch(w)
		return nil, nil
	}
	if w.sandbox == nil {
		s, err := kernel.OpenSandbox(w.endpoint.Sandbox)
		if err != nil {
			return nil, err
		}
		w.sandbox = s
	}
	ls, err := w.sandbox.Listeners()
	if err != nil {
		y.unwatch(w) // the next look opens it again
	}
	return ls, err
}

// grant gives an endpoint those of the wanted ports that nobody else has, and no others. The rest are conflicts.
// Dead endpoints that have one of them give way.
func (y *Yard) grant(ctx context.Context, w *watched, want []modes.Port) (conflicts []Conflict, err error) {
	err = y.past(ctx, func(j *judge) error {
		for h, at := range w.judged { // not at every look at a conflict that stays
			j.living[h] = j.living[h] || time.Since(at) < recall
		}
		conflicts, err = y.grantOnce(ctx, j, w, want)
		return err
	})
	return conflicts, err
}

func (y *Yard) grantOnce(ctx context.Context, j *judge, w *watched, want []modes.Port) ([]Conflict, error) {
	release, err := y.hold(ctx, w.endpoint.NetworkID, w.endpoint.ID)
	if err != nil {
		return nil, err
	}
	defer release()
	was, err := y.Endpoint(w.endpoint.NetworkID, w.endpoint.ID)
	if errors.Is(err, ErrNotFound) || err == nil && (was.Phase != modes.Ready || was.Sandbox != w.endpoint.Sandbox) {
		return nil, nil // it has left meanwhile
	}
	if err != nil {
		return nil, err
	}
	c := &choice{y: y, e: was, judge: j}
	if len(want) > 0 {
		if c.listeners, err = y.c.Kernel.Listeners(); err != nil {
			return nil, err
		}
	}
	is := was
	var conflicts []Conflict
	if err := y.c.Store.View(func(tx store.Tx) error {
		is.Ports, conflicts, err = c.sharable(tx, want)
		return err
	}); err != nil {
		return nil, err
	}
	if unjudged := c.unjudged(); len(unjudged) > 0 {
		return nil, &heldError{error: errUnjudged, holders: unjudged}
	}
	w.judgedNow(c.holders)
	if !slices.Equal(is.Ports, was.Ports) {
		if is, conflicts, err = y.regrant(ctx, w, c, was, want); err != nil {
			return nil, err
		}
		w.endpoint = is
	}
	y.tellShared(w.network, was, is, y.setConflicts(is, conflicts), conflicts)
	return conflicts, nil
}

// judgedNow notes who has been found living, unless that was just now.
func (w *watched) judgedNow(living []holder) {
	before := w.judged
	w.judged = map[holder]time.Time{}
	for _, h := range living {
		if w.judged[h] = before[h]; time.Since(before[h]) >= recall {
			w.judged[h] = time.Now()
		}
	}
}

// regrant records the ports that an endpoint gets, and makes them so.
func (y *Yard) regrant(ctx context.Context, w *watched, c *choice, was modes.Endpoint, want []modes.Port) (is modes.Endpoint, conflicts []Conflict, err error) {
	err = y.update("ports recorded", func(tx store.Tx) error {
		if is, err = getEndpoint(tx, was.NetworkID, was.ID); err != nil {
			return err
		}
		c.claims = nil
		if is.Ports, conflicts, err = c.sharable(tx, want); err != nil {
			return err
		}
		return putEndpoint(tx, is)
	})
	if err != nil {
		return is, nil, err
	}
	if err := y.program(ctx, w.mode, w.network, was, is); err != nil {
		back := y.update("ports taken back", func(tx store.Tx) error { return putEndpoint(tx, was) })
		return was, nil, errors.Join(err, back, y.program(context.WithoutCancel(ctx), w.mode, w.network, is, was))
	}
	y.c.Changed()
	return is, conflicts, nil
}

// sharable sorts out which of the wanted ports an endpoint can have.
func (c *choice) sharable(tx store.Tx, want []modes.Port) (get []modes.Port, conflicts []Conflict, err error) {
	if err := c.readClaims(tx); err != nil {
		return nil, nil, err
	}
	for _, p := range want {
		had := slices.Contains(c.e.Ports, p)
		at := slices.IndexFunc(c.claims, func(r claimedRange) bool {
			return r.proto == p.Proto && r.first <= p.HostPort && p.HostPort <= r.last && sameAddr(r.addr, p.HostIP)
		})
		heard := slices.IndexFunc(c.listeners, func(l kernel.Listener) bool { return l.Takes(p.Proto, p.HostIP, p.HostPort, 1) })
		switch {
		case at >= 0:
			c.meet(tx, c.claims[at].key)
			conflicts = append(conflicts, Conflict{Port: p, claim: c.claims[at].key, Owner: claimant(tx, c.claims[at].key)})
			continue
		case heard >= 0:
			conflicts = append(conflicts, Conflict{Port: p, listener: c.listeners[heard], Shadow: had})
		}
		if heard < 0 || had {
			get = append(get, p)
		}
	}
	return get, conflicts, nil
}

// tellShared says what has changed for an endpoint, and finds out whose the sockets are that are in the way: that takes
// a look through all processes, so only for those that are new.
func (y *Yard) tellShared(n modes.Network, was, is modes.Endpoint, before, now []Conflict) {
	say := func(kind string, p modes.Port, owner, text string) {
		e := about(kind, n, is, text)
		e.Port, e.Owner = p.String(), owner
		y.tell(e)
	}
	healed := map[modes.Port]bool{}
	for _, c := range before {
		if !slices.ContainsFunc(now, func(d Conflict) bool { return d.Port == c.Port }) && (slices.Contains(is.Ports, c.Port) || c.Shadow) {
			healed[c.Port] = true
			y.c.Log.Info("a port of the host is free for its container", "network", n.ID, "endpoint", is.ID, "port", c.Port.String(), "former", c.Owner)
			say(PortHealed, c.Port, "", fmt.Sprintf("port %s is %s's: %s has it no longer", c.Port, owned(is), c.Owner))
		}
	}
	y.tellPorts(n, was, is, healed)
	for i := range now {
		c := &now[i]
		at := slices.IndexFunc(before, func(d Conflict) bool { return d.Port == c.Port && d.listener == c.listener && d.claim == c.claim })
		if at >= 0 {
			if c.claim == "" {
				c.Owner = before[at].Owner
			}
			continue
		}
		if c.claim == "" {
			c.Owner = c.listener.Owner()
		}
		text := fmt.Sprintf("port %s is not %s's: %s has it", c.Port, owned(is), c.Owner)
		if c.Shadow {
			text = fmt.Sprintf("port %s is %s's: %s listens on it too, and hears nothing", c.Port, owned(is), c.Owner)
		}
		y.c.Log.Warn("conflict about a port of the host", "network", n.ID, "endpoint", is.ID, "port", c.Port.String(), "owner", c.Owner)
		say(PortConflict, c.Port, c.Owner, text)
	}
	y.setConflicts(is, now)
}

// ignore answers who asks for published ports where the host's are shared: as an engine does with --network host.
func (y *Yard) ignore(n modes.Network, e modes.Endpoint, asks []Ask) {
	for _, a := range asks {
		y.c.Log.Warn("a published port is ignored: the container shares the host's addresses", "network", n.ID, "endpoint", e.ID, "port", a.String())
		v := about(PortIgnored, n, e, fmt.Sprintf("-p %s of %s is ignored: it shares the host's addresses, and its ports are those it listens on", a, owned(e)))
		v.Port = a.String()
		y.tell(v)
	}
}
