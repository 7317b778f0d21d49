// Package names resolves container names for the containers of overlay networks. Each network has a resolver (RFC 1035)
// at the gateway's address, which listens on the network's bridge only. A Directory knows the containers of all hosts
// and answers without waiting. Other questions are forwarded to the host's own resolvers, except for internal networks.
package names

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// A Network is a network whose containers the server answers.
type Network struct {
	ID   string
	Name string
	// Link is the network's bridge.
	Link string
	// At are the addresses on the bridge at which the resolver listens.
	At []netip.Addr
	// Subnets are the ranges of the containers' addresses.
	Subnets []netip.Prefix
	// Internal says that questions are not forwarded to the host's resolvers.
	Internal bool
}

// has reports whether an address can be a container's.
func (n Network) has(a netip.Addr) bool {
	inSubnet := slices.ContainsFunc(n.Subnets, func(p netip.Prefix) bool { return p.Contains(a) })
	return inSubnet && !slices.Contains(n.At, a)
}

// A Directory maps names to addresses and back. Its methods do not wait.
type Directory interface {
	// Networks returns the overlay networks on this host.
	Networks() []Network
	// Lookup returns the addresses of the containers with a name, on the given network and on other networks that the
	// asker, who has an address of the given one, is also on. The name is in lower case. It returns none if no
	// container has the name.
	Lookup(network string, asker netip.Addr, name string) []netip.Addr
	// NameOf returns the name of the container with an address. ours is false if the address is on none of the asker's
	// networks. The name is empty if no container has the address.
	NameOf(network string, asker, addr netip.Addr) (name string, ours bool)
}

// Sockets opens sockets in the host's namespace; ports.Sockets implements it.
type Sockets interface {
	ListenOn(ctx context.Context, link string, at netip.AddrPort) (net.PacketConn, net.Listener, error)
	LinkIndex(link string) (int, error)
}

// A Server runs a resolver on each network.
type Server struct {
	Log       *slog.Logger
	Sockets   Sockets
	Directory Directory
	// Changed signals that a network was created or removed.
	Changed <-chan struct{}
	// Port is the port to listen on; packets to port 53 are redirected there (ports.RedirectPort).
	Port uint16
	// Resolvers is the file that names the host's resolvers (resolv.conf(5)). It is read for each question.
	Resolvers string
	// Upstream is the port of the host's resolvers.
	Upstream uint16

	mu       sync.Mutex
	troubles []Trouble
}

// A Trouble is the reason why names are not resolved at an address of a network.
type Trouble struct{ Network, Text string }

// Troubles returns the current troubles.
func (s *Server) Troubles() []Trouble {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.troubles)
}

// checkInterval is the time between two checks of the sockets: a bridge that was deleted and made again has another
// index, and a port that was in use may be free.
const checkInterval = 2 * time.Second

// A place is an address of a link at which a resolver listens.
type place struct {
	network, link string
	index         int
	at            netip.Addr
}

// Run runs resolvers on all networks until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	open, failed := map[place]*resolver{}, map[place]failure{}
	defer func() {
		for _, r := range open {
			r.close()
		}
	}()
	tick := time.NewTicker(checkInterval)
	defer tick.Stop()
	for {
		s.sync(ctx, open, failed)
		select {
		case <-ctx.Done():
			return nil
		case <-s.Changed:
		case <-tick.C:
		}
	}
}

// A failure is the reason why a place has no resolver.
type failure struct {
	network, cause string
	reported       bool
}

// sync opens missing resolvers and closes those that are no longer wanted. It retries what failed, and reports a
// failure when it occurs a second time: a bridge that is being made again may not have its address yet.
func (s *Server) sync(ctx context.Context, open map[place]*resolver, failed map[place]failure) {
	want := s.places()
	for p, r := range open {
		if _, ok := want[p]; !ok {
			r.close()
			delete(open, p)
		}
	}
	maps.DeleteFunc(failed, func(p place, _ failure) bool { _, ok := want[p]; return !ok })
	for p, n := range want {
		if open[p] != nil || ctx.Err() != nil {
			continue
		}
		udp, tcp, err := s.Sockets.ListenOn(ctx, p.link, netip.AddrPortFrom(p.at, s.Port))
		switch {
		case err == nil:
			open[p] = newResolver(ctx, s, n, udp, tcp)
			if failed[p].reported {
				s.Log.Info("resolver started after a failure", "network", n.Name, "network_id", n.ID, "address", p.at)
			}
			delete(failed, p)
		case failed[p].cause != err.Error():
			failed[p] = failure{network: n.Name, cause: err.Error()}
		case !failed[p].reported:
			failed[p] = failure{n.Name, err.Error(), true}
			s.Log.Warn("resolver not started", "network", n.Name, "network_id", n.ID, "address", p.at, "err", err)
		}
	}
	s.setTroubles(failed)
}

// setTroubles sets what Troubles returns.
func (s *Server) setTroubles(failed map[place]failure) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.troubles = nil
	for _, f := range failed {
		if f.reported {
			text := "names of containers on other hosts are not resolved: " + f.cause
			s.troubles = append(s.troubles, Trouble{f.network, text})
		}
	}
}

// places returns the places where resolvers should listen.
func (s *Server) places() map[place]Network {
	want := map[place]Network{}
	for _, n := range s.Directory.Networks() {
		index, err := s.Sockets.LinkIndex(n.Link)
		if err != nil || index == 0 { // the bridge is not made yet, or is being removed
			continue
		}
		for _, at := range n.At {
			want[place{n.ID, n.Link, index, at}] = n
		}
	}
	return want
}

// isClosed reports whether an error is that of a socket which this process has closed.
func isClosed(err error) bool { return errors.Is(err, net.ErrClosed) }
