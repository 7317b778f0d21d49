package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"syscall"
	"time"

	"netyard/yard/book"
	"netyard/yard/trace"
)

// ErrNoDaemon says that no daemon answers on the admin socket.
var ErrNoDaemon = errors.New("the netyard daemon is not running")

// A StatusError is an error that the daemon answered with.
type StatusError struct {
	Status  int
	Message string
}

// Error returns the daemon's message.
func (e *StatusError) Error() string { return e.Message }

// patience is how much longer the client waits than a working daemon takes at most, so that a daemon that hangs does
// not hang a cron job too. A daemon that got no processor time for a while can still report what was slow.
const patience = 15 * time.Second

// A Client sends requests to the daemon.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient returns a client of the daemon on that socket.
func NewClient(socket string) *Client {
	var d net.Dialer
	return &Client{socket: socket, http: &http.Client{
		Timeout: adminTime + patience,
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return d.DialContext(ctx, "unix", socket)
			},
		},
	}}
}

// do sends a request and decodes the answer.
func do[A any](ctx context.Context, c *Client, method, path string, q any) (a A, err error) {
	w, err := request(ctx, c, method, path, q)
	if err != nil {
		return a, err
	}
	defer w.Body.Close() //nolint:errcheck // read only
	if err := json.NewDecoder(w.Body).Decode(&a); err != nil {
		return a, fmt.Errorf("decode the daemon's answer: %w", err)
	}
	return a, nil
}

// request sends a request and returns the response if it has status 200. The caller closes its body.
func request(ctx context.Context, c *Client, method, path string, q any) (*http.Response, error) {
	var body bytes.Buffer
	if q != nil {
		if err := json.NewEncoder(&body).Encode(q); err != nil {
			return nil, fmt.Errorf("encode request: %w", err)
		}
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://netyard"+path, &body)
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	w, err := c.http.Do(r)
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, fmt.Errorf("%w (no answer on %s); start it with: systemctl start netyard, or netyard serve",
			ErrNoDaemon, c.socket)
	}
	if err != nil {
		return nil, fmt.Errorf("ask the daemon: %w", err)
	}
	if w.StatusCode != http.StatusOK {
		defer w.Body.Close() //nolint:errcheck // read only
		f := failure{Error: w.Status}
		_ = json.NewDecoder(w.Body).Decode(&f) // without a message, the status remains
		return nil, &StatusError{Status: w.StatusCode, Message: f.Error}
	}
	return w, nil
}

// Version returns the daemon's version.
func (c *Client) Version(ctx context.Context) (Version, error) {
	return do[Version](ctx, c, http.MethodGet, "/v1/version", nil)
}

// Networks lists all networks.
func (c *Client) Networks(ctx context.Context) ([]Network, error) {
	return do[[]Network](ctx, c, http.MethodGet, "/v1/networks", nil)
}

// Network returns the network with that name, ID or beginning of an ID.
func (c *Client) Network(ctx context.Context, ref string) (Network, error) {
	return do[Network](ctx, c, http.MethodGet, "/v1/networks/"+url.PathEscape(ref), nil)
}

// MakeNetwork creates a network that belongs to no engine.
func (c *Client) MakeNetwork(ctx context.Context, q NetworkRequest) (Network, error) {
	return do[Network](ctx, c, http.MethodPost, "/v1/networks", q)
}

// RemoveNetwork removes a network that belongs to no engine. Network explains ref.
func (c *Client) RemoveNetwork(ctx context.Context, ref string) (Network, error) {
	return do[Network](ctx, c, http.MethodDelete, "/v1/networks/"+url.PathEscape(ref), nil)
}

// ChangeNetwork changes options of a network and of all its endpoints.
func (c *Client) ChangeNetwork(ctx context.Context, ref string, q Change) (Network, error) {
	return do[Network](ctx, c, http.MethodPatch, "/v1/networks/"+url.PathEscape(ref), q)
}

