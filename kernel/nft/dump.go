package nft

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"netyard/kernel/rule"
)

// removeStray removes an element that nobody wants by loading the tables again. That is atomic, and also removes
// whatever else others have added.
func (f *Firewall) removeStray(id ElementID) error {
	return f.RunLater(Turn{Act: "remove a stray element of set " + string(id.Set), Do: func() error {
		f.mu.Lock()
		w := f.wanted.by[id]
		wanted := w != nil && len(w.owners) > 0
		if !wanted {
			f.wanted.drop(id)
		}
		f.mu.Unlock()
		if wanted {
			return nil // it became wanted meanwhile
		}
		return f.Load()
	}})
}

// DumpElements reads every set that netyard adds elements to. none is true if a table or a set is missing.
func (f *Firewall) DumpElements() (all map[rule.SetName]map[string]Content, none bool, err error) {
	err = f.Reader.Look(func(v View) error {
		all, none = map[rule.SetName]map[string]Content{}, false
		for _, spec := range f.Rules.Sets {
			set, err := v.GetSetByName(spec.Table(), string(spec.Name))
			if err != nil {
				return err
			}
			if spec.Life > 0 {
				continue
			}
			elements, err := v.GetSetElements(set)
			if err != nil {
				return err
			}
			all[spec.Name] = joinIntervals(elements)
		}
		return nil
	})
	if errors.Is(err, unix.ENOENT) {
		return all, true, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("list the elements of table %s: %w", rule.TableName, err)
	}
	return all, false, nil
}

// joinIntervals turns a dump into elements by key. The kernel shows an interval of one field as two elements, its
// beginning and its end.
func joinIntervals(elements []nftables.SetElement) map[string]Content {
	slices.SortFunc(elements, func(a, b nftables.SetElement) int {
		if c := bytes.Compare(a.Key, b.Key); c != 0 {
			return c
		}
		if a.IntervalEnd == b.IntervalEnd {
			return 0
		}
		if a.IntervalEnd { // one interval ends where the next begins: the end comes first
			return -1
		}
		return 1
	})
	all := map[string]Content{}
	for i, e := range elements {
		c := Content{Val: string(e.Val), End: string(e.KeyEnd)}
		switch {
		case e.IntervalEnd:
			continue
		case c.End == "" && i+1 < len(elements) && elements[i+1].IntervalEnd:
			c.End = string(elements[i+1].Key)
		}
		all[string(e.Key)] = c
	}
	return all
}

// DumpRules reads the comments of the rules of each chain of the tables, in the order of the rules.
func (f *Firewall) DumpRules() (all map[string][]string, err error) {
	err = f.Reader.Look(func(v View) error {
		all = map[string][]string{}
		for _, t := range rule.Tables() {
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
					continue // somebody deleted it meanwhile
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
		return nil, fmt.Errorf("list the rules of table %s: %w", rule.TableName, err)
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

// AuditRules compares the rules in the kernel with the ruleset, and returns the differences.
func (f *Firewall) AuditRules() ([]string, error) {
	f.mu.Lock()
	loaded := f.Loaded
	f.mu.Unlock()
	if !loaded {
		return []string{"the ruleset is not loaded"}, nil
	}
	return f.ruleFaults()
}

// ruleFaults is AuditRules, whether this process has loaded the ruleset or not.
func (f *Firewall) ruleFaults() (faults []string, err error) {
	have, err := f.DumpRules()
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	want := f.chains()
	f.mu.Unlock()
	ts := rule.Tables()
	for i, chains := range want {
		for _, c := range chains {
			key := chainKey(ts[i], c.Name)
			got, ok := have[key]
			if !ok {
				faults = append(faults, "nftables chain "+key+" is missing")
				continue
			}
			var texts []string
			for _, r := range c.Rules {
				texts = append(texts, r.Comment)
				if !slices.Contains(got, r.Comment) {
					faults = append(faults, fmt.Sprintf("nftables rule %q of chain %s is missing", r.Comment, key))
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

// OwnTable reports whether a message is about one of netyard's tables (struct nfgenmsg, followed by attributes).
func OwnTable(msg []byte) bool {
	attrs, err := nl.ParseRouteAttr(msg[min(len(msg), unix.SizeofNlAttr):])
	return err == nil && slices.ContainsFunc(attrs, func(a syscall.NetlinkRouteAttr) bool {
		return a.Attr.Type == unix.NFTA_TABLE_NAME && string(a.Value) == rule.TableName+"\x00"
	})
}

// RepairTables loads the ruleset again if a rule is missing or foreign, or an element is missing. After a change that
// failed, any other element is a reason too.
func (f *Firewall) RepairTables() error {
	return f.RunNow(func() error {
		if !f.Loaded {
			return nil
		}
		if f.mayDiffer {
			same, err := f.asWanted()
			if err == nil && !same {
				err = f.Load()
			}
			f.mayDiffer = f.mayDiffer && err != nil
			return err
		}
		faults, err := f.ruleFaults()
		if err != nil {
			return err
		}
		if len(faults) > 0 {
			return f.Load()
		}
		have, _, err := f.DumpElements()
		if err != nil || f.hasWanted(have) {
			return err
		}
		return f.Load()
	})
}
