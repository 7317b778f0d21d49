package beside

import (
	"netyard/kernel/core"
	"netyard/kernel/nft"
)

// wanted holds the bypasses that have to exist. The firewall's lock protects it.
type wanted struct{ bypasses map[Bypass]bool }

func bypassesOf(k *core.Handle) map[Bypass]bool {
	w := core.Stored[wanted](k)
	if w.bypasses == nil {
		w.bypasses = OwnBypasses()
	}
	return w.bypasses
}

// RestrictedOf returns the families that a host forwards for containers only. The firewall's lock protects them.
func RestrictedOf(k *core.Handle) *Restricted { return core.Stored[Restricted](k) }

// chainsOf returns the chains of others that take a Bypass, as they were when the view first read them.
func chainsOf(v *core.View) []dockerUser {
	all, _ := core.Dump(v, readChains)
	return all
}

// ReadChains reads the chains that a Bypass is compared with.
func ReadChains(v *core.View) error {
	_, err := core.Dump(v, readChains)
	return err
}

func readChains(v *core.View) ([]dockerUser, error) {
	if !v.Firewall {
		return nil, nil
	}
	return dockerUserChains(nft.Of(v.Handle))
}
