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

// Forwarding is the sysctl that lets the host route. Where it was off, netyard turns it on and then drops what is not
// forwarded for containers, its own or another program's, as Docker does with its FORWARD policy: the host must not
// become a router for others. Once another program turns it on as well, netyard drops nothing any more.
type Forwarding struct{ IPv6 bool }

// String returns the name and value of the sysctl.
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
	if err := restrictForward(k, f.IPv6); err != nil { // first, or the host would route for everybody for a moment
		return err
	}
	k.Log.Warn("forwarding turned on for containers only", "setting", s.String())
	return watchOf(k).unnoticed(func() error { return s.Ensure(k) })
}

// keepRouterAdverts keeps router advertisements working on interfaces that accept them: with forwarding on, the kernel
// ignores them unless accept_ra is 2 (Documentation/networking/ip-sysctl.rst).
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

// restrictForward adds the rules that drop what the host would forward for others than netyard's containers.
func restrictForward(k *core.Handle, ipv6 bool) error {
	return setGuard(context.Background(), k, ipv6, true)
}

// setGuard adds or removes the guard of a family.
func setGuard(ctx context.Context, k *core.Handle, ipv6, on bool) error {
	ctx, cancel := context.WithTimeout(ctx, core.NetlinkTimeout)
	defer cancel()
	set := func(on bool) (changed bool) {
		return setRestricted(k, func(r *Restricted) {
			if ipv6 {
				r.V6 = on
			} else {
				r.V4 = on
			}
		})
	}
	return nft.Of(k).Run(ctx, nft.Turn{
		Act: "set the guard of forwarding",
		Do: func() error {
			// Before the first load nothing is forwarded: Restore loads the ruleset before it attaches endpoints.
			if !set(on) || !nft.Of(k).Loaded {
				return nil
			}
			err := nft.Of(k).Load()
			if err != nil {
				set(!on)
			}
			return err
		},
		// The rules drop nothing while the host does not forward, and the next attempt needs them.
		Undo: func() error { return nil },
	})
}

// RecallRestricted finds out for which families an earlier process restricted forwarding, from the rules in the kernel.
func RecallRestricted(f *nft.Firewall) error {
	have, err := f.DumpRules()
	setRestricted(f.Handle, func(r *Restricted) {
		for _, rules := range have {
			r.V4 = r.V4 || slices.Contains(rules, RestrictedComment4)
			r.V6 = r.V6 || slices.Contains(rules, RestrictedComment6)
		}
	})
	return err
}

func (Forwarding) Remove(*core.Handle) error { return nil }

func (f Forwarding) Check(s *core.View) []string { return f.sysctl().Check(s) }

// These are the comments of the rules that restrict forwarding. RecallRestricted finds the rules of an earlier process
// by them, so they must not change.
const (
	RestrictedComment4 = "this host routes IPv4 for containers only"
	RestrictedComment6 = "this host routes IPv6 for containers only"
)
