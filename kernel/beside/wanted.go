package beside

import (
	"maps"
	"sync"

	"netyard/kernel/core"
	"netyard/kernel/nft"
)

// wanted holds the bypasses that have to exist, in addition to netyard's own.
type wanted struct {
	mu       sync.Mutex
	bypasses map[Bypass]bool
}

// bypassesOf returns the bypasses that have to exist on a host.
func bypassesOf(k *core.Handle) map[Bypass]bool {
	w := core.Stored[wanted](k)
	w.mu.Lock()
	defer w.mu.Unlock()
	all := OwnBypasses()
	maps.Copy(all, w.bypasses)
	return all
}

// want records whether a bypass has to exist on a host.
func want(k *core.Handle, b Bypass, is bool) {
	w := core.Stored[wanted](k)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.bypasses == nil {
		w.bypasses = map[Bypass]bool{}
	}
	if delete(w.bypasses, b); is {
		w.bypasses[b] = true
	}
}

// restricted is what RestrictedOf returns.
type restricted struct {
	mu  sync.Mutex
	now Restricted
}

// RestrictedOf returns the families that a host forwards for containers only.
func RestrictedOf(k *core.Handle) Restricted {
	r := core.Stored[restricted](k)
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.now
}

// setRestricted changes what RestrictedOf returns, and says whether it has changed.
func setRestricted(k *core.Handle, change func(*Restricted)) bool {
	r := core.Stored[restricted](k)
	r.mu.Lock()
	defer r.mu.Unlock()
	was := r.now
	change(&r.now)
	return r.now != was
}

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
