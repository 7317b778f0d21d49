package overlay

import (
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"netyard/kernel/core"
	"netyard/kernel/rule"
)

// Sets are those that are about networks across hosts.
func Sets() []rule.Set { return append(vtepSets(), tunnelSets()...) }

// Chains are those that are about networks across hosts.
func Chains(b rule.Book) []rule.Chain { return append(vtepChains(b), tunnelChains(b)...) }

// Names are the links that it is.
func (v VXLAN) Names() []string { return []string{v.Name} }

// Names are the links that it is.
func (WireGuard) Names() []string { return []string{core.TunnelName} }

// tunnelIn is the device as WireGuard has it.
func tunnelIn(v *core.View) (*wgtypes.Device, error) {
	return core.Dump(v, func(v *core.View) (*wgtypes.Device, error) { return tunnel(v.Handle) })
}
