package overlay

import (
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"netyard/kernel/core"
	"netyard/kernel/rule"
)

// Sets returns the sets about networks across hosts.
func Sets() []rule.Set { return append(vtepSets(), tunnelSets()...) }

// Chains returns the chains about networks across hosts.
func Chains(b rule.SetBook) []rule.Chain { return append(vtepChains(b), tunnelChains(b)...) }

// Names returns the name of the link.
func (v VXLAN) Names() []string { return []string{v.Name} }

// Names returns the name of the link.
func (WireGuard) Names() []string { return []string{core.TunnelName} }

// found is the state of the WireGuard device, or why there is none.
type found struct {
	device *wgtypes.Device
	err    error
}

// tunnelIn returns the state of the WireGuard device; a view reads it once. That the link is another program's device
// is no failure of the view: Check says so.
func tunnelIn(v *core.View) (*wgtypes.Device, error) {
	f, _ := core.Dump(v, func(v *core.View) (found, error) {
		device, err := tunnel(v.Handle)
		return found{device, err}, nil
	})
	return f.device, f.err
}
