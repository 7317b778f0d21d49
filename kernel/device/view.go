package device

import (
	"fmt"

	"netyard/kernel/core"
)

func spacesOf(k *core.Handle) *spaces { return core.Kept[spaces](k) }

// HostLink is the link by which the host sees the endpoint.
func (d Device) HostLink() string { return d.Name }

// Plugged says whether the sandbox has the card. The sandbox is kept from then on, since some engines make it only
// after they have asked for the card.
func (d Device) Plugged(k *core.Handle) (bool, error) {
	if err := spacesOf(k).hold(d.alias(), d.Sandbox); err != nil {
		return false, fmt.Errorf("keep the sandbox of %s: %w", d, err)
	}
	return d.inside(k)
}
