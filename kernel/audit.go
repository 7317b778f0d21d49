package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// A snapshot is the kernel at one moment, as far as netyard's objects go.
type snapshot struct {
	k      *Kernel
	links  map[string]netlink.Link
	addrs  map[int][]netlink.Addr
	routes map[int][]netlink.Route
	qdiscs map[int][]netlink.Qdisc
	// redirects has, for links that netyard redirects, the index of where to.
	redirects map[int]int
	// noTable: a table of the ruleset is not there at all.
	noTable    bool
	elements   map[SetName]map[string]content
	dockerUser []dockerUser
	proxies    map[proxyID]bool
	ports      bridgePorts
	tunnel     func() (*wgtypes.Device, error)
}

func (k *Kernel) snapshot() (*snapshot, error) {
	s, err := k.linkSnapshot()
	if err != nil {
		return nil, err
	}
	if s.elements, s.noTable, err = k.fw.dumpElements(); err != nil {
		return nil, err
	}
	s.dockerUser, err = k.fw.dockerUserChains()
	return s, err
}

// linkSnapshot is a snapshot without the firewall: as if there were none.
func (k *Kernel) linkSnapshot() (*snapshot, error) {
	s := &snapshot{
		noTable: true, k: k, links: map[string]netlink.Link{}, addrs: map[int][]netlink.Addr{}, routes: map[int][]netlink.Route{},
		qdiscs: map[int][]netlink.Qdisc{}, redirects: map[int]int{}, ports: k.bridgePorts(), tunnel: k.lazyTunnel(),
	}
	links, err := retry(k.nl.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		s.links[l.Attrs().Name] = l
	}
	addrs, err := retry(func() ([]netlink.Addr, error) { return k.nl.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		s.addrs[a.LinkIndex] = append(s.addrs[a.LinkIndex], a)
	}
	routes, err := retry(func() ([]netlink.Route, error) { return k.nl.RouteList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		s.routes[r.LinkIndex] = append(s.routes[r.LinkIndex], r)
	}
	if err := s.lookAtLimits(); err != nil {
		return nil, err
	}
	s.proxies, err = k.proxies()
	return s, err
}

// A Stray is something of netyard's in the kernel that nobody wants.
type Stray struct {
	Text string
	// Policy: it is an element of policy.
	Policy bool
	// Network is whose it was, if it says so.
	Network string
	remove  func() error
}

// Remove takes the stray away.
func (s Stray) Remove() error { return s.remove() }

// A Fault is something that is not as wanted: one of the objects, by its index, or the ruleset itself (-1).
type Fault struct {
	Object int
	Text   string
	// Lost: Ensure cannot bring it back, since a part of it is in a sandbox.
	Lost bool
	// Late: it could not be made before, since it is in a sandbox that may have been made after the request.
	Late bool
}

// A loser is an object of which a part leaves the host, and does not come back.
type loser interface{ lost(s *snapshot) bool }

// A latecomer is an object in a sandbox, which some engines make only after they have asked for it.
type latecomer interface{ late() }

// Snapshot looks at the kernel, to be compared with what is wanted.
func (k *Kernel) Snapshot() (*Snapshot, error) {
	s, err := k.snapshot()
	if err != nil {
		return nil, err
	}
	loops, err := k.loopFaults()
	if err != nil {
		return nil, err
	}
	rules, err := k.fw.auditRules()
	return &Snapshot{s: s, rules: append(rules, loops...)}, err
}

// LinkSnapshot is a Snapshot without the firewall, which the watcher keeps itself: nothing of that is at fault.
func (k *Kernel) LinkSnapshot() (*Snapshot, error) {
	s, err := k.linkSnapshot()
	return &Snapshot{s: s}, err
}

// A Snapshot is the kernel at one moment.
type Snapshot struct {
	s     *snapshot
	rules []string
}

// Faults are the wanted things that are missing or different, in words.
func (s *Snapshot) Faults(wanted []Object) (faults []Fault) {
	for _, text := range s.rules {
		faults = append(faults, Fault{Object: -1, Text: text})
	}
	seen := map[string]bool{}
	for i, o := range wanted {
		for _, text := range o.check(s.s) {
			if !seen[text] { // several networks want the same of the host
				seen[text] = true
				l, ok := o.(loser)
				_, late := o.(latecomer)
				faults = append(faults, Fault{Object: i, Text: text, Lost: ok && l.lost(s.s), Late: late})
			}
		}
	}
	for b := range ownBypasses() {
		for _, text := range b.check(s.s) {
			faults = append(faults, Fault{Object: -1, Text: text})
		}
	}
	return faults
}

// Strays are the things of netyard's that are none of the known ones.
func (s *Snapshot) Strays(known []Object) []Stray {
	return slices.Concat(s.s.strayLinks(known), s.s.strayDevices(known), s.s.strayRoutes(known), s.s.strayElements(known), s.s.strayProxies(known))
}

// Has says for each alias of netyard's whether a network's or an endpoint's link carries it; a shaper alone is none.
func (k *Kernel) Has() (map[string]bool, error) {
	links, err := retry(k.nl.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	has := map[string]bool{}
	for _, l := range links {
		if a := l.Attrs().Alias; strings.HasPrefix(a, AliasPrefix) && l.Type() != "ifb" {
			has[a] = true
		}
	}
	return has, nil
}

func (s *snapshot) strayLinks(wanted []Object) (strays []Stray) {
	want := map[string]bool{}
	for _, o := range wanted {
		switch o := o.(type) {
		case Bridge:
			want[o.Name] = true
		case Veth:
			want[o.Name], want[o.Peer] = true, true
		case Limits:
			want[o.Shaper] = want[o.Shaper] || o.Egress > 0
		case Child:
			want[o.Name] = true
		case Island:
			want[o.Name] = true
		case VLAN:
			want[o.Name] = true
		case Shim:
			want[o.Name] = true
		case VXLAN:
			want[o.Name] = true
		case WireGuard:
			want[TunnelName] = true
		}
	}
	for name, l := range s.links {
		a := l.Attrs()
		if want[name] || !strings.HasPrefix(a.Alias, AliasPrefix) && !OwnName(name) {
			continue
		}
		if id, inner := strings.CutPrefix(name, PeerPrefix); inner && s.links[VethPrefix+id] != nil {
			continue // it shares the outer end's fate
		}
		network, _, _ := ParseAlias(a.Alias)
		strays = append(strays, Stray{Text: "link " + name, Network: network, remove: func() error {
			if a.Alias != "" {
				return s.k.deleteLink(name, a.Alias)
			}
			return s.k.deleteLink(name, AliasPrefix)
		}})
	}
	sort.Slice(strays, func(i, j int) bool { return strays[i].Text < strays[j].Text })
	return strays
}

func (s *snapshot) strayElements(wanted []Object) (strays []Stray) {
	policies := map[SetName]bool{}
	for _, spec := range policySets() {
		policies[spec.name] = true
	}
	want := map[SetName]map[string]bool{}
	for _, o := range wanted {
		if e, ok := o.(Element); ok {
			if want[e.Set] == nil {
				want[e.Set] = map[string]bool{}
			}
			want[e.Set][e.key] = true
		}
		if r, ok := o.(Return); ok { // what it maps to is for check to say
			set := either(r.Route.Dst.Is6(), back4, back6)
			if want[set] == nil {
				want[set] = map[string]bool{}
			}
			want[set][string(r.Route.Dst.AsSlice())] = true
		}
	}
	for set, keys := range s.elements {
		if set == foreign || set == same {
			continue // kept by the watcher, from the links
		}
		for key, c := range keys {
			if !want[set][key] {
				strays = append(strays, Stray{
					Text: fmt.Sprintf("element { %s } of set %s", showKey(set, key, c.end), set), Policy: policies[set],
					remove: func() error { return s.k.fw.discard(elementID{set, key}) },
				})
			}
		}
	}
	sort.Slice(strays, func(i, j int) bool { return strays[i].Text < strays[j].Text })
	return strays
}

func showField(field nftables.SetDatatype, v string) string {
	switch field {
	case nftables.TypeIPAddr, nftables.TypeIP6Addr:
		addr, _ := netip.AddrFromSlice([]byte(v))
		return addr.String()
	case nftables.TypeInetProto:
		return protoName(v[0])
	case nftables.TypeInetService:
		return strconv.Itoa(int(v[0])<<8 | int(v[1]))
	case nftables.TypeIFName:
		return strings.TrimRight(v, "\x00")
	case nftables.TypeMark:
		return showNumber(v)
	case nftables.TypeEtherAddr:
		return net.HardwareAddr(v).String()
	}
	return fmt.Sprintf("%x", v)
}

// discard drops an element nobody wants by loading the table anew: exact, atomic, and it forgets whatever others put
// in.
func (f *firewall) discard(id elementID) error {
	return f.runLater(turn{act: "discard what nobody wants", do: func() error {
		f.mu.Lock()
		w := f.want[id]
		wanted := w != nil && len(w.owners) > 0
		if !wanted {
			delete(f.want, id)
		}
		f.mu.Unlock()
		if wanted {
			return nil // somebody came to want it meanwhile
		}
		return f.load()
	}})
}

// dumpElements reads every set that netyard fills; none says that the table, or a set of it, is not there.
func (f *firewall) dumpElements() (all map[SetName]map[string]content, none bool, err error) {
	err = f.in.look(func(v view) error {
		all, none = map[SetName]map[string]content{}, false
		for _, spec := range allSets() {
			set, err := v.GetSetByName(spec.table(), string(spec.name))
			if err != nil {
				return err
			}
			if spec.life > 0 {
				continue
			}
			elements, err := v.GetSetElements(set)
			if err != nil {
				return err
			}
			all[spec.name] = pairUp(elements)
		}
		return nil
	})
	if errors.Is(err, unix.ENOENT) {
		return all, true, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("list the elements of table %s: %w", tableName, err)
	}
	return all, false, nil
}

// pairUp joins the two elements that the kernel makes of an interval of one field.
func pairUp(elements []nftables.SetElement) map[string]content {
	slices.SortFunc(elements, func(a, b nftables.SetElement) int {
		if c := bytes.Compare(a.Key, b.Key); c != 0 {
			return c
		}
		if a.IntervalEnd == b.IntervalEnd {
			return 0
		}
		if a.IntervalEnd { // one interval ends where the next begins
			return -1
		}
		return 1
	})
	all := map[string]content{}
	for i, e := range elements {
		c := content{val: string(e.Val), end: string(e.KeyEnd)}
		switch {
		case e.IntervalEnd:
			continue
		case c.end == "" && i+1 < len(elements) && elements[i+1].IntervalEnd:
			c.end = string(elements[i+1].Key)
		}
		all[string(e.Key)] = c
	}
	return all
}

// dumpRules reads the comments of the rules of each chain of the tables, in order.
func (f *firewall) dumpRules() (all map[string][]string, err error) {
	err = f.in.look(func(v view) error {
		all = map[string][]string{}
		for _, t := range tables() {
			chains, err := v.ListChainsOfTableFamily(t.Family)
			if err != nil {
				return err
			}
			for _, c := range chains {
				if c.Table.Name != t.Name {
					continue
				}
				rules, err := v.GetRules(t, c)
				if errors.Is(err, unix.ENOENT) {
					continue // somebody took it away meanwhile
				}
				if err != nil {
					return err
				}
				all[chainKey(t, c.Name)] = commentsOf(rules)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the rules of table %s: %w", tableName, err)
	}
	return all, nil
}

func commentsOf(rules []*nftables.Rule) []string {
	texts := []string{}
	for _, r := range rules {
		text, _ := userdata.GetString(r.UserData, userdata.TypeComment)
		texts = append(texts, text)
	}
	return texts
}

func chainKey(t *nftables.Table, chain string) string {
	family := "inet"
	if t.Family == nftables.TableFamilyBridge {
		family = "bridge"
	}
	return family + " " + t.Name + " " + chain
}

// auditRules compares the rules with the ruleset.
func (f *firewall) auditRules() ([]string, error) {
	f.mu.Lock()
	loaded := f.loaded
	f.mu.Unlock()
	if !loaded {
		return []string{"the ruleset is not loaded"}, nil
	}
	return f.ruleFaults()
}

// ruleFaults is auditRules whether the ruleset is this process's or not.
func (f *firewall) ruleFaults() (faults []string, err error) {
	have, err := f.dumpRules()
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	want := f.chains()
	f.mu.Unlock()
	ts := tables()
	for i, chains := range want {
		for _, c := range chains {
			key := chainKey(ts[i], c.name)
			got, ok := have[key]
			if !ok {
				faults = append(faults, "nftables chain "+key+" is missing")
				continue
			}
			var texts []string
			for _, r := range c.rules {
				texts = append(texts, r.comment)
				if !slices.Contains(got, r.comment) {
					faults = append(faults, fmt.Sprintf("nftables rule %q of chain %s is missing", r.comment, key))
				}
			}
			for _, text := range got {
				if !slices.Contains(texts, text) {
					faults = append(faults, fmt.Sprintf("nftables rule %q of chain %s is not netyard's", text, key))
				}
			}
		}
	}
	return faults, nil
}
