package enforce

import (
	"netyard/kernel/core"
	"netyard/modes"
	"netyard/yard/book"
)

// Wanted is all that the records want in the kernel.
type Wanted struct {
	Objects  []core.Object
	Networks []*modes.Network // the network of the object with the same index
	// MayExist are other objects that may be in the kernel: they may be about to be made or removed, so it is no fault
	// whether they exist or not.
	MayExist []core.Object
	// Foreign are the networks whose mode this daemon does not know. What they have in the kernel is no stray.
	Foreign map[string]bool
}

// AllWanted returns all that the records want in the kernel.
func AllWanted(y *book.Book) (w Wanted, err error) {
	ns, err := y.Networks()
	if err != nil {
		return w, err
	}
	w.Foreign = map[string]bool{}
	for _, n := range ns {
		m, err := y.Mode(n.Mode)
		if err != nil {
			w.Foreign[n.ID] = true
			continue
		}
		es, err := y.EndpointsOf(n.ID)
		if err != nil {
			return w, err
		}
		w.add(&n, n.Phase == modes.Ready, y.Plan().Objects(m, n)...)
		for _, e := range es {
			w.add(&n, n.Phase == modes.Ready && book.Joined(e), y.Plan().ObjectsOf(m, n, e)...)
		}
	}
	if y.Config.Fabric != nil {
		parting, err := y.Config.Fabric.LeavingObjects()
		if err != nil {
			return w, err
		}
		w.MayExist = append(w.MayExist, parting...)
	}
	err = wantedByPolicy(y, &w)
	return w, err
}

// add adds objects of a network. wanted: they must be in the kernel, not only may.
func (w *Wanted) add(n *modes.Network, wanted bool, objects ...core.Object) {
	if !wanted {
		w.MayExist = append(w.MayExist, objects...)
		return
	}
	for _, o := range objects {
		w.Objects, w.Networks = append(w.Objects, o), append(w.Networks, n)
	}
}
