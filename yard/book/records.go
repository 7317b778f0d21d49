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
	return Pick("network", ref, ns, func(n modes.Network) []string { return []string{n.ID} },
		func(n modes.Network) bool { return n.Name == ref })
}

// FindEndpointIn finds an endpoint by its ID, its container's name or ID, or a prefix of one of the IDs: among those of
// a network, as for FindNetwork, or of all networks if that is empty.
func (y *Book) FindEndpointIn(network, ref string) (modes.Endpoint, error) {
	if network != "" {
		n, err := y.FindNetwork(network)
		if err != nil {
			return modes.Endpoint{}, err
		}
		network = n.ID
	}
	es, err := y.EndpointsOf(network)
	if err != nil {
		return modes.Endpoint{}, err
	}
	return Pick("endpoint", ref, es, func(e modes.Endpoint) []string { return []string{e.ID, e.Container.ID} },
		func(e modes.Endpoint) bool { return e.Container.Called(ref) })
}

// Pick finds one item by its ID, its name or a prefix of one of its IDs, of which the first is its own.
func Pick[T any](kind, ref string, all []T, ids func(T) []string, named func(T) bool) (found T, err error) {
	matches := make([][]T, 1+len(ids(found))) // by name, then by prefixes of each ID
	for _, v := range all {
		of := ids(v)
		if of[0] == ref {
			return v, nil
		}
		if ref != "" && named(v) {
			matches[0] = append(matches[0], v)
		}
		for i, id := range of {
			if ref != "" && strings.HasPrefix(id, ref) {
				matches[i+1] = append(matches[i+1], v)
			}
		}
	}
	for _, m := range matches {
		if len(m) == 1 {
			return m[0], nil
		} else if len(m) > 1 {
			return found, ambiguity{fmt.Errorf("%s %q: %d %ss match; use a full ID", kind, ref, len(m), kind)}
		}
	}
	return found, fmt.Errorf("%s %q: %w", kind, ref, ErrNotFound)
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
