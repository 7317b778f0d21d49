package yard

import (
	"errors"
	"fmt"
	"strings"

	"netyard/modes"
	"netyard/store"
)

var (
	networks  = store.Bucket[modes.Network]{Name: "networks"}
	endpoints = store.Bucket[modes.Endpoint]{Name: "endpoints"}
)

// endpointKey keeps the endpoints of a network together.
func endpointKey(network, id string) string { return network + "/" + id }

// Network returns the record of a network.
func (y *Yard) Network(id string) (n modes.Network, err error) {
	err = y.c.Store.View(func(tx store.Tx) error {
		n, err = getNetwork(tx, id)
		return err
	})
	return n, err
}

func getNetwork(tx store.Tx, id string) (modes.Network, error) {
	n, err := networks.Get(tx, id)
	if errors.Is(err, store.ErrNotFound) {
		return n, fmt.Errorf("network %s: %w", modes.Short(id), ErrNotFound)
	}
	return n, err
}

// Networks returns the records of all networks, by id.
func (y *Yard) Networks() (ns []modes.Network, err error) {
	err = y.c.Store.View(func(tx store.Tx) error {
		ns, err = networks.List(tx, "")
		return err
	})
	return ns, err
}

// FindNetwork finds a network by its name, its id or the beginning of its id.
func (y *Yard) FindNetwork(ref string) (modes.Network, error) {
	ns, err := y.Networks()
	if err != nil {
		return modes.Network{}, err
	}
	return pick("network", ref, ns, func(n modes.Network) (string, string) { return n.ID, n.Name })
}

// FindEndpoint finds an endpoint by its id, the beginning of its id, or its container's name.
func (y *Yard) FindEndpoint(ref string) (modes.Endpoint, error) {
	es, err := y.Endpoints()
	if err != nil {
		return modes.Endpoint{}, err
	}
	return pick("endpoint", ref, es, func(e modes.Endpoint) (string, string) { return e.ID, e.Container.Name })
}

// FindEndpointIn is FindEndpoint among those of one network, said as to FindNetwork; empty: of all.
func (y *Yard) FindEndpointIn(network, ref string) (modes.Endpoint, error) {
	if network == "" {
		return y.FindEndpoint(ref)
	}
	n, err := y.FindNetwork(network)
	if err != nil {
		return modes.Endpoint{}, err
	}
	es, err := y.endpointsOf(n.ID)
	if err != nil {
		return modes.Endpoint{}, err
	}
	return pick("endpoint", ref, es, func(e modes.Endpoint) (string, string) { return e.ID, e.Container.Name })
}

func pick[T any](kind, ref string, all []T, names func(T) (id, name string)) (found T, err error) {
	var named, begun []T
	for _, v := range all {
		id, name := names(v)
		switch {
		case id == ref:
			return v, nil
		case ref == "":
		case name == ref:
			named = append(named, v)
		case strings.HasPrefix(id, ref):
			begun = append(begun, v)
		}
	}
	matches := named
	if len(matches) == 0 { // who says a name does not mean an id that begins so
		matches = begun
	}
	switch len(matches) {
	case 0:
		return found, fmt.Errorf("%s %q: %w", kind, ref, ErrNotFound)
	case 1:
		return matches[0], nil
	}
	return found, fmt.Errorf("%s %q: %d of them match; %w", kind, ref, len(matches), ErrAmbiguous)
}

// Endpoint returns the record of an endpoint.
func (y *Yard) Endpoint(network, id string) (e modes.Endpoint, err error) {
	err = y.c.Store.View(func(tx store.Tx) error {
		e, err = getEndpoint(tx, network, id)
		return err
	})
	return e, err
}

func getEndpoint(tx store.Tx, network, id string) (modes.Endpoint, error) {
	e, err := endpoints.Get(tx, endpointKey(network, id))
	if errors.Is(err, store.ErrNotFound) {
		return e, fmt.Errorf("endpoint %s of network %s: %w", modes.Short(id), modes.Short(network), ErrNotFound)
	}
	return e, err
}

func putEndpoint(tx store.Tx, e modes.Endpoint) error {
	if err := setClaims(tx, e); err != nil {
		return err
	}
	if err := setPortClaims(tx, e); err != nil {
		return err
	}
	return endpoints.Put(tx, endpointKey(e.NetworkID, e.ID), e)
}

func eraseEndpoint(tx store.Tx, e modes.Endpoint) error {
	e.Phase = modes.Deleting
	if err := errors.Join(setClaims(tx, e), dropAttachment(tx, e)); err != nil {
		return err
	}
	if err := setPortClaims(tx, e); err != nil {
		return err
	}
	key := endpointKey(e.NetworkID, e.ID)
	return errors.Join(keeps.Delete(tx, key), endpoints.Delete(tx, key))
}

// Endpoints returns the records of all endpoints, those of a network together.
func (y *Yard) Endpoints() (es []modes.Endpoint, err error) { return y.endpointsOf("") }

func (y *Yard) endpointsOf(network string) (es []modes.Endpoint, err error) {
	prefix := ""
	if network != "" {
		prefix = endpointKey(network, "")
	}
	err = y.c.Store.View(func(tx store.Tx) error {
		es, err = endpoints.List(tx, prefix)
		return err
	})
	return es, err
}
