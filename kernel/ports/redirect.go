package ports

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"netyard/kernel/core"
	"netyard/kernel/exchange"
	"netyard/kernel/nft"
	"netyard/kernel/rule"
)

const (
	// redirectPrefix is the first part of the names of tables in sandboxes; the first digits of the endpoint's ID
	// follow. The name differs from that of the host's table, since a container may run a netyard of its own.
	redirectPrefix = rule.TableName + "-"
	redirectID     = 12 // digits
)

// A Redirect makes ports of a sandbox's own addresses lead to other ports of the sandbox. Traffic by a macvlan or
// ipvlan link, or within a bridge, does not pass the rules of the host: so the rules are in the sandbox, and disappear
// with it.
//
// Engines before 28 ask for the ports when there is no sandbox yet. The rules are then added by the next repair.
type Redirect struct {
	// Endpoint is the owner's ID: a sandbox may have several endpoints.
	Endpoint string
	Sandbox  string
	// NS is the namespace that Sandbox stood for, if known: a path may later stand for another namespace.
	NS core.NamespaceID
	// Into is an open descriptor of the sandbox while the endpoint is being plugged in; 0 means none.
	Into int
	// Ports have the same address for Host and To.
	Ports []Publication
}

// String lists the ports and names the sandbox.
func (r Redirect) String() string {
	var ports []string
	for _, p := range r.Ports {
		ports = append(ports, fmt.Sprintf("%s to %d", netip.AddrPortFrom(p.Host, p.Port), p.ToPort)+"/"+p.Proto)
	}
	return fmt.Sprintf("redirect of %s in sandbox %s", strings.Join(ports, ", "), r.Sandbox)
}

func (r Redirect) table() *nftables.Table {
	id := r.Endpoint[:min(len(r.Endpoint), redirectID)]
	return &nftables.Table{Family: nftables.TableFamilyINet, Name: redirectPrefix + id}
}

// redirectSets returns the maps of a table in a sandbox, which are declared like the host's maps of the same names.
func redirectSets() (specs []rule.Set) {
	return slices.DeleteFunc(publishSets(), func(s rule.Set) bool { return s.Name != toOne4 && s.Name != toOne6 })
}

// redirectChains returns the chains that redirect what comes from outside, and what the sandbox sends to its own
// address.
func redirectChains(b rule.SetBook) []rule.Chain {
	const v4, v6 = unix.NFPROTO_IPV4, unix.NFPROTO_IPV6
	rules := []rule.Rule{
		rule.New("redirect the container's published ports", b.DAddrPort(toOne4), rule.DNAT(v4, true)),
		rule.New("redirect the container's published ports, IPv6", b.DAddrPort(toOne6), rule.DNAT(v6, true)),
	}
	return []rule.Chain{
		{
			Name: "prerouting", Kind: nftables.ChainTypeNAT, Hook: nftables.ChainHookPrerouting,
			Priority: nftables.ChainPriorityNATDest, Rules: rules,
		},
		{
			Name: "output", Kind: nftables.ChainTypeNAT, Hook: nftables.ChainHookOutput,
			Priority: nftables.ChainPriorityNATDest, Rules: rules,
		},
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

// OnHost returns the elements of the host's table that redirect packets which pass the host's rules and not the
// sandbox's.
func (r Redirect) OnHost() (all []nft.Element) {
	for _, e := range r.elements() {
		e.Set = map[rule.SetName]rule.SetName{toOne4: own4, toOne6: own6}[e.Set]
		all = append(all, e.For(r.Endpoint))
	}
	return all
}

// A redirector is a firewall with a single table, in a sandbox.
type redirector struct {
	*nft.Firewall
	table *nftables.Table
}

// inside calls f with the table of the sandbox. It does nothing if the sandbox does not exist, not yet or no longer.
func (r Redirect) inside(f func(t redirector) error) error {
	fd := r.Into
	if fd == 0 {
		file, err := core.OpenSandbox(r.Sandbox, r.NS)
		if err != nil || file == nil {
			return err
		}
		defer file.Close() //nolint:errcheck // nothing is written
		fd = int(file.Fd())
	}
	t := redirector{Firewall: nft.Connect(slog.New(slog.DiscardHandler), fd), table: r.table()}
	defer t.Close() //nolint:errcheck // every request has been answered
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

// load replaces the table in one transaction.
func (t redirector) load(elements []nft.Element) error {
	return t.RetryUnknown(func(tx *exchange.Transaction) error {
		tx.AddTable(t.table) // DelTable fails if there is no table
		tx.DelTable(t.table)
		tx.AddTable(t.table)
		for _, spec := range redirectSets() {
			if err := tx.AddSet(t.Sets[spec.Name], nil); err != nil {
				return fmt.Errorf("declare set %s: %w", spec.Name, err)
			}
		}
		if err := t.Change(elements, tx.SetAddElements); err != nil {
			return err
		}
		t.AddChains(t.table, redirectChains(t.Sets))
		return t.Flush("load table " + t.table.Name)
	})
}

// has reports whether the table exists with its rules and exactly these elements.
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
	err := t.Reader.Look(func(v nft.View) error {
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
	err := t.Reader.Look(func(v nft.View) error {
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
		err := t.RetryUnknown(func(tx *exchange.Transaction) error {
			there, err := t.Has(t.table)
			if err == nil && there {
				tx.DelTable(t.table)
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

// Check compares the table in the sandbox. A sandbox that does not exist misses nothing.
func (r Redirect) Check(*core.View) (faults []string) {
	err := r.inside(func(t redirector) error {
		if !t.has(r.elements()) {
			faults = append(faults, r.String()+" is missing")
		}
		return nil
	})
	if err != nil && core.IsNamespace(r.Sandbox) { // the sandbox may be gone by now
		faults = append(faults, fmt.Sprintf("%s: %v", r, err))
	}
	return faults
}

// Late marks the object as one that cannot always be restored at once: the sandbox may have been made after the
// request.
func (Redirect) Late() {}

// Redirected returns the redirects that a sandbox has for an endpoint, one port each, from which lost records are
// rebuilt.
func Redirected(sandbox, endpoint string) (all []Publication, err error) {
	r := Redirect{Endpoint: endpoint, Sandbox: sandbox}
	err = r.inside(func(t redirector) error {
		have, _ := t.elements()
		for id, c := range have {
			if p, ok := PublicationOf(nft.Element{Set: id.Set, Key: id.Key, Content: c}); ok {
				all = append(all, p)
			}
		}
		return nil
	})
	return all, err
}
