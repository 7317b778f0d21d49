package nft

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"netyard/kernel/core"
	"netyard/kernel/rule"
)

// NetfilterBuffer holds a batch that loads the ruleset with ten thousands of elements.
const NetfilterBuffer = 8 << 20

// An Element is one element of a set of the ruleset.
type Element struct {
	Set rule.SetName
	// Owner is who wants the element; it goes with the last that does.
	Owner string
	Text  string
	// Key is as the kernel has it.
	Key string
	Content
}

// A Content is what there is to an element beside its key.
type Content struct {
	// End is that of an interval: behind the last address, or in a set of several fields the last of each. Empty for
	// all others.
	End string
	// Val is what the element of a map maps to.
	Val string
}

// InterfaceIn is the element that puts an interface, or a pair of them, into a set.
func InterfaceIn(set rule.SetName, names ...string) Element {
	var key strings.Builder
	for _, n := range names {
		key.WriteString(rule.IfName(n))
	}
	return Element{Set: set, Text: strings.Join(names, " . "), Key: key.String()}
}

// SubnetIn is the element that puts the addresses of a subnet into a set.
func SubnetIn(set rule.SetName, p netip.Prefix) Element {
	first := p.Masked().Addr()
	return Element{Set: set, Text: p.Masked().String(), Key: string(first.AsSlice()), Content: Content{End: string(behind(p))}}
}

// An ElementID tells one element from another: those of a set do not overlap, so where one begins is enough.
type ElementID struct {
	Set rule.SetName
	Key string
}

// ID tells the element from others.
func (e Element) ID() ElementID { return ElementID{e.Set, e.Key} }

// For is the element as that owner's wish.
func (e Element) For(owner string) Element {
	e.Owner = owner
	return e
}

// A Wish is an element that ought to be there, and for whom. One that was found there has nobody.
type Wish struct {
	Element
	owners map[string]bool
}

// String names the element and its set.
func (e Element) String() string { return fmt.Sprintf("element { %s } of set %s", e.Text, e.Set) }

func (e Element) Ensure(k *core.Handle) error { return Of(k).Add(context.Background(), []Element{e}) }

func (e Element) Remove(k *core.Handle) error { return Of(k).Remove([]Element{e}) }

func (e Element) Check(s *core.View) []string {
	have, ok := Elements(s)[e.Set][e.Key]
	switch {
	case NoTable(s):
		return nil // that the table is missing is said once
	case !ok:
		return []string{e.String() + " is missing"}
	case have != e.Content:
		return []string{e.String() + " is not as it should be"}
	}
	return nil
}

// behind is the first address after a prefix's last one; all zeros when there is none, which the kernel takes for the
// end.
func behind(p netip.Prefix) []byte {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits() - 1; i >= 0; i-- {
		bit := byte(1) << (7 - i%8)
		b[i/8] ^= bit
		if b[i/8]&bit != 0 {
			break
		}
	}
	return b
}

// A Firewall keeps the table. It is write-only: what ought to be there is in memory, and the kernel is never asked but
// to be compared with it.
type Firewall struct {
	Handle *core.Handle
	Rules  rule.Ruleset

	log *slog.Logger
	// poke has the watcher compare soon.
	poke func()
	// turns are for changes of the ruleset: who has it may read what is below, and changes it with mu held.
	turns turns
	// Tx is the transaction that is being put together, of whose turn it is.
	Tx *transaction
	// inMemory: what is sent now is not, see insist. doubt: the kernel may have more than is wanted.
	inMemory, doubt bool
	// out is where transactions go; the tables belong to its socket.
	out *talker
	// In is where the kernel is asked.
	In *reader

	Mu   sync.Mutex
	Sets rule.Book
	Want map[ElementID]*Wish
	// disclaimed are elements that were removed before the ruleset was loaded.
	disclaimed map[ElementID]bool

	// adopted: there were elements that the records did not know, and may still be.
	adopted bool
	// settled are the addresses that the records know all about, see superseded.
	settled map[string]bool
	// Loaded: the table of this process is in the kernel. Until then elements are only collected, so that a restart
	// replaces the old table by the new in one transaction and no packet sees anything in between.
	Loaded bool
	// Conntrack: this kernel follows connections between ports of a bridge (nf_conntrack_bridge).
	Conntrack bool
	// Shared: the tables are anybody's to change.
	Shared bool
}

