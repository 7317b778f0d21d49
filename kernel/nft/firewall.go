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
	"netyard/kernel/exchange"
	"netyard/kernel/rule"
)

// An Element is one element of a set of the ruleset.
type Element struct {
	Set rule.SetName
	// Owner wants the element. When the last owner no longer does, the element is removed.
	Owner string
	// Text is the key as nft prints it.
	Text string
	// Key is the key as the kernel encodes it.
	Key string
	Content
}

// A Content is all of an element but its key.
type Content struct {
	// End is the end of an interval: the first address after it, or in a set of several fields the last value of each
	// field. It is empty for all other elements.
	End string
	// Val is the value of a map's element.
	Val string
}

// InterfaceIn returns the element for a link, or a pair of links, in a set.
func InterfaceIn(set rule.SetName, names ...string) Element {
	var key strings.Builder
	for _, n := range names {
		key.WriteString(rule.IfName(n))
	}
	return Element{Set: set, Text: strings.Join(names, " . "), Key: key.String()}
}

// SubnetIn returns the element for the addresses of a subnet in a set of intervals.
func SubnetIn(set rule.SetName, p netip.Prefix) Element {
	p = p.Masked()
	return Element{
		Set: set, Text: p.String(), Key: string(p.Addr().AsSlice()), Content: Content{End: string(rule.Behind(p))},
	}
}

// An ElementID identifies an element. The elements of a set do not overlap, so the beginning of an interval is enough.
type ElementID struct {
	Set rule.SetName
	Key string
}

// ID returns the ID of the element.
func (e Element) ID() ElementID { return ElementID{e.Set, e.Key} }

// For returns the element with an owner.
func (e Element) For(owner string) Element {
	e.Owner = owner
	return e
}

// String returns the element as messages name it, and its set.
func (e Element) String() string { return fmt.Sprintf("element { %s } of set %s", e.Text, e.Set) }

func (e Element) Ensure(k *core.Handle) error { return Of(k).Add(context.Background(), []Element{e}) }

func (e Element) Remove(k *core.Handle) error { return Of(k).Remove([]Element{e}) }

func (e Element) Check(s *core.View) []string {
	have, ok := Elements(s)[e.Set][e.Key]
	switch {
	case NoTable(s):
		return nil // a missing table is reported once, not for each element
	case !ok:
		return []string{e.String() + " is missing"}
	case have != e.Content:
		return []string{e.String() + " has the wrong interval or value"}
	}
	return nil
}

// A Firewall manages netyard's tables. What the kernel must have is in memory; the kernel is read only to be compared
// with that, and to adopt what an earlier daemon left.
type Firewall struct {
	Handle *core.Handle
	Rules  rule.Ruleset

	log *slog.Logger
	// poke makes the watcher compare soon.
	poke func()
	// turns are for changes of the ruleset. Within a turn the fields below may be read without mu; what others read is
	// changed with mu held.
	turns turns
	// tx is the transaction that the current turn puts together.
	tx *exchange.Transaction
	// inMemory: nothing is sent to the kernel, see applyInMemory. mayDiffer: the kernel may have unwanted elements.
	inMemory, mayDiffer bool
	// out sends transactions. The tables belong to its socket.
	out *exchange.Writer
	// Reader queries the kernel.
	Reader *reader

	mu     sync.Mutex
	Sets   rule.SetBook
	wanted wantedSet
	// removedEarly are the elements that were removed before the ruleset was loaded, see noteRemovedEarly.
	removedEarly map[ElementID]bool

	// adopted: Adopt has run, so there may be elements that the records do not know.
	adopted bool
	// known are the addresses that the records know, see superseded.
	known map[string]bool
	// Loaded: this process has loaded its tables, or taken them over. Until then elements are only collected, so that a
	// restart replaces the old tables in one transaction and no packet sees a state in between.
	Loaded bool
	// Conntrack: this kernel tracks connections between ports of a bridge (nf_conntrack_bridge).
	Conntrack bool
	// Shared: the tables have no owner, and any program can change them.
	Shared bool
}

// Connect returns a firewall for a namespace, without rules. It opens its sockets when it first needs them.
func Connect(log *slog.Logger, ns int) *Firewall {
	return &Firewall{
		log: log, poke: func() {}, Sets: rule.SetBook{}, Reader: &reader{ns: ns}, tx: exchange.NewTransaction(),
		out: exchange.To(ns, log),
	}
}

// Close closes the sockets.
func (f *Firewall) Close() error { return errors.Join(f.Reader.close(), f.out.Drop()) }

// SetLoaded stores whether the kernel has the tables of this process.
func (f *Firewall) SetLoaded(is bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.Loaded = is
}

