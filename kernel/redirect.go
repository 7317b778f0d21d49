package kernel

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

const (
	// redirectPrefix begins the names of tables in sandboxes, and the beginning of an endpoint's id ends them. It is
	// not the name of the host's table: a container may have a netyard of its own.
	redirectPrefix = tableName + "-"
	redirectID     = 12 // digits
)

// A Redirect makes ports of a sandbox's own addresses lead to others of its ports. What goes by a macvlan or ipvlan
// link, or stays on a bridge, does not pass the rules of the host: so the rules are in the sandbox. They go with it.
//
// A sandbox that is not there yet, as with engines before 28 when they ask for the ports, gets them as soon as somebody
// looks.
type Redirect struct {
	// Endpoint is whose it is: a sandbox may have several.
	Endpoint string
	Sandbox  string
	// NS is the namespace that Sandbox stood for, where that is known: a path can come to stand for another.
	NS NamespaceID
	// Into is an open descriptor of the sandbox while it is being plugged in; 0: there is none.
	Into int
	// Ports have the same address for Host and To.
	Ports []Publication
}

// String names the ports.
func (r Redirect) String() string {
	var ports []string
	for _, p := range r.Ports {
		ports = append(ports, fmt.Sprintf("%s to %d", netip.AddrPortFrom(p.Host, p.Port), p.ToPort)+"/"+p.Proto)
	}
	return fmt.Sprintf("redirect of %s in sandbox %s", strings.Join(ports, ", "), r.Sandbox)
}

func (r Redirect) table() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyINet, Name: redirectPrefix + r.Endpoint[:min(len(r.Endpoint), redirectID)]}
}

// redirectSets are the maps of a table in a sandbox: they are like those of the host's.
func redirectSets() (specs []setSpec) {
	return slices.DeleteFunc(publishSets(), func(s setSpec) bool { return s.name != toOne4 && s.name != toOne6 })
}

// redirectChains send on what comes from elsewhere, and what the sandbox sends to its own address.
func redirectChains(b setBook) []chainSpec {
	rules := []ruleSpec{
		{"published ports of its own", rule(b.daddrPort(toOne4), dnat(unix.NFPROTO_IPV4, true))},
		{"published ports of its own, IPv6", rule(b.daddrPort(toOne6), dnat(unix.NFPROTO_IPV6, true))},
	}
	return []chainSpec{
		{name: "prerouting", kind: nftables.ChainTypeNAT, hook: nftables.ChainHookPrerouting, priority: nftables.ChainPriorityNATDest, rules: rules},
		{name: "output", kind: nftables.ChainTypeNAT, hook: nftables.ChainHookOutput, priority: nftables.ChainPriorityNATDest, rules: rules},
	}
}

func (r Redirect) elements() (all []Element) {
	for _, p := range r.Ports {
		for i := range max(p.Count, 1) {
			one := Publication{Proto: p.Proto, Host: p.Host, Port: p.Port + i, Count: 1, To: p.To, ToPort: p.ToPort + i}
			all = append(all, one.Elements()[0])
		}
	}
	return all
}

// OnHost are the elements that do the same for what comes by the host's rules and not by the sandbox's.
func (r Redirect) OnHost() (all []Element) {
	for _, e := range r.elements() {
		e.Set = map[SetName]SetName{toOne4: own4, toOne6: own6}[e.Set]
		all = append(all, e.For(r.Endpoint))
	}
	return all
}

// A redirector is a firewall of one table in a sandbox.
type redirector struct {
	*firewall
	table *nftables.Table
}

// inside gives f the table of the sandbox; it does nothing when there is no sandbox, or none any more.
func (r Redirect) inside(f func(t redirector) error) error {
	fd := r.Into
	if fd == 0 {
		if now, ok := NamespaceAt(r.Sandbox); !ok || r.NS != (NamespaceID{}) && r.NS != now {
			return nil
		}
		file, err := os.Open(r.Sandbox)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("open sandbox: %w", err)
		}
		defer file.Close() //nolint:errcheck // nothing is written
		fd = int(file.Fd())
	}
	t := redirector{firewall: connectFirewall(slog.New(slog.DiscardHandler), fd), table: r.table()}
	defer t.close() //nolint:errcheck // what was sent was answered
	for i, spec := range redirectSets() {
		t.sets[spec.name] = spec.set(t.table, uint32(i+1)) //nolint:gosec // two
	}
	return f(t)
}

