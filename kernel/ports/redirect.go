package ports

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

	"netyard/kernel/core"
	"netyard/kernel/nft"
	"netyard/kernel/rule"
)

const (
	// redirectPrefix begins the names of tables in sandboxes, and the beginning of an endpoint's id ends them. It is
	// not the name of the host's table: a container may have a netyard of its own.
	redirectPrefix = rule.TableName + "-"
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
	NS core.NamespaceID
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
func redirectSets() (specs []rule.Set) {
	return slices.DeleteFunc(publishSets(), func(s rule.Set) bool { return s.Name != toOne4 && s.Name != toOne6 })
}

// redirectChains send on what comes from elsewhere, and what the sandbox sends to its own address.
func redirectChains(b rule.Book) []rule.Chain {
	rules := []rule.Rule{
		rule.New("published ports of its own", b.DAddrPort(toOne4), rule.DNAT(unix.NFPROTO_IPV4, true)),
		rule.New("published ports of its own, IPv6", b.DAddrPort(toOne6), rule.DNAT(unix.NFPROTO_IPV6, true)),
	}
	return []rule.Chain{
		{Name: "prerouting", Kind: nftables.ChainTypeNAT, Hook: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest, Rules: rules},
		{Name: "output", Kind: nftables.ChainTypeNAT, Hook: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest, Rules: rules},
	}
}

func (r Redirect) elements() (all []nft.Element) {
	for _, p := range r.Ports {
		for i := range max(p.Count, 1) {
			one := Publication{Proto: p.Proto, Host: p.Host, Port: p.Port + i, Count: 1, To: p.To, ToPort: p.ToPort + i}
			all = append(all, one.Elements()[0])
		}
	}
	return all
}

// OnHost are the elements that do the same for what comes by the host's rules and not by the sandbox's.
func (r Redirect) OnHost() (all []nft.Element) {
	for _, e := range r.elements() {
		e.Set = map[rule.SetName]rule.SetName{toOne4: own4, toOne6: own6}[e.Set]
		all = append(all, e.For(r.Endpoint))
	}
	return all
}

// A redirector is a firewall of one table in a sandbox.
type redirector struct {
	*nft.Firewall
	table *nftables.Table
}

// inside gives f the table of the sandbox; it does nothing when there is no sandbox, or none any more.
func (r Redirect) inside(f func(t redirector) error) error {
	fd := r.Into
	if fd == 0 {
		if now, ok := core.NamespaceAt(r.Sandbox); !ok || r.NS != (core.NamespaceID{}) && r.NS != now {
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
	t := redirector{Firewall: nft.Connect(slog.New(slog.DiscardHandler), fd), table: r.table()}
	defer t.Close() //nolint:errcheck // what was sent was answered
	for i, spec := range redirectSets() {
		t.Sets[spec.Name] = spec.Declare(t.table, uint32(i+1)) //nolint:gosec // two
	}
	return f(t)
}

func (r Redirect) Ensure(*core.Handle) error {
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
func (t redirector) load(elements []nft.Element) error {
	return t.Sure(func() error {
		t.Tx.AddTable(t.table) // or there would be nothing to delete
		t.Tx.DelTable(t.table)
		t.Tx.AddTable(t.table)
		for _, spec := range redirectSets() {
			if err := t.Tx.AddSet(t.Sets[spec.Name], nil); err != nil {
				return fmt.Errorf("declare set %s: %w", spec.Name, err)
			}
		}
		if err := t.Change(elements, t.Tx.SetAddElements); err != nil {
			return err
		}
		t.AddChains(t.table, redirectChains(t.Sets))
		return t.Flush("load table " + t.table.Name)
	})
}

// has says whether the table is there with its rules and just these elements.
func (t redirector) has(elements []nft.Element) bool {
	have, ok := t.elements()
	if !ok || len(have) != len(elements) {
		return false
	}
	for _, e := range elements {
		if c, ok := have[e.ID()]; !ok || c != e.Content {
			return false
		}
	}
	err := t.In.Look(func(v nft.View) error {
		for _, c := range redirectChains(t.Sets) {
			rules, err := v.GetRules(t.table, &nftables.Chain{Table: t.table, Name: c.Name})
			if err == nil && len(rules) != len(c.Rules) {
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

func (t redirector) elements() (all map[nft.ElementID]nft.Content, ok bool) {
	err := t.In.Look(func(v nft.View) error {
		all = map[nft.ElementID]nft.Content{}
		for _, spec := range redirectSets() {
			set, err := v.GetSetByName(t.table, string(spec.Name))
			if err != nil {
				return err
			}
			some, err := v.GetSetElements(set)
			if err != nil {
				return err
			}
			for _, e := range some {
				all[nft.ElementID{Set: spec.Name, Key: string(e.Key)}] = nft.Content{Val: string(e.Val)}
			}
		}
		return nil
	})
	return all, err == nil
}

func (r Redirect) Remove(*core.Handle) error {
	return r.inside(func(t redirector) error {
		err := t.Sure(func() error {
			there, err := t.Has(t.table)
			if err == nil && there {
				t.Tx.DelTable(t.table)
				err = t.Flush("delete table " + t.table.Name)
			}
			return err
		})
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove %s: %w", r, err)
		}
		return nil
	})
}

// Check looks into the sandbox. One that is not there has nothing to be missed in.
func (r Redirect) Check(*core.View) (faults []string) {
	err := r.inside(func(t redirector) error {
		if !t.has(r.elements()) {
			faults = append(faults, r.String()+" is missing")
		}
		return nil
	})
	if err != nil && core.IsNamespace(r.Sandbox) { // it may have gone meanwhile
		faults = append(faults, fmt.Sprintf("%s: %v", r, err))
	}
	return faults
}

// Late marks what cannot be restored at once: the sandbox may have been made after the request.
func (Redirect) Late() {}

// Redirected are the redirects that a sandbox has for an endpoint, one port each: where records were lost, that is
// where they can be read.
func Redirected(sandbox, endpoint string) (all []Publication, err error) {
	r := Redirect{Endpoint: endpoint, Sandbox: sandbox}
	err = r.inside(func(t redirector) error {
		have, _ := t.elements()
		for id, c := range have {
			if p, ok := publicationOf(nft.Element{Set: id.Set, Key: id.Key, Content: c}); ok {
				all = append(all, p)
			}
		}
		return nil
	})
	return all, err
}
