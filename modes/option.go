package modes

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// A Kind is the type of an option's value.
type Kind uint8

// The kinds of value an option can have.
const (
	String Kind = iota
	Bool
	Int
	Enum
	IfName
	Addr4
	Addr6
	Addrs   // addresses, separated by commas
	Routes  // static routes, separated by commas, see Route
	IfNames // names of interfaces, separated by commas; colons, as Docker has them, are taken too
	Sources // subnets and names of interfaces, separated by commas
	Ports   // ports and port ranges, separated by commas; each may have a protocol
	Rate
)

// An Option is one row of the table: an option that users give as -o NAME=VALUE.
type Option struct {
	Name   string
	Docker []string // the keys of Docker's built-in drivers that mean the same
	CNI    string   // the key of upstream CNI plugins that means the same, where it tells modes apart; empty: none
	// Modes are the modes that know it; nil: every mode. NewTable fills it in.
	Modes []string
	// Endpoint: it can also be given for one endpoint, and then overrides the network's.
	Endpoint bool
	// Set: it can be changed while the network has endpoints.
	Set bool
	// Fixed is why an option without Set cannot be changed.
	Fixed   string
	Kind    Kind
	Default string
	// Bare is the value of the option when it is given without one, as some of Docker's are; empty: it needs a value.
	Bare   string
	Values []string // of an Enum
	Min    int      // of an Int
	Max    int      // of an Int, or of an IfName's letters; 0: as many as the kernel takes
	Help   string
}

// ErrOption is matched by every refusal of an option.
var ErrOption = errors.New("refused option")

// A refusal is an ErrOption that names the option and the reason, and no more.
type refusal struct{ error }

func (r refusal) Is(target error) bool { return target == ErrOption }

func (r refusal) Unwrap() error { return r.error }

// Refuse returns an error that says why an option is refused.
func Refuse(format string, args ...any) error { return refusal{fmt.Errorf(format, args...)} }

// parse checks a value and returns its canonical spelling.
func (o Option) parse(key, v string) (string, error) {
	bad := func(want string) error { return Refuse("%s=%s: want %s", key, v, want) }
	if v == "" && o.Bare != "" {
		v = o.Bare
	}
	switch o.Kind {
	case Bool:
		b, err := strconv.ParseBool(v)
		if err != nil {
			return "", bad("true or false")
		}
		return strconv.FormatBool(b), nil
	case Int:
		i, err := strconv.Atoi(v)
		if err != nil || i < o.Min || i > o.Max {
			return "", bad(fmt.Sprintf("a number from %d to %d", o.Min, o.Max))
		}
		return strconv.Itoa(i), nil
	case Enum:
		if !slices.Contains(o.Values, v) {
			return "", bad("one of " + strings.Join(o.Values, ", "))
		}
	case IfName:
		most := o.Max
		if most == 0 {
			most = maxIfName
		}
		if !ValidIfName(v) || len(v) > most {
			return "", bad(fmt.Sprintf("an interface name: 1 to %d letters, digits, dots, dashes or underscores", most))
		}
	case Addr4, Addr6:
		a, err := netip.ParseAddr(v)
		if err != nil || a.Zone() != "" || a.Is4() != (o.Kind == Addr4) || a.Is4In6() || a.IsUnspecified() {
			return "", bad(map[Kind]string{Addr4: "an IPv4 address", Addr6: "an IPv6 address"}[o.Kind])
		}
		return a.String(), nil
	case Routes:
		want := "subnets, each with @ and the next hop or alone if it is on the link, with commas between them"
		return parseList(v, bad(want), func(one string) (string, bool) {
			r, ok := parseRoute(one)
			return r.String(), ok
		})
	case Addrs:
		return parseList(v, bad("addresses of the host, with commas between them"), func(one string) (string, bool) {
			a, err := netip.ParseAddr(one)
			return a.String(), err == nil && a.Zone() == ""
		})
	case Ports:
		want := "ports from 1 to 65535 or ranges of them, with commas between them, such as 80,443/tcp,8000-8100/udp"
		return parseList(v, bad(want), func(one string) (string, bool) {
			r, ok := parsePorts(one)
			return r.String(), ok
		})
	case IfNames:
		names := strings.FieldsFunc(v, func(r rune) bool { return r == ',' || r == ':' || r == ' ' })
		if slices.ContainsFunc(names, func(name string) bool { return !ValidIfName(name) }) {
			return "", bad("names of interfaces, with commas or colons between them")
		}
		slices.Sort(names)
		return strings.Join(slices.Compact(names), ","), nil
	case Sources:
		return parseList(v, bad("subnets or names of interfaces, with commas between them"), source)
	case Rate:
		r, err := ParseRate(v)
		if err != nil {
			return "", Refuse("%s=%s: %w", key, v, err)
		}
		return r.String(), nil
	case String:
	}
	return v, nil
}