// Connect is of a namespace, and opens its sockets when it first needs them.
func Connect(log *slog.Logger, ns int) *Firewall {
	return &Firewall{
		log: log, poke: func() {}, Sets: rule.Book{}, In: &reader{ns: ns}, Tx: newTransaction(),
		out: &talker{log: log, dial: func() (Peer, error) { return dialNetfilter(ns) }},
	}
}

// Close gives up the sockets.
func (f *Firewall) Close() error { return errors.Join(f.In.close(), f.out.drop()) }

// SetLoaded notes whether the tables of this process are in the kernel.
func (f *Firewall) SetLoaded(is bool) {
	f.Mu.Lock()
	defer f.Mu.Unlock()
	f.Loaded = is
}

// Load replaces the tables by new ones, whatever they were.
func (f *Firewall) Load() error {
	if f.inMemory {
		return nil
	}
	return f.Sure(func() error {
		ts := rule.Tables()
		for _, t := range ts {
			if err := f.renew(t); err != nil {
				return err
			}
		}
		f.renewSets()
		for _, spec := range f.Rules.Sets {
			if err := f.Tx.AddSet(f.Sets[spec.Name], nil); err != nil {
				return fmt.Errorf("declare set %s: %w", spec.Name, err)
			}
		}
		if err := f.Change(f.Wanted(), f.Tx.SetAddElements); err != nil {
			return err
		}
		for i, chains := range f.chains() {
			f.AddChains(ts[i], chains)
		}
		if err := f.Flush("load ruleset"); err != nil {
			return err
		}
		f.SetLoaded(true)
		f.out.orphaned, f.doubt = false, false
		return nil
	})
}

func (f *Firewall) renewSets() {
	f.Mu.Lock()
	defer f.Mu.Unlock()
	f.Sets = rule.NewBook(f.Rules.Sets)
}

// Sure does a change that can be done again, until its outcome is known. What an earlier try left is no part of the
// next one.
func (f *Firewall) Sure(do func() error) (err error) {
	const tries = 3
	for range tries {
		f.Tx = newTransaction()
		if err = do(); !errors.Is(err, errUnsure) {
			return err
		}
	}
	return err
}

// settle finds out what became of a transaction whose answer got lost: the kernel has what is wanted, or is made to.
// The tables belonged to a socket that is closed. They are claimed first: what is compared after that nobody else can
// change.
func (f *Firewall) settle() error {
	for _, t := range rule.Tables() {
		own, err := f.claim(t)
		if errors.Is(err, errUnsure) || err == nil && !own && !f.Shared {
			return f.Load()
		}
		if err != nil {
			return err
		}
	}
	if same, err := f.asWanted(); err != nil || !same {
		return errors.Join(err, f.Load())
	}
	f.out.orphaned = false
	return nil
}

// asWanted says whether the kernel has the rules and elements that are wanted, and no others.
func (f *Firewall) asWanted() (bool, error) {
	faults, err := f.ruleFaults()
	if err != nil || len(faults) > 0 {
		return false, err
	}
	return f.sameElements()
}

// outcome goes on where a transaction did not simply succeed. One whose table, or element, somebody took away, is part
// of all that is wanted, as one is whose answer got lost.
func (f *Firewall) outcome(err error) error {
	switch {
	case errors.Is(err, unix.ENOENT):
		err = f.Load()
	case errors.Is(err, errUnsure):
		err = f.settle()
	}
	if errors.Is(err, errUnsure) { // memory goes back to what it was, and the watcher makes the kernel follow
		f.poke()
	}
	return err
}

