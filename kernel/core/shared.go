package core

import (
	"fmt"
	"sync"
)

// A sharedObject is wanted by several networks at once, and goes with the last of them.
type sharedObject interface {
	fmt.Stringer
	WantedBy() string
}

// SharedObjects knows who wants which.
type SharedObjects struct {
	// Mu is held while one is made or removed: it must not go while another network comes to want it.
	Mu     sync.Mutex
	owners map[string]map[string]bool // by the object's name
}

// Claim notes that an object's owner wants it; Mu is held.
func (s *SharedObjects) Claim(o sharedObject) {
	if s.owners == nil {
		s.owners = map[string]map[string]bool{}
	}
	if s.owners[o.String()] == nil {
		s.owners[o.String()] = map[string]bool{}
	}
	s.owners[o.String()][o.WantedBy()] = true
}

// Disclaim undoes claim and says whether others still want it.
func (s *SharedObjects) Disclaim(o sharedObject) bool {
	delete(s.owners[o.String()], o.WantedBy())
	return len(s.owners[o.String()]) > 0
}

// Claim notes which networks want the shared ones among objects, before any of them can be removed: after a restart
// nothing is known.
func (k *Handle) Claim(objects ...Object) {
	k.Shared.Mu.Lock()
	defer k.Shared.Mu.Unlock()
	for _, o := range objects {
		if s, ok := o.(sharedObject); ok {
			k.Shared.Claim(s)
		}
	}
}
