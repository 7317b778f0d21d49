// Package yardtest has a kernel for tests of yard that need no root: it records the objects that are made, and prints
// them as text. Its objects have the order in which they were made, can be lost, and can be refused.
package yardtest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"netyard/kernel"
	"netyard/kernel/beside"
	"netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/kernel/lan"
	"netyard/kernel/nft"
	"netyard/kernel/overlay"
	"netyard/kernel/policy"
	"netyard/kernel/ports"
	"netyard/kernel/sandbox"
	"netyard/modes"
	"netyard/modes/modetest"
	"netyard/yard/plan"
)

// A Kernel exists only in memory, and is for one goroutine at a time. It outlives the daemon: Reopen makes it forget
// what only the daemon knew.
type Kernel struct {
	modetest.Facts
	// Refuse returns the error with which an object cannot be made, or removed; nil: none is refused.
	Refuse func(text string, removal bool) error
	// Listening are the host's sockets.
	Listening []sandbox.Listener
	// Defaults are the default routes of sandboxes, by path. Engines set them.
	Defaults map[string][]sandbox.DefaultRoute
	// Compared counts the objects that FaultsOf has compared.
	Compared int

	objects   []core.Object
	table     map[nft.ElementID]nft.Element
	sandboxes []*box
	made      int // sandboxes so far
	journal   []string
	daemon
}

// daemon is what the running daemon knows.
type daemon struct {
	shared core.SharedObjects
	wanted map[nft.ElementID]*element
	loaded bool
}

// An element is wanted by its owners. One that was adopted has none.
type element struct {
	nft.Element
	owners map[string]bool
}

var _ plan.Kernel = (*Kernel)(nil)

// New returns a kernel with only what the facts say.
func New(f modetest.Facts) *Kernel {
	k := &Kernel{
		Facts: f, table: map[nft.ElementID]nft.Element{}, Defaults: map[string][]sandbox.DefaultRoute{},
	}
	k.Reopen()
	return k
}

// Reopen makes the kernel forget what the daemon told it to remember, as when the daemon starts.
func (k *Kernel) Reopen() {
	k.daemon = daemon{wanted: map[nft.ElementID]*element{}}
}

// Reboot makes the kernel forget everything.
func (k *Kernel) Reboot() {
	k.objects, k.table, k.sandboxes = nil, map[nft.ElementID]nft.Element{}, nil
	k.Reopen()
}

// Journal returns what was made (+), changed (=) and removed (-) since it was called last.
func (k *Kernel) Journal() (lines []string) {
	lines, k.journal = k.journal, nil
	return lines
}

func (k *Kernel) log(sign string, o core.Object) {
	k.journal = append(k.journal, sign+" "+modetest.Text(o))
}

// Ensure makes all objects, in order, and set elements last.
func (k *Kernel) Ensure(ctx context.Context, objects ...core.Object) error {
	var elements []nft.Element
	for _, o := range objects {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("make %s: %w", o, err)
		}
		if e, ok := o.(nft.Element); ok {
			elements = append(elements, e)
			continue
		}
		if err := k.ensure(o); err != nil {
			return err
		}
	}
	return k.add(elements)
}

func (k *Kernel) ensure(o core.Object) error {
	if n, ok := o.(interface{ None() bool }); ok && n.None() { // it removes what was there
		if at := k.find(o); at >= 0 {
			k.log("-", o)
			k.objects = slices.Delete(k.objects, at, at+1)
		}
		return nil
	}
	if missing, own := k.missing(o); !own {
		if missing != "" {
			return errors.New(missing)
		}
		return nil
	}
	text := modetest.Text(o)
	if k.Refuse != nil {
		if err := k.Refuse(text, false); err != nil {
			return fmt.Errorf("create %s: %w", o, err)
		}
	}
	if s, ok := o.(shared); ok {
		k.shared.AddOwner(s)
	}
	at := k.find(o)
	if at < 0 {
		for _, needed := range []string{field(o, "Master"), field(o, "Link")} {
			if needed != "" && !k.hasLink(needed) {
				return fmt.Errorf("create %s: no such device: %s", o, needed)
			}
		}
		var err error
		if o, err = k.plugged(o); err != nil {
			return err
		}
		k.objects = append(k.objects, o)
		k.log("+", o)
	} else if !same(k.objects[at], o) {
		k.objects[at] = o
		k.log("=", o)
	}
	return nil
}

