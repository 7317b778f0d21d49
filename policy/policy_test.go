package policy_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	kpolicy "netyard/kernel/policy"
	"netyard/modes"
	"netyard/policy"
)

const file = `
# Only the proxy may connect to the app.
name: app
select: {network: web, container: app*}
ingress:
  allow:
    - {container: proxy, ports: [80, 8000-8010/udp]}
---
name: out
select:
  labels: {tier: app}
egress:
  default: deny
  allow:
    - cidr: 203.0.113.1
    - cidr: fd00::/8
      ports: [53/udp, icmp]
  deny:
    - {cidr: 203.0.113.1, ports: 25}
`

func TestParse(t *testing.T) {
	t.Parallel()
	got, err := policy.Parse([]byte(file))
	if err != nil {
		t.Fatal(err)
	}
	prefix := func(s string) policy.Prefix { return policy.Prefix{Prefix: netip.MustParsePrefix(s)} }
	want := []policy.Policy{
		{
			Name: "app", Select: policy.Selector{Network: "web", Container: "app*"},
			Ingress: &policy.Section{Allow: []policy.Rule{{
				Selector: policy.Selector{Container: "proxy"},
				Ports:    []policy.Port{{First: 80, Last: 80, Proto: 6}, {First: 8000, Last: 8010, Proto: 17}},
			}}},
		},
		{
			Name: "out", Select: policy.Selector{Labels: map[string]string{"tier": "app"}},
			Egress: &policy.Section{
				Default: policy.Deny,
				Allow: []policy.Rule{
					{CIDR: prefix("203.0.113.1/32")},
					{
						CIDR:  prefix("fd00::/8"),
						Ports: []policy.Port{{First: 53, Last: 53, Proto: 17}, {Last: 65535, Proto: 1}},
					},
				},
				Deny: []policy.Rule{
					{CIDR: prefix("203.0.113.1/32"), Ports: []policy.Port{{First: 25, Last: 25, Proto: 6}}},
				},
			},
		},
	}
	if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
		t.Errorf("%s", d)
	}
}

