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
	"netyard/kernel/lan"
	"netyard/kernel/nft"
	"netyard/kernel/overlay"
	"netyard/kernel/policy"
	"netyard/kernel/ports"
	"netyard/kernel/rule"
)

// A Kernel is the network side of one network namespace: objects are made, removed and compared by it, and it keeps the
// ruleset. What is asked about one subject is in that subject's package, which takes the Handle.
type Kernel struct {
	*core.Handle

	// unsure says that somebody's rules changed: the watcher has the host's firewall asked anew, where it decides.
	unsure atomic.Bool
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

// Snapshot looks at the kernel, to be compared with what is wanted.
func (k *Kernel) Snapshot() (*Snapshot, error) {
	s, err := k.look(true)
	if err != nil {
		return nil, err
	}
	loops, err := ports.LoopFaults(k.Handle)
	if err != nil {
		return nil, err
	}
	rules, err := nft.Of(k.Handle).AuditRules()
	s.rules = slices.Concat(rules, loops)
	return s, err
}

// LinkSnapshot is a Snapshot without the firewall, which the watcher keeps itself: nothing of that is at fault.
func (k *Kernel) LinkSnapshot() (*Snapshot, error) { return k.look(false) }

// look takes a view of all that strays are looked for in.
func (k *Kernel) look(firewall bool) (*Snapshot, error) {
	v, err := core.Look(k.Handle, firewall)
	if err != nil {
		return nil, err
	}
	for _, at := range []func(*core.View) error{bridge.LookAtLimits, bridge.LookAtProxies, nft.LookAtElements, beside.LookAtChains} {
		if err := at(v); err != nil {
			return nil, err
		}
	}
	return &Snapshot{s: v}, nil
}

// Strays are the things of netyard's that are none of the known ones. The sets of other managers' bridges are filled
// from the links.
func (s *Snapshot) Strays(known []core.Object) []core.Stray {
	return slices.Concat(strayLinks(s.s, known), device.StrayDevices(s.s, known), lan.StrayRoutes(s.s, known),
		nft.Strays(s.s, known, policy.IsSet, bridge.Foreign, bridge.Same), bridge.StrayProxies(s.s, known))
}

// strayLinks are the links of netyard's that are none of the wanted.
func strayLinks(v *core.View, wanted []core.Object) (strays []core.Stray) {
	want := map[string]bool{}
	for _, o := range wanted {
		if n, ok := o.(interface{ Names() []string }); ok {
			for _, name := range n.Names() {
				want[name] = true
			}
		}
	}
	for name, l := range v.Links {
		a := l.Attrs()
		if want[name] || !strings.HasPrefix(a.Alias, core.AliasPrefix) && !core.OwnName(name) {
			continue
		}
		if id, inner := strings.CutPrefix(name, core.PeerPrefix); inner && v.Links[core.VethPrefix+id] != nil {
			continue // it shares the outer end's fate
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

// Plugged says whether a sandbox has an endpoint's link.
func (k *Kernel) Plugged(o core.Object) (bool, error) {
	if p, ok := o.(interface {
		Plugged(k *core.Handle) (bool, error)
	}); ok {
		return p.Plugged(k.Handle)
	}
	return false, nil
}

// ruleset is netyard's, for what the host is like.
func ruleset(h *core.Handle) rule.Ruleset {
	return rule.Ruleset{Sets: allSets(), Chains: func(b rule.Book) [][]rule.Chain {
		inet := slices.Concat(inetChains(b, *beside.RestrictedOf(h), ports.ObeysHostFirewall(h)), policy.Chains(b), overlay.Chains(b))
		return [][]rule.Chain{inet, bridgeChains(b, nft.Of(h).Conntrack)}
	}}
}

// allSets are the sets of both tables.
func allSets() []rule.Set {
	return slices.Concat(ports.Sets(), lan.Sets(), bridge.Sets(), policy.Sets(), overlay.Sets())
}
