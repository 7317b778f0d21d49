package device

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"netyard/kernel/core"
)

// spaces are the namespaces that netyard keeps from ending: a virtual link ends with its namespace
// (default_device_exit_batch, net/core/dev.c), and a card that goes home by itself goes to the first namespace of the
// machine, which need not be the host's.
type spaces struct {
	mu sync.Mutex
	by map[string]*os.File
}

// hold keeps the namespace behind a path, under a key. No path, or no namespace there, is nothing to keep.
func (s *spaces) hold(key, path string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.by[key] != nil || path == "" || !core.IsNamespace(path) {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	if s.by == nil {
		s.by = map[string]*os.File{}
	}
	s.by[key] = f
	return nil
}

// in calls f with the namespace that is kept under a key, if there is one.
func (s *spaces) in(key string, f func(*netlink.Handle) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	ns := s.by[key]
	if ns == nil {
		return nil
	}
	nl, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("look into a sandbox: %w", err)
	}
	defer nl.Close()
	if err := nl.SetSocketTimeout(core.NetlinkTimeout); err != nil {
		return fmt.Errorf("bound netlink's waits: %w", err)
	}
	return f(nl)
}

func (s *spaces) release(key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.by[key]
	delete(s.by, key)
	if f == nil {
		return nil
	}
	return f.Close()
}

// Close lets all of them go.
func (s *spaces) Close() error {
	var errs []error
	for key := range s.by {
		errs = append(errs, s.release(key))
	}
	return errors.Join(errs...)
}