// parseList returns the canonical spelling of each item between commas.
func parseList(v string, bad error, parse func(string) (string, bool)) (string, error) {
	var out []string
	for one := range strings.SplitSeq(v, ",") {
		text, ok := parse(strings.TrimSpace(one))
		if !ok {
			return "", bad
		}
		out = append(out, text)
	}
	return strings.Join(out, ","), nil
}

// source reads a subnet, an address, or the name of an interface.
func source(v string) (string, bool) {
	if p, err := netip.ParsePrefix(v); err == nil {
		return p.Masked().String(), true
	}
	if a, err := netip.ParseAddr(v); err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a, a.BitLen()).String(), true
	}
	return v, ValidIfName(v) && !strings.Contains(v, "/")
}

const maxIfName = 15

// ValidIfName says whether the kernel and every tool take name for an interface (dev_valid_name, net/core/dev.c, and
// stricter).
func ValidIfName(name string) bool {
	if name == "" || len(name) > maxIfName || name == "." || name == ".." || name == "all" || name == "default" {
		return false
	}
	for _, c := range name {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '.', c == '-', c == '_':
		default:
			return false
		}
	}
	return name[0] != '-'
}

// ValidInnerName says whether an interface of a network can have a name in a sandbox, which has a loopback already.
func ValidInnerName(name string) bool { return ValidIfName(name) && name != "lo" }

// Of returns the option's value for a network: as it was changed, as it was given, or the default.
func (o Option) Of(n Network) string {
	if v, ok := n.Changed[o.Name]; ok {
		return v
	}
	if v, ok := n.Options[o.Name]; ok {
		return v
	}
	return o.Default
}

// Refuse returns an error that refuses the option's value for a network.
func (o Option) Refuse(n Network, why string, args ...any) error {
	return Refuse("%s=%s: %s", o.Name, o.Of(n), fmt.Sprintf(why, args...))
}

// An Objection is a reason to refuse an option's value, if it holds.
type Objection struct {
	option Option
	holds  bool
	why    string
}

// If returns an objection to the option's value.
func (o Option) If(holds bool, why string, args ...any) Objection {
	return Objection{o, holds, fmt.Sprintf(why, args...)}
}

// Refuse returns an error for the first objection that holds; nil: none does.
func (n Network) Refuse(all ...Objection) error {
	for _, o := range all {
		if o.holds {
			return o.option.Refuse(n, "%s", o.why)
		}
	}
	return nil
}

// Given returns the value that was given for an option, at creation or by a change; empty: none was.
func (n Network) Given(name string) string { return Option{Name: name}.Of(n) }

// Metric returns the number at the end of an interface's name as route metric: the default route of eth0 is used before
// that of eth1, in whatever order they were attached. Runtimes attach the networks of a container at the same time.
func Metric(ifName string) int {
	const most = 10000
	n := 0
	for _, c := range strings.TrimLeft(ifName, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_.-") {
		if c < '0' || c > '9' || n > most {
			return most
		}
		n = n*10 + int(c-'0')
	}
	return n
}
