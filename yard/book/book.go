// Package book is the records of networks and endpoints: locks, claims, holds, and what is looked up in them.
package book

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
	"netyard/yard/event"
	"netyard/yard/plan"
)

// Left is the endpoint as it is without a sandbox.
func Left(e modes.Endpoint) modes.Endpoint {
	e.Container.PID = 0 // the next sandbox has none yet
	e.Phase, e.Turned = modes.Ready, time.Time{}
	e.Sandbox, e.BootID, e.Seen, e.Ports, e.Lent = "", "", false, nil, false
	return e
}

// Whole is an endpoint with its network and the network's mode.
func (y *Book) Whole(network, id string) (m modes.Mode, n modes.Network, e modes.Endpoint, err error) {
	if e, err = y.Endpoint(network, id); err != nil {
		return nil, n, e, err
	}
	if n, err = y.Network(network); err != nil {
		return nil, n, e, err
	}
	m, err = y.Mode(n.Mode)
	return m, n, e, err
}

// Hold takes an endpoint for one's own and shares its network.
func (y *Book) Hold(ctx context.Context, network, id string) (func(), error) {
	releaseNetwork, err := y.Locks.Hold(ctx, network, true)
	if err != nil {
		return nil, err
	}
	release, err := y.Locks.Hold(ctx, EndpointKey(network, id), false)
	if err != nil {
		releaseNetwork()
		return nil, err
	}
	return func() { release(); releaseNetwork() }, nil
}

// Space is the address space of netyard's own IPAM: a subnet that carries it has a pool here.
const Space = "netyard"

var (
	// ErrNotFound says that there is no such network or endpoint.
	ErrNotFound = errors.New("not found")
	// ErrExists says that another of the same id is there.
	ErrExists = errors.New("exists already")
	// ErrAmbiguous says that several are meant.
	ErrAmbiguous = errors.New("ambiguous ID prefix")
	// ErrInUse says that something still needs it.
	ErrInUse = errors.New("in use")
)

// Config is all a Book needs.
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

// A Book is the networks and endpoints of one host.
type Book struct {
	Config Config
	Locks  Locks

	Suspects suspects
	Sharing  Sharing
	Ring     event.Events
	Keeper   Keeper
	Started  time.Time
	// Late are requests that go on although nobody waits for them any more.
	Late sync.WaitGroup
	// Options is the table of what can be said of networks.
	Options *modes.Table
}

// Mode finds a mode by its name.
func (y *Book) Mode(name string) (modes.Mode, error) {
	m, ok := y.Config.Modes[name]
	if !ok {
		return nil, Unknown("mode", name, slices.Sorted(maps.Keys(y.Config.Modes)))
	}
	return m, nil
}

// Plan makes the plans of modes true on this host.
func (y *Book) Plan() plan.Runner {
	return plan.Runner{Kernel: y.Config.Kernel, Fabric: y.Config.Fabric}
}

// Traits are those of a network; of one whose mode is not known, the zero value.
func (y *Book) Traits(n modes.Network) modes.Traits {
	m, ok := y.Config.Modes[n.Mode]
	if !ok {
		return modes.Traits{}
	}
	return m.Traits(n)
}

// Update changes the records and lets a crash test in before and after.
func (y *Book) Update(step string, fn func(store.Tx) error) error {
	y.Config.Step("before " + step)
	if err := y.Config.Store.Update(fn); err != nil {
		return err
	}
	if y.Keeper.Dirty.Swap(false) { // not before it is to be read
		y.PokeLeases()
	}
	y.Config.Step("after " + step)
	return nil
}

// Attached records that an endpoint is as its record, which is in the file, says that it is to be. The caller need not
// wait for the disk: what is lost with the host is a link, which is lost with it, too.
func (y *Book) Attached(e modes.Endpoint) error {
	y.Config.Step("before endpoint ready")
	if err := Endpoints.Soon(y.Config.Store, EndpointKey(e.NetworkID, e.ID), e); err != nil {
		return err
	}
	y.Config.Step("after endpoint ready")
	return nil
}
