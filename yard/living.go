package yard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"netyard/kernel"
	"netyard/modes"
	"netyard/store"
)

// A Process is an engine's, as a door knows it.
type Process = kernel.Process

// PeerOf returns the process at the other end of a door's connection.
func PeerOf(c net.Conn) Process { return kernel.PeerOf(c) }

// buryTime bounds the wait for the locks of an endpoint that is to give way: its own request may be in progress.
const buryTime = 3 * time.Second

// A holder is an endpoint that has what another one asks for.
type holder struct{ Network, Endpoint string }

// A heldError is a request that failed for what other endpoints have.
type heldError struct {
	error
	holders []holder
	// one: it is enough that one of them goes.
	one bool
}

func (e *heldError) Unwrap() error { return e.error }

// A judge says of endpoints whether their sandboxes live. One serves one request: it looks at the processes of the host
// when it is first asked about them, and not again.
type judge struct {
	y         *Yard
	residents *kernel.Residents
	// living are the holders that have been judged and do not give way.
	living map[holder]bool
}

func (y *Yard) newJudge() *judge { return &judge{y: y, living: map[holder]bool{}} }

// past runs a request, and again if it failed for what dead endpoints have: those are dropped, with all they have. do
// must have undone what it did and hold no lock when it fails.
func (y *Yard) past(ctx context.Context, do func(*judge) error) error {
	j := y.newJudge()
	for {
		err := do(j)
		var held *heldError
		if !errors.As(err, &held) {
			return err
		}
		news, buryErr := j.giveWay(ctx, held)
		if buryErr != nil {
			return errors.Join(err, buryErr)
		}
		if !news {
			return err
		}
	}
}

// giveWay drops those holders that are dead. news: there is one fewer, or one more of which it is known that it lives.
func (j *judge) giveWay(ctx context.Context, held *heldError) (news bool, err error) {
	for _, h := range held.holders {
		e, err := j.y.Endpoint(h.Network, h.Endpoint)
		if errors.Is(err, ErrNotFound) { // it went meanwhile
			news, j.living[h] = news || !j.living[h], true
			continue
		}
		if err != nil {
			return news, err
		}
		dead, err := j.dead(ctx, e)
		if err != nil {
			return news, err
		}
		if !dead {
			news = news || held.error == errUnjudged && !j.living[h] //nolint:errorlint // it is that one
			j.living[h] = true
			continue
		}
		gone, err := j.y.buryDead(ctx, e)
		if err != nil {
			return news, fmt.Errorf("drop %s, whose sandbox is dead: %w", owned(e), err)
		}
		if news = news || gone; gone && held.one {
			return true, nil
		}
	}
	return news, nil
}

// errUnjudged is the cause of a heldError whose request may succeed, but better if its holders are dead.
var errUnjudged = errors.New("not known whether it lives")

// dead says whether nothing lives any more where an endpoint was: only what is certain counts, by what the kernel says
// alone.
//
// A sandbox that came by CNI is its namespace, whether or not a process is in it. One of an engine is its processes:
// the namespace is kept by a mount, which stays when the engine is killed; before there has been a process, its engine
// may be about to start it.
func (j *judge) dead(ctx context.Context, e modes.Endpoint) (bool, error) {
	y, lost := j.y, e.Maker.Ended()
	switch {
	case e.Phase == modes.Deleting, y.dead(e):
		return true, nil
	case e.Attachment != "", e.Phase == modes.Pending:
		return false, nil
	case e.Sandbox == "":
		return lost, nil // it was never joined, and nobody will join it
	case !lost && e.Container.PID == 0:
		return false, nil
	case !e.Maker.Here() && !kernel.SeesAllProcesses(): // netyard is in a container, and the engine's are not in sight
		return false, nil
	}
	id, there := kernel.NamespaceAt(e.Sandbox)
	if !there {
		return y.outlived(e)
	}
	if j.residents == nil {
		r, err := kernel.FindResidents(ctx)
		if err != nil {
			return false, err
		}
		j.residents = &r
	}
	return j.residents.Deserted(id), nil
}

// outlived says of an endpoint whose sandbox was never seen that it is nevertheless certain that none has its link: the
// engine was killed before it made the namespace, or before netyard looked. Where the engine's mounts are not to be
// seen from here at all, the link tells.
func (y *Yard) outlived(e modes.Endpoint) (bool, error) {
	m, n, e, err := y.whole(e.NetworkID, e.ID)
	if err != nil {
		return false, err
	}
	for _, o := range m.Objects(n, []modes.Endpoint{e}) {
		if v, ok := o.(kernel.Veth); ok {
			plugged, err := y.c.Kernel.Plugged(v)
			return !plugged, err
		}
	}
	return false, nil
}

