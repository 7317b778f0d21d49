// Package kernel is the only part of netyard that reads and changes the Linux kernel's network: links, addresses,
// routes, sysctls and nftables. What it makes is described by objects: plain data that can be made, removed and
// compared with the kernel, each idempotently. The name or alias of everything that it makes says that it is netyard's.
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

// Open returns the Kernel of the network namespace that the process is in.
func Open(log *slog.Logger) (*Kernel, error) {
	ns, err := netns.Get()
	if err != nil {
		return nil, fmt.Errorf("open own network namespace: %w", err)
	}
	return open(log, ns, netns.None())
}

// OpenAt returns the Kernel of the network namespace behind an open descriptor, which stays the caller's.
func OpenAt(log *slog.Logger, fd int) (*Kernel, error) {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate the descriptor of a network namespace: %w", err)
	}
	return open(log, netns.NsHandle(dup), netns.NsHandle(dup))
}

// Ensure makes all objects, in order. It stops at the first one that it cannot make.
func (k *Kernel) Ensure(ctx context.Context, objects ...core.Object) error {
	var elements []nft.Element
	for _, o := range objects {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("make %s: %w", o, err)
		}
		if e, ok := o.(nft.Element); ok { // all elements in one transaction at the end: links come first
			elements = append(elements, e)
			continue
		}
		if err := core.RetryIdempotent(func() error { return o.Ensure(k.Handle) }); err != nil {
			return err
		}
	}
	if len(elements) > 0 {
		defer ports.MarkStaleFlows(k.Handle, elements)
		return nft.Of(k.Handle).Add(ctx, elements)
	}
	return nil
}

// Remove removes all objects: set elements first, in one transaction, then the others in reverse order. It continues
// after an error, and returns all errors.
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
		ports.MarkStaleFlows(k.Handle, elements)
	}
	for i := len(objects) - 1; i >= 0; i-- {
		if _, ok := objects[i].(nft.Element); !ok {
			errs = append(errs, core.RetryIdempotent(func() error { return objects[i].Remove(k.Handle) }))
		}
	}
	return errors.Join(errs...)
}
