package core

import (
	"fmt"
)

// An Object is one thing netyard wants to be in the kernel.
type Object interface {
	fmt.Stringer
	// Ensure makes the object be there as described.
	Ensure(k *Handle) error
	// Remove undoes ensure; it never touches what netyard did not make.
	Remove(k *Handle) error
	// Check says in words what is wrong with the object, nothing when it is as described.
	Check(s *View) []string
}
