package kernel

import (
	"errors"
	"log/slog"
	"slices"
	"sort"
	"strings"
	"sync/atomic"

	"github.com/vishvananda/netns"

	"netyard/kernel/beside"
	"netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/kernel/device"
	"netyard/kernel/gso"
	"netyard/kernel/lan"
	"netyard/kernel/ndp"
	"netyard/kernel/nft"
	"netyard/kernel/others"
	"netyard/kernel/overlay"
	"netyard/kernel/policy"
	"netyard/kernel/ports"
	"netyard/kernel/rule"
)

// A Kernel is the kernel's network configuration in one network namespace: it makes, removes and compares objects, and
// maintains the ruleset. Operations on one subject are functions of that subject's package, which take the Handle.
type Kernel struct {
	*core.Handle

	// foreignChange says that rules which are not netyard's have changed: the watcher then empties the sets of admitted
	// clients, where the host's firewall decides about published ports.
	foreignChange atomic.Bool
}

func open(log *slog.Logger, ns, threads netns.NsHandle) (*Kernel, error) {
	h, err := core.Open(log, ns, threads)
	if err != nil {
		return nil, err
	}
	if err := nft.Open(h, ruleset(h)); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return &Kernel{Handle: h}, nil
}

// Snapshot reads the state of the kernel, to be compared with what is wanted.
func (k *Kernel) Snapshot() (*Snapshot, error) {
	s, err := k.look(true)
	if err != nil {
		return nil, err
	}
	loops, err := ports.LoopRouteFaults(k.Handle)
	if err != nil {
		return nil, err
	}
	rules, err := nft.Of(k.Handle).AuditRules()
	s.rules = slices.Concat(rules, loops)
	return s, err
}

// LinkSnapshot is Snapshot without the firewall, which the watcher restores itself: the snapshot has no faults of it.
func (k *Kernel) LinkSnapshot() (*Snapshot, error) { return k.look(false) }

// FaultsOf describes each of some objects that is missing or different, without the firewall, as LinkSnapshot does, and
// returns how much was read. That depends on the objects alone.
func (k *Kernel) FaultsOf(objects []core.Object) (faults []Fault, reads int, err error) {
	v := core.NarrowView(k.Handle)
	faults = (&Snapshot{s: v}).Faults(objects)
	return faults, v.Reads(), v.Err()
}

// look reads everything that faults and strays are looked for in.
func (k *Kernel) look(firewall bool) (*Snapshot, error) {
	v, err := core.NewView(k.Handle, firewall)
	if err != nil {
		return nil, err
	}
	for _, read := range []func(*core.View) error{
		bridge.ReadLimits, ndp.Read, nft.LookAtElements, beside.ReadChains, gso.Look,
	} {
		if err := read(v); err != nil {
			return nil, err
		}
	}
	return &Snapshot{s: v}, nil
}

// Strays returns the things of netyard's in the kernel that belong to none of the known objects. The sets of other
// programs' links are not compared, since they are filled from the links.
func (s *Snapshot) Strays(known []core.Object) []core.Stray {
	return slices.Concat(strayLinks(s.s, known), device.StrayDevices(s.s, known), lan.StrayRoutes(s.s, known),
		nft.Strays(s.s, known, policy.IsSet, others.Filled()...), ndp.Strays(s.s, known))
}

// strayLinks returns the links of netyard's that none of the objects names.
func strayLinks(v *core.View, wanted []core.Object) (strays []core.Stray) {
	want := map[string]bool{}
	for _, o := range wanted {
		if n, ok := o.(interface{ Names() []string }); ok {
			for _, name := range n.Names() {
				want[name] = true
			}
		}
	}
	for name, l := range v.Links() {
		a := l.Attrs()
		if want[name] || !strings.HasPrefix(a.Alias, core.AliasPrefix) && !core.OwnName(name) {
			continue
		}
		if id, inner := strings.CutPrefix(name, core.PeerPrefix); inner && v.Link(core.VethPrefix+id) != nil {
			continue // it is removed with the outer end
		}
		network, _, _ := core.ParseAlias(a.Alias)
		strays = append(strays, core.Stray{Text: "link " + name, Network: network, Drop: func() error {
			if a.Alias != "" {
				return v.Handle.DeleteLink(name, a.Alias)
			}
			return v.Handle.DeleteLink(name, core.AliasPrefix)
		}})
	}
	sort.Slice(strays, func(i, j int) bool { return strays[i].Text < strays[j].Text })
	return strays
}

// Plugged reports whether a sandbox has the link of an endpoint; o is the object that plugs it in.
func (k *Kernel) Plugged(o core.Object) (bool, error) {
	if p, ok := o.(interface {
		Plugged(k *core.Handle) (bool, error)
	}); ok {
		return p.Plugged(k.Handle)
	}
	return false, nil
}

// ruleset returns netyard's ruleset, which depends on what the host can do and how it is configured.
func ruleset(h *core.Handle) rule.Ruleset {
	return rule.Ruleset{Sets: allSets(), Chains: func(b rule.SetBook) [][]rule.Chain {
		own := inetChains(b, beside.RestrictedOf(h), ports.HostFirewallDecides(h))
		inet := slices.Concat(own, policy.Chains(b), overlay.Chains(b))
		return [][]rule.Chain{inet, bridgeChains(b, nft.Of(h).Conntrack)}
	}}
}

// allSets returns the sets of both tables.
func allSets() []rule.Set {
	return slices.Concat(ports.Sets(), lan.Sets(), bridge.Sets(), others.Sets(), policy.Sets(),
		overlay.Sets())
}
