package core

import "fmt"

// An Object is one thing that netyard wants in the kernel: a link, an address, an element of a set.
type Object interface {
	fmt.Stringer
	// Ensure makes the object exist as described. It changes nothing if it already does.
	Ensure(k *Handle) error
	// Remove undoes Ensure. It never touches what netyard did not make.
	Remove(k *Handle) error
	// Check returns what is wrong with the object, one text a fault; none if it is as described.
	Check(s *View) []string
}