// AddChains queues chains with their rules.
func (f *Firewall) AddChains(t *nftables.Table, chains []rule.Chain) {
	accept := nftables.ChainPolicyAccept
	var made []*nftables.Chain
	for _, spec := range chains { // all of them first: rules jump from one to another
		c := &nftables.Chain{Table: t, Name: spec.Name}
		if spec.Hook != nil {
			c.Type, c.Hooknum, c.Priority, c.Policy = spec.Kind, spec.Hook, spec.Priority, &accept
		}
		made = append(made, f.Tx.AddChain(c))
	}
	for i, spec := range chains {
		for _, r := range spec.Rules {
			f.Tx.AddRule(&nftables.Rule{Table: t, Chain: made[i], Exprs: r.Exprs, UserData: rule.Comment(r.Comment)})
		}
	}
}

// Flush sends what was put together.
func (f *Firewall) Flush(act string) error {
	if f.inMemory {
		f.Tx = newTransaction()
		return nil
	}
	msgs, err := f.Tx.all()
	f.Tx = newTransaction()
	if err == nil && len(msgs) > 0 {
		err = f.out.exchange(act, msgs)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", act, err)
	}
	return nil
}

// Add puts elements into their sets, all or none.
func (f *Firewall) Add(ctx context.Context, elements []Element) error {
	if len(elements) == 0 {
		return nil
	}
	var mine []Element
	return f.Run(ctx, Turn{
		Act: "add " + elements[0].String(),
		Do: func() (err error) {
			mine, err = f.addNow(elements)
			return err
		},
		Undo: func() error { return f.removeNow(mine) },
	})
}

// addNow is add for whose turn it is. It returns those that their owners did not have before.
func (f *Firewall) addNow(elements []Element) (mine []Element, err error) {
	mine, fresh, err := f.enlist(elements)
	if err != nil || len(fresh) == 0 {
		return mine, err
	}
	if f.Loaded {
		err = f.Change(fresh, f.Tx.SetAddElements)
		if err == nil {
			err = f.outcome(f.Flush("add " + fresh[0].String()))
		}
	} else {
		err = f.closeEarly(fresh)
	}
	if err != nil {
		f.strike(mine)
		return nil, err
	}
	return mine, nil
}

// enlist notes that elements are wanted: mine are those that their owners did not want before, fresh are those that
// nobody did.
func (f *Firewall) enlist(elements []Element) (mine, fresh []Element, err error) {
	f.Mu.Lock()
	defer f.Mu.Unlock()
	for _, e := range elements {
		if w := f.Want[e.ID()]; w != nil && w.Content != e.Content {
			return nil, nil, fmt.Errorf("add %s: there is one of that key, %s", e, w.Element)
		}
	}
	for _, e := range elements {
		w := f.Want[e.ID()]
		if w == nil {
			w = &Wish{Element: e, owners: map[string]bool{}}
			f.Want[e.ID()] = w
			fresh = append(fresh, e)
		}
		if !w.owners[e.Owner] {
			w.owners[e.Owner] = true
			mine = append(mine, e)
		}
	}
	return mine, fresh, nil
}

// strike notes that elements are not wanted by their owners, and returns those that nobody wants any more.
func (f *Firewall) strike(elements []Element) (gone []Element) {
	f.Mu.Lock()
	defer f.Mu.Unlock()
	for _, e := range elements {
		w := f.Want[e.ID()]
		if w == nil {
			continue
		}
		delete(w.owners, e.Owner)
		if len(w.owners) == 0 {
			gone = append(gone, e)
			delete(f.Want, e.ID())
		}
	}
	return gone
}

// Remove takes elements out of their sets.
func (f *Firewall) Remove(elements []Element) error {
	if len(elements) == 0 {
		return nil
	}
	return f.RunLater(Turn{Act: "remove " + elements[0].String(), Do: func() error { return f.removeNow(elements) }})
}

