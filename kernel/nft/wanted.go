package nft

// A wantedElement is an element that the kernel must have, and its owners. An adopted one has none.
type wantedElement struct {
	Element
	owners map[string]bool
}

// A wantedSet is all that the kernel must have. Elements of policy, and those without an owner, are also found without
// a look at all others: what a change of policy costs does not depend on the number of endpoints.
type wantedSet struct {
	by map[ElementID]*wantedElement
	// policy are the elements that policy owns, adopted those that nobody does.
	policy, adopted map[ElementID]*wantedElement
}

func newWantedSet() wantedSet {
	return wantedSet{
		by:     map[ElementID]*wantedElement{},
		policy: map[ElementID]*wantedElement{}, adopted: map[ElementID]*wantedElement{},
	}
}

// put stores an element with its owners, instead of one of the same ID.
func (s wantedSet) put(w *wantedElement) {
	s.by[w.ID()] = w
	s.index(w)
}

// drop removes the element of an ID.
func (s wantedSet) drop(id ElementID) {
	delete(s.by, id)
	delete(s.policy, id)
	delete(s.adopted, id)
}

// own adds an owner to an element, and reports whether it is a new one.
func (s wantedSet) own(w *wantedElement, owner string) bool {
	had := w.owners[owner]
	w.owners[owner] = true
	s.index(w)
	return !had
}

// disown removes an owner from an element, which stays.
func (s wantedSet) disown(w *wantedElement, owner string) {
	delete(w.owners, owner)
	s.index(w)
}

func (s wantedSet) index(w *wantedElement) {
	file := func(in map[ElementID]*wantedElement, belongs bool) {
		if belongs {
			in[w.ID()] = w
		} else {
			delete(in, w.ID())
		}
	}
	file(s.policy, w.owners[PolicyOwner])
	file(s.adopted, len(w.owners) == 0)
}
