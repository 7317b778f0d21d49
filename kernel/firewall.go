package kernel

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
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// netfilterBuffer holds a batch that loads the ruleset with ten thousands of elements.
const netfilterBuffer = 8 << 20

// An Element is one element of a set of the ruleset.
type Element struct {
	Set SetName
	// Owner is who wants the element; it goes with the last that does.
	Owner string
	text  string
	// key is as the kernel has it.
	key string
	content
}

// A content is what there is to an element beside its key.
type content struct {
	// end is that of an interval: behind the last address, or in a set of several fields the last of each. Empty for
	// all others.
	end string
	// val is what the element of a map maps to.
	val string
}

func newElement(set SetName, key, end string) Element {
	return Element{Set: set, text: showKey(set, key, end), key: key, content: content{end: end}}
}

// InterfaceIn is the element that puts an interface, or a pair of them, into a set.
func InterfaceIn(set SetName, names ...string) Element {
	var key strings.Builder
	for _, n := range names {
		key.WriteString(ifName(n))
	}
	return Element{Set: set, text: strings.Join(names, " . "), key: key.String()}
}

// SubnetIn is the element that puts the addresses of a subnet into a set.
func SubnetIn(set SetName, p netip.Prefix) Element {
	first := p.Masked().Addr()
	return Element{Set: set, text: p.Masked().String(), key: string(first.AsSlice()), content: content{end: string(behind(p))}}
}

// An elementID tells one element from another: those of a set do not overlap, so where one begins is enough.
type elementID struct {
	set SetName
	key string
}

func (e Element) id() elementID { return elementID{e.Set, e.key} }

// For is the element as that owner's wish.
func (e Element) For(owner string) Element {
	e.Owner = owner
	return e
}

// A wish is an element that ought to be there, and for whom. One that was found there has nobody.
type wish struct {
	Element
	owners map[string]bool
}

// String names the element and its set.
func (e Element) String() string { return fmt.Sprintf("element { %s } of set %s", e.text, e.Set) }

func (e Element) ensure(k *Kernel) error { return k.fw.add(context.Background(), []Element{e}) }
func (e Element) remove(k *Kernel) error { return k.fw.remove([]Element{e}) }