// removeNow is remove for whose turn it is.
func (f *Firewall) removeNow(elements []Element) error {
	gone := f.strike(elements)
	if !f.Loaded {
		f.disclaim(elements)
		return nil
	}
	if len(gone) == 0 {
		return nil
	}
	err := f.Change(gone, f.Tx.SetDeleteElements)
	if err == nil {
		err = f.outcome(f.Flush("remove " + gone[0].String()))
	}
	if err != nil { // they are still there, for the next try
		f.Mu.Lock()
		defer f.Mu.Unlock()
		for _, e := range gone {
			f.Want[e.ID()] = &Wish{Element: e, owners: map[string]bool{e.Owner: true}}
		}
	}
	return err
}

// disclaim notes elements that were removed before the ruleset was loaded: what is in the kernel of them is not to be
// adopted.
func (f *Firewall) disclaim(elements []Element) {
	f.Mu.Lock()
	defer f.Mu.Unlock()
	if f.disclaimed == nil {
		f.disclaimed = map[ElementID]bool{}
	}
	for _, e := range elements {
		f.disclaimed[e.ID()] = true
	}
}

// Wanted are the elements that somebody wants.
func (f *Firewall) Wanted() (all []Element) {
	for _, w := range f.Want {
		all = append(all, w.Element)
	}
	return all
}

// Change queues an operation on elements, set by set.
func (f *Firewall) Change(elements []Element, op func(*nftables.Set, []nftables.SetElement) error) error {
	bySet := map[rule.SetName][]nftables.SetElement{}
	for _, e := range elements {
		one := nftables.SetElement{Key: []byte(e.Key), Val: []byte(e.Val)}
		if f.Sets[e.Set].Concatenation {
			one.KeyEnd = []byte(e.End)
		}
		bySet[e.Set] = append(bySet[e.Set], one)
		if e.End != "" && one.KeyEnd == nil {
			bySet[e.Set] = append(bySet[e.Set], nftables.SetElement{Key: []byte(e.End), IntervalEnd: true})
		}
	}
	for _, set := range slices.Sorted(maps.Keys(bySet)) {
		for some := range slices.Chunk(bySet[set], chunk) {
			if err := op(f.Sets[set], some); err != nil {
				return fmt.Errorf("encode elements of set %s: %w", set, err)
			}
		}
	}
	return nil
}

// chunk is how many elements one message carries. They are one attribute, which has 16 bits for its length; even, since
// the two that make an interval must not be torn apart.
const chunk = 256

// PolicyOwner is who wants the elements of policy.
const PolicyOwner = "policy"

// Replace exchanges the elements of policy.
func (f *Firewall) Replace(ctx context.Context, wanted map[ElementID]Element, settled []netip.Addr) error {
	var c policyChange
	t := Turn{
		Act: "enforce policy",
		Do: func() error {
			c = f.differ(wanted, settled)
			return f.swap(c)
		},
		Undo: func() error { return f.swap(c.back()) },
	}
	if _, bounded := ctx.Deadline(); !bounded { // something is taken back
		return f.RunLater(t)
	}
	return f.Run(ctx, t)
}

// A policyChange is what becomes of the elements of policy. Each wish is as it was, or is to be, whosever it is: what
// was adopted is adopted again when a change is taken back.
type policyChange struct {
	gone, fresh []*Wish
	// taken are what was adopted and is policy's own wish from now on; freed the other way round.
	taken, freed []*Wish
}

// Back is the change that takes it back.
func (c policyChange) back() policyChange {
	return policyChange{gone: c.fresh, fresh: c.gone, taken: c.freed, freed: c.taken}
}

// differ says which elements policy is to have that it has not, and the other way round.
func (f *Firewall) differ(wanted map[ElementID]Element, settled []netip.Addr) (c policyChange) {
	f.Mu.Lock()
	defer f.Mu.Unlock()
	f.noteSettled(settled)
	decided := map[ruling]bool{}
	for _, e := range wanted {
		if r, ok := rulingOf(e); ok && f.adopted {
			decided[r] = true
		}
	}
	for id, w := range f.Want {
		ours := w.owners[PolicyOwner] || len(w.owners) == 0 && f.superseded(w.Element, decided)
		if e, keep := wanted[id]; ours && (!keep || e.Content != w.Content) {
			c.gone = append(c.gone, w)
		}
	}
	for id, e := range wanted {
		switch w := f.Want[id]; {
		case w == nil || w.Content != e.Content:
			c.fresh = append(c.fresh, &Wish{Element: e, owners: map[string]bool{PolicyOwner: true}})
		case !w.owners[PolicyOwner]:
			c.taken = append(c.taken, w)
		}
	}
	return c
}

