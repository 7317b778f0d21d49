// Package yard owns the life of networks and endpoints. It records what is wanted, asks the mode to make it so, and
// records that it is; after a crash the records say what is left to do. It compares the records with the kernel and
// with the engines, and settles the difference.
package yard

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"netyard/ipam"
	"netyard/kernel"
	"netyard/modes"
	"netyard/store"
)

// Space is the address space of netyard's own IPAM: a subnet that carries it has a pool here.
const Space = "netyard"

var (
	// ErrNotFound says that there is no such network or endpoint.
	ErrNotFound = errors.New("not found")
	// ErrExists says that another of the same id is there.
	ErrExists = errors.New("exists already")
	// ErrAmbiguous says that several are meant.
	ErrAmbiguous = errors.New("say more of the id")
	// ErrInUse says that something still needs it.
	ErrInUse = errors.New("in use")
)

// Config is all a Yard needs.
type Config struct {
	Log    *slog.Logger
	Store  *store.Store
	Kernel *kernel.Kernel
	IPAM   *ipam.IPAM
	Modes  map[string]modes.Mode
	// Offered says which modes new networks may have; nil: all.
	Offered []string
	// HostID tells this host from others: DHCP servers know containers by it and by their names.
	HostID string
	// Fabric is the cluster that overlay networks are in; nil: this host is in none.
	Fabric modes.Fabric
	// BootID tells one life of the host's kernel from the next.
	BootID string
	// Grace is how old an orphan has to be before it is dropped; default 60 s.
	Grace time.Duration
	Now   func() time.Time
	// Step is called between any two steps of a change, with the step's name. Crash tests stop the world in it.
	Step func(name string)
	// Background runs work that no caller waits for; default: one after the other in a goroutine of Run.
	Background func(func())
	// Copies is a directory beside the records for what nobody else knows of the networks that no engine has: where
	// lost records are rebuilt from. Empty: nowhere.
	Copies string
	// Changed is called when a network or an endpoint came, or an endpoint went.
	Changed func()
}

// A Yard is the networks and endpoints of one host.
type Yard struct {
	c        Config
	locks    locks
	work     chan func()
	suspects suspects
	sharing  sharing
	events   events
	keeper   keeper
	started  time.Time
	// late are requests that go on although nobody waits for them any more.
	late sync.WaitGroup
}

// New makes a Yard; Restore it before use.
func New(c Config) *Yard {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Step == nil {
		c.Step = func(string) {}
	}
	if c.Changed == nil {
		c.Changed = func() {}
	}
	if c.Grace == 0 {
		c.Grace = time.Minute
	}
	const backlog = 1 << 16 // more endpoints than a host can have
	y := &Yard{c: c, work: make(chan func(), backlog), started: c.Now()}
	y.sharing = sharing{poked: make(chan struct{}, 1), conflicts: map[string][]Conflict{}}
	y.keeper = keeper{poked: make(chan struct{}, 1)}
	if y.c.Background == nil {
		y.c.Background = func(f func()) { y.work <- f }
	}
	return y
}

// breath is how long background work waits that is alone: for a link that is deleted the kernel has every processor
// stop for a moment (synchronize_net, net/core/dev.c), and who asked for it should have heard the answer by then.
const breath = 10 * time.Millisecond

// Run does the background work until ctx ends; what is left then is done by the next Restore.
func (y *Yard) Run(ctx context.Context) error {
	defer y.events.end()
	tick := time.NewTicker(y.c.Grace)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case f := <-y.work:
			if len(y.work) == 0 && !sleep(ctx, breath) {
				return nil
			}
			f()
		case <-tick.C:
			y.retry(ctx)
			y.sweep(ctx)
		}
	}
}

func (y *Yard) mode(name string) (modes.Mode, error) {
	m, ok := y.c.Modes[name]
	if !ok {
		return nil, unknown("mode", name, slices.Sorted(maps.Keys(y.c.Modes)))
	}
	return m, nil
}

// update changes the records and lets a crash test in before and after.
func (y *Yard) update(step string, fn func(store.Tx) error) error {
	y.c.Step("before " + step)
	if err := y.c.Store.Update(fn); err != nil {
		return err
	}
	if y.keeper.dirty.Swap(false) { // not before it is to be read
		y.pokeLeases()
	}
	y.c.Step("after " + step)
	return nil
}

// attached records that an endpoint is as its record, which is in the file, says that it is to be. The caller need not
// wait for the disk: what is lost with the host is a link, which is lost with it, too.
func (y *Yard) attached(e modes.Endpoint) error {
	y.c.Step("before endpoint ready")
	if err := endpoints.Soon(y.c.Store, endpointKey(e.NetworkID, e.ID), e); err != nil {
		return err
	}
	y.c.Step("after endpoint ready")
	return nil
}
