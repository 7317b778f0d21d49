package api

import (
	"context"
	"net/http"
	"net/url"

	"netyard/modes"
	"netyard/yard/overlay"
)

// An Overlay is a network of the cluster, as etcd has it.
type Overlay struct {
	ID       string   `json:"id"`
	Name     string   `json:"name"`
	VNI      uint32   `json:"vni"`
	Subnets  []Subnet `json:"subnets"`
	MTU      int      `json:"mtu"`
	Internal bool     `json:"internal"`
	Hosts    []string `json:"hosts"` // that it is on
}

// A Reached is an endpoint of an overlay, on whatever host.
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

// reach shows who is on an overlay, on whatever host.
func (s *Server) reach(n modes.Network) []Reached {
	o, ok := overlay.Overlay(s.Yard.Book, n)
	if !ok || s.Cluster == nil {
		return nil
	}
	return s.Cluster.Reach(o.ID)
}

// Overlays are the networks of the cluster.
func (c *Client) Overlays(ctx context.Context) ([]Overlay, error) {
	return do[[]Overlay](ctx, c, http.MethodGet, "/v1/cluster/networks", nil)
}

// RemoveOverlay takes a network out of the cluster that no host has.
func (c *Client) RemoveOverlay(ctx context.Context, name string) error {
	_, err := do[struct{}](ctx, c, http.MethodDelete, "/v1/cluster/networks/"+url.PathEscape(name), nil)
	return err
}
