// Package kernel is the only part of netyard that talks to the Linux kernel's network: links, addresses, routes,
// sysctls and nftables. What it makes is described by Objects: plain data that can be made, removed and compared
// with what is there, each idempotently. Everything it makes says in its name or alias whose it is.
package kernel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"netyard/kernel/core"
	"netyard/kernel/nft"
	"netyard/kernel/ports"
)

// Open returns the Handle of the namespace the process is in.
func Open(log *slog.Logger) (*Kernel, error) {
	ns, err := netns.Get()
	if err != nil {
		return nil, fmt.Errorf("open own network namespace: %w", err)
	}
	return open(log, ns, netns.None())
}

// OpenAt returns the Handle of the namespace behind an open descriptor, which the caller keeps.
func OpenAt(log *slog.Logger, fd int) (*Kernel, error) {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("keep network namespace: %w", err)
	}
	return open(log, netns.NsHandle(dup), netns.NsHandle(dup))
}

// Ensure makes all objects be there, in order. It stops at the first it cannot make.
func (k *Kernel) Ensure(ctx context.Context, objects ...core.Object) error {
	var elements []nft.Element
	for _, o := range objects {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("make %s: %w", o, err)
		}
		if e, ok := o.(nft.Element); ok { // one transaction for all of them, at the end: links come first
			elements = append(elements, e)
			continue
		}
		if err := core.Again(func() error { return o.Ensure(k.Handle) }); err != nil {
			return err
		}
	}
	if len(elements) > 0 {
		defer ports.StaleFlows(k.Handle, elements)
		return nft.Of(k.Handle).Add(ctx, elements)
	}
	return nil
}

// Remove undoes Ensure, last object first. It goes on after an error and returns them all.
func (k *Kernel) Remove(objects ...core.Object) error {
	var errs []error
	var elements []nft.Element
	for _, o := range objects {
		if e, ok := o.(nft.Element); ok {
			elements = append(elements, e)
		}
	}
	if len(elements) > 0 {
		errs = append(errs, nft.Of(k.Handle).Remove(elements))
		ports.StaleFlows(k.Handle, elements)
	}
	for i := len(objects) - 1; i >= 0; i-- {
		if _, ok := objects[i].(nft.Element); !ok {
			errs = append(errs, core.Again(func() error { return objects[i].Remove(k.Handle) }))
		}
	}
	return errors.Join(errs...)
}
