package modes

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/xrash/smetrics"
)

const (
	// modeOption is the option that names the mode, for doors that serve several.
	modeOption = "mode"
	// DefaultMode is the mode of a network for which none is named.
	DefaultMode = "bridge"
)

// A Table has the options of all modes, by name. It is made once and then only read.
type Table struct{ rows, endpoint []Option }

// NewTable joins the rows of all modes.
func NewTable(ms map[string]Mode) *Table {
	names := slices.Sorted(maps.Keys(ms))
	rows := map[string]Option{modeOption: {
		Name: modeOption, Kind: Enum, Values: names, Default: DefaultMode,
		Fixed: "it would be another kind of network; recreate the network",
		Help:  "mode of the network, for -d netyard; the other driver names contain it",
	}}
	for _, name := range names {
		for _, o := range ms[name].Options() {
			o.Modes = slices.Concat(rows[o.Name].Modes, []string{name})
			rows[o.Name] = o
		}
	}
	t := &Table{}
	for _, name := range slices.Sorted(maps.Keys(rows)) {
		t.rows = append(t.rows, rows[name])
		if rows[name].Endpoint {
			t.endpoint = append(t.endpoint, rows[name])
		}
	}
	return t
}

// Contradiction returns an option that two modes describe differently; empty: there is none.
func Contradiction(ms map[string]Mode) string {
	rows := map[string]Option{}
	for _, m := range ms {
		for _, o := range m.Options() {
			if had, ok := rows[o.Name]; ok && !reflect.DeepEqual(had, o) {
				return o.Name
			}
			rows[o.Name] = o
		}
	}
	return ""
}

// Options returns the rows, by name.
func (t *Table) Options() []Option { return slices.Clone(t.rows) }

// row finds an option by its name; the zero Option: there is none.
func (t *Table) row(name string) Option {
	at := slices.IndexFunc(t.rows, func(o Option) bool { return o.Name == name })
	if at < 0 {
		return Option{}
	}
	return t.rows[at]
}

// Resolve returns the given options by their canonical names. It refuses, by name, what is unknown (and names the
// nearest known one), ill-typed, of another mode, or given twice with two values.
func (t *Table) Resolve(mode string, given map[string]string) (map[string]string, error) {
	return resolve(t.rows, mode, given)
}

// ResolveEndpoint resolves the options of one endpoint, as Resolve does those of a network: docker network connect
// --driver-opt, and driver_opts of compose.
func (t *Table) ResolveEndpoint(mode string, given map[string]string) (map[string]string, error) {
	table, err := t.ofEndpoints(mode, given)
	if err != nil {
		return nil, err
	}
	opts, err := resolve(table, mode, given)
	if err != nil {
		return nil, fmt.Errorf("endpoint: %w", err)
	}
	return opts, nil
}

// ofEndpoints returns the options that can be given for one endpoint, and refuses those that are a network's.
func (t *Table) ofEndpoints(mode string, given map[string]string) ([]Option, error) {
	for _, key := range slices.Sorted(maps.Keys(given)) {
		if o, err := find(t.rows, mode, key); err == nil && !o.Endpoint {
			return nil, Refuse("%s is a network option, not an endpoint option", key)
		}
	}
	return t.endpoint, nil
}

func resolve(table []Option, mode string, given map[string]string) (map[string]string, error) {
	out := make(map[string]string, len(given))
	from := make(map[string]string, len(given))
	for _, key := range slices.Sorted(maps.Keys(given)) {
		o, err := find(table, mode, key)
		if err != nil {
			return nil, err
		}
		v, err := o.parse(key, given[key])
		if err != nil {
			return nil, err
		}
		if old, ok := out[o.Name]; ok && old != v {
			other := from[o.Name]
			return nil, Refuse("%s=%s contradicts %s=%s", key, given[key], other, given[other])
		}
		out[o.Name], from[o.Name] = v, key
	}
	return out, nil
}

func find(table []Option, mode, key string) (Option, error) {
	var known []string
	for _, o := range table {
		names := append([]string{o.Name}, o.Docker...)
		of := o.Modes == nil || slices.Contains(o.Modes, mode)
		if slices.Contains(names, key) {
			if !of {
				return o, Refuse("%s is not an option of mode %s, but of %s",
					key, mode, strings.Join(o.Modes, ", "))
			}
			return o, nil
		}
		if of {
			known = append(known, names...)
		}
	}
	if near := Nearest(key, known); near != "" {
		return Option{}, Refuse("unknown option %s for mode %s; did you mean %s?", key, mode, near)
	}
	return Option{}, Refuse("unknown option %s for mode %s", key, mode)
}

// Nearest returns the known name that a misspelt word most likely means; empty: none is close.
func Nearest(word string, known []string) string {
	best, dist := "", len(word)/3+2
	for _, k := range known {
		if d := smetrics.WagnerFischer(word, k, 1, 1, 1); d < dist {
			best, dist = k, d
		}
	}
	return best
}
