package core

// A Stray is something of netyard's in the kernel that nobody wants.
type Stray struct {
	Text string
	// Policy: it is an element of policy.
	Policy bool
	// Network is whose it was, if it says so.
	Network string
	Drop    func() error
}

// Remove takes the stray away.
func (s Stray) Remove() error { return s.Drop() }

// A Loser is an object of which a part leaves the host, and does not come back.
type Loser interface{ Lost(s *View) bool }

// A Latecomer is an object in a sandbox, which some engines make only after they have asked for it.
type Latecomer interface{ Late() }
