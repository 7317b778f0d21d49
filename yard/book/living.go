package book

import (
	"context"
	"errors"
	"net/netip"
	"strings"

	"netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/kernel/sandbox"
	"netyard/modes"
	"netyard/store"
)

// A Holder is an endpoint that has what another one asks for.
type Holder struct{ Network, Endpoint string }

// A HeldError is a request that failed for what other endpoints have.
type HeldError struct {
	Err     error
	Holders []Holder
	// One: it is enough that one of them goes.
	One bool
}

// Error is the request's.
func (e *HeldError) Error() string { return e.Err.Error() }

// Unwrap is the request's error.
func (e *HeldError) Unwrap() error { return e.Err }

// A Judge says of endpoints whether their sandboxes live. One serves one request: it looks at the processes of the host
// when it is first asked about them, and not again.
type Judge struct {
	Y         *Book
	residents *sandbox.Residents
	// Living are the holders that have been judged and do not give way.
	Living map[Holder]bool
}

// NewJudge is a judge for one request.
func (y *Book) NewJudge() *Judge { return &Judge{Y: y, Living: map[Holder]bool{}} }

// ErrUnjudged is the cause of a HeldError whose request may succeed, but better if its holders are dead.
var ErrUnjudged = errors.New("not known whether it lives")

// Dead says whether nothing lives any more where an endpoint was: only what is certain counts, by what the kernel says
// alone.
//
// A sandbox that came by CNI is its namespace, whether or not a process is in it. One of an engine is its processes:
// the namespace is kept by a mount, which stays when the engine is killed; before there has been a process, its engine
// may be about to start it.
func (j *Judge) Dead(ctx context.Context, e modes.Endpoint) (bool, error) {
	y, lost := j.Y, e.Maker.Ended()
	switch {
	case e.Phase == modes.Deleting, y.Dead(e):
		return true, nil
	case e.Attachment != "", e.Phase == modes.Pending:
		return false, nil
	case e.Sandbox == "":
		return lost, nil // it was never joined, and nobody will join it
	case !lost && e.Container.PID == 0:
		return false, nil
	case !e.Maker.Here() && !sandbox.SeesAllProcesses(): // netyard is in a container, and the engine's are not in sight
		return false, nil
	}
	id, there := core.NamespaceAt(e.Sandbox)
	if !there {
		return y.outlived(e)
	}
	if j.residents == nil {
		r, err := sandbox.FindResidents(ctx)
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
func (y *Book) outlived(e modes.Endpoint) (bool, error) {
	m, n, e, err := y.Whole(e.NetworkID, e.ID)
	if err != nil {
		return false, err
	}
	objects, _ := m.Place(n, e)
	for _, o := range objects {
		if v, ok := o.(bridge.Veth); ok {
			plugged, err := y.Config.Kernel.Plugged(v)
			return !plugged, err
		}
	}
	return false, nil
}

// AddressHolder finds the endpoint that has an address of a network.
func AddressHolder(tx store.Tx, network string, a netip.Addr) (h Holder, found bool, err error) {
	id, err := Claims.Get(tx, ClaimKey(network, a))
	if errors.Is(err, store.ErrNotFound) {
		return h, false, nil
	}
	return Holder{network, id}, err == nil && !strings.HasPrefix(id, holdPrefix), err
}

// InUseBy names the owner of an endpoint, with its network, for who wants what it has.
func InUseBy(tx store.Tx, h Holder) string {
	who := "endpoint " + modes.Short(h.Endpoint)
	if e, err := GetEndpoint(tx, h.Network, h.Endpoint); err == nil {
		who = Owned(e)
		if e.Container.Name != "" && e.Container.Engine != "" {
			who += " of " + e.Container.Engine
		}
	}
	if n, err := GetNetwork(tx, h.Network); err == nil {
		who += " on network " + Label(n)
	}
	return who
}
