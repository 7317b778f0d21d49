package beside

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"netyard/kernel/core"
	"netyard/kernel/nft"
)

// Forwarding lets the host route. Where it was off, netyard turns it on and then drops what is forwarded for others
// than its containers, as Docker does with its FORWARD policy: a host must not become a router by the way.
type Forwarding struct{ IPv6 bool }

// String names the setting.
func (f Forwarding) String() string { return f.sysctl().String() }

func (f Forwarding) sysctl() core.Sysctl {
	if f.IPv6 {
		return core.Sysctl{Path: []string{"net", "ipv6", "conf", "all", "forwarding"}, Value: "1"}
	}
	return core.Sysctl{Path: []string{"net", "ipv4", "ip_forward"}, Value: "1"}
}

func (f Forwarding) Ensure(k *core.Handle) error {
	s := f.sysctl()
	got, err := k.ReadSysctl(s.File())
	if err != nil {
		return fmt.Errorf("read %s: %w", s, err)
	}
	if got == s.Value {
		return nil
	}
	if f.IPv6 {
		if err := keepRouterAdverts(k); err != nil {
			return err
		}
	}
	if err := guardForward(k, f.IPv6); err != nil { // first, or for a moment the host would route for everybody
		return err
	}
	k.Log.Warn("turn forwarding on for containers only", "setting", s.String())
	return s.Ensure(k)
}

// keepRouterAdverts lets interfaces that got their routes from router advertisements go on doing so: forwarding makes
// the kernel ignore them unless accept_ra is 2 (Documentation/networking/ip-sysctl.rst).
func keepRouterAdverts(k *core.Handle) error {
	return k.Inside(func() error {
		files, err := filepath.Glob("/proc/sys/net/ipv6/conf/*/accept_ra")
		if err != nil {
			return fmt.Errorf("list interfaces: %w", err)
		}
		for _, file := range files {
			if raw, err := os.ReadFile(file); err != nil || strings.TrimSpace(string(raw)) != "1" {
				continue
			}
			if err := os.WriteFile(file, []byte("2"), 0o644); err != nil && !os.IsNotExist(err) {
				return fmt.Errorf("keep accepting router advertisements: %w", err)
			}
		}
		return nil
	})
}

func guardForward(k *core.Handle, ipv6 bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), core.NetlinkTimeout)
	defer cancel()
	set := func(on bool) (changed bool) {
		nft.Of(k).Mu.Lock()
		defer nft.Of(k).Mu.Unlock()
		flag := &GuardsOf(k).V4
		if ipv6 {
			flag = &GuardsOf(k).V6
		}
		changed = *flag != on
		*flag = on
		return changed
	}
	return nft.Of(k).Run(ctx, nft.Turn{
		Act: "drop what is forwarded for others",
		Do: func() error {
			// Nothing is forwarded for anybody before the first load either: Restore loads before it attaches.
			if !set(true) || !nft.Of(k).Loaded {
				return nil
			}
			err := nft.Of(k).Load()
			if err != nil {
				set(false)
			}
			return err
		},
		Undo: func() error { return nil }, // it forbids nothing while the host does not forward, and the next try needs it
	})
}

// RecallGuards reads from the table in the kernel, left by an earlier process, which guards it had.
func RecallGuards(f *nft.Firewall) error {
	have, err := f.DumpRules()
	f.Mu.Lock()
	defer f.Mu.Unlock()
	for _, rules := range have {
		GuardsOf(f.Handle).V4 = GuardsOf(f.Handle).V4 || slices.Contains(rules, GuardComment4)
		GuardsOf(f.Handle).V6 = GuardsOf(f.Handle).V6 || slices.Contains(rules, GuardComment6)
	}
	return err
}

func (Forwarding) Remove(*core.Handle) error { return nil }

func (f Forwarding) Check(s *core.View) []string { return f.sysctl().Check(s) }

// The guards of forwarding carry these comments.
const (
	GuardComment4 = "this host routes IPv4 for containers only"
	GuardComment6 = "this host routes IPv6 for containers only"
)
