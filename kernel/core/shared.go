package core

import (
	"fmt"
	"sync"
)

// A sharedObject may be wanted by several networks at once. It is removed when the last of them no longer wants it.
type sharedObject interface {
	fmt.Stringer
	WantedBy() string
}

// SharedObjects records the owners of each shared object.
type SharedObjects struct {
	// Mu is held while a shared object is made or removed, so that none is removed while another network begins to want
	// it.
	Mu     sync.Mutex
	owners map[string]map[string]bool // by the object's name
}

// AddOwner records that an object's owner wants it. Mu must be held.
func (s *SharedObjects) AddOwner(o sharedObject) {
	if s.owners == nil {
		s.owners = map[string]map[string]bool{}
	}
	if s.owners[o.String()] == nil {
		s.owners[o.String()] = map[string]bool{}
	}
	s.owners[o.String()][o.WantedBy()] = true
}

// RemoveOwner undoes Claim, and reports whether other owners still want the object. Mu must be held.
func (s *SharedObjects) RemoveOwner(o sharedObject) bool {
	delete(s.owners[o.String()], o.WantedBy())
	return len(s.owners[o.String()]) > 0
}

// AddOwners records who wants the shared objects among these. After a restart nothing is recorded, so this has to be
// done before any shared object may be removed.
func (k *Handle) AddOwners(objects ...Object) {
	k.Shared.Mu.Lock()
	defer k.Shared.Mu.Unlock()
	for _, o := range objects {
		if s, ok := o.(sharedObject); ok {
			k.Shared.AddOwner(s)
		}
	}
}