// plugged makes the inner end of a veth pair in its sandbox, if that is where it is wanted, and returns the pair as it
// looks from the host.
func (k *Kernel) plugged(o core.Object) (core.Object, error) {
	v, ok := o.(bridge.Veth)
	if !ok || v.PeerNS == 0 {
		return o, nil
	}
	b, err := k.open(v.PeerNS)
	if err != nil {
		return nil, err
	}
	if b.has(v.Peer) {
		return nil, fmt.Errorf("create %s: the sandbox has a link %s: %w", v, v.Peer, fs.ErrExist)
	}
	b.links = append(b.links, sandbox.Plug{Link: v.Peer, Name: v.Peer, Alias: v.Alias})
	v.PeerNS = 0
	return v, nil
}

// same reports whether two objects of one name are the same. A veth pair does not show from the host where its inner
// end is.
func same(a, b core.Object) bool {
	v, ok1 := a.(bridge.Veth)
	w, ok2 := b.(bridge.Veth)
	if ok1 && ok2 {
		v.Peer, v.PeerNS, w.Peer, w.PeerNS = "", 0, "", 0
		a, b = v, w
	}
	return modetest.Text(a) == modetest.Text(b)
}

// shared is an object that several networks may want.
type shared interface {
	fmt.Stringer
	WantedBy() string
}

// find returns where an object is; -1: nowhere.
func (k *Kernel) find(o core.Object) int {
	return slices.IndexFunc(k.objects, func(have core.Object) bool { return have.String() == o.String() })
}

// add adds set elements: all or none.
func (k *Kernel) add(elements []nft.Element) error {
	for _, e := range elements {
		if k.Refuse != nil {
			if err := k.Refuse(modetest.Text(e), false); err != nil {
				return fmt.Errorf("add %s: %w", elements[0], err)
			}
		}
		if w := k.wanted[e.ID()]; w != nil && w.Content != e.Content && len(w.owners) > 0 {
			return fmt.Errorf("add %s: %s has the same key and another interval or value", e, w.Element)
		}
	}
	for _, e := range elements {
		w := k.wanted[e.ID()]
		if w != nil && w.Content != e.Content { // an adopted one, of nobody on record
			delete(k.table, e.ID())
			w = nil
		}
		if w == nil {
			w = &element{Element: e, owners: map[string]bool{}}
			k.wanted[e.ID()] = w
		}
		w.owners[e.Owner] = true
		if _, has := k.table[e.ID()]; k.loaded && !has {
			k.table[e.ID()] = e
			k.log("+", e)
		}
	}
	return nil
}

// Remove removes all objects: set elements first, then the others, the last one first.
func (k *Kernel) Remove(objects ...core.Object) error {
	var errs []error
	refused := func(o core.Object) bool {
		if k.Refuse == nil {
			return false
		}
		err := k.Refuse(modetest.Text(o), true)
		if err != nil {
			errs = append(errs, fmt.Errorf("remove %s: %w", o, err))
		}
		return err != nil
	}
	for _, o := range objects {
		if e, ok := o.(nft.Element); ok && !refused(e) {
			k.removeElement(e)
		}
	}
	for _, o := range slices.Backward(objects) {
		if _, ok := o.(nft.Element); ok || refused(o) {
			continue
		}
		if s, ok := o.(shared); ok && k.shared.RemoveOwner(s) {
			continue
		}
		if at := k.find(o); at >= 0 && !stays(o) {
			k.drop(k.objects[at])
		}
	}
	return errors.Join(errs...)
}

// stays reports whether an object is a setting, which nobody takes back. One of a link goes with the link.
func stays(o core.Object) bool {
	switch o.(type) {
	case core.Sysctl, beside.Forwarding, bridge.StaticPort, bridge.NetfilterCall, overlay.Peers, overlay.WireGuardPeers:
		return true
	}
	return false
}

