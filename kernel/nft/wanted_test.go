package nft

import (
	"fmt"
	"net/netip"
	"testing"

	"netyard/kernel/exchange"
	"netyard/kernel/rule"
)

// TestPolicyLooksAtItsOwn shows that a change of policy looks at the elements of policy, and at those that nobody owns,
// however many elements there are.
func TestPolicyLooksAtItsOwn(t *testing.T) {
	t.Parallel()
	own := func(last byte) string { return string([]byte{10, 0, 0, last}) }
	closed := func(last byte) Element { return Element{Set: "closed_in4", Key: own(last)} }
	for _, others := range []int{10, 10_000} {
		f := &Firewall{log: silent(), poke: func() {}, out: &exchange.Writer{Log: silent()}, wanted: newWantedSet()}
		for i := range others {
			e := Element{Set: "addrs4", Key: fmt.Sprint(i), Owner: "endpoint"}
			f.wanted.put(&wantedElement{Element: e, owners: map[string]bool{e.Owner: true}})
		}
		enforce := func(known []netip.Addr, elements ...Element) policyChange {
			wanted := map[ElementID]Element{}
			for _, e := range elements {
				wanted[e.ID()] = e
			}
			c := f.diffPolicy(wanted, known)
			f.recordPolicy(c)
			return c
		}
		expect := func(what string, c policyChange, gone, fresh, policy, adopted int) {
			t.Helper()
			if len(c.gone) != gone || len(c.fresh) != fresh || len(f.wanted.policy) != policy ||
				len(f.wanted.adopted) != adopted || len(f.wanted.by) != others+policy+adopted {
				t.Errorf("among %d others, %s: %d gone, %d added, looks at %d of policy and %d of nobody, %d in all",
					others, what, len(c.gone), len(c.fresh), len(f.wanted.policy), len(f.wanted.adopted),
					len(f.wanted.by))
			}
		}
		expect("no policy", enforce(nil), 0, 0, 0, 0)
		expect("two", enforce(nil, closed(1), closed(2)), 0, 2, 2, 0)
		expect("one of them", enforce(nil, closed(2)), 1, 0, 1, 0)
		c := enforce(nil, closed(3))
		expect("another", c, 1, 1, 1, 0)
		f.recordPolicy(c.inverse())
		expect("undone", policyChange{}, 0, 0, 1, 0)
		if f.wanted.policy[closed(2).ID()] == nil {
			t.Error("undoing a change did not bring back what it removed")
		}

		f.adopted = true
		f.wanted.put(&wantedElement{Element: closed(7), owners: map[string]bool{}})
		expect("one is adopted", enforce(nil, closed(2)), 0, 0, 1, 1)
		expect("it is wanted", enforce(nil, closed(2), closed(7)), 0, 0, 2, 0)
		expect("and no more", enforce(nil, closed(2)), 1, 0, 1, 0)
		f.wanted.put(&wantedElement{Element: closed(8), owners: map[string]bool{}})
		expect("a known address", enforce([]netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, 8})}, closed(2)), 1, 0, 1, 0)

		removed := f.removeOwners([]Element{closed(2).For(PolicyOwner)})
		expect("removed by its owner", policyChange{}, 0, 0, 0, 0)
		if len(removed) != 1 || f.wanted.by[ElementID{Set: rule.SetName("closed_in4"), Key: own(2)}] != nil {
			t.Errorf("%d elements are gone with their owner, want 1", len(removed))
		}
	}
}