// Load replaces the tables by new ones with all wanted elements, whatever is there. It must be called within a turn.
func (f *Firewall) Load() error {
	if f.inMemory {
		return nil
	}
	return f.RetryUnknown(func(tx *exchange.Transaction) error {
		ts := rule.Tables()
		for _, t := range ts {
			if err := f.recreate(t); err != nil {
				return err
			}
		}
		f.renumberSets()
		for _, spec := range f.Rules.Sets {
			if err := tx.AddSet(f.Sets[spec.Name], nil); err != nil {
				return fmt.Errorf("declare set %s: %w", spec.Name, err)
			}
		}
		if err := f.Change(f.Wanted(), tx.SetAddElements); err != nil {
			return err
		}
		for i, chains := range f.chains() {
			f.AddChains(ts[i], chains)
		}
		if err := f.Flush("load ruleset"); err != nil {
			return err
		}
		f.SetLoaded(true)
		f.out.Orphaned, f.mayDiffer = false, false
		return nil
	})
}

func (f *Firewall) renumberSets() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.Sets = rule.NewSetBook(f.Rules.Sets)
}

// RetryUnknown repeats an idempotent change until its outcome is known. Each try begins with an empty transaction, and
// Flush sends it. It must be called within a turn.
func (f *Firewall) RetryUnknown(do func(tx *exchange.Transaction) error) (err error) {
	const tries = 3
	for range tries {
		f.tx = exchange.NewTransaction()
		if err = do(f.tx); !errors.Is(err, exchange.ErrUnknown) {
			return err
		}
	}
	return err
}

// reconcile compares the kernel with what is wanted, after a transaction whose outcome is unknown, and loads the tables
// again if they differ. The socket that owned the tables is closed, so it takes ownership first: after that no other
// program can change what is compared.
func (f *Firewall) reconcile() error {
	for _, t := range rule.Tables() {
		own, err := f.takeOwnership(t)
		if errors.Is(err, exchange.ErrUnknown) || err == nil && !own && !f.Shared {
			return f.Load()
		}
		if err != nil {
			return err
		}
	}
	if same, err := f.asWanted(); err != nil || !same {
		return errors.Join(err, f.Load())
	}
	f.out.Orphaned = false
	return nil
}

// asWanted reports whether the kernel has the wanted rules and elements, and no others.
func (f *Firewall) asWanted() (bool, error) {
	faults, err := f.ruleFaults()
	if err != nil || len(faults) > 0 {
		return false, err
	}
	return f.sameElements()
}

// outcome handles a transaction's error. If somebody deleted the table or an element, or the outcome is unknown, it
// makes the kernel match what is wanted, of which the transaction is a part.
func (f *Firewall) outcome(err error) error {
	switch {
	case errors.Is(err, unix.ENOENT):
		err = f.Load()
	case errors.Is(err, exchange.ErrUnknown):
		err = f.reconcile()
	}
	if errors.Is(err, exchange.ErrUnknown) { // the caller reverts memory, and the watcher makes the kernel match
		f.poke()
	}
	return err
}

// AddChains queues chains with their rules.
func (f *Firewall) AddChains(t *nftables.Table, chains []rule.Chain) {
	accept := nftables.ChainPolicyAccept
	var made []*nftables.Chain
	for _, spec := range chains { // all chains before any rule: rules jump from one chain to another
		c := &nftables.Chain{Table: t, Name: spec.Name}
		if spec.Hook != nil {
			c.Type, c.Hooknum, c.Priority, c.Policy = spec.Kind, spec.Hook, spec.Priority, &accept
		}
		made = append(made, f.tx.AddChain(c))
	}
	for i, spec := range chains {
		for _, r := range spec.Rules {
			f.tx.AddRule(&nftables.Rule{Table: t, Chain: made[i], Exprs: r.Exprs, UserData: rule.Comment(r.Comment)})
		}
	}
}

// Flush sends the transaction. It is empty then.
func (f *Firewall) Flush(act string) error {
	if f.inMemory {
		f.tx.Empty()
		return nil
	}
	msgs, err := f.tx.All()
	f.tx.Empty()
	err = errors.Join(err, rule.WithFieldNames(msgs, f.Rules.Sets))
	if err == nil && len(msgs) > 0 {
		err = f.out.Send(act, msgs)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", act, err)
	}
	return nil
}

// Add adds elements to their sets, all or none.
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

// addNow is Add within a turn. It returns the elements that their owners did not have before.
func (f *Firewall) addNow(elements []Element) (mine []Element, err error) {
	mine, fresh, err := f.addOwners(elements)
	if err != nil || len(fresh) == 0 {
		return mine, err
	}
	if f.Loaded {
		err = f.Change(fresh, f.tx.SetAddElements)
		if err == nil {
			err = f.outcome(f.Flush("add " + fresh[0].String()))
		}
	} else {
		err = f.loadEarly(fresh)
	}
	if err != nil {
		f.removeOwners(mine)
		return nil, err
	}
	return mine, nil
}