// Endpoints lists all endpoints.
func (c *Client) Endpoints(ctx context.Context) ([]Endpoint, error) {
	return do[[]Endpoint](ctx, c, http.MethodGet, "/v1/endpoints", nil)
}

// Ports lists all published ports.
func (c *Client) Ports(ctx context.Context) ([]Port, error) {
	return do[[]Port](ctx, c, http.MethodGet, "/v1/ports", nil)
}

// Endpoint returns the endpoint with that ID, beginning of an ID, or container name.
func (c *Client) Endpoint(ctx context.Context, ref string) (Endpoint, error) {
	return do[Endpoint](ctx, c, http.MethodGet, "/v1/endpoints/"+url.PathEscape(ref), nil)
}

// ChangeEndpoint changes options of one endpoint. It considers only endpoints of the network, if that is not empty.
func (c *Client) ChangeEndpoint(ctx context.Context, network, ref string, q Change) (Endpoint, error) {
	path := "/v1/endpoints/" + url.PathEscape(ref)
	if network != "" {
		path += "?network=" + url.QueryEscape(network)
	}
	return do[Endpoint](ctx, c, http.MethodPatch, path, q)
}

// Leases lists the leases of netyard's IPAM and those from DHCP servers.
func (c *Client) Leases(ctx context.Context) ([]Lease, error) {
	return do[[]Lease](ctx, c, http.MethodGet, "/v1/leases", nil)
}

// Reserve reserves an address: for whoever asks for it by address, or for the container named q.Name.
func (c *Client) Reserve(ctx context.Context, q Request) (Request, error) {
	return do[Request](ctx, c, http.MethodPost, "/v1/leases/reserve", q)
}

// Release releases an address that is reserved, held or cooling.
func (c *Client) Release(ctx context.Context, q Request) (Request, error) {
	return do[Request](ctx, c, http.MethodPost, "/v1/leases/release", q)
}

// Policies lists all policies.
func (c *Client) Policies(ctx context.Context) ([]Policy, error) {
	return do[[]Policy](ctx, c, http.MethodGet, "/v1/policies", nil)
}

// Policy returns the policy of that name.
func (c *Client) Policy(ctx context.Context, name string) (Policy, error) {
	return do[Policy](ctx, c, http.MethodGet, "/v1/policies/"+url.PathEscape(name), nil)
}

// ApplyPolicies applies the policies of a file, or with q.DryRun returns what that would change.
func (c *Client) ApplyPolicies(ctx context.Context, q PolicyRequest) ([]Policy, error) {
	return do[[]Policy](ctx, c, http.MethodPost, "/v1/policies", q)
}

// RemovePolicy removes a policy.
func (c *Client) RemovePolicy(ctx context.Context, name string) (Policy, error) {
	return do[Policy](ctx, c, http.MethodDelete, "/v1/policies/"+url.PathEscape(name), nil)
}

// Doctor compares records, kernel and engines and returns the differences.
func (c *Client) Doctor(ctx context.Context) ([]book.Finding, error) {
	return do[[]book.Finding](ctx, c, http.MethodGet, "/v1/doctor", nil)
}

// GC removes what can be removed of the findings, or with dryRun returns what it would remove.
func (c *Client) GC(ctx context.Context, dryRun bool) ([]book.Finding, error) {
	path := "/v1/gc"
	if dryRun {
		path += "?dry_run=1"
	}
	return do[[]book.Finding](ctx, c, http.MethodPost, path, nil)
}

// Trace traces the first packet of a flow.
func (c *Client) Trace(ctx context.Context, from, to string, v6 bool) (trace.Trace, error) {
	q := url.Values{"from": {from}, "to": {to}}
	if v6 {
		q.Set("ipv6", "1")
	}
	return do[trace.Trace](ctx, c, http.MethodGet, "/v1/trace?"+q.Encode(), nil)
}
