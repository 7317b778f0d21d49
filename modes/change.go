package modes

import (
	"errors"
	"fmt"
	"maps"
	"slices"
)

// Now returns the options in effect: those the network was created with, and those changed in place since.
func (n Network) Now() map[string]string {
	now := maps.Clone(n.Options)
	if now == nil {
		now = map[string]string{}
	}
	maps.Copy(now, n.Changed)
	maps.DeleteFunc(now, func(_, v string) bool { return v == "" })
	return now
}

// Change returns the network with options changed in place; an empty value means the default. It refuses what Resolve
// refuses, and options that cannot be changed, with the reason. Options stays what the engine asked for, since it may
// ask again.
func (t *Table) Change(n Network, given map[string]string) (Network, error) {
	changed, err := change(t.rows, n.Mode, given)
	if err != nil {
		return n, err
	}
	n.Changed = maps.Clone(n.Changed)
	if n.Changed == nil {
		n.Changed = map[string]string{}
	}
	for name, v := range changed {
		was, said := n.Options[name]
		if !said {
			was = t.row(name).Default
		}
		if v == "" {
			v = t.row(name).Default
		}
		if n.Changed[name] = v; v == was {
			delete(n.Changed, name)
		}
	}
	return n, nil
}

// ChangeEndpoint changes options of one endpoint, as Change does of a network; an empty value means the network's.
func (t *Table) ChangeEndpoint(n Network, e Endpoint, given map[string]string) (Endpoint, error) {
	table, err := t.ofEndpoints(n.Mode, given)
	if err != nil {
		return e, err
	}
	changed, err := change(table, n.Mode, given)
	if err != nil {
		return e, fmt.Errorf("endpoint: %w", err)
	}
	e.Options = maps.Clone(e.Options)
	if e.Options == nil {
		e.Options = map[string]string{}
	}
	maps.Copy(e.Options, changed)
	maps.DeleteFunc(e.Options, func(_, v string) bool { return v == "" })
	return e, nil
}

// change resolves the options to change; empty values stay empty.
func change(table []Option, mode string, given map[string]string) (map[string]string, error) {
	if len(given) == 0 {
		return nil, Refuse("no option to change")
	}
	said := maps.Clone(given)
	back := map[string]string{}
	var fixed []error
	for _, key := range slices.Sorted(maps.Keys(given)) {
		o, err := find(table, mode, key)
		switch {
		case err != nil:
			return nil, err
		case !o.Set:
			fixed = append(fixed, Refuse("%s cannot be changed in place: %s", key, o.whyFixed()))
		case given[key] == "":
			delete(said, key)
			back[o.Name] = key
		}
	}
	if len(fixed) > 0 {
		return nil, errors.Join(fixed...)
	}
	changed, err := resolve(table, mode, said)
	if err != nil {
		return nil, err
	}
	for name, key := range back {
		if v, ok := changed[name]; ok {
			return nil, Refuse("%s= contradicts %s=%s", key, name, v)
		}
		changed[name] = ""
	}
	return changed, nil
}

func (o Option) whyFixed() string {
	if o.Fixed != "" {
		return o.Fixed
	}
	return "recreate the network"
}