// buryDead drops an endpoint that was found dead, unless it is another than that by now. gone says that it is no more.
func (y *Yard) buryDead(ctx context.Context, was modes.Endpoint) (gone bool, err error) {
	wait, cancel := context.WithTimeout(ctx, buryTime)
	defer cancel()
	release, err := y.hold(wait, was.NetworkID, was.ID)
	if err != nil {
		return false, err
	}
	defer release()
	m, n, e, err := y.whole(was.NetworkID, was.ID)
	if errors.Is(err, ErrNotFound) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	same := e.Phase == was.Phase && e.Sandbox == was.Sandbox && e.BootID == was.BootID &&
		e.Created.Equal(was.Created) && e.Joined.Equal(was.Joined)
	if !same {
		return false, nil // it was joined, or left, while it was looked at
	}
	if err := y.bury(ctx, m, n, e); err != nil {
		return false, err
	}
	for _, p := range e.Addrs {
		if err := y.giveUp(n, p.Addr()); err != nil { // no engine need say that they are free
			return true, err
		}
	}
	y.tell(about(EndpointLeft, n, e, fmt.Sprintf("%s left network %s: its sandbox is dead", owned(e), label(n))))
	y.sharing.poke()
	y.c.Changed()
	return true, nil
}

// BuryLost drops the dead endpoints whose engine's process has ended: it will not speak of them, and the next one may
// not know of them.
func (y *Yard) BuryLost(ctx context.Context) error {
	es, err := y.Endpoints()
	if err != nil {
		return err
	}
	j := y.newJudge()
	ended := map[kernel.Process]bool{}
	var errs []error
	for _, e := range es {
		if !e.Maker.Known() || e.Attachment != "" || e.Phase != modes.Ready {
			continue
		}
		if _, known := ended[e.Maker]; !known {
			ended[e.Maker] = e.Maker.Ended()
		}
		if !ended[e.Maker] {
			continue
		}
		dead, err := j.dead(ctx, e)
		if err == nil && dead {
			_, err = y.buryDead(ctx, e)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// addressHolder finds the endpoint that has an address of a network.
func addressHolder(tx store.Tx, network string, a netip.Addr) (h holder, found bool, err error) {
	id, err := claims.Get(tx, claimKey(network, a))
	if errors.Is(err, store.ErrNotFound) {
		return h, false, nil
	}
	return holder{network, id}, err == nil && !strings.HasPrefix(id, holdPrefix), err
}

// inUseBy names the owner of an endpoint, with its network, for who wants what it has.
func inUseBy(tx store.Tx, h holder) string {
	who := "endpoint " + modes.Short(h.Endpoint)
	if e, err := getEndpoint(tx, h.Network, h.Endpoint); err == nil {
		who = owned(e)
		if e.Container.Name != "" && e.Container.Engine != "" {
			who += " of " + e.Container.Engine
		}
	}
	if n, err := getNetwork(tx, h.Network); err == nil {
		who += " on network " + label(n)
	}
	return who
}

// heldBeside says of an endpoint that could not be attached who may have what it needs: a link, a hardware address, a
// card of the host's, a parent that takes one link only. That is who is on its network, or on another network with the
// same parent.
func (y *Yard) heldBeside(e modes.Endpoint, cause error) error {
	if errors.Is(cause, context.Canceled) || errors.Is(cause, context.DeadlineExceeded) {
		return cause
	}
	held := &heldError{error: cause}
	err := y.c.Store.View(func(tx store.Tx) error {
		own, err := getNetwork(tx, e.NetworkID)
		if err != nil {
			return err
		}
		ns, err := networks.List(tx, "")
		if err != nil {
			return err
		}
		for _, n := range ns {
			if n.ID != own.ID && (n.Opt(optParent) == "" || n.Opt(optParent) != own.Opt(optParent)) {
				continue
			}
			es, err := endpoints.List(tx, endpointKey(n.ID, ""))
			if err != nil {
				return err
			}
			for _, o := range es {
				if o.ID != e.ID && (o.Sandbox != "" || o.Kept != nil) {
					held.holders = append(held.holders, holder{o.NetworkID, o.ID})
				}
			}
		}
		if own.Opt(optParent) != "" && isTaken(cause) {
			held.error = beside(tx, own.Opt(optParent), cause, held.holders)
		}
		return nil
	})
	if err != nil {
		return errors.Join(cause, err)
	}
	return held
}

// isTaken says whether a link could not be made since another one has what it needs.
func isTaken(err error) bool {
	// A parent, one that passes a link through, a name, a MAC.
	for _, e := range []error{syscall.EBUSY, syscall.EINVAL, syscall.EEXIST, syscall.EADDRINUSE} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// beside names those who have links on a parent, as far as they are few.
func beside(tx store.Tx, parent string, cause error, holders []holder) error {
	const few = 3
	var who []string
	for _, h := range holders[:min(len(holders), few)] {
		who = append(who, inUseBy(tx, h))
	}
	if len(holders) > few {
		who = append(who, fmt.Sprintf("%d more", len(holders)-few))
	}
	if len(who) == 0 {
		return cause
	}
	return fmt.Errorf("%w (on %s: %s)", cause, parent, strings.Join(who, ", "))
}