func (r Redirect) ensure(*Kernel) error {
	return r.inside(func(t redirector) error {
		if t.has(r.elements()) {
			return nil
		}
		if err := t.load(r.elements()); err != nil {
			return fmt.Errorf("make %s: %w", r, err)
		}
		return nil
	})
}

// load replaces the table, in one transaction.
func (t redirector) load(elements []Element) error {
	return t.sure(func() error {
		t.tx.AddTable(t.table) // or there would be nothing to delete
		t.tx.DelTable(t.table)
		t.tx.AddTable(t.table)
		for _, spec := range redirectSets() {
			if err := t.tx.AddSet(t.sets[spec.name], nil); err != nil {
				return fmt.Errorf("declare set %s: %w", spec.name, err)
			}
		}
		if err := t.change(elements, t.tx.SetAddElements); err != nil {
			return err
		}
		t.addChains(t.table, redirectChains(t.sets))
		return t.flush("load table " + t.table.Name)
	})
}

// has says whether the table is there with its rules and just these elements.
func (t redirector) has(elements []Element) bool {
	have, ok := t.elements()
	if !ok || len(have) != len(elements) {
		return false
	}
	for _, e := range elements {
		if c, ok := have[e.id()]; !ok || c != e.content {
			return false
		}
	}
	err := t.in.look(func(v view) error {
		for _, c := range redirectChains(t.sets) {
			rules, err := v.GetRules(t.table, &nftables.Chain{Table: t.table, Name: c.name})
			if err == nil && len(rules) != len(c.rules) {
				err = unix.ENOENT
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	return err == nil
}

func (t redirector) elements() (all map[elementID]content, ok bool) {
	err := t.in.look(func(v view) error {
		all = map[elementID]content{}
		for _, spec := range redirectSets() {
			set, err := v.GetSetByName(t.table, string(spec.name))
			if err != nil {
				return err
			}
			some, err := v.GetSetElements(set)
			if err != nil {
				return err
			}
			for _, e := range some {
				all[elementID{spec.name, string(e.Key)}] = content{val: string(e.Val)}
			}
		}
		return nil
	})
	return all, err == nil
}

func (r Redirect) remove(*Kernel) error {
	return r.inside(func(t redirector) error {
		err := t.sure(func() error {
			there, err := t.firewall.has(t.table)
			if err == nil && there {
				t.tx.DelTable(t.table)
				err = t.flush("delete table " + t.table.Name)
			}
			return err
		})
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove %s: %w", r, err)
		}
		return nil
	})
}

// check looks into the sandbox. One that is not there has nothing to be missed in.
func (r Redirect) check(*snapshot) (faults []string) {
	err := r.inside(func(t redirector) error {
		if !t.has(r.elements()) {
			faults = append(faults, r.String()+" is missing")
		}
		return nil
	})
	if err != nil && IsNamespace(r.Sandbox) { // it may have gone meanwhile
		faults = append(faults, fmt.Sprintf("%s: %v", r, err))
	}
	return faults
}

// late: the sandbox may have been made after the request.
func (Redirect) late() {}

// Redirected are the redirects that a sandbox has for an endpoint, one port each: where records were lost, that is
// where they can be read.
func Redirected(sandbox, endpoint string) (all []Publication, err error) {
	r := Redirect{Endpoint: endpoint, Sandbox: sandbox}
	err = r.inside(func(t redirector) error {
		have, _ := t.elements()
		for id, c := range have {
			if p, ok := publicationOf(Element{Set: id.set, key: id.key, content: c}); ok {
				all = append(all, p)
			}
		}
		return nil
	})
	return all, err
}
