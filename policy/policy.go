// Package policy says who may talk to whom: what a person writes, and what follows from it for each endpoint. It
// touches nothing.
package policy

import (
	"fmt"
	"net/netip"
	"path"
	"reflect"
	"strings"

	"netyard/modes"
)

// A Policy is one document of a policy file. It is what the store keeps.
type Policy struct {
	Name string `yaml:"name"`
	// Select says which endpoints it is about; an empty one is about all.
	Select Selector `yaml:"select,omitempty" json:",omitzero"`
	// Ingress and Egress decide about one direction each; nil: it says nothing about that one.
	Ingress *Section `yaml:"ingress,omitempty" json:",omitempty"`
	Egress  *Section `yaml:"egress,omitempty" json:",omitempty"`
}

// A Section is what a policy says about one direction. What it denies is denied, whatever allows it; what is neither
// goes by Default.
type Section struct {
	Default Verdict `yaml:"default,omitempty" json:",omitempty"`
	Allow   []Rule  `yaml:"allow,omitempty" json:",omitempty"`
	Deny    []Rule  `yaml:"deny,omitempty" json:",omitempty"`
}

// A Verdict is allow or deny; empty is deny.
type Verdict string

// The verdicts.
const (
	Allow Verdict = "allow"
	Deny  Verdict = "deny"
)

// A Rule matches connections: the other end, and the port of whoever is connected to. What is left out matches
// everything.
type Rule struct {
	Selector `yaml:",inline"`
	CIDR     Prefix `yaml:"cidr,omitempty" json:",omitzero"`
	Ports    []Port `yaml:"ports,omitempty,flow" json:",omitempty"`
}

// A Selector matches endpoints: all that it says has to fit.
type Selector struct {
	Network   string            `yaml:"network,omitempty" json:",omitempty"`   // a name, with * and ? as a shell has them, or an id
	Container string            `yaml:"container,omitempty" json:",omitempty"` // a name, likewise
	Labels    map[string]string `yaml:"labels,omitempty,flow" json:",omitempty"`
}

// A Prefix is a range of addresses as people write it; a single address is one, too.
type Prefix struct{ netip.Prefix }

// A Port is one port or a range of them, of a protocol; a protocol alone has all of them.
type Port struct {
	First, Last uint16
	Proto       uint8
}

// An Endpoint is what a policy sees of one.
type Endpoint struct {
	modes.Endpoint

	Network modes.Network
	Addrs   []netip.Addr
	// Gone endpoints are decided about as long as they have a link, and are nobody's peers.
	Gone bool
}

// A match is whether a selector fits: an endpoint whose owner is not known yet may turn out to fit.
type match uint8

const (
	no match = iota
	maybe
	yes
)

// matches says whether the selector fits an endpoint.
func (s Selector) matches(e Endpoint) match {
	m := yes
	for _, part := range []match{
		glob(s.Network, e.Network.Name, e.Network.ID), glob(s.Container, e.Container.Name), labelled(s.Labels, e.Container),
	} {
		m = min(m, part)
	}
	return m
}

// glob matches a pattern with the name of a thing, which is not always known yet, or one of its other names.
func glob(pattern, name string, others ...string) match {
	if pattern == "" || pattern == "*" {
		return yes
	}
	for _, n := range append(others, name) {
		if ok, _ := path.Match(pattern, n); ok && n != "" { // patterns were checked when they were read
			return yes
		}
	}
	if name == "" {
		return maybe
	}
	return no
}

func labelled(want map[string]string, c modes.Container) match {
	if len(want) > 0 && c.Labels == nil {
		return maybe
	}
	for k, v := range want {
		if got, ok := c.Labels[k]; !ok || glob(v, got) != yes && v != got {
			return no
		}
	}
	return yes
}

// IsZero says that the selector fits everything.
func (s Selector) IsZero() bool { return s.Network == "" && s.Container == "" && len(s.Labels) == 0 }

// String is how a selector reads in tables.
func (s Selector) String() string {
	var parts []string
	if s.Network != "" {
		parts = append(parts, "network="+s.Network)
	}
	if s.Container != "" {
		parts = append(parts, "container="+s.Container)
	}
	for _, k := range sorted(s.Labels) {
		parts = append(parts, "label "+k+"="+s.Labels[k])
	}
	if len(parts) == 0 {
		return "*"
	}
	return strings.Join(parts, ", ")
}

// Summary is a section in a few words.
func (s *Section) Summary() string {
	if s == nil {
		return ""
	}
	return fmt.Sprintf("%s but for %d allowed, %d denied", s.verdict(), len(s.Allow), len(s.Deny))
}

func (s *Section) verdict() Verdict {
	if s.Default == Allow {
		return Allow
	}
	return Deny
}

// Selected says whether a policy is about an endpoint; one whose owner is not known yet is taken for selected.
func (p Policy) Selected(e Endpoint) bool { return p.Select.matches(e) != no }

// Equal says whether two policies say the same.
func (p Policy) Equal(q Policy) bool { return reflect.DeepEqual(p, q) }
