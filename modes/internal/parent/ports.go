package parent

import (
	"net/netip"

	"netyard/kernel"
	"netyard/modes"
)

// Publishes: every network of the kind does, on its containers' own addresses.
func (m Mode) Publishes(modes.Network) error { return nil }

// Binds: none of the host's addresses.
func (m Mode) Binds(modes.Network) []netip.Addr { return nil }

// Redirects: what is for a container does not come by the host.
func (m Mode) Redirects(modes.Network) bool { return true }

// Both: the ports are the container's alone.
func (m Mode) Both(modes.Network) bool { return false }

// redirects are the ports of an endpoint's own address. Its neighbours' packets come by the sandbox's rules in any case.
func (m Mode) redirects(n modes.Network, e modes.Endpoint) []kernel.Object {
	objects := e.Redirects()
	for _, o := range objects {
		if r, ok := o.(kernel.Redirect); ok && m.Kind.ByInput != nil && m.Kind.ByInput(n) {
			for _, el := range r.OnHost() {
				objects = append(objects, el)
			}
		}
	}
	return objects
}
