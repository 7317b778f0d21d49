package book

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"netyard/modes"
	"netyard/store"
	"netyard/yard/index"
)

// Networks and Endpoints have the records of networks and endpoints.
var (
	Networks  = store.Bucket[modes.Network]{Name: "networks"}
	Endpoints = store.Bucket[modes.Endpoint]{Name: "endpoints"}
)

// EndpointKey returns the key of an endpoint. It begins with the network, so the endpoints of a network are together.
func EndpointKey(network, id string) string { return index.Key(network, id) }

// Network returns the record of a network.
func (y *Book) Network(id string) (n modes.Network, err error) {
	err = y.Config.Store.View(func(tx store.Tx) error {
		n, err = GetNetwork(tx, id)
		return err
	})
	return n, err
}

// GetNetwork reads the record of a network.
func GetNetwork(tx store.Tx, id string) (modes.Network, error) {
	n, err := Networks.Get(tx, id)
	if errors.Is(err, store.ErrNotFound) {
		return n, noNetwork(id)
	}
	return n, err
}

// noNetwork says that a network does not exist.
func noNetwork(id string) error { return fmt.Errorf("network %s: %w", modes.Short(id), ErrNotFound) }

// Networks returns the records of all networks, sorted by ID.
func (y *Book) Networks() (ns []modes.Network, err error) {
	err = y.Config.Store.View(func(tx store.Tx) error {
		ns, err = Networks.List(tx, "")
		return err
	})
	return ns, err
}

// FindNetwork finds a network by its name, its ID or a prefix of its ID.
func (y *Book) FindNetwork(ref string) (modes.Network, error) {
	ns, err := y.Networks()
	if err != nil {
		return modes.Network{}, err
	}
	return Pick("network", ref, ns, func(n modes.Network) (string, string) { return n.ID, n.Name })
}

// FindEndpoint finds an endpoint by its ID, a prefix of its ID, or its container's name.
func (y *Book) FindEndpoint(ref string) (modes.Endpoint, error) {
	es, err := y.Endpoints()
	if err != nil {
		return modes.Endpoint{}, err
	}
	return Pick("endpoint", ref, es, func(e modes.Endpoint) (string, string) { return e.ID, e.Container.Name })
}

// FindEndpointIn finds an endpoint of one network, as FindEndpoint does of all. network is as for FindNetwork; empty:
// all networks.
func (y *Book) FindEndpointIn(network, ref string) (modes.Endpoint, error) {
	if network == "" {
		return y.FindEndpoint(ref)
	}
	n, err := y.FindNetwork(network)
	if err != nil {
		return modes.Endpoint{}, err
	}
	es, err := y.EndpointsOf(n.ID)
	if err != nil {
		return modes.Endpoint{}, err
	}
	return Pick("endpoint", ref, es, func(e modes.Endpoint) (string, string) { return e.ID, e.Container.Name })
}

// Pick finds one item by its name, its ID or a prefix of its ID.
func Pick[T any](kind, ref string, all []T, names func(T) (id, name string)) (found T, err error) {
	var named, prefixed []T
	for _, v := range all {
		id, name := names(v)
		switch {
		case id == ref:
			return v, nil
		case ref == "":
		case name == ref:
			named = append(named, v)
		case strings.HasPrefix(id, ref):
			prefixed = append(prefixed, v)
		}
	}
	matches := named
	if len(matches) == 0 { // a name has precedence over ID prefixes
		matches = prefixed
	}
	switch len(matches) {
	case 0:
		return found, fmt.Errorf("%s %q: %w", kind, ref, ErrNotFound)
	case 1:
		return matches[0], nil
	}
	return found, ambiguity{fmt.Errorf("%s %q: %d %ss match; use a full ID", kind, ref, len(matches), kind)}
}

// An ambiguity is an ErrAmbiguous that says how many match, and no more.
type ambiguity struct{ error }

func (ambiguity) Is(target error) bool { return target == ErrAmbiguous }

// LogOf returns the log with the keys of a network, whose name is empty if it is not known.
func (y *Book) LogOf(network string) *slog.Logger {
	n, _ := y.Network(network) // without a record there is no name
	return y.Config.Log.With("network", n.Name, "network_id", network)
}

// Endpoint returns the record of an endpoint.
func (y *Book) Endpoint(network, id string) (e modes.Endpoint, err error) {
	err = y.Config.Store.View(func(tx store.Tx) error {
		e, err = GetEndpoint(tx, network, id)
		return err
	})
	return e, err
}

// GetEndpoint reads the record of an endpoint.
func GetEndpoint(tx store.Tx, network, id string) (modes.Endpoint, error) {
	e, err := Endpoints.Get(tx, EndpointKey(network, id))
	if errors.Is(err, store.ErrNotFound) {
		return e, NoEndpoint(network, id)
	}
	return e, err
}

// NoEndpoint says that an endpoint does not exist.
func NoEndpoint(network, id string) error {
	return fmt.Errorf("endpoint %s of network %s: %w", modes.Short(id), modes.Short(network), ErrNotFound)
}

// PutEndpoint records an endpoint with its claims, in place of the record that it finds. If the endpoint is held, use
// Held.Change.
func PutEndpoint(tx store.Tx, e modes.Endpoint) error {
	was, err := GetEndpoint(tx, e.NetworkID, e.ID)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	return replaceEndpoint(tx, was, e)
}

// replaceEndpoint records an endpoint with its claims, in place of its former record; without an ID: it had none.
func replaceEndpoint(tx store.Tx, was, is modes.Endpoint) error {
	if err := setClaims(tx, is); err != nil {
		return err
	}
	if err := setPortClaims(tx, was, is); err != nil {
		return err
	}
	if err := index.Replace(tx, was, is); err != nil {
		return err
	}
	return Endpoints.Put(tx, EndpointKey(is.NetworkID, is.ID), is)
}

// EraseEndpoint deletes the record of an endpoint with its claims. e is the record, so the endpoint must be held.
func EraseEndpoint(tx store.Tx, e modes.Endpoint) error {
	was := e
	e.Phase = modes.Deleting
	if err := errors.Join(setClaims(tx, e), DropAttachment(tx, e)); err != nil {
		return err
	}
	if err := errors.Join(setPortClaims(tx, e, e), index.Replace(tx, was, e)); err != nil {
		return err
	}
	key := EndpointKey(e.NetworkID, e.ID)
	return errors.Join(Keeps.Delete(tx, key), Endpoints.Delete(tx, key))
}

// Endpoints returns the records of all endpoints, grouped by network.
func (y *Book) Endpoints() (es []modes.Endpoint, err error) { return y.EndpointsOf("") }

// EndpointsOf returns the records of the endpoints of a network; empty: of all.
func (y *Book) EndpointsOf(network string) (es []modes.Endpoint, err error) {
	prefix := ""
	if network != "" {
		prefix = EndpointKey(network, "")
	}
	err = y.Config.Store.View(func(tx store.Tx) error {
		es, err = Endpoints.List(tx, prefix)
		return err
	})
	return es, err
}