// addOwners records that elements are wanted. It returns as mine those that their owners did not want before, as fresh
// those that nobody did.
func (f *Firewall) addOwners(elements []Element) (mine, fresh []Element, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range elements {
		if w := f.wanted.by[e.ID()]; w != nil && w.Content != e.Content && len(w.owners) > 0 {
			return nil, nil, fmt.Errorf("add %s: %s has the same key and another interval or value", e, w.Element)
		}
	}
	for _, e := range elements {
		w := f.wanted.by[e.ID()]
		if w != nil && w.Content != e.Content { // an adopted one, of nobody on record
			if err := f.Change([]Element{w.Element}, f.tx.SetDeleteElements); err != nil {
				return nil, nil, err
			}
			w = nil
		}
		if w == nil {
			w = &wantedElement{Element: e, owners: map[string]bool{}}
			f.wanted.put(w)
			fresh = append(fresh, e)
		}
		if f.wanted.own(w, e.Owner) {
			mine = append(mine, e)
		}
	}
	return mine, fresh, nil
}

// removeOwners records that the owners of elements no longer want them. It returns those that nobody wants any more.
func (f *Firewall) removeOwners(elements []Element) (gone []Element) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range elements {
		w := f.wanted.by[e.ID()]
		if w == nil {
			continue
		}
		f.wanted.disown(w, e.Owner)
		if len(w.owners) == 0 {
			gone = append(gone, e)
			f.wanted.drop(e.ID())
		}
	}
	return gone
}

// Remove removes elements that no other owner wants from their sets.
func (f *Firewall) Remove(elements []Element) error {
	if len(elements) == 0 {
		return nil
	}
	return f.RunLater(Turn{Act: "remove " + elements[0].String(), Do: func() error { return f.removeNow(elements) }})
}

// removeNow is Remove within a turn.
func (f *Firewall) removeNow(elements []Element) error {
	gone := f.removeOwners(elements)
	if !f.Loaded {
		f.noteRemovedEarly(elements)
		return nil
	}
	if len(gone) == 0 {
		return nil
	}
	err := f.Change(gone, f.tx.SetDeleteElements)
	if err == nil {
		err = f.outcome(f.Flush("remove " + gone[0].String()))
	}
	if err != nil { // the kernel still has them, and the caller tries again
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, e := range gone {
			f.wanted.put(&wantedElement{Element: e, owners: map[string]bool{e.Owner: true}})
		}
	}
	return err
}

// noteRemovedEarly records elements that were removed before the ruleset was loaded, so that Adopt does not adopt them.
func (f *Firewall) noteRemovedEarly(elements []Element) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.removedEarly == nil {
		f.removedEarly = map[ElementID]bool{}
	}
	for _, e := range elements {
		f.removedEarly[e.ID()] = true
	}
}

// Wanted returns the wanted elements.
func (f *Firewall) Wanted() (all []Element) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, w := range f.wanted.by {
		all = append(all, w.Element)
	}
	return all
}

// WantedAt returns the wanted element of a set and key.
func (f *Firewall) WantedAt(id ElementID) (e Element, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if w := f.wanted.by[id]; w != nil {
		return w.Element, true
	}
	return e, false
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

// chunk is how many elements one message carries. They form one attribute, which has 16 bits for its length. The number
// is even, since the two elements of an interval must be in one message.
const chunk = 256

// PolicyOwner is the owner of policy elements.
const PolicyOwner = "policy"

// Replace replaces the policy elements by wanted. known are the addresses that the records know, see superseded.
func (f *Firewall) Replace(ctx context.Context, wanted map[ElementID]Element, known []netip.Addr) error {
	var c policyChange
	t := Turn{
		Act: "enforce policy",
		Do: func() error {
			c = f.diffPolicy(wanted, known)
			return f.applyPolicy(c)
		},
		Undo: func() error { return f.applyPolicy(c.inverse()) },
	}
	if _, bounded := ctx.Deadline(); !bounded { // the caller undoes something
		return f.RunLater(t)
	}
	return f.Run(ctx, t)
}

// A policyChange is a change of the policy elements. It has each element with its owners before or after the change, so
// that undoing the change restores an adopted element as adopted.
type policyChange struct {
	// gone are removed, fresh are added.
	gone, fresh []*wantedElement
	// acquired stay, and are owned by policy from now on; released stay, and no longer are.
	acquired, released []*wantedElement
}

// inverse returns the change that undoes c.
func (c policyChange) inverse() policyChange {
	return policyChange{gone: c.fresh, fresh: c.gone, acquired: c.released, released: c.acquired}
}

// diffPolicy returns the change from the present policy elements to the wanted ones.
func (f *Firewall) diffPolicy(wanted map[ElementID]Element, known []netip.Addr) (c policyChange) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.setKnown(known)
	decided := map[policyKey]bool{}
	for _, e := range wanted {
		if r, ok := policyKeyOf(e); ok && f.adopted {
			decided[r] = true
		}
	}
	for id, w := range f.wanted.policy {
		if e, keep := wanted[id]; !keep || e.Content != w.Content {
			c.gone = append(c.gone, w)
		}
	}
	for id, w := range f.wanted.adopted {
		if e, keep := wanted[id]; f.superseded(w.Element, decided) && (!keep || e.Content != w.Content) {
			c.gone = append(c.gone, w)
		}
	}
	for id, e := range wanted {
		switch w := f.wanted.by[id]; {
		case w == nil || w.Content != e.Content:
			c.fresh = append(c.fresh, &wantedElement{Element: e, owners: map[string]bool{PolicyOwner: true}})
		case !w.owners[PolicyOwner]:
			c.acquired = append(c.acquired, w)
		}
	}
	return c
}

