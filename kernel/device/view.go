package device

import (
	"fmt"

	"netyard/kernel/core"
)

func namespacesOf(k *core.Handle) *namespaces { return core.Stored[namespaces](k) }

// HostLink returns the name of the endpoint's link on the host.
func (d Device) HostLink() string { return d.Name }

// Plugged reports whether the sandbox has the card. It opens the sandbox, which Ensure could not do if the engine makes
// the sandbox only after it has asked for the card.
func (d Device) Plugged(k *core.Handle) (bool, error) {
	if err := namespacesOf(k).open(d); err != nil {
		return false, fmt.Errorf("open the sandbox of %s: %w", d, err)
	}
	return d.inside(k)
}