// missing describes what is missing of an object that is the host's, and that netyard only uses. own: it is not the
// host's.
func (k *Kernel) missing(o core.Object) (text string, own bool) {
	there := false
	switch o := o.(type) {
	case lan.Parent:
		there = k.hasLink(o.Name)
	case bridge.HostBridge:
		there = k.hasLink(o.Name)
	case core.HostAddr:
		there, _ = k.HasAddr(o.Addr)
	default:
		return "", true
	}
	if there {
		return "", false
	}
	return fmt.Sprintf("%s is missing", o), false
}

func (k *Kernel) removeElement(e nft.Element) {
	if w := k.wanted[e.ID()]; w != nil {
		delete(w.owners, e.Owner)
		if len(w.owners) > 0 {
			return
		}
		delete(k.wanted, e.ID())
	}
	if have, ok := k.table[e.ID()]; ok && k.loaded {
		delete(k.table, e.ID())
		k.log("-", have)
	}
}

// drop removes an object with all that is on its link, and the link's other end in a sandbox.
func (k *Kernel) drop(o core.Object) {
	names := namesOf(o)
	k.objects = slices.DeleteFunc(k.objects, func(have core.Object) bool {
		gone := have.String() == o.String() || slices.Contains(names, subject(have))
		if gone {
			k.log("-", have)
		}
		return gone
	})
	for i, have := range k.objects { // the ports of a bridge stay
		if v, ok := have.(bridge.Veth); ok && slices.Contains(names, v.Master) {
			v.Master = ""
			k.objects[i] = v
			k.log("=", v)
		}
	}
	if alias := field(o, "Alias"); len(names) > 0 && alias != "" {
		for _, b := range k.sandboxes {
			b.links = slices.DeleteFunc(b.links, func(p sandbox.Plug) bool { return p.Alias == alias })
		}
	}
}

// subject returns the link that an object is, or is on.
func subject(o core.Object) string {
	if name := field(o, "Name"); name != "" {
		return name
	}
	return field(o, "Link")
}

// field returns a string of an object; empty: it has no such field.
func field(o core.Object, name string) string {
	v := reflect.ValueOf(o)
	if v.Kind() != reflect.Struct {
		return ""
	}
	f := v.FieldByName(name)
	if !f.IsValid() || f.Kind() != reflect.String {
		return ""
	}
	return f.String()
}

func namesOf(o core.Object) []string {
	if n, ok := o.(interface{ Names() []string }); ok {
		return n.Names()
	}
	return nil
}

func (k *Kernel) hasLink(name string) bool {
	if _, ok := k.Link[name]; ok {
		return true
	}
	return slices.ContainsFunc(k.objects, func(o core.Object) bool { return slices.Contains(namesOf(o), name) })
}

// AddOwners records who wants the shared objects among these.
func (k *Kernel) AddOwners(objects ...core.Object) {
	for _, o := range objects {
		if s, ok := o.(shared); ok {
			k.shared.AddOwner(s)
		}
	}
}

// Has returns the names and the aliases of the links.
func (k *Kernel) Has() (map[string]bool, error) {
	has := map[string]bool{}
	for name := range k.Link {
		has[name] = true
	}
	for _, o := range k.objects {
		for _, name := range namesOf(o) {
			has[name], has[field(o, "Alias")] = true, true
		}
	}
	return has, nil
}

// Lose removes objects by their text, behind the daemon's back. It returns how many there were.
func (k *Kernel) Lose(which func(text string) bool) (n int) {
	for id, e := range k.table {
		if which(modetest.Text(e)) {
			delete(k.table, id)
			n++
		}
	}
	for _, o := range slices.Clone(k.objects) {
		if which(modetest.Text(o)) && k.find(o) >= 0 {
			k.drop(o)
			n++
		}
	}
	return n
}

// Plant makes an object behind the daemon's back.
func (k *Kernel) Plant(o core.Object) { k.objects = append(k.objects, o) }

