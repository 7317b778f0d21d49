package device

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/vishvananda/netlink"

	"netyard/kernel/core"
)

// namespaces are sandboxes that netyard holds open, so that they do not end before their card is back on the host. When
// a namespace ends, the kernel deletes its virtual links (default_device_exit_batch, net/core/dev.c), and moves a card
// to the machine's first namespace, which need not be the host's.
type namespaces struct {
	mu sync.Mutex
	by map[string]*os.File
}

// open opens the namespace that a path refers to, and stores it under a key. It does nothing if path is empty or refers
// to no namespace.
func (s *namespaces) open(d Device) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := d.alias()
	if s.by[key] != nil {
		return nil
	}
	f, err := core.OpenSandbox(d.Sandbox, d.NS)
	if err != nil || f == nil {
		return err
	}
	if s.by == nil {
		s.by = map[string]*os.File{}
	}
	s.by[key] = f
	return nil
}

// visit calls f with a netlink handle in the namespace that is stored under a key, if there is one.
func (s *namespaces) visit(key string, f func(*netlink.Handle) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	ns := s.by[key]
	if ns == nil {
		return nil
	}
	nl, err := core.NetlinkIn(int(ns.Fd()))
	if err != nil {
		return fmt.Errorf("enter a sandbox: %w", err)
	}
	defer nl.Close()
	return f(nl)
}

func (s *namespaces) close(key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.by[key]
	delete(s.by, key)
	if f == nil {
		return nil
	}
	return f.Close()
}

// Close closes all of them.
func (s *namespaces) Close() error {
	var errs []error
	for key := range s.by {
		errs = append(errs, s.close(key))
	}
	return errors.Join(errs...)
}