// swap makes policy want other elements.
func (f *Firewall) swap(c policyChange) error {
	f.wish(c)
	if len(c.fresh)+len(c.gone) == 0 || !f.Loaded {
		return nil
	}
	err := f.exchange(elementsIn(c.gone), elementsIn(c.fresh))
	if err != nil {
		f.wish(c.back())
	}
	return err
}

func elementsIn(wishes []*Wish) (all []Element) {
	for _, w := range wishes {
		all = append(all, w.Element)
	}
	return all
}

// exchange takes elements out of the kernel and puts others in.
func (f *Firewall) exchange(gone, fresh []Element) error {
	// Taking an element out of a set of concatenated intervals costs the kernel more the more there are (pipapo_drop,
	// net/netfilter/nft_set_pipapo.c): 1000 of them seconds. Loading the table anew takes out none.
	const few = 64
	if len(gone) > few {
		return f.Load()
	}
	err := f.Change(gone, f.Tx.SetDeleteElements)
	if err == nil {
		err = f.Change(fresh, f.Tx.SetAddElements)
	}
	if err == nil {
		err = f.outcome(f.Flush("enforce policy"))
	}
	return err
}

// wish changes what policy wants.
func (f *Firewall) wish(c policyChange) {
	f.Mu.Lock()
	defer f.Mu.Unlock()
	for _, w := range c.gone {
		delete(f.Want, w.ID())
	}
	for _, w := range c.fresh {
		f.Want[w.ID()] = w
	}
	for _, w := range c.taken {
		w.owners[PolicyOwner] = true
	}
	for _, w := range c.freed {
		delete(w.owners, PolicyOwner)
	}
}

// probeConntrack asks the kernel, by a table that nobody ever sees, whether it can follow connections in the bridge
// family (nf_conntrack_bridge, Linux 5.3; a module that the question loads).
func (f *Firewall) probeConntrack() (can bool, err error) {
	err = f.Sure(func() error {
		t := f.Tx.AddTable(&nftables.Table{Family: nftables.TableFamilyBridge, Name: fmt.Sprintf("%s-probe", rule.TableName)})
		c := f.Tx.AddChain(&nftables.Chain{Table: t, Name: "probe"})
		f.Tx.AddRule(&nftables.Rule{Table: t, Chain: c, Exprs: rule.Established()})
		f.Tx.DelTable(t)
		return f.Flush("ask for connection tracking on bridges")
	})
	if errors.Is(err, errUnsure) {
		return false, err
	}
	return err == nil, nil
}

// Supersede puts an element into its set, in place of one of the same key.
func (f *Firewall) Supersede(e Element) error {
	ctx, cancel := context.WithTimeout(context.Background(), core.NetlinkTimeout)
	defer cancel()
	f.Mu.Lock()
	var old []Element
	if w := f.Want[e.ID()]; w != nil && w.Content != e.Content {
		old = []Element{w.For("")} // one that was found there is nobody's
		for owner := range w.owners {
			old = append(old, w.For(owner))
		}
	}
	f.Mu.Unlock()
	if err := f.Remove(old); err != nil {
		return err
	}
	return f.Add(ctx, []Element{e})
}

// closeEarly loads the ruleset when the first overlay network comes before the rest of what is wanted is known, and
// there are no tables of a daemon before this one: the host has just started, and nothing is to be disturbed. The other
// hosts take it for a member already.
func (f *Firewall) closeEarly(elements []Element) error {
	if !slices.ContainsFunc(elements, func(e Element) bool { return f.spec(e.Set).Early }) {
		return nil
	}
	for _, t := range rule.Tables() {
		if there, err := f.Has(t); err != nil || there {
			return err
		}
	}
	return f.Load()
}
