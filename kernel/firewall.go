package kernel

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
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
	// end is that of an interval: behind the last address, or in a set of several fields the last of each. Empty for all others.
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

func (e Element) ensure(k *Kernel) error { return k.fw.add([]Element{e}) }
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

// behind is the first address after a prefix's last one; all zeros when there is none, which the kernel takes for the end.
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

// A firewall keeps the table. It is write-only: what ought to be there is in memory, and the kernel is never asked but to
// be compared with it.
type firewall struct {
	mu   sync.Mutex
	conn *nftables.Conn
	sock *netlink.Conn // the socket below conn
	sets setBook
	want map[elementID]*wish
	// disclaimed are elements that were removed before the ruleset was loaded.
	disclaimed map[elementID]bool
	bypass     map[Bypass]bool
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

func openFirewall(ns netns.NsHandle) (*firewall, error) {
	f := &firewall{want: map[elementID]*wish{}, bypass: ownBypasses()}
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithNetNSFd(int(ns)), nftables.WithSockOptions(func(c *netlink.Conn) error {
		f.sock = c
		return errors.Join(c.SetReadBuffer(netfilterBuffer), c.SetWriteBuffer(netfilterBuffer))
	}))
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	f.conn = conn
	f.conntrack = f.probeConntrack()
	return f, nil
}

func (f *firewall) close() error { return f.conn.CloseLasting() }

// port is what the kernel knows the socket by, and what its notifications say whose doing they tell of by (netlink(7), nl_pid).
func (f *firewall) port() (port uint32, err error) {
	raw, err := f.sock.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("look at the socket for nftables: %w", err)
	}
	var name unix.Sockaddr
	var nameErr error
	if err := raw.Control(func(fd uintptr) { name, nameErr = unix.Getsockname(int(fd)) }); err != nil {
		return 0, fmt.Errorf("look at the socket for nftables: %w", err)
	}
	own, ok := name.(*unix.SockaddrNetlink)
	if !ok {
		return 0, fmt.Errorf("look at the socket for nftables: %w", nameErr)
	}
	return own.Pid, nil
}

// LoadFirewall puts the ruleset and every element wanted so far into the kernel, in one transaction.
func (k *Kernel) LoadFirewall() error {
	if err := k.syncBridges(); err != nil {
		return err
	}
	if err := k.ensureLoopRoutes(); err != nil {
		return err
	}
	k.fw.mu.Lock()
	k.fw.recallGuards()
	same, err := k.fw.takeOver()
	if !same && err == nil {
		err = k.fw.load()
	}
	k.fw.mu.Unlock()
	return errors.Join(err, k.syncDockerUser())
}

// AdoptFirewall is LoadFirewall for when the records are lost: what is in the kernel's table counts as wanted.
func (k *Kernel) AdoptFirewall() error {
	k.fw.mu.Lock()
	have, _ := k.fw.dumpElements()
	for set, keys := range have {
		for key, c := range keys {
			e := Element{Set: set, text: showKey(set, key, c.end), key: key, content: c}
			if k.fw.want[e.id()] == nil && !k.fw.disclaimed[e.id()] {
				k.fw.want[e.id()] = &wish{Element: e, owners: map[string]bool{}}
			}
		}
	}
	k.fw.mu.Unlock()
	return k.LoadFirewall()
}

// UnloadFirewall takes the tables, and the routes that go with them, out of the kernel.
func (k *Kernel) UnloadFirewall() error {
	if err := k.removeLoopRoutes(); err != nil {
		return err
	}
	k.fw.mu.Lock()
	defer k.fw.mu.Unlock()
	k.fw.loaded = false
	for _, t := range tables() {
		there, err := k.fw.has(t)
		if err != nil {
			return err
		}
		if there {
			k.fw.conn.DelTable(t)
		}
	}
	return k.fw.flush("unload ruleset")
}

func tables() []*nftables.Table {
	return []*nftables.Table{
		{Family: nftables.TableFamilyINet, Name: tableName},
		{Family: nftables.TableFamilyBridge, Name: tableName},
	}
}

// load replaces the tables by new ones, whatever they were.
func (f *firewall) load() error {
	ts := tables()
	for _, t := range ts {
		if err := f.renew(t); err != nil {
			return err
		}
	}
	f.sets = newSetBook()
	for _, spec := range allSets() {
		if err := f.conn.AddSet(f.sets[spec.name], nil); err != nil {
			return fmt.Errorf("declare set %s: %w", spec.name, err)
		}
	}
	if err := f.change(f.wanted(), f.conn.SetAddElements); err != nil {
		return err
	}
	for i, chains := range f.chains() {
		f.addChains(ts[i], chains)
	}
	if err := f.flush("load ruleset"); err != nil {
		return err
	}
	f.loaded, f.disclaimed = true, nil
	return nil
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
		made = append(made, f.conn.AddChain(c))
	}
	for i, spec := range chains {
		for _, r := range spec.rules {
			f.conn.AddRule(&nftables.Rule{Table: t, Chain: made[i], Exprs: r.exprs, UserData: comment(r.comment)})
		}
	}
}

func (f *firewall) flush(act string) error {
	f.bound()
	if err := f.conn.Flush(); err != nil {
		return fmt.Errorf("%s: %w", act, err)
	}
	return nil
}

// bound gives the exchanges that follow a time to end: the kernel answers at once, or something is wrong.
func (f *firewall) bound() {
	_ = f.sock.SetDeadline(time.Now().Add(netlinkTimeout)) // only a closed socket refuses, and says so itself
}

// add puts elements into their sets, all or none.
func (f *firewall) add(elements []Element) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range elements {
		if w := f.want[e.id()]; w != nil && w.content != e.content {
			return fmt.Errorf("add %s: there is one of that key, %s", e, w.Element)
		}
	}
	var fresh []Element
	for _, e := range elements {
		w := f.want[e.id()]
		if w == nil {
			w = &wish{Element: e, owners: map[string]bool{}}
			f.want[e.id()] = w
			fresh = append(fresh, e)
		}
		w.owners[e.Owner] = true
	}
	if len(fresh) == 0 {
		return nil
	}
	if !f.loaded {
		return f.closeEarly(fresh)
	}
	err := f.change(fresh, f.conn.SetAddElements)
	if err == nil {
		err = f.flush("add " + fresh[0].String())
	}
	if errors.Is(err, unix.ENOENT) { // somebody took the table away
		err = f.load()
	}
	if err != nil {
		for _, e := range fresh {
			delete(f.want, e.id())
		}
	}
	return err
}

// remove takes elements out of their sets.
func (f *firewall) remove(elements []Element) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var gone []Element
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
	if !f.loaded {
		f.disclaim(elements)
		return nil
	}
	if len(gone) == 0 {
		return nil
	}
	err := f.change(gone, f.conn.SetDeleteElements)
	if err == nil {
		err = f.flush("remove " + gone[0].String())
	}
	if errors.Is(err, unix.ENOENT) {
		err = f.load()
	}
	if err != nil { // they are still there, for the next try
		for _, e := range gone {
			f.want[e.id()] = &wish{Element: e, owners: map[string]bool{e.Owner: true}}
		}
	}
	return err
}

// disclaim notes elements that were removed before the ruleset was loaded: what is in the kernel of them is not to be adopted.
func (f *firewall) disclaim(elements []Element) {
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

// chunk is how many elements one message carries. They are one attribute, which has 16 bits for its length; even, since the two
// that make an interval must not be torn apart.
const chunk = 256