// LoadFirewall loads every element wanted so far, in one transaction.
func (k *Kernel) LoadFirewall() error {
	for id, e := range k.table {
		if k.wanted[id] == nil {
			delete(k.table, id)
			k.log("-", e)
		}
	}
	for id, w := range k.wanted {
		if _, has := k.table[id]; !has {
			k.table[id] = w.Element
			k.log("+", w.Element)
		}
	}
	k.loaded = true
	return nil
}

// AdoptFirewall loads the firewall; the elements in the table count as wanted.
func (k *Kernel) AdoptFirewall() error { return k.adopt(func(nft.Element) bool { return true }) }

// AdoptPolicy loads the firewall; the policy elements in the table count as wanted.
func (k *Kernel) AdoptPolicy() error {
	return k.adopt(func(e nft.Element) bool { return policy.IsSet(e.Set) })
}

func (k *Kernel) adopt(which func(nft.Element) bool) error {
	for id, e := range k.table {
		if k.wanted[id] == nil && which(e) {
			k.wanted[id] = &element{Element: e, owners: map[string]bool{}}
		}
	}
	return k.LoadFirewall()
}

// HasPolicy reports whether the table has elements of policy.
func (k *Kernel) HasPolicy() (bool, error) {
	for _, e := range k.table {
		if policy.IsSet(e.Set) {
			return true, nil
		}
	}
	return false, nil
}

// PolicyObjects returns what enforces the policy of the subjects.
func (k *Kernel) PolicyObjects(subjects []policy.Subject) []core.Object {
	return policy.ObjectsWith(true, subjects)
}

// Enforce replaces the elements of policy by those among the objects.
func (k *Kernel) Enforce(ctx context.Context, objects []core.Object, _ ...netip.Addr) error {
	wanted := map[nft.ElementID]bool{}
	for _, o := range objects {
		if e, ok := o.(nft.Element); ok {
			wanted[e.ID()] = true
		}
	}
	for id, w := range k.wanted {
		if w.owners[nft.PolicyOwner] && !wanted[id] {
			k.removeElement(w.For(nft.PolicyOwner))
		}
	}
	return k.Ensure(ctx, objects...)
}

// EndFlows does nothing: there is no traffic.
func (*Kernel) EndFlows([]policy.Subject) error { return nil }

// Published returns the published ports whose elements are wanted.
func (k *Kernel) Published() (all []ports.Publication) {
	for _, w := range k.wanted {
		if p, ok := ports.PublicationOf(w.Element); ok {
			all = append(all, p)
		}
	}
	return all
}

// Opened returns the opened ports whose elements are wanted.
func (k *Kernel) Opened() (all []ports.OpenPort) {
	for _, w := range k.wanted {
		if p, ok := ports.OpenPortOf(w.Element); ok {
			all = append(all, p)
		}
	}
	return all
}

// Snapshot returns the kernel as it is now.
func (k *Kernel) Snapshot() (plan.Snapshot, error) { return snapshot{k, true}, nil }

// LinkSnapshot is Snapshot without the firewall.
func (k *Kernel) LinkSnapshot() (plan.Snapshot, error) { return snapshot{k, false}, nil }

type snapshot struct {
	k        *Kernel
	firewall bool
}

// Faults describes each wanted object that is missing or different.
func (s snapshot) Faults(wanted []core.Object) (faults []kernel.Fault) {
	seen := map[string]bool{}
	for i, o := range wanted {
		text := s.fault(o)
		if text == "" || seen[text] {
			continue
		}
		seen[text] = true
		l, ok := o.(core.Unrepairable)
		ok = ok && s.k.find(o) < 0 // its link is gone, so the view has none
		_, late := o.(core.DeferredObject)
		faults = append(faults, kernel.Fault{Object: i, Text: text, Lost: ok && l.Lost(&core.View{}), Late: late})
	}
	return faults
}

