package api

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"netyard/modes"
)

// A Cluster is what the admin can ask of the cluster that overlay networks are in.
type Cluster interface {
	Status() (ClusterStatus, error)
	Hosts(ctx context.Context) ([]ClusterHost, error)
	// Forget takes a host out, by its name or its id.
	Forget(ctx context.Context, host string) (ClusterHost, error)
	// Overlays are the networks of the cluster, as etcd has them.
	Overlays(ctx context.Context) ([]Overlay, error)
	// RemoveOverlay takes one out that no host has.
	RemoveOverlay(ctx context.Context, name string) error
	// Reach are the endpoints of a network that is on this host, by its id in the cluster, those of other hosts too.
	Reach(id string) []Reached
	// Rejoin has this host back that was taken out.
	Rejoin(ctx context.Context) error
	// Doctor looks for what is wrong with etcd, this host, and the way to the others.
	Doctor(ctx context.Context) ([]ClusterSymptom, error)
	// RotateKey gives this host another key for what is encrypted.
	RotateKey(ctx context.Context) (ClusterKey, error)
}

// A ClusterSymptom is something that somebody ought to know of the cluster.
type ClusterSymptom struct {
	// Of is "etcd", "host" or "network".
	Of      string `json:"of"`
	Network string `json:"network,omitempty"` // its name in the cluster
	Text    string `json:"text"`
}

// A ClusterKey is the public half of the key that a host has now.
type ClusterKey struct {
	Public string `json:"public"`
}

// A ClusterHost is a member, as etcd has it.
type ClusterHost struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Address string `json:"address"`
	// Alive: its netyard runs and reaches etcd.
	Alive    bool     `json:"alive"`
	Networks []string `json:"networks"`
	// Encrypts: networks that are encrypted can be on it.
	Encrypts bool   `json:"encrypts"`
	Version  string `json:"version,omitempty"`
}

// A ClusterStatus is how this host fares as a member.
type ClusterStatus struct {
	Host    string `json:"host"`
	Cluster string `json:"cluster,omitempty"`
	// Reason is why it is no member at the moment; empty: it is one.
	Reason string `json:"reason,omitempty"`
	// Advice is what to do about it.
	Advice string `json:"advice,omitempty"`
	// Down is since when etcd has not answered.
	Down time.Time `json:"down,omitzero"`
	// WriteMedian and WriteWorst are how long this host's last writes took, half of them and 99 of 100 at most,
	// milliseconds; 0: unknown.
	WriteMedian float64 `json:"write_median_ms,omitempty"`
	WriteWorst  float64 `json:"write_worst_ms,omitempty"`
	Hosts       int     `json:"hosts"`
	Rejected    int     `json:"rejected"` // records in etcd that are not let in
	// Clear is why this host can encrypt nothing; empty: it can.
	Clear    string           `json:"clear,omitempty"`
	Networks []ClusterNetwork `json:"networks"`
}

// A ClusterNetwork is an overlay on this host.
type ClusterNetwork struct {
	Name  string `json:"name"`
	Peers int    `json:"peers"` // addresses on other hosts
	// Warm are in store, Waiting are addresses that etcd has not heard of, Lost those that it says are another host's.
	Warm    int `json:"warm"`
	Waiting int `json:"waiting"`
	Lost    int `json:"lost"`
	// Encrypted: what is between the hosts is inside WireGuard. Left are hosts of the network that cannot do that, and
	// so are not spoken to.
	Encrypted bool     `json:"encrypted,omitempty"`
	Left      []string `json:"left,omitempty"`
	// Fenced are the endpoints that have an address of Lost, and whose links are down, in words.
	Fenced []string `json:"fenced,omitempty"`
	// Refused are addresses in etcd that are no peers, and why.
	Refused map[string]string `json:"refused,omitempty"`
	// Read is when all of it was last read from etcd.
	Read time.Time `json:"read,omitzero"`
}

func (s *Server) inCluster() (Cluster, error) {
	if s.Cluster == nil {
		return nil, fmt.Errorf("%w: %w", errBadRequest, modes.ErrNoCluster)
	}
	return s.Cluster, nil
}

func (s *Server) clusterStatus(context.Context, *http.Request) (any, error) {
	c, err := s.inCluster()
	if err != nil {
		return nil, err
	}
	return c.Status()
}

func (s *Server) clusterHosts(ctx context.Context, _ *http.Request) (any, error) {
	c, err := s.inCluster()
	if err != nil {
		return nil, err
	}
	return c.Hosts(ctx)
}

func (s *Server) forgetHost(ctx context.Context, r *http.Request) (any, error) {
	c, err := s.inCluster()
	if err != nil {
		return nil, err
	}
	return c.Forget(ctx, r.PathValue("host"))
}

func (s *Server) clusterDoctor(ctx context.Context, _ *http.Request) (any, error) {
	c, err := s.inCluster()
	if err != nil {
		return nil, err
	}
	return c.Doctor(ctx)
}

func (s *Server) rotateKey(ctx context.Context, _ *http.Request) (any, error) {
	c, err := s.inCluster()
	if err != nil {
		return nil, err
	}
	return c.RotateKey(ctx)
}

// ClusterStatus says how this host fares as a member of its cluster.
func (c *Client) ClusterStatus(ctx context.Context) (ClusterStatus, error) {
	return do[ClusterStatus](ctx, c, http.MethodGet, "/v1/cluster", nil)
}

// ClusterHosts are the members, as etcd has them.
func (c *Client) ClusterHosts(ctx context.Context) ([]ClusterHost, error) {
	return do[[]ClusterHost](ctx, c, http.MethodGet, "/v1/cluster/hosts", nil)
}

func (s *Server) rejoin(ctx context.Context, _ *http.Request) (any, error) {
	c, err := s.inCluster()
	if err == nil {
		err = c.Rejoin(ctx)
	}
	return struct{}{}, err
}

// Rejoin has the daemon's host back that was taken out.
func (c *Client) Rejoin(ctx context.Context) error {
	_, err := do[struct{}](ctx, c, http.MethodPost, "/v1/cluster/rejoin", nil)
	return err
}

// ForgetHost takes a host out.
func (c *Client) ForgetHost(ctx context.Context, host string) (ClusterHost, error) {
	return do[ClusterHost](ctx, c, http.MethodDelete, "/v1/cluster/hosts/"+url.PathEscape(host), nil)
}

// ClusterDoctor looks for what is wrong with etcd, the daemon's host, and the way to the others.
func (c *Client) ClusterDoctor(ctx context.Context) ([]ClusterSymptom, error) {
	return do[[]ClusterSymptom](ctx, c, http.MethodGet, "/v1/cluster/doctor", nil)
}

// RotateKey gives this host another key for what is encrypted.
func (c *Client) RotateKey(ctx context.Context) (ClusterKey, error) {
	return do[ClusterKey](ctx, c, http.MethodPost, "/v1/cluster/key", nil)
}