// TestParseErrors: each error names the line, the field and what is valid.
func TestParseErrors(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"":                                   "the file has no policy",
		"- a":                                "line 1: policy: want fields",
		"name: a\nname: b":                   "line 2: field name is used twice in policy",
		"nam: a":                             `line 1: unknown field "nam" in policy; did you mean name?`,
		"ingress: {}":                        "line 1: name: a policy must have a name",
		"name: a b":                          `line 1: name: "a b": want 1 to 63 letters`,
		"name: a\nselect: {net: b}":          `line 2: unknown field "net" in select; known are container, labels, network`,
		"name: a":                            "line 1: a: want ingress, egress or both",
		"name: a\nigress: {}":                `line 2: unknown field "igress" in policy; did you mean`,
		"name: a\ningress:\n  defalt: deny":  `line 3: unknown field "defalt" in ingress; did you mean default?`,
		"name: a\ningress:\n  default: drop": `line 3: ingress.default: "drop": want allow or deny`,
		"name: a\ningress:\n  allow: {}":     "line 3: ingress.allow: want a list of rules",
		"name: a\ningress:\n  allow:\n    -": "line 4: ingress.allow: the rule is empty; write {}",
		"name: a\ningress:\n  allow:\n    - {port: 80}":                      `line 4: unknown field "port" in ingress.allow; did you mean ports?`,
		"name: a\ningress:\n  allow:\n    - ports: [80, 0]":                  `line 4: ingress.allow.ports: "0": want a port as in`,
		"name: a\ningress:\n  allow:\n    - ports: [90-80]":                  `ingress.allow.ports: "90-80": want a port`,
		"name: a\ningress:\n  allow:\n    - ports: 80/ftp":                   `ingress.allow.ports: "80/ftp": want a port`,
		"name: a\ningress:\n  allow:\n    - ports: []":                       "ingress.allow.ports: the list is empty",
		"name: a\negress:\n  deny:\n    - cidr: 10.0.0.1/8":                  `egress.deny.cidr: "10.0.0.1/8": has host bits set beyond /8; did you mean 10.0.0.0/8?`,
		"name: a\negress:\n  deny:\n    - cidr: ten":                         `egress.deny.cidr: "ten": want an address, or a range`,
		"name: a\negress:\n  deny:\n    - {cidr: 10.0.0.0/8, container: b}":  "egress.deny: cidr excludes network, container and labels",
		"name: a\nselect: {container: '[a'}\negress: {}":                     `line 2: select.container: "[a": want a name, or a pattern`,
		"name: a\nselect: {labels: [a]}\negress: {}":                         "select.labels: want label: value",
		"name: a\negress: {}\n---\nname: a\negress: {}":                      "line 4: name: a is used twice",
		"name: a\n\tegress: {}":                                              "line 2",
		"name: a\nselect: {labels: {a: {b: c}}}\ningress: {}":                "select.labels.a: want a single value",
		"name: a\ningress:\n  allow:\n    - {container: }":                   "ingress.allow.container: want a single value",
		"name: a\ningress:\n  allow:\n    - {cidr: '::ffff:10.0.0.0/104'}":   "want an address",
		"name: a\ningress:\n  allow:\n    - {networks: web}":                 "did you mean network?",
		"name: a\ningress:\n  alow:\n    - {network: web}":                   `line 3: unknown field "alow" in ingress; did you mean allow?`,
		"name: a\nselect: {network: web}\ningress: {default: [deny, allow]}": "line 3: ingress.default: want a single value",
	} {
		_, err := policy.Parse([]byte(text))
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func endpoint(name, addr string, labels map[string]string) policy.Endpoint {
	a := netip.MustParseAddr(addr)
	return policy.Endpoint{
		Endpoint: modes.Endpoint{ID: "id-" + addr, Container: modes.Container{Name: name, Labels: labels}},
		Network:  modes.Network{ID: "n1", Name: "web"}, Addrs: []netip.Addr{a},
	}
}

// passes says whether decisions let a connection pass.
func passes(ds []policy.Decision, from, to string, proto uint8, port uint16) bool {
	pass := func(a *kpolicy.Access, other string) bool {
		if a == nil {
			return true
		}
		for _, p := range a.Allow {
			o := netip.MustParseAddr(other)
			if p.First.Compare(o) <= 0 && o.Compare(p.Last) <= 0 && p.FirstProto <= proto && proto <= p.LastProto &&
				p.FirstPort <= port && port <= p.LastPort {
				return true
			}
		}
		return false
	}
	ok := true
	for _, d := range ds {
		for _, a := range d.Endpoint.Addrs {
			in, out := d.Of(a)
			ok = ok && (a.String() != from || pass(out, to)) && (a.String() != to || pass(in, from))
		}
	}
	return ok
}

// TestImageLabels: labels that a container has from its image open nothing, and close and deny as others do.
func TestImageLabels(t *testing.T) {
	t.Parallel()
	const web, front, own, db, other = "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"
	from := func(name, addr string) policy.Endpoint {
		e := endpoint(name, addr, map[string]string{})
		e.Container.ImageLabels = map[string]string{"role": name}
		return e
	}
	all := []policy.Endpoint{
		endpoint("web", web, map[string]string{}), from("front", front),
		endpoint("own", own, map[string]string{"role": "front"}), from("db", db), from("other", other),
	}
	for _, c := range []struct {
		text, from, to string
		want           bool
	}{
		{"select: {container: web}\ningress:\n  allow:\n    - {labels: {role: front}}", own, web, true},
		{"select: {container: web}\ningress:\n  allow:\n    - {labels: {role: front}}", front, web, false},
		{"select: {container: web}\ningress:\n  allow:\n    - {labels: {role: '*'}}", front, web, false},
		{"select: {labels: {role: db}}\ningress: {}", web, db, false},
		{"select: {labels: {role: db}}\ningress: {}", web, other, true},
		{"select: {container: web}\ningress:\n  default: allow\n  deny:\n    - {labels: {role: front}}", front, web, false},
		// A policy that an image chooses does not open what another one closes.
		{
			"select: {container: db}\negress: {}\n---\nname: b\nselect: {labels: {role: db}}\negress:\n  allow:\n    - {}",
			db, web, false,
		},
	} {
		ps, err := policy.Parse([]byte("name: a\n" + c.text))
		if err != nil {
			t.Fatal(err)
		}
		if got := passes(policy.Decide(ps, all), c.from, c.to, 6, 80); got != c.want {
			t.Errorf("from %s to %s: %v, want %v, with\n%s", c.from, c.to, got, c.want, c.text)
		}
	}
}

func TestDecide(t *testing.T) {
	t.Parallel()
	ps, err := policy.Parse([]byte(file))
	if err != nil {
		t.Fatal(err)
	}
	app := map[string]string{"tier": "app"}
	none := map[string]string{}
	ds := policy.Decide(ps, []policy.Endpoint{
		endpoint("proxy", "10.0.0.2", none), endpoint("app1", "10.0.0.3", app), endpoint("app2", "10.0.0.4", app),
		endpoint("", "10.0.0.5", nil), endpoint("app1", "fd00::3", app), endpoint("other", "10.0.0.6", none),
	})
	for _, c := range []struct {
		from, to string
		proto    uint8
		port     uint16
		want     bool
	}{
		{"10.0.0.2", "10.0.0.3", 6, 80, true},
		{"10.0.0.2", "10.0.0.3", 6, 81, false},
		{"10.0.0.2", "10.0.0.3", 17, 80, false},
		{"10.0.0.2", "10.0.0.3", 17, 8005, true},
		{"10.0.0.6", "10.0.0.3", 6, 80, false},
		{"203.0.113.9", "10.0.0.3", 6, 80, false},
		{"10.0.0.3", "10.0.0.4", 6, 80, false},
		{"10.0.0.3", "203.0.113.1", 6, 443, true},
		{"10.0.0.3", "203.0.113.1", 6, 25, false}, // deny takes precedence over allow
		{"10.0.0.3", "203.0.113.2", 6, 443, false},
		{"10.0.0.6", "203.0.113.2", 6, 443, true}, // no policy selects it
		{"fd00::3", "fd00::9", 17, 53, true},
		{"fd00::3", "fd00::9", 58, 128, true},
		{"fd00::3", "fd00::9", 6, 53, false},
		{"fd00::3", "2001:db8::1", 17, 53, false},
		{"10.0.0.5", "203.0.113.1", 6, 443, false}, // its container is not known yet
		{"10.0.0.2", "10.0.0.5", 6, 80, false},
		{"10.0.0.5", "10.0.0.6", 6, 80, false},
	} {
		if got := passes(ds, c.from, c.to, c.proto, c.port); got != c.want {
			t.Errorf("%s to %s, protocol %d, port %d: %v, want %v", c.from, c.to, c.proto, c.port, got, c.want)
		}
	}
}

// TestDisjoint: for any policies, the passages of an endpoint do not overlap, since the kernel refuses that, and they
// allow exactly what the rules allow one by one.
func TestDisjoint(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2))
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	rules := func() (rs []policy.Rule) {
		for range r.IntN(4) {
			cidr := pick("10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "0.0.0.0/0", "10.1.2.3/32", "255.255.255.255/32")
			rule := policy.Rule{CIDR: policy.Prefix{Prefix: netip.MustParsePrefix(cidr)}}
			for range r.IntN(3) {
				var p policy.Port
				text := pick("80", "1-100", "50-65535/udp", "tcp", "icmp", "65535", "100-200/udp")
				if err := p.UnmarshalText([]byte(text)); err != nil {
					t.Fatal(err)
				}
				rule.Ports = append(rule.Ports, p)
			}
			rs = append(rs, rule)
		}
		return rs
	}
	for range 500 {
		s := policy.Section{Default: policy.Verdict(pick("", "allow", "deny")), Allow: rules(), Deny: rules()}
		ds := policy.Decide([]policy.Policy{{Name: "a", Ingress: &s}},
			[]policy.Endpoint{endpoint("a", "10.9.9.9", nil)})
		passages := ds[0].In4.Allow
		for i, p := range passages {
			for _, q := range passages[:i] {
				if p.First.Compare(q.Last) <= 0 && q.First.Compare(p.Last) <= 0 &&
					p.FirstProto <= q.LastProto && q.FirstProto <= p.LastProto &&
					p.FirstPort <= q.LastPort && q.FirstPort <= p.LastPort {
					t.Fatalf("%+v: %v and %v overlap", s, p, q)
				}
			}
		}
		for range 200 {
			from := pick("10.1.2.3", "10.1.2.4", "10.1.9.9", "10.200.0.1", "1.1.1.1", "255.255.255.255", "0.0.0.0")
			proto := []uint8{0, 1, 6, 17, 58, 255}[r.IntN(6)]
			port := []uint16{0, 1, 50, 80, 100, 101, 200, 65535}[r.IntN(8)]
			want := s.Default == policy.Allow || hit(s.Allow, from, proto, port)
			want = want && !hit(s.Deny, from, proto, port)
			if got := passes(ds, from, "10.9.9.9", proto, port); got != want {
				t.Fatalf("%+v: %s protocol %d port %d: %v, want %v\n%v", s, from, proto, port, got, want, passages)
			}
		}
	}
}

// hit says whether a rule matches a connection.
func hit(rules []policy.Rule, from string, proto uint8, port uint16) bool {
	for _, r := range rules {
		ports := len(r.Ports) == 0
		for _, p := range r.Ports {
			ports = ports || (p.Proto == proto || p.Proto == 1 && proto == 58) && p.First <= port && port <= p.Last
		}
		if ports && r.CIDR.Contains(netip.MustParseAddr(from)) {
			return true
		}
	}
	return false
}

// FuzzParse: Parse and Decide accept any input without a panic, and errors have one line.
func FuzzParse(f *testing.F) {
	f.Add([]byte(file))
	f.Fuzz(func(_ *testing.T, raw []byte) {
		ps, err := policy.Parse(raw)
		if err != nil && strings.Contains(err.Error(), "\n") {
			panic(fmt.Sprintf("the error has several lines: %q", err))
		}
		policy.Decide(ps, []policy.Endpoint{endpoint("a", "10.0.0.1", nil)})
	})
}