// applyPolicy makes a change of the policy elements, in memory and in the kernel.
func (f *Firewall) applyPolicy(c policyChange) error {
	f.recordPolicy(c)
	if len(c.fresh)+len(c.gone) == 0 || !f.Loaded {
		return nil
	}
	err := f.replaceElements(elementsIn(c.gone), elementsIn(c.fresh))
	if err != nil {
		f.recordPolicy(c.inverse())
	}
	return err
}

func elementsIn(wanted []*wantedElement) (all []Element) {
	for _, w := range wanted {
		all = append(all, w.Element)
	}
	return all
}

// replaceElements deletes elements from the kernel and adds others, in one transaction.
func (f *Firewall) replaceElements(gone, fresh []Element) error {
	// To delete an element from a set of concatenated intervals takes the kernel the longer the more there are
	// (pipapo_drop, net/netfilter/nft_set_pipapo.c): seconds to delete 1000. Loading the tables again deletes none.
	const few = 64
	if len(gone) > few {
		return f.Load()
	}
	err := f.Change(gone, f.tx.SetDeleteElements)
	if err == nil {
		err = f.Change(fresh, f.tx.SetAddElements)
	}
	if err == nil {
		err = f.outcome(f.Flush("enforce policy"))
	}
	return err
}

// recordPolicy makes a change of the policy elements in memory.
func (f *Firewall) recordPolicy(c policyChange) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, w := range c.gone {
		f.wanted.drop(w.ID())
	}
	for _, w := range c.fresh {
		f.wanted.put(w)
	}
	for _, w := range c.acquired {
		f.wanted.own(w, PolicyOwner)
	}
	for _, w := range c.released {
		f.wanted.disown(w, PolicyOwner)
	}
}

// probeConntrack reports whether the kernel can track connections in the bridge family (nf_conntrack_bridge, Linux
// 5.3). It adds a rule that needs it, and deletes the table in the same transaction. That loads the module if
// necessary.
func (f *Firewall) probeConntrack() (can bool, err error) {
	err = f.RetryUnknown(func(tx *exchange.Transaction) error {
		t := tx.AddTable(&nftables.Table{Family: nftables.TableFamilyBridge, Name: rule.TableName + "-probe"})
		c := tx.AddChain(&nftables.Chain{Table: t, Name: "probe"})
		tx.AddRule(&nftables.Rule{Table: t, Chain: c, Exprs: rule.Established()})
		tx.DelTable(t)
		return f.Flush("probe connection tracking on bridges")
	})
	if errors.Is(err, exchange.ErrUnknown) {
		return false, err
	}
	return err == nil, nil
}

// ReplaceElement adds an element to its set, and removes one of the same key with another interval or value.
func (f *Firewall) ReplaceElement(e Element) error {
	ctx, cancel := context.WithTimeout(context.Background(), core.NetlinkTimeout)
	defer cancel()
	f.mu.Lock()
	var old []Element
	if w := f.wanted.by[e.ID()]; w != nil && w.Content != e.Content {
		old = []Element{w.For("")} // an adopted element has no owner
		for owner := range w.owners {
			old = append(old, w.For(owner))
		}
	}
	f.mu.Unlock()
	if err := f.Remove(old); err != nil {
		return err
	}
	return f.Add(ctx, []Element{e})
}

// loadEarly loads the ruleset as soon as an element of an Early set is wanted, which is when the first overlay network
// is made, before the rest of what is wanted is known. The other hosts may already treat this one as a member, so the
// network must be protected. It does so only if there are no tables of an earlier daemon: then the host has just
// started, and there are no flows to disturb.
func (f *Firewall) loadEarly(elements []Element) error {
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
