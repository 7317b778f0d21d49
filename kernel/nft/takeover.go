package nft

import (
	"errors"

	"netyard/kernel/exchange"
	"netyard/kernel/rule"
)

// TakeOver uses the tables as they are, if an earlier daemon left exactly what this one wants, and reports whether it
// did. That avoids a gap: Load replaces a table in one transaction, but the kernel commits intervals a moment after the
// rules (nft_set_commit_update, net/netfilter/nf_tables_api.c), so a lookup for a new flow may miss in between.
func (f *Firewall) TakeOver() (same bool, err error) {
	f.renumberSets()
	if same, err = f.asWanted(); err != nil || !same {
		return false, err
	}
	for _, t := range rule.Tables() {
		own, err := f.takeOwnership(t)
		if errors.Is(err, exchange.ErrUnknown) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		// The kernel does not support owners, or an earlier daemon made the table without. Load handles both.
		if !own && !f.Shared {
			return false, nil
		}
	}
	f.SetLoaded(true)
	f.out.Orphaned = false
	return true, nil
}

// sameElements reports whether the sets have the wanted elements, and no others.
func (f *Firewall) sameElements() (bool, error) {
	have, none, err := f.DumpElements()
	if err != nil || none {
		return false, err
	}
	count := 0
	for _, keys := range have {
		count += len(keys)
	}
	return count == len(f.wanted.by) && f.hasWanted(have), nil
}

// hasWanted reports whether every wanted element is among these.
func (f *Firewall) hasWanted(have map[rule.SetName]map[string]Content) bool {
	for id, w := range f.wanted.by {
		if c, ok := have[id.Set][id.Key]; !ok || c != w.Content {
			return false
		}
	}
	return true
}