func (e Element) check(s *snapshot) []string {
	have, ok := s.elements[e.Set][e.key]
	switch {
	case s.noTable:
		return nil // that the table is missing is said once
	case !ok:
		return []string{e.String() + " is missing"}
	case have != e.content:
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

func ifName(n string) string { return n + strings.Repeat("\x00", unix.IFNAMSIZ-len(n)) }

// A firewall keeps the table. It is write-only: what ought to be there is in memory, and the kernel is never asked but
// to be compared with it.
type firewall struct {
	log *slog.Logger
	// poke has the watcher compare soon.
	poke func()
	// turns are for changes of the ruleset: who has it may read what is below, and changes it with mu held.
	turns turns
	// tx is the transaction that is being put together, of whose turn it is.
	tx *transaction
	// inMemory: what is sent now is not, see insist. doubt: the kernel may have more than is wanted.
	inMemory, doubt bool
	// out is where transactions go; the tables belong to its socket.
	out *talker
	// in is where the kernel is asked.
	in *reader

	mu   sync.Mutex
	sets setBook
	want map[elementID]*wish
	// disclaimed are elements that were removed before the ruleset was loaded.
	disclaimed map[elementID]bool
	bypass     map[Bypass]bool
	// adopted: there were elements that the records did not know, and may still be.
	adopted bool
	// settled are the addresses that the records know all about, see superseded.
	settled map[string]bool
	// loaded: the table of this process is in the kernel. Until then elements are only collected, so that a restart
	// replaces the old table by the new in one transaction and no packet sees anything in between.
	loaded bool
	// conntrack: this kernel follows connections between ports of a bridge (nf_conntrack_bridge).
	conntrack bool
	// shared: the tables are anybody's to change.
	shared bool
	// obeys: the host's firewall decides about published ports.
	obeys bool
	// guard: this host forwards only because netyard told it to, so netyard sees to it that it does so for nobody else.
	guard guards
}

// guards are the families netyard turned forwarding on for.
type guards struct{ v4, v6 bool }

func openFirewall(log *slog.Logger, ns netns.NsHandle) (*firewall, error) {
	f := connectFirewall(log, int(ns))
	f.want, f.bypass = map[elementID]*wish{}, ownBypasses()
	if err := f.out.open(); err != nil {
		return nil, err
	}
	err := f.runNow(func() (err error) {
		f.conntrack, err = f.probeConntrack()
		return err
	})
	if err != nil {
		return nil, errors.Join(err, f.close())
	}
	return f, nil
}

// connectFirewall is of a namespace, and opens its sockets when it first needs them.
func connectFirewall(log *slog.Logger, ns int) *firewall {
	return &firewall{
		log: log, poke: func() {}, sets: setBook{}, in: &reader{ns: ns}, tx: newTransaction(),
		out: &talker{log: log, dial: func() (peer, error) { return dialNetfilter(ns) }},
	}
}

func (f *firewall) close() error { return errors.Join(f.in.close(), f.out.drop()) }

// LoadFirewall puts the ruleset and every element wanted so far into the kernel, in one transaction. Nobody waits for
// it: it takes the time it takes.
func (k *Kernel) LoadFirewall() error {
	if err := k.syncBridges(); err != nil {
		return err
	}
	if err := k.ensureLoopRoutes(); err != nil {
		return err
	}
	err := k.fw.runNow(func() error {
		if err := k.fw.recallGuards(); err != nil {
			return err
		}
		same, err := k.fw.takeOver()
		if !same && err == nil {
			err = k.fw.load()
		}
		return err
	})
	return errors.Join(err, k.fw.runNow(k.fw.syncDockerUserNow))
}

// UnloadFirewall takes the tables, and the routes that go with them, out of the kernel.
func (k *Kernel) UnloadFirewall() error {
	if err := k.removeLoopRoutes(); err != nil {
		return err
	}
	return k.fw.runNow(func() error {
		k.fw.setLoaded(false)
		return k.fw.sure(func() error {
			for _, t := range tables() {
				there, err := k.fw.has(t)
				if err != nil {
					return err
				}
				if there {
					k.fw.tx.DelTable(t)
				}
			}
			return k.fw.flush("unload ruleset")
		})
	})
}

func (f *firewall) setLoaded(is bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.loaded = is
}

func tables() []*nftables.Table {
	return []*nftables.Table{
		{Family: nftables.TableFamilyINet, Name: tableName},
		{Family: nftables.TableFamilyBridge, Name: tableName},
	}
}

// load replaces the tables by new ones, whatever they were.
func (f *firewall) load() error {
	if f.inMemory {
		return nil
	}
	return f.sure(func() error {
		ts := tables()
		for _, t := range ts {
			if err := f.renew(t); err != nil {
				return err
			}
		}
		f.renewSets()
		for _, spec := range allSets() {
			if err := f.tx.AddSet(f.sets[spec.name], nil); err != nil {
				return fmt.Errorf("declare set %s: %w", spec.name, err)
			}
		}
		if err := f.change(f.wanted(), f.tx.SetAddElements); err != nil {
			return err
		}
		for i, chains := range f.chains() {
			f.addChains(ts[i], chains)
		}
		if err := f.flush("load ruleset"); err != nil {
			return err
		}
		f.setLoaded(true)
		f.out.orphaned, f.doubt = false, false
		return nil
	})
}

func (f *firewall) renewSets() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sets = newSetBook()
}

// sure does a change that can be done again, until its outcome is known. What an earlier try left is no part of the
// next one.
func (f *firewall) sure(do func() error) (err error) {
	const tries = 3
	for range tries {
		f.tx = newTransaction()
		if err = do(); !errors.Is(err, errUnsure) {
			return err
		}
	}
	return err
}

// settle finds out what became of a transaction whose answer got lost: the kernel has what is wanted, or is made to.
// The tables belonged to a socket that is closed. They are claimed first: what is compared after that nobody else can
// change.
func (f *firewall) settle() error {
	for _, t := range tables() {
		own, err := f.claim(t)
		if errors.Is(err, errUnsure) || err == nil && !own && !f.shared {
			return f.load()
		}
		if err != nil {
			return err
		}
	}
	if same, err := f.asWanted(); err != nil || !same {
		return errors.Join(err, f.load())
	}
	f.out.orphaned = false
	return nil
}

// asWanted says whether the kernel has the rules and elements that are wanted, and no others.
func (f *firewall) asWanted() (bool, error) {
	faults, err := f.ruleFaults()
	if err != nil || len(faults) > 0 {
		return false, err
	}
	return f.sameElements()
}

// outcome goes on where a transaction did not simply succeed. One whose table, or element, somebody took away, is part
// of all that is wanted, as one is whose answer got lost.
func (f *firewall) outcome(err error) error {
	switch {
	case errors.Is(err, unix.ENOENT):
		err = f.load()
	case errors.Is(err, errUnsure):
		err = f.settle()
	}
	if errors.Is(err, errUnsure) { // memory goes back to what it was, and the watcher makes the kernel follow
		f.poke()
	}
	return err
}

// chains are those of each of the tables.
func (f *firewall) chains() [][]chainSpec {
	all := [][]chainSpec{slices.Concat(inetChains(f.sets, f.guard, f.obeys), policyChains(f.sets), vtepChains(f.sets), tunnelChains(f.sets)), bridgeChains(f.sets, f.conntrack)}
	all[0] = append(all[0], sealOf(all))
	return all
}

func (f *firewall) addChains(t *nftables.Table, chains []chainSpec) {
	accept := nftables.ChainPolicyAccept
	var made []*nftables.Chain
	for _, spec := range chains { // all of them first: rules jump from one to another
		c := &nftables.Chain{Table: t, Name: spec.name}
		if spec.hook != nil {
			c.Type, c.Hooknum, c.Priority, c.Policy = spec.kind, spec.hook, spec.priority, &accept
		}
		made = append(made, f.tx.AddChain(c))
	}
	for i, spec := range chains {
		for _, r := range spec.rules {
			f.tx.AddRule(&nftables.Rule{Table: t, Chain: made[i], Exprs: r.exprs, UserData: comment(r.comment)})
		}
	}
}

// flush sends what was put together.
func (f *firewall) flush(act string) error {
	if f.inMemory {
		f.tx = newTransaction()
		return nil
	}
	msgs, err := f.tx.all()
	f.tx = newTransaction()
	if err == nil && len(msgs) > 0 {
		err = f.out.exchange(act, msgs)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", act, err)
	}
	return nil
}

// add puts elements into their sets, all or none.
func (f *firewall) add(ctx context.Context, elements []Element) error {
	if len(elements) == 0 {
		return nil
	}
	var mine []Element
	return f.run(ctx, turn{
		act: "add " + elements[0].String(),
		do: func() (err error) {
			mine, err = f.addNow(elements)
			return err
		},
		undo: func() error { return f.removeNow(mine) },
	})
}

// addNow is add for whose turn it is. It returns those that their owners did not have before.
func (f *firewall) addNow(elements []Element) (mine []Element, err error) {
	mine, fresh, err := f.enlist(elements)
	if err != nil || len(fresh) == 0 {
		return mine, err
	}
	if f.loaded {
		err = f.change(fresh, f.tx.SetAddElements)
		if err == nil {
			err = f.outcome(f.flush("add " + fresh[0].String()))
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
func (f *firewall) enlist(elements []Element) (mine, fresh []Element, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range elements {
		if w := f.want[e.id()]; w != nil && w.content != e.content {
			return nil, nil, fmt.Errorf("add %s: there is one of that key, %s", e, w.Element)
		}
	}
	for _, e := range elements {
		w := f.want[e.id()]
		if w == nil {
			w = &wish{Element: e, owners: map[string]bool{}}
			f.want[e.id()] = w
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
func (f *firewall) strike(elements []Element) (gone []Element) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range elements {
		w := f.want[e.id()]
		if w == nil {
			continue
		}
		delete(w.owners, e.Owner)
		if len(w.owners) == 0 {
			gone = append(gone, e)
			delete(f.want, e.id())
		}
	}
	return gone
}

// remove takes elements out of their sets.
func (f *firewall) remove(elements []Element) error {
	if len(elements) == 0 {
		return nil
	}
	return f.runLater(turn{act: "remove " + elements[0].String(), do: func() error { return f.removeNow(elements) }})
}

// removeNow is remove for whose turn it is.
func (f *firewall) removeNow(elements []Element) error {
	gone := f.strike(elements)
	if !f.loaded {
		f.disclaim(elements)
		return nil
	}
	if len(gone) == 0 {
		return nil
	}
	err := f.change(gone, f.tx.SetDeleteElements)
	if err == nil {
		err = f.outcome(f.flush("remove " + gone[0].String()))
	}
	if err != nil { // they are still there, for the next try
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, e := range gone {
			f.want[e.id()] = &wish{Element: e, owners: map[string]bool{e.Owner: true}}
		}
	}
	return err
}

// disclaim notes elements that were removed before the ruleset was loaded: what is in the kernel of them is not to be
// adopted.
func (f *firewall) disclaim(elements []Element) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.disclaimed == nil {
		f.disclaimed = map[elementID]bool{}
	}
	for _, e := range elements {
		f.disclaimed[e.id()] = true
	}
}

func (f *firewall) wanted() (all []Element) {
	for _, w := range f.want {
		all = append(all, w.Element)
	}
	return all
}

// change queues an operation on elements, set by set.
func (f *firewall) change(elements []Element, op func(*nftables.Set, []nftables.SetElement) error) error {
	bySet := map[SetName][]nftables.SetElement{}
	for _, e := range elements {
		one := nftables.SetElement{Key: []byte(e.key), Val: []byte(e.val)}
		if f.sets[e.Set].Concatenation {
			one.KeyEnd = []byte(e.end)
		}
		bySet[e.Set] = append(bySet[e.Set], one)
		if e.end != "" && one.KeyEnd == nil {
			bySet[e.Set] = append(bySet[e.Set], nftables.SetElement{Key: []byte(e.end), IntervalEnd: true})
		}
	}
	for _, set := range slices.Sorted(maps.Keys(bySet)) {
		for some := range slices.Chunk(bySet[set], chunk) {
			if err := op(f.sets[set], some); err != nil {
				return fmt.Errorf("encode elements of set %s: %w", set, err)
			}
		}
	}
	return nil
}

// chunk is how many elements one message carries. They are one attribute, which has 16 bits for its length; even, since
// the two that make an interval must not be torn apart.
const chunk = 256
