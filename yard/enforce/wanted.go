package enforce

import (
	"netyard/kernel/core"
	"netyard/modes"
	"netyard/yard/book"
)

// Wanted is all that the records want in the kernel.
type Wanted struct {
	Objects  []core.Object
	Networks []modes.Network // the network of the object with the same index
	// MayExist are objects that may be in the kernel: they may be about to be made or removed, so it is no fault
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
		w.MayExist = append(w.MayExist, y.Plan().Objects(m, n, es...)...)
		if n.Phase != modes.Ready {
			continue
		}
		for _, o := range y.Plan().Objects(m, n, book.JoinedOf(es)...) {
			w.Objects, w.Networks = append(w.Objects, o), append(w.Networks, n)
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
