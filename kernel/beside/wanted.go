package beside

import (
	"netyard/kernel/core"
	"netyard/kernel/nft"
)

// wanted are the bypasses that are to be there; the firewall's lock guards them.
type wanted struct{ bypasses map[Bypass]bool }

func bypassesOf(k *core.Handle) map[Bypass]bool {
	w := core.Kept[wanted](k)
	if w.bypasses == nil {
		w.bypasses = OwnBypasses()
	}
	return w.bypasses
}

// GuardsOf are those of a host: it forwards only because netyard told it to, so netyard sees to it that it does so for
// nobody else; the firewall's lock guards them.
func GuardsOf(k *core.Handle) *Guards { return core.Kept[Guards](k) }

// chainsOf are the chains of others that netyard's accepts go into.
func chainsOf(v *core.View) []dockerUser {
	all, _ := core.Dump(v, readChains)
	return all
}

// LookAtChains reads what a Bypass is compared with.
func LookAtChains(v *core.View) error {
	_, err := core.Dump(v, readChains)
	return err
}

func readChains(v *core.View) ([]dockerUser, error) {
	if !v.Firewall {
		return nil, nil
	}
	return dockerUserChains(nft.Of(v.Handle))
}
