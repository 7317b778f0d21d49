// Package book keeps the records of networks and endpoints, with their locks, claims and holds.
package book

import (
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"netyard/ipam"
	"netyard/kernel/core"
	"netyard/modes"
	"netyard/store"
	"netyard/yard/event"
	"netyard/yard/plan"
)

// WithoutSandbox returns the endpoint as it is after it has left its sandbox.
func WithoutSandbox(e modes.Endpoint) modes.Endpoint {
	e.Container.PID = 0 // the next sandbox has no process yet
	e.Phase, e.Turned = modes.Ready, time.Time{}
	e.Sandbox, e.BootID, e.Seen, e.Ports, e.Lent = "", "", false, nil, false
	e.Opened, e.Beside, e.Asked = false, nil, nil
	return e
}

// NetworkWithMode returns a network and its mode.
func (y *Book) NetworkWithMode(id string) (m modes.Mode, n modes.Network, err error) {
	if n, err = y.Network(id); err != nil {
		return nil, n, err
	}
	m, err = y.Mode(n.Mode)
	return m, n, err
}

// Space is the address space of netyard's own IPAM: a subnet with it has a pool there.
const Space = "netyard"

var (
	// ErrNotFound says that a network or endpoint does not exist.
	ErrNotFound = errors.New("not found")
	// ErrExists says that another one has the same ID.
	ErrExists = errors.New("exists already")
	// ErrAmbiguous says that a name or ID prefix matches several.
	ErrAmbiguous = errors.New("ambiguous")
	// ErrInUse says that something has another owner, or is still needed.
	ErrInUse = errors.New("in use")
)

// Config is all that a Book needs.
type Config struct {
	Log    *slog.Logger
	Store  *store.Store
	Kernel plan.Kernel
	// Handle is for what looks at packets and LANs: DHCP, trace, and rules of other programs. nil: the host has none.
	Handle *core.Handle
	IPAM   *ipam.IPAM
	Modes  map[string]modes.Mode
	// Offered is the modes that new networks may have; nil: all.
	Offered []string
	// HostID identifies this host. It is part of the client identifiers of containers at DHCP servers.
	HostID string
	// Fabric is the cluster of the overlays; nil: this host is in no cluster.
	Fabric modes.Fabric
	// BootID identifies the current boot of the host.
	BootID string
	// Grace is the age at which an orphan is removed; default 60 s.
	Grace time.Duration
	Now   func() time.Time
	// Step is called between any two steps of a change, with the step's name. Crash tests end the daemon there.
	Step func(name string)
	// Background runs work that no caller waits for; default: one after the other in a goroutine of Run.
	Background func(func())
	// Copies is a directory for copies of the networks that no engine has, from which lost records are rebuilt. Empty:
	// there are no copies.
	Copies string
	// Changed is called when a network or an endpoint was added, or an endpoint removed.
	Changed func()
}

// A Book has the networks and endpoints of one host.
type Book struct {
	Config Config
	Locks  Locks

	Suspects suspects
	Sharing  Sharing
	Ring     event.Events
	Keeper   Keeper
	Started  time.Time
	// Late waits for requests that go on although their caller has gone.
	Late sync.WaitGroup
	// Options is the table of network options.
	Options *modes.Table
}

// Mode returns the mode of a name.
func (y *Book) Mode(name string) (modes.Mode, error) {
	m, ok := y.Config.Modes[name]
	if !ok {
		return nil, Unknown("mode", name, slices.Sorted(maps.Keys(y.Config.Modes)))
	}
	return m, nil
}

// Plan returns the Runner that carries out plans on this host.
func (y *Book) Plan() plan.Runner {
	return plan.Runner{Kernel: y.Config.Kernel, Fabric: y.Config.Fabric}
}

// Traits returns the traits of a network; the zero value if its mode is not known.
func (y *Book) Traits(n modes.Network) modes.Traits {
	m, ok := y.Config.Modes[n.Mode]
	if !ok {
		return modes.Traits{}
	}
	return m.Traits(n)
}

// Update changes the records, and calls Config.Step before and after.
func (y *Book) Update(step string, fn func(store.Tx) error) error {
	y.Config.Step("before " + step)
	if err := y.Config.Store.Update(fn); err != nil {
		return err
	}
	if y.Keeper.Dirty.Swap(false) { // only after the change is committed, so that KeepLeases can read it
		y.WakeLeases()
	}
	y.Config.Step("after " + step)
	return nil
}
