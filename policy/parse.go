package policy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"netyard/modes"
)

// ErrPolicy is wrapped by every error that rejects a policy.
var ErrPolicy = errors.New("invalid policy")

const (
	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58
	protoSCTP   = 132
)

func protocols() map[string]uint8 {
	return map[string]uint8{"icmp": protoICMP, "tcp": protoTCP, "udp": protoUDP, "sctp": protoSCTP}
}

// Parse reads policies, one per YAML document. It rejects an unknown field, and names its line and the nearest known
// field.
func Parse(raw []byte) (policies []Policy, err error) {
	d := yaml.NewDecoder(bytes.NewReader(raw))
	for {
		var doc yaml.Node
		err := d.Decode(&doc)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			line := strings.ReplaceAll(err.Error(), "\n", " ")
			return nil, fmt.Errorf("%w: %s", ErrPolicy, strings.TrimPrefix(line, "yaml: "))
		}
		n := doc.Content[0]
		if isNull(n) { // an empty document, between two ---
			continue
		}
		var p Policy
		if err := p.read(n); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrPolicy, err)
		}
		if slices.ContainsFunc(policies, func(o Policy) bool { return o.Name == p.Name }) {
			return nil, fmt.Errorf("%w: line %d: name: %s is used twice", ErrPolicy, n.Line, p.Name)
		}
		policies = append(policies, p)
	}
	if len(policies) == 0 {
		return nil, fmt.Errorf("%w: the file has no policy", ErrPolicy)
	}
	return policies, nil
}

// fields reads a mapping; it has the function that reads the value of each key.
type fields map[string]func(*yaml.Node) error

func (f fields) read(n *yaml.Node, what string) error {
	if isNull(n) {
		return nil
	}
	if n.Kind != yaml.MappingNode {
		return at(n, "%s: want fields: %s", what, strings.Join(slices.Sorted(maps.Keys(f)), ", "))
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		read, known := f[key.Value]
		switch {
		case key.Kind != yaml.ScalarNode || !known:
			names := slices.Sorted(maps.Keys(f))
			if near := modes.Nearest(key.Value, names); near != "" {
				return at(key, "unknown field %q in %s; did you mean %s?", key.Value, what, near)
			}
			return at(key, "unknown field %q in %s; known are %s", key.Value, what, strings.Join(names, ", "))
		case seen[key.Value]:
			return at(key, "field %s is used twice in %s", key.Value, what)
		}
		seen[key.Value] = true
		if err := read(value); err != nil {
			return err
		}
	}
	return nil
}

func (p *Policy) read(n *yaml.Node) error {
	err := fields{
		"name":    text("name", &p.Name, validName),
		"select":  func(n *yaml.Node) error { return p.Select.fields("select").read(n, "select") },
		"ingress": section("ingress", &p.Ingress),
		"egress":  section("egress", &p.Egress),
	}.read(n, "policy")
	switch {
	case err != nil:
		return err
	case p.Name == "":
		return at(n, "name: a policy must have a name")
	case p.Ingress == nil && p.Egress == nil:
		return at(n, "%s: want ingress, egress or both; without them the policy has no effect", p.Name)
	}
	return nil
}

// section returns the function that reads a section.
func section(name string, to **Section) func(*yaml.Node) error {
	return func(n *yaml.Node) error {
		s := &Section{}
		*to = s
		return fields{
			"default": text(name+".default", (*string)(&s.Default), func(v string) error {
				if v != string(Allow) && v != string(Deny) {
					return errors.New("want allow or deny")
				}
				return nil
			}),
			"allow": rules(name+".allow", &s.Allow),
			"deny":  rules(name+".deny", &s.Deny),
		}.read(n, name)
	}
}

// rules returns the function that reads a list of rules.
func rules(name string, to *[]Rule) func(*yaml.Node) error {
	return func(n *yaml.Node) error {
		if isNull(n) {
			return nil
		}
		if n.Kind != yaml.SequenceNode {
			return at(n, "%s: want a list of rules", name)
		}
		for _, item := range n.Content {
			var r Rule
			f := r.fields(name)
			f["cidr"] = text(name+".cidr", new(string), func(v string) (err error) {
				r.CIDR, err = parsePrefix(v)
				return err
			})
			f["ports"] = func(n *yaml.Node) error { return r.readPorts(n, name+".ports") }
			if isNull(item) {
				return at(item, "%s: the rule is empty; write {} to match everything", name)
			}
			if err := f.read(item, name); err != nil {
				return err
			}
			if r.CIDR.IsValid() && !r.IsZero() {
				return at(item, "%s: cidr excludes network, container and labels; use two rules", name)
			}
			*to = append(*to, r)
		}
		return nil
	}
}

