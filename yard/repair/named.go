package repair

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"

	"netyard/kernel"
	"netyard/kernel/core"
	"netyard/modes"
	"netyard/yard"
	"netyard/yard/book"
)

// A scope is what changes were about: parts of networks.
type scope struct {
	y *yard.Yard
	// by are the parts, by the ID of the network.
	by map[string]*part
}

// A part of a network: its own objects, and those of some of its endpoints.
type part struct {
	network   modes.Network
	own       bool
	all       bool // with all of its endpoints
	endpoints map[string]bool
}

// Named checks what changes of some links may have affected, and repairs the networks with drift. What it reads
// of records and kernel does not depend on what else there is, but for the records of networks if a link is not
// netyard's.
func Named(ctx context.Context, y *yard.Yard, links ...core.LinkID) error {
	s := scope{y, map[string]*part{}}
	var foreign []core.LinkID
	for _, l := range links {
		ours, err := s.addOwn(l)
		if err != nil {
			return err
		}
		if !ours {
			foreign = append(foreign, l)
		}
	}
	if err := s.addDependents(foreign); err != nil {
		return err
	}
	var errs []error
	for _, id := range slices.Sorted(maps.Keys(s.by)) {
		drifted, err := s.drifted(s.by[id])
		if err == nil && drifted {
			err = repairNetwork(ctx, y, id)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// addOwn adds what a link's alias names. ours is false if it names no network.
func (s scope) addOwn(l core.LinkID) (ours bool, err error) {
	network, endpoint, ok := core.ParseAlias(l.Alias)
	if !ok {
		return false, nil
	}
	p, err := s.part(network)
	if errors.Is(err, book.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if endpoint == "" {
		p.own = true
	} else {
		p.endpoints[endpoint] = true
	}
	return true, nil
}

func (s scope) part(id string) (*part, error) {
	if p := s.by[id]; p != nil {
		return p, nil
	}
	n, err := s.y.Network(id)
	if err != nil {
		return nil, err
	}
	return s.add(n), nil
}

func (s scope) add(n modes.Network) *part {
	if s.by[n.ID] == nil {
		s.by[n.ID] = &part{network: n, endpoints: map[string]bool{}}
	}
	return s.by[n.ID]
}

// addDependents adds the networks that depend on links which are not netyard's.
func (s scope) addDependents(links []core.LinkID) error {
	if len(links) == 0 {
		return nil
	}
	ns, err := s.y.Networks()
	if err != nil {
		return err
	}
	for _, n := range ns {
		if m, err := s.y.Mode(n.Mode); err == nil && dependsOn(n, s.y.Plan().Objects(m, n), links) {
			s.add(n).all = true
		}
	}
	return nil
}

// dependsOn reports whether a network depends on one of the links: an option names it, or an object of the network's
// says so.
func dependsOn(n modes.Network, objects []core.Object, links []core.LinkID) bool {
	for _, l := range links {
		names := func(option string) bool { return slices.Contains(strings.Split(option, ","), l.Name) }
		if slices.ContainsFunc(slices.Collect(maps.Values(n.Options)), names) ||
			slices.ContainsFunc(slices.Collect(maps.Values(n.Changed)), names) {
			return true
		}
	}
	return slices.ContainsFunc(objects, func(o core.Object) bool {
		d, ok := o.(core.Dependent)
		return ok && slices.ContainsFunc(links, d.DependsOn)
	})
}

// drifted reports whether an object of a part has a fault that Ensure can repair.
func (s scope) drifted(p *part) (bool, error) {
	m, err := s.y.Mode(p.network.Mode)
	if err != nil || p.network.Phase != modes.Ready {
		return false, nil //nolint:nilerr // this daemon does not know the mode
	}
	if p.all {
		objects, err := PlanOf(s.y, p.network)
		if err != nil {
			return false, err
		}
		return s.faulty(objects)
	}
	var objects []core.Object
	if p.own {
		objects = s.y.Plan().Objects(m, p.network)
	}
	for id := range p.endpoints {
		e, err := s.y.Endpoint(p.network.ID, id)
		if errors.Is(err, book.ErrNotFound) {
			continue
		}
		if err != nil {
			return false, err
		}
		for _, e := range book.JoinedOf([]modes.Endpoint{e}) {
			objects = append(objects, s.y.Plan().ObjectsOf(m, p.network, e)...)
		}
	}
	return s.faulty(objects)
}

func (s scope) faulty(objects []core.Object) (bool, error) {
	faults, _, err := s.y.Config.Kernel.FaultsOf(objects)
	return err == nil && slices.ContainsFunc(faults, func(f kernel.Fault) bool { return f.Object >= 0 && !f.Lost }), err
}
