package kernel

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Forwarding lets the host route. Where it was off, netyard turns it on and then drops what is forwarded for others
// than its containers, as Docker does with its FORWARD policy: a host must not become a router by the way.
type Forwarding struct{ IPv6 bool }

// String names the setting.
func (f Forwarding) String() string { return f.sysctl().String() }

func (f Forwarding) sysctl() Sysctl {
	if f.IPv6 {
		return Sysctl{Path: []string{"net", "ipv6", "conf", "all", "forwarding"}, Value: "1"}
	}
	return Sysctl{Path: []string{"net", "ipv4", "ip_forward"}, Value: "1"}
}

func (f Forwarding) ensure(k *Kernel) error {
	s := f.sysctl()
	got, err := k.readSysctl(s.file())
	if err != nil {
		return fmt.Errorf("read %s: %w", s, err)
	}
	if got == s.Value {
		return nil
	}
	if f.IPv6 {
		if err := k.keepRouterAdverts(); err != nil {
			return err
		}
	}
	if err := k.guardForward(f.IPv6); err != nil { // first, or for a moment the host would route for everybody
		return err
	}
	k.log.Warn("turn forwarding on for containers only", "setting", s.String())
	return s.ensure(k)
}

// keepRouterAdverts lets interfaces that got their routes from router advertisements go on doing so: forwarding makes
// the kernel ignore them unless accept_ra is 2 (Documentation/networking/ip-sysctl.rst).
func (k *Kernel) keepRouterAdverts() error {
	return k.inside(func() error {
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

func (k *Kernel) guardForward(ipv6 bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), netlinkTimeout)
	defer cancel()
	set := func(on bool) (changed bool) {
		k.fw.mu.Lock()
		defer k.fw.mu.Unlock()
		flag := &k.fw.guard.v4
		if ipv6 {
			flag = &k.fw.guard.v6
		}
		changed = *flag != on
		*flag = on
		return changed
	}
	return k.fw.run(ctx, turn{
		act: "drop what is forwarded for others",
		do: func() error {
			// Nothing is forwarded for anybody before the first load either: Restore loads before it attaches.
			if !set(true) || !k.fw.loaded {
				return nil
			}
			err := k.fw.load()
			if err != nil {
				set(false)
			}
			return err
		},
		undo: func() error { return nil }, // it forbids nothing while the host does not forward, and the next try needs it
	})
}

// recallGuards reads from the table in the kernel, left by an earlier process, which guards it had.
func (f *firewall) recallGuards() error {
	have, err := f.dumpRules()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, rules := range have {
		f.guard.v4 = f.guard.v4 || slices.Contains(rules, guardComment4)
		f.guard.v6 = f.guard.v6 || slices.Contains(rules, guardComment6)
	}
	return err
}

func (Forwarding) remove(*Kernel) error { return nil }

func (f Forwarding) check(s *snapshot) []string { return f.sysctl().check(s) }