func (s *Selector) fields(name string) fields {
	return fields{
		"network":   text(name+".network", &s.Network, validPattern),
		"container": text(name+".container", &s.Container, validPattern),
		"labels": func(n *yaml.Node) error {
			if n.Kind != yaml.MappingNode {
				return at(n, "%s.labels: want label: value", name)
			}
			if len(n.Content) > 0 { // {} is the same as leaving labels out
				s.Labels = map[string]string{}
			}
			for i := 0; i+1 < len(n.Content); i += 2 {
				key, value := n.Content[i].Value, ""
				if err := text(name+".labels."+key, &value, validPattern)(n.Content[i+1]); err != nil {
					return err
				}
				s.Labels[key] = value
			}
			return nil
		},
	}
}

func (r *Rule) readPorts(n *yaml.Node, name string) error {
	items := []*yaml.Node{n}
	if n.Kind == yaml.SequenceNode {
		items = n.Content
	}
	for _, item := range items {
		var p Port
		read := text(name, new(string), func(v string) error { return p.UnmarshalText([]byte(v)) })
		if err := read(item); err != nil {
			return err
		}
		r.Ports = append(r.Ports, p)
	}
	if len(r.Ports) == 0 {
		return at(n, "%s: the list is empty; leave it out to match all ports", name)
	}
	return nil
}

// text returns the function that reads a single value and checks it.
func text(name string, to *string, valid func(string) error) func(*yaml.Node) error {
	return func(n *yaml.Node) error {
		if n.Kind != yaml.ScalarNode || isNull(n) {
			return at(n, "%s: want a single value", name)
		}
		if err := valid(n.Value); err != nil {
			return at(n, "%s: %q: %w", name, n.Value, err)
		}
		*to = n.Value
		return nil
	}
}

// at returns an error with the line of a node.
func at(n *yaml.Node, format string, args ...any) error {
	return fmt.Errorf("line %d: %w", n.Line, fmt.Errorf(format, args...))
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

func validName(v string) error {
	if !regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}$`).MatchString(v) {
		return errors.New("want 1 to 63 letters, digits, dots, dashes or underscores, and a letter or digit first")
	}
	return nil
}

func validPattern(v string) error {
	if _, err := path.Match(v, ""); err != nil || v == "" {
		return errors.New("want a name, or a pattern with *, ? and [a-z]")
	}
	return nil
}

func parsePrefix(v string) (Prefix, error) {
	if a, err := netip.ParseAddr(v); err == nil && a.Zone() == "" && !a.Is4In6() {
		return Prefix{netip.PrefixFrom(a, a.BitLen())}, nil
	}
	p, err := netip.ParsePrefix(v)
	if err != nil || p.Addr().Is4In6() {
		return Prefix{}, errors.New("want an address, or a range such as 10.0.0.0/8")
	}
	if p != p.Masked() {
		return Prefix{}, fmt.Errorf("has host bits set beyond /%d; did you mean %s?", p.Bits(), p.Masked())
	}
	return Prefix{p}, nil
}

// IsZero says whether there is no range.
func (p Prefix) IsZero() bool { return !p.IsValid() }

// MarshalText returns the port as String does.
func (p Port) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// String returns the port as in 80/tcp, 8000-8010/udp or icmp.
func (p Port) String() string {
	proto := strconv.Itoa(int(p.Proto))
	for name, n := range protocols() {
		if n == p.Proto {
			proto = name
		}
	}
	switch {
	case p.First == 0 && p.Last == maxPort:
		return proto
	case p.First == p.Last:
		return fmt.Sprintf("%d/%s", p.First, proto)
	}
	return fmt.Sprintf("%d-%d/%s", p.First, p.Last, proto)
}

// UnmarshalText reads a port. Without a protocol it is a TCP port, as with docker run -p.
func (p *Port) UnmarshalText(raw []byte) error {
	want := errors.New("want a port as in 80, 53/udp, 8000-8010/tcp, or one of icmp, sctp, tcp, udp")
	numbers, name, given := strings.Cut(string(raw), "/")
	if proto, ok := protocols()[numbers]; ok && !given {
		*p = Port{0, maxPort, proto}
		return nil
	}
	if !given {
		name = "tcp"
	}
	proto, ok := protocols()[name]
	if !ok || proto == protoICMP {
		return want
	}
	first, last, isRange := strings.Cut(numbers, "-")
	if !isRange {
		last = first
	}
	from, err1 := strconv.ParseUint(first, 10, portBits)
	to, err2 := strconv.ParseUint(last, 10, portBits)
	if err1 != nil || err2 != nil || from == 0 || from > to {
		return want
	}
	*p = Port{uint16(from), uint16(to), proto}
	return nil
}
