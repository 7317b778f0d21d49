package core

// A Stray is something of netyard's in the kernel that no record wants.
type Stray struct {
	// Text says what it is.
	Text string
	// Policy: it is an element of a policy set.
	Policy bool
	// Network is the ID of the network that it belonged to, if known.
	Network string
	// Drop removes it.
	Drop func() error
}

// Remove removes the stray from the kernel.
func (s Stray) Remove() error { return s.Drop() }

// A Unrepairable is an object that needs what netyard cannot make: a part that moved into a sandbox, or the host's link
// below it. Lost reports whether that is gone or down: then Ensure cannot repair the object.
type Unrepairable interface{ Lost(s *View) bool }

// A DeferredObject is an object inside a sandbox. Some engines make the sandbox only after they have asked for the
// object.
type DeferredObject interface{ Late() }
