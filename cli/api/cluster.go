package api

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"netyard/modes"
)

// A Cluster answers the admin's requests about the cluster of overlay networks.
type Cluster interface {
	Status(ctx context.Context) (ClusterStatus, error)
	Hosts(ctx context.Context) ([]ClusterHost, error)
	// Forget removes the host with that name or ID from the cluster.
	Forget(ctx context.Context, host string) (ClusterHost, error)
	// Overlays returns the networks of the cluster from etcd.
	Overlays(ctx context.Context) ([]Overlay, error)
	// RemoveOverlay removes a network from the cluster that is on no host.
	RemoveOverlay(ctx context.Context, name string) error
	// Reach returns the endpoints, on all hosts, of a network that is on this host. id is its ID in the cluster.
	Reach(id string) []Reached
	// Rejoin re-admits this host after it was removed from the cluster.
	Rejoin(ctx context.Context) error
	// Doctor checks etcd, this host, and the paths to the other hosts.
	Doctor(ctx context.Context) ([]ClusterSymptom, error)
	// RotateKey replaces this host's key for encrypted networks.
	RotateKey(ctx context.Context) (ClusterKey, error)
}

// A ClusterSymptom is a finding of Cluster.Doctor.
type ClusterSymptom struct {
	// Of is "etcd", "host" or "network".
	Of      string `json:"of"`
	Network string `json:"network,omitempty"` // its name in the cluster
	Text    string `json:"text"`
}

// A ClusterKey is a host's current key.
type ClusterKey struct {
	Public string `json:"public"`
}

// A ClusterHost is a host of the cluster, from etcd.
type ClusterHost struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Address string `json:"address"`
	// Alive: netyard runs on the host and reaches etcd.
	Alive    bool     `json:"alive"`
	Networks []string `json:"networks"`
	// Encrypts: the host supports encrypted networks.
	Encrypts bool   `json:"encrypts"`
	Version  string `json:"version,omitempty"`
}

// A ClusterStatus is this host's membership and the state of its overlays.
type ClusterStatus struct {
	Host    string `json:"host"`
	Cluster string `json:"cluster,omitempty"`
	// Reason says why this host is not a member at the moment; empty: it is one.
	Reason string `json:"reason,omitempty"`
	// Advice says what to do about it.
	Advice string `json:"advice,omitempty"`
	// Down is the time since which etcd has not answered; zero: it answers.
	Down time.Time `json:"down,omitzero"`
	// Refused says why etcd answers and refuses writes; empty: it does not refuse them.
	Refused string `json:"refused,omitempty"`
	// WriteMedian and WriteWorst are the median and the 99th percentile of this host's last writes to etcd, in
	// milliseconds; 0: unknown.
	WriteMedian float64 `json:"write_median_ms,omitempty"`
	WriteWorst  float64 `json:"write_worst_ms,omitempty"`
	Hosts       int     `json:"hosts"`
	Rejected    int     `json:"rejected"` // records in etcd that are not valid and not used
	// Clear says why this host cannot encrypt; empty: it can.
	Clear    string           `json:"clear,omitempty"`
	Networks []ClusterNetwork `json:"networks"`
}

// A ClusterNetwork is an overlay on this host.
type ClusterNetwork struct {
	Name  string `json:"name"`
	Peers int    `json:"peers"` // addresses on other hosts
	// Warm is the number of spare addresses, which are claimed in advance for new containers. Waiting is the number of
	// addresses not yet reported to etcd, Lost that of addresses that belong to another host according to etcd.
	Warm    int `json:"warm"`
	Waiting int `json:"waiting"`
	Lost    int `json:"lost"`
	// Encrypted: traffic between hosts is inside WireGuard. Left names the hosts of the network that do not support it;
	// there is no traffic with them.
	Encrypted bool     `json:"encrypted,omitempty"`
	Left      []string `json:"left,omitempty"`
	// Fenced describes the endpoints that have a lost address. Their links are down.
	Fenced []string `json:"fenced,omitempty"`
	// Refused has the addresses in etcd that are not used as peers, and why.
	Refused map[string]string `json:"refused,omitempty"`
	// Read is the time when all of it was last read from etcd.
	Read time.Time `json:"read,omitzero"`
}

// inCluster returns the cluster, or an error if this host is in none.
func (s *Server) inCluster() (Cluster, error) {
	if s.Cluster == nil {
		return nil, badRequestf("%w", modes.ErrNoCluster)
	}
	return s.Cluster, nil
}

func (s *Server) clusterStatus(ctx context.Context, _ *http.Request) (any, error) {
	c, err := s.inCluster()
	if err != nil {
		return nil, err
	}
	return c.Status(ctx)
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

// ClusterStatus returns this host's membership and the state of its overlays.
func (c *Client) ClusterStatus(ctx context.Context) (ClusterStatus, error) {
	return do[ClusterStatus](ctx, c, http.MethodGet, "/v1/cluster", nil)
}

// ClusterHosts returns the hosts of the cluster from etcd.
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

// Rejoin re-admits the daemon's host after it was removed from the cluster.
func (c *Client) Rejoin(ctx context.Context) error {
	_, err := do[struct{}](ctx, c, http.MethodPost, "/v1/cluster/rejoin", nil)
	return err
}

// ForgetHost removes a host from the cluster.
func (c *Client) ForgetHost(ctx context.Context, host string) (ClusterHost, error) {
	return do[ClusterHost](ctx, c, http.MethodDelete, "/v1/cluster/hosts/"+url.PathEscape(host), nil)
}

// ClusterDoctor checks etcd, the daemon's host, and the paths to the other hosts.
func (c *Client) ClusterDoctor(ctx context.Context) ([]ClusterSymptom, error) {
	return do[[]ClusterSymptom](ctx, c, http.MethodGet, "/v1/cluster/doctor", nil)
}

// RotateKey replaces this host's key for encrypted networks.
func (c *Client) RotateKey(ctx context.Context) (ClusterKey, error) {
	return do[ClusterKey](ctx, c, http.MethodPost, "/v1/cluster/key", nil)
}
