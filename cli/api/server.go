package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"time"

	"netyard/ipam"
	"netyard/modes"
	"netyard/policy"
	"netyard/yard"
	"netyard/yard/book"
	"netyard/yard/lease"
	"netyard/yard/pool"
	"netyard/yard/port"
	"netyard/yard/reconcile"
	"netyard/yard/share"
	"netyard/yard/trace"
)

const (
	// RunDir is the directory of the daemon's sockets, unless its configuration names another.
	RunDir = "/run/netyard"
	// SocketName is the name of the admin socket in that directory.
	SocketName = "netyard.sock"
)

// adminTime bounds an admin's request. Such a request may ask an engine, which a request of an engine must never do.
const adminTime = 30 * time.Second

// censusTime bounds how long doctor and gc wait for an engine before they go on without it.
const censusTime = 5 * time.Second

// A Server answers requests on the admin socket.
type Server struct {
	Yard    *yard.Yard
	Log     *slog.Logger
	Version string
	// Cluster is the cluster of overlay networks; nil: this host is in none.
	Cluster Cluster
	// Censuses has a function for each engine that asks it for its networks and endpoints.
	Censuses []func(context.Context) (reconcile.Census, error)
	// Findings returns what doctor reports beside the records, the kernel and the engines; nil: nothing.
	Findings func() ([]book.Finding, error)
}

// Handler returns the handler of the admin socket.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, f func(context.Context, *http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { s.serve(w, r, f) })
	}
	handle("GET /v1/version", s.version)
	handle("GET /v1/networks", s.networks)
	handle("GET /v1/networks/{ref}", s.network)
	handle("POST /v1/networks", s.makeNetwork)
	handle("DELETE /v1/networks/{ref}", s.removeNetwork)
	handle("GET /v1/endpoints", s.endpoints)
	handle("GET /v1/endpoints/{ref}", s.endpoint)
	handle("PATCH /v1/networks/{ref}", s.changeNetwork)
	handle("PATCH /v1/endpoints/{ref}", s.changeEndpoint)
	handle("GET /v1/ports", s.ports)
	mux.HandleFunc("GET /v1/events", s.events)
	handle("GET /v1/leases", s.leases)
	handle("POST /v1/leases/reserve", s.reserve)
	handle("POST /v1/leases/release", s.release)
	handle("GET /v1/policies", s.policies)
	handle("POST /v1/policies", s.applyPolicies)
	handle("GET /v1/policies/{name}", s.policy)
	handle("DELETE /v1/policies/{name}", s.removePolicy)
	handle("GET /v1/cluster", s.clusterStatus)
	handle("GET /v1/cluster/doctor", s.clusterDoctor)
	handle("GET /v1/cluster/hosts", s.clusterHosts)
	handle("DELETE /v1/cluster/hosts/{host}", s.forgetHost)
	handle("GET /v1/cluster/networks", s.overlays)
	handle("DELETE /v1/cluster/networks/{name}", s.removeOverlay)
	handle("POST /v1/cluster/key", s.rotateKey)
	handle("POST /v1/cluster/rejoin", s.rejoin)
	handle("GET /v1/doctor", s.doctor)
	handle("POST /v1/gc", s.gc)
	handle("GET /v1/trace", s.trace)
	return mux
}

// serve answers a request with the result of f, as JSON.
func (s *Server) serve(w http.ResponseWriter, r *http.Request, f func(context.Context, *http.Request) (any, error)) {
	ctx, cancel := context.WithTimeout(r.Context(), adminTime)
	defer cancel()
	v, err := yard.InTime(ctx, s.Yard, func() (any, error) { return f(ctx, r) }, func(_ any, err error) {
		s.Log.Info("overdue admin request ended", "path", r.URL.Path, "err", err)
	})
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		s.Log.Debug("admin request failed", "path", r.URL.Path, "err", err)
		w.WriteHeader(status(err))
		v = failure{err.Error()}
	}
	_ = json.NewEncoder(w).Encode(v) // the client may have closed the connection
}

