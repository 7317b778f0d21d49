package api

import (
	"context"
	"net/http"
	"net/url"

	"netyard/modes"
	"netyard/yard/overlay"
)

// An Overlay is a network of the cluster, from etcd.
type Overlay struct {
	ID       string   `json:"id"`
	Name     string   `json:"name"`
	VNI      uint32   `json:"vni"`
	Subnets  []Subnet `json:"subnets"`
	MTU      int      `json:"mtu"`
	Internal bool     `json:"internal"`
	Hosts    []string `json:"hosts"` // the names of those that the network is on
}

// A Reached is an endpoint of an overlay, on any host.
type Reached struct {
	Address   string   `json:"address"`
	Host      string   `json:"host"`
	Container string   `json:"container,omitempty"`
	Aliases   []string `json:"aliases,omitempty"`
	MAC       string   `json:"mac"`
	Endpoint  string   `json:"endpoint_id"`
}

func (s *Server) overlays(ctx context.Context, _ *http.Request) (any, error) {
	c, err := s.inCluster()
	if err != nil {
		return nil, err
	}
	return c.Overlays(ctx)
}

func (s *Server) removeOverlay(ctx context.Context, r *http.Request) (any, error) {
	c, err := s.inCluster()
	if err != nil {
		return nil, err
	}
	return struct{}{}, c.RemoveOverlay(ctx, r.PathValue("name"))
}

// reach returns the endpoints of an overlay on all hosts; nil if n is no overlay.
func (s *Server) reach(n modes.Network) []Reached {
	o, ok := overlay.Overlay(s.Yard.Book, n)
	if !ok || s.Cluster == nil {
		return nil
	}
	return s.Cluster.Reach(o.ID)
}

// Overlays returns the networks of the cluster.
func (c *Client) Overlays(ctx context.Context) ([]Overlay, error) {
	return do[[]Overlay](ctx, c, http.MethodGet, "/v1/cluster/networks", nil)
}

// RemoveOverlay removes a network from the cluster that is on no host.
func (c *Client) RemoveOverlay(ctx context.Context, name string) error {
	_, err := do[struct{}](ctx, c, http.MethodDelete, "/v1/cluster/networks/"+url.PathEscape(name), nil)
	return err
}
