package lan

import (
	"netyard/kernel/core"
	"netyard/kernel/rule"
)

// Sets are those that are about links on parents.
func Sets() []rule.Set { return returnSets() }

// Names are the links that it is.
func (c Child) Names() []string { return []string{c.Name} }

// Names are the links that it is.
func (i Island) Names() []string { return []string{i.Name} }

// Names are the links that it is.
func (v VLAN) Names() []string { return []string{v.Name} }

// Names are the links that it is.
func (s Shim) Names() []string { return []string{s.Name} }

// HostLink is the link by which the host sees the endpoint: the parent.
func (c Child) HostLink() string { return c.Parent.Name }

// Plugged says whether the sandbox has the link.
func (c Child) Plugged(*core.Handle) (bool, error) { return core.InSandbox(c.Sandbox, c.Alias) }

// Key is the element that it is: what that maps to is not known from the records.
func (r Return) Key() (set rule.SetName, key string) {
	return rule.Either(r.Route.Dst.Is6(), back4, back6), string(r.Route.Dst.AsSlice())
}