// status returns the HTTP status for an error.
func status(err error) int {
	var bad badRequest
	switch {
	case errors.Is(err, book.ErrNotFound), errors.Is(err, ipam.ErrNotFound):
		return http.StatusNotFound
	case errors.Is(err, book.ErrInUse), errors.Is(err, book.ErrExists),
		errors.Is(err, ipam.ErrInUse), errors.Is(err, ipam.ErrTaken):
		return http.StatusConflict
	case errors.As(err, &bad), errors.Is(err, ipam.ErrInvalid), errors.Is(err, modes.ErrOption),
		errors.Is(err, policy.ErrPolicy), errors.Is(err, book.ErrAmbiguous), errors.Is(err, trace.ErrRequest):
		return http.StatusBadRequest
	}
	return http.StatusInternalServerError
}

// A badRequest is an error in what the client sent. Its text is that of the error alone.
type badRequest struct{ error }

func (e badRequest) Unwrap() error { return e.error }

func badRequestf(format string, args ...any) error { return badRequest{fmt.Errorf(format, args...)} }

func (s *Server) version(context.Context, *http.Request) (any, error) {
	return Version{Version: s.Version, PID: os.Getpid(), Goroutines: runtime.NumGoroutine()}, nil
}

func (s *Server) networks(context.Context, *http.Request) (any, error) {
	ns, err := s.Yard.Networks()
	if err != nil {
		return nil, err
	}
	es, err := s.Yard.Endpoints()
	if err != nil {
		return nil, err
	}
	count := map[string]int{}
	for _, e := range es {
		count[e.NetworkID]++
	}
	views := []Network{}
	for _, n := range ns {
		views = append(views, networkView(n, count[n.ID]))
	}
	return views, nil
}

func (s *Server) network(ctx context.Context, r *http.Request) (any, error) {
	n, err := s.Yard.FindNetwork(r.PathValue("ref"))
	if errors.Is(err, book.ErrNotFound) { // its name may not be known before its engine was asked
		for _, c := range s.census(ctx) {
			if err := reconcile.RecordNames(ctx, s.Yard, c); err != nil {
				return nil, err
			}
		}
		n, err = s.Yard.FindNetwork(r.PathValue("ref"))
	}
	if err != nil {
		return nil, err
	}
	es, err := s.Yard.Endpoints()
	if err != nil {
		return nil, err
	}
	count := 0
	for _, e := range es {
		if e.NetworkID == n.ID {
			count++
		}
	}
	v := networkView(n, count)
	v.Reach = s.reach(n)
	if v.Objects, err = s.Yard.Objects(n); err != nil {
		return nil, err
	}
	v.Segments, err = s.segments(n)
	return v, err
}

// segments says how large segments TCP may send on a network's links; empty: as large as on any link.
func (s *Server) segments(n modes.Network) (string, error) {
	want := s.Yard.Traits(n).Segments
	if !want.Big {
		return "", nil
	}
	limit, err := s.Yard.Config.Kernel.SegmentLimit(want)
	return limit.String(), err
}

func (s *Server) endpoints(context.Context, *http.Request) (any, error) {
	views := []Endpoint{}
	err := s.each(func(e modes.Endpoint, n modes.Network) { views = append(views, s.view(e, n)) })
	return views, err
}

func (s *Server) ports(context.Context, *http.Request) (any, error) {
	es, err := s.Yard.Endpoints()
	if err != nil {
		return nil, err
	}
	lost, err := port.LostAddrs(s.Yard.Book, es)
	if err != nil {
		return nil, err
	}
	views := []Port{}
	err = s.each(func(e modes.Endpoint, n modes.Network) {
		views = append(views, portViews(e, n, share.Conflicts(s.Yard, e), lost)...)
	})
	return views, err
}

// each calls show for every endpoint and its network.
func (s *Server) each(show func(modes.Endpoint, modes.Network)) error {
	es, err := s.Yard.Endpoints()
	if err != nil {
		return err
	}
	ns, err := s.Yard.Networks()
	if err != nil {
		return err
	}
	byID := map[string]modes.Network{}
	for _, n := range ns {
		byID[n.ID] = n
	}
	for _, e := range es {
		show(e, byID[e.NetworkID])
	}
	return nil
}

func (s *Server) view(e modes.Endpoint, n modes.Network) Endpoint {
	return endpointView(e, n, s.Yard.State(e), s.Yard.HostLink(n, e))
}

func (s *Server) endpoint(_ context.Context, r *http.Request) (any, error) {
	e, err := s.Yard.FindEndpointIn("", r.PathValue("ref"))
	if err != nil {
		return nil, err
	}
	n, err := s.Yard.Network(e.NetworkID)
	if err != nil {
		return nil, err
	}
	return s.view(e, n), nil
}

