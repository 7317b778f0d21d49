package lan

import (
	"netyard/kernel/core"
	"netyard/kernel/rule"
)

// Sets returns the sets about links on parents.
func Sets() []rule.Set { return returnSets() }

// Names returns the name of the link.
func (c Child) Names() []string { return []string{c.Name} }

// Names returns the name of the link.
func (i IsolatedParent) Names() []string { return []string{i.Name} }

// Names returns the name of the link.
func (v VLAN) Names() []string { return []string{v.Name} }

// Names returns the name of the link.
func (s Shim) Names() []string { return []string{s.Name} }

// HostLink returns the link by which the host sees the endpoint: the parent.
func (c Child) HostLink() string { return c.Parent.Name }

// Plugged reports whether the sandbox has the link.
func (c Child) Plugged(*core.Handle) (bool, error) { return core.InSandbox(c.Sandbox, c.NS, c.Alias) }

// Key returns the set and the key of the element; its value is not known from the records.
func (r ReturnNAT) Key() (set rule.SetName, key string) {
	return rule.ByFamily(r.Route.Dst.Is6(), back4, back6), string(r.Route.Dst.AsSlice())
}
