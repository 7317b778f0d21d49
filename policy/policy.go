// Package policy reads network policies and decides which traffic each endpoint may receive and send. It has no side
// effects.
package policy

import (
	"fmt"
	"net/netip"
	"path"
	"reflect"
	"strings"

	"netyard/modes"
)

// A Policy is one document of a policy file. The database holds it in this form.
type Policy struct {
	Name string `yaml:"name"`
	// Select selects the endpoints that the policy applies to; an empty one selects all.
	Select Selector `yaml:"select,omitempty" json:",omitzero"`
	// Ingress and Egress apply to one direction each; nil: the policy does not restrict that direction.
	Ingress *Section `yaml:"ingress,omitempty" json:",omitempty"`
	Egress  *Section `yaml:"egress,omitempty" json:",omitempty"`
}

// A Section is the part of a policy for one direction. A deny rule takes precedence over every allow rule; Default
// applies to what no rule matches.
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

// A Rule matches connections by their other end and their destination port. A part that is left out matches everything.
type Rule struct {
	Selector `yaml:",inline"`
	CIDR     Prefix `yaml:"cidr,omitempty" json:",omitzero"`
	Ports    []Port `yaml:"ports,omitempty,flow" json:",omitempty"`
}

// A Selector matches endpoints: all of its parts must match.
type Selector struct {
	// a name with wildcards, see path.Match, or an ID
	Network   string            `yaml:"network,omitempty" json:",omitempty"`
	Container string            `yaml:"container,omitempty" json:",omitempty"` // a name with wildcards
	Labels    map[string]string `yaml:"labels,omitempty,flow" json:",omitempty"`
}

// A Prefix is a range of addresses in CIDR notation, or a single address.
type Prefix struct{ netip.Prefix }

// A Port is one port or a range of ports of a protocol; a protocol alone means all its ports.
type Port struct {
	First, Last uint16
	Proto       uint8
}

// An Endpoint is an endpoint as policies see it.
type Endpoint struct {
	modes.Endpoint

	Network modes.Network
	Addrs   []netip.Addr
	// Gone says that the endpoint is being removed: it is decided about while it has a link, but rules do not match it
	// as the other end.
	Gone bool
}

// A match says whether a selector matches; maybe stands for an endpoint whose container is not known yet, or which only
// labels of its image make match.
type match uint8

const (
	no match = iota
	maybe
	yes
)

// matches says whether the selector matches an endpoint.
func (s Selector) matches(e Endpoint) match {
	m := yes
	for _, part := range []match{
		glob(s.Network, e.Network.Name, e.Network.ID),
		glob(s.Container, e.Container.Name, e.Container.FullName()),
		labelled(s.Labels, e.Container),
	} {
		m = min(m, part)
	}
	return m
}

// glob matches a pattern with a name, which may not be known yet, or with one of the other names.
func glob(pattern, name string, others ...string) match {
	if pattern == "" || pattern == "*" {
		return yes
	}
	for _, n := range append(others, name) {
		if ok, _ := path.Match(pattern, n); ok && n != "" { // Parse has checked the pattern
			return yes
		}
	}
	if name == "" {
		return maybe
	}
	return no
}

// labelled matches labels with those of a container, which may not be known yet. Those of its image close and deny, and
// allow nothing.
func labelled(want map[string]string, c modes.Container) match {
	if len(want) > 0 && c.Labels == nil {
		return maybe
	}
	m := yes
	for k, v := range want {
		switch {
		case hasLabel(c.Labels, k, v):
		case hasLabel(c.ImageLabels, k, v):
			m = maybe
		default:
			return no
		}
	}
	return m
}

func hasLabel(labels map[string]string, key, pattern string) bool {
	got, ok := labels[key]
	return ok && (pattern == got || glob(pattern, got) == yes)
}

// IsZero says whether the selector matches everything.
func (s Selector) IsZero() bool { return s.Network == "" && s.Container == "" && len(s.Labels) == 0 }

// String returns the selector as tables show it.
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

// Summary returns the section in a few words, as tables show it.
func (s *Section) Summary() string {
	if s == nil {
		return ""
	}
	return fmt.Sprintf("default %s, %d allow, %d deny", s.verdict(), len(s.Allow), len(s.Deny))
}

func (s *Section) verdict() Verdict {
	if s.Default == Allow {
		return Allow
	}
	return Deny
}

// Selected says whether a policy applies to an endpoint; one that may be selected counts as selected.
func (p Policy) Selected(e Endpoint) bool { return p.Select.matches(e) != no }

// Equal says whether two policies are the same.
func (p Policy) Equal(q Policy) bool { return reflect.DeepEqual(p, q) }