func (s *Server) leases(context.Context, *http.Request) (any, error) {
	ls, ps, err := pool.Leases(s.Yard)
	if err != nil {
		return nil, err
	}
	ns, err := s.Yard.Networks()
	if err != nil {
		return nil, err
	}
	name := map[string]string{}
	for _, n := range ns {
		name[n.ID] = n.Name
		if n.Name == "" {
			name[n.ID] = modes.Short(n.ID)
		}
	}
	network := map[string]string{}
	for _, p := range ps {
		network[p.ID] = name[p.Network]
	}
	views := []Lease{}
	for _, l := range ls {
		views = append(views, leaseView(l, network[l.Pool]))
	}
	given, err := lease.DHCPLeases(s.Yard.Book)
	for _, l := range given {
		views = append(views, dhcpView(l, name[l.Network]))
		if l.Six.Lease.Addr.IsValid() {
			views = append(views, dhcpv6View(l, name[l.Network]))
		}
	}
	return views, err
}

// lease decodes a request about an address. If it names no pool, the pool is the one that contains the address.
func (s *Server) lease(r *http.Request) (q Request, a netip.Addr, err error) {
	if err := json.NewDecoder(io.LimitReader(r.Body, 1<<16)).Decode(&q); err != nil {
		return q, a, badRequestf("decode the address: %w", err)
	}
	if a, err = netip.ParseAddr(q.Address); err != nil {
		return q, a, badRequestf("address %q: %w", q.Address, err)
	}
	if q.Pool != "" {
		return q, a, nil
	}
	_, pools, err := pool.Leases(s.Yard)
	if err != nil {
		return q, a, err
	}
	var in []string
	for _, p := range pools {
		if p.Subnet.Contains(a) {
			in = append(in, p.ID)
		}
	}
	switch len(in) {
	case 0:
		return q, a, badRequestf("address %s: no pool of netyard's IPAM contains it", a)
	case 1:
		q.Pool = in[0]
		return q, a, nil
	}
	return q, a, badRequestf("address %s: the pools %s contain it; name one (--pool)", a, strings.Join(in, ", "))
}

func (s *Server) reserve(_ context.Context, r *http.Request) (any, error) {
	q, a, err := s.lease(r)
	if err != nil {
		return nil, err
	}
	return q, pool.Reserve(s.Yard, q.Pool, a, q.Name)
}

func (s *Server) release(_ context.Context, r *http.Request) (any, error) {
	q, a, err := s.lease(r)
	if err != nil {
		return nil, err
	}
	return q, pool.Forget(s.Yard, q.Pool, a)
}

// census asks all engines and returns the answers. An engine that does not answer in time is left out.
func (s *Server) census(ctx context.Context) (all []reconcile.Census) {
	ctx, cancel := context.WithTimeout(ctx, censusTime)
	defer cancel()
	answers := make(chan *reconcile.Census, len(s.Censuses))
	for _, ask := range s.Censuses {
		go func() {
			c, err := ask(ctx)
			if err != nil {
				s.Log.Debug("engine census failed", "err", err)
				answers <- nil
				return
			}
			answers <- &c
		}()
	}
	for range s.Censuses {
		if c := <-answers; c != nil {
			all = append(all, *c)
		}
	}
	return all
}

func (s *Server) doctor(ctx context.Context, _ *http.Request) (any, error) {
	found, err := reconcile.Audit(ctx, s.Yard, s.census(ctx))
	if err != nil || s.Findings == nil {
		return orEmpty(found), err
	}
	more, err := s.Findings()
	return orEmpty(append(found, more...)), err
}

func (s *Server) gc(ctx context.Context, r *http.Request) (any, error) {
	dry := r.URL.Query().Get("dry_run") != ""
	found, err := reconcile.GC(ctx, s.Yard, s.census(ctx), dry)
	return orEmpty(found), err
}

func (s *Server) trace(_ context.Context, r *http.Request) (any, error) {
	q := r.URL.Query()
	return trace.Follow(s.Yard, q.Get("from"), q.Get("to"), q.Get("ipv6") != "")
}

// orEmpty returns findings that JSON encodes as [] if there are none, not as null.
func orEmpty(found []book.Finding) []book.Finding {
	if found == nil {
		return []book.Finding{}
	}
	return found
}
