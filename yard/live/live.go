// Package live finds out whether the sandboxes of endpoints are live.
package live

import (
	"context"

	"netyard/kernel/bridge"
	"netyard/kernel/sandbox"
	"netyard/modes"
	"netyard/yard/book"
)

// A Check finds out whether the sandboxes of endpoints are live. It serves one request: it scans the host's
// processes once, when they are first needed.
type Check struct {
	// Book has the records.
	Book      *book.Book
	residents *sandbox.Residents
	// Living are the holders that were found to be live.
	Living map[book.Holder]bool
}

// NewCheck returns a Check for one request.
func NewCheck(y *book.Book) *Check { return &Check{Book: y, Living: map[book.Holder]bool{}} }

// Dead reports whether the sandbox of an endpoint has certainly ended. Only the kernel is asked.
//
// A sandbox that came by CNI lives as long as its namespace, with or without a process in it. A sandbox of an engine
// lives as long as its processes: its namespace is kept by a mount, which stays if the engine is killed. While no
// process is known, the engine may be about to start one.
func (j *Check) Dead(ctx context.Context, e modes.Endpoint) (bool, error) {
	y, lost := j.Book, e.Maker.Ended()
	switch {
	case e.Phase == modes.Deleting, y.Dead(e):
		return true, nil
	case e.Attachment != "", e.Phase == modes.Pending:
		return false, nil
	case e.Sandbox == "":
		return lost, nil // it was never joined, and will not be if its engine has ended
	case !lost && e.Container.PID == 0:
		return false, nil
	case !e.Maker.Here() && !sandbox.SeesAllProcesses(): // netyard is in a container, and cannot see the processes
		return false, nil
	}
	id, there := y.Config.Kernel.NamespaceAt(e.Sandbox)
	if !there {
		return linkUnplugged(y, e)
	}
	if j.residents == nil {
		r, err := sandbox.FindResidents(ctx)
		if err != nil {
			return false, err
		}
		j.residents = &r
	}
	return j.residents.Empty(id), nil
}

// linkUnplugged reports for an endpoint whose sandbox is not visible whether its link is certainly in no sandbox: the
// engine was killed before it made the namespace, or before netyard looked. If the engine's mounts cannot be seen from
// here, only the link tells.
func linkUnplugged(y *book.Book, e modes.Endpoint) (bool, error) {
	m, n, err := y.NetworkWithMode(e.NetworkID)
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