func (s snapshot) fault(o core.Object) string {
	if e, ok := o.(nft.Element); ok {
		if have, ok := s.k.table[e.ID()]; s.firewall && (!ok || have.Content != e.Content) {
			return fmt.Sprintf("%s is missing", e)
		}
		return ""
	}
	if missing, own := s.k.missing(o); !own {
		return missing
	}
	at := s.k.find(o)
	n, absent := o.(interface{ None() bool })
	switch absent = absent && n.None(); {
	case absent && at >= 0:
		return fmt.Sprintf("%s is not wanted", o)
	case absent:
		return ""
	case at < 0:
		return fmt.Sprintf("%s is missing", o)
	case !same(s.k.objects[at], o):
		return fmt.Sprintf("%s is not as wanted: %s", o, modetest.Text(s.k.objects[at]))
	}
	return ""
}

// Strays returns links and elements that belong to none of the known objects.
func (s snapshot) Strays(known []core.Object) (strays []core.Stray) {
	names, elements := map[string]bool{}, map[nft.ElementID]bool{}
	for _, o := range known {
		for _, name := range namesOf(o) {
			names[name] = true
		}
		if e, ok := o.(nft.Element); ok {
			elements[e.ID()] = true
		}
	}
	for _, o := range s.k.objects {
		if all := namesOf(o); len(all) > 0 && !names[all[0]] {
			network, _, _ := core.ParseAlias(field(o, "Alias"))
			strays = append(strays, core.Stray{Text: "link " + all[0], Network: network, Drop: func() error {
				s.k.drop(o)
				return nil
			}})
		}
	}
	for id, e := range s.k.table {
		if s.firewall && !elements[id] {
			strays = append(strays, core.Stray{Text: e.String(), Policy: policy.IsSet(e.Set), Drop: func() error {
				delete(s.k.wanted, id)
				s.k.removeElement(e)
				return nil
			}})
		}
	}
	slices.SortFunc(strays, func(a, b core.Stray) int { return strings.Compare(a.Text, b.Text) })
	return strays
}

// FaultsOf describes each of some objects that is missing or different; what it reads are these objects.
func (k *Kernel) FaultsOf(objects []core.Object) (faults []kernel.Fault, reads int, err error) {
	k.Compared += len(objects)
	return snapshot{k, false}.Faults(objects), len(objects), nil
}

// Changes reports none: a test calls what repairs.
func (*Kernel) Changes(context.Context) (*core.Changes, error) { return core.NewChanges(), nil }

// UsedPrefixes returns the subnets of the host's links.
func (k *Kernel) UsedPrefixes(except string) (all []netip.Prefix, err error) {
	for link, addrs := range k.Addr {
		for _, a := range addrs {
			if link != except {
				all = append(all, a.Masked())
			}
		}
	}
	for _, o := range k.objects {
		if a, ok := o.(core.Addr); ok && a.Link != except {
			all = append(all, a.Prefix.Masked())
		}
	}
	return all, nil
}

// HostAddr returns the host's address in a subnet.
func (k *Kernel) HostAddr(subnet netip.Prefix) (netip.Prefix, bool, error) {
	for _, o := range k.objects {
		if a, ok := o.(core.Addr); ok && subnet.Contains(a.Prefix.Addr()) {
			return a.Prefix, true, nil
		}
	}
	return netip.Prefix{}, false, nil
}

// HasAddr reports whether an address is one of the host's own.
func (k *Kernel) HasAddr(a netip.Addr) (bool, error) {
	if own, _, _ := k.HostAddr(netip.PrefixFrom(a, a.BitLen())); a.IsLoopback() || own.IsValid() {
		return true, nil
	}
	return k.Facts.HasAddr(a)
}

// SourceFor returns no address: the host has no route.
func (*Kernel) SourceFor(netip.Addr) (a netip.Addr, err error) { return a, nil }

// SetLinkMTU does nothing.
func (*Kernel) SetLinkMTU(string, int) error { return nil }

// BusyReason says that nothing is slow.
func (*Kernel) BusyReason() string { return "the host is slow" }

// Hostname knows no process.
func (*Kernel) Hostname(int) (string, error) { return "", errors.New("no such process") }

var _ modes.Facts = (*Kernel)(nil)
