// Package names answers the containers of overlay networks who is called what: of each network a resolver (RFC 1035) is
// at the gateway's address, on the network's bridge alone. It knows the containers of all hosts as the Directory does,
// which asks nobody; what it does not know it asks the host's own resolvers, for networks that have a way out.
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

// A Network is one whose containers are answered.
type Network struct {
	ID   string
	Name string
	// Link is the bridge that they are on, At the addresses there that they ask, Subnets those that they ask from.
	Link    string
	At      []netip.Addr
	Subnets []netip.Prefix
	// Internal: nothing is asked outside for them.
	Internal bool
}

// has says whether an address is one of a container's.
func (n Network) has(a netip.Addr) bool {
	return !slices.Contains(n.At, a) && slices.ContainsFunc(n.Subnets, func(p netip.Prefix) bool { return p.Contains(a) })
}

// A Directory says who is called what. It waits for nobody.
type Directory interface {
	// Networks are those that are on this host.
	Networks() []Network
	// Lookup is the addresses of those that an asker, who has an address of a network, knows by a name: on that
	// network, or on another one that he is on, too. Names are in lower case. None: nobody is called so.
	Lookup(network string, asker netip.Addr, name string) []netip.Addr
	// NameOf is how an address is called that is on one of his networks; ours is false when it is on none, and the name
	// is empty when nobody has it.
	NameOf(network string, asker, addr netip.Addr) (name string, ours bool)
}

// Sockets opens them; see kernel.Kernel.
type Sockets interface {
	ListenOn(ctx context.Context, link string, at netip.AddrPort) (net.PacketConn, net.Listener, error)
	LinkIndex(link string) (int, error)
}

// A Server keeps a resolver on each network.
type Server struct {
	Log       *slog.Logger
	Sockets   Sockets
	Directory Directory
	// Changed tells that a network came or went.
	Changed <-chan struct{}
	// Port is where it listens: what is for port 53 comes there (ports.AnswerAt).
	Port uint16
	// Resolvers is the file that names the host's resolvers (resolv.conf(5)), which is read for each question; they are
	// at Upstream.
	Resolvers string
	Upstream  uint16

	mu       sync.Mutex
	troubles []Trouble
}

// A Trouble is why names are not answered at an address of a network.
type Trouble struct{ Network, Text string }

// Troubles are those that there are at the moment.
func (s *Server) Troubles() []Trouble {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.troubles)
}

// lookEvery is how often it is looked whether sockets are as they should be: a bridge that somebody deleted comes back
// as another one, and somebody may give up a port.
const lookEvery = 2 * time.Second

// A place is where a resolver listens.
type place struct {
	network, link string
	index         int
	at            netip.Addr
}

// Run keeps resolvers on all networks until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	open, failed := map[place]*resolver{}, map[place]failing{}
	defer func() {
		for _, r := range open {
			r.close()
		}
	}()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		s.keep(ctx, open, failed)
		select {
		case <-ctx.Done():
			return nil
		case <-s.Changed:
		case <-tick.C:
		}
	}
}

// A failing place is one that cannot be listened at.
type failing struct {
	network, why string
	told         bool
}

// keep opens what is missing and closes what is not wanted any more. What cannot be opened is tried again, and told of
// once, when that does not help: of a bridge that is just being made anew the address may not be there yet.
func (s *Server) keep(ctx context.Context, open map[place]*resolver, failed map[place]failing) {
	want := s.places()
	for p, r := range open {
		if _, ok := want[p]; !ok {
			r.close()
			delete(open, p)
		}
	}
	maps.DeleteFunc(failed, func(p place, _ failing) bool { _, ok := want[p]; return !ok })
	for p, n := range want {
		if open[p] != nil || ctx.Err() != nil {
			continue
		}
		udp, tcp, err := s.Sockets.ListenOn(ctx, p.link, netip.AddrPortFrom(p.at, s.Port))
		switch {
		case err == nil:
			open[p] = newResolver(ctx, s, n, udp, tcp)
			if failed[p].told {
				s.Log.Info("names are answered after all", "network", n.Name, "address", p.at)
			}
			delete(failed, p)
		case failed[p].why != err.Error():
			failed[p] = failing{network: n.Name, why: err.Error()}
		case !failed[p].told:
			failed[p] = failing{n.Name, err.Error(), true}
			s.Log.Warn("names of containers on other hosts are not answered", "network", n.Name, "address", p.at, "err", err)
		}
	}
	s.note(failed)
}

// note keeps what to tell of for who asks.
func (s *Server) note(failed map[place]failing) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.troubles = nil
	for _, f := range failed {
		if f.told {
			s.troubles = append(s.troubles, Trouble{f.network, "names of containers on other hosts are not answered: " + f.why})
		}
	}
}

// places are where resolvers should listen.
func (s *Server) places() map[place]Network {
	want := map[place]Network{}
	for _, n := range s.Directory.Networks() {
		index, err := s.Sockets.LinkIndex(n.Link)
		if err != nil || index == 0 { // it is about to come, or to go
			continue
		}
		for _, at := range n.At {
			want[place{n.ID, n.Link, index, at}] = n
		}
	}
	return want
}

// isClosed says whether a socket was closed from here.
func isClosed(err error) bool { return errors.Is(err, net.ErrClosed) }
