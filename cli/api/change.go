package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"netyard/yard/book"
)

// readChange decodes a request to change options.
func readChange(r *http.Request) (q Change, err error) {
	if err := json.NewDecoder(io.LimitReader(r.Body, 1<<16)).Decode(&q); err != nil {
		return q, badRequestf("decode the change: %w", err)
	}
	return q, nil
}

func (s *Server) changeNetwork(ctx context.Context, r *http.Request) (any, error) {
	q, err := readChange(r)
	if err != nil {
		return nil, err
	}
	n, err := s.Yard.FindNetwork(r.PathValue("ref"))
	if err != nil {
		return nil, err
	}
	if _, err := s.Yard.ChangeNetwork(ctx, n.ID, q.Options); err != nil {
		return nil, err
	}
	return s.network(ctx, r)
}

func (s *Server) changeEndpoint(ctx context.Context, r *http.Request) (any, error) {
	q, err := readChange(r)
	if err != nil {
		return nil, err
	}
	network := r.URL.Query().Get("network")
	e, err := s.Yard.FindEndpointIn(network, r.PathValue("ref"))
	if errors.Is(err, book.ErrAmbiguous) && network == "" {
		return nil, fmt.Errorf("%w, or name its network with --network", err)
	}
	if err != nil {
		return nil, err
	}
	n, err := s.Yard.Network(e.NetworkID)
	if err != nil {
		return nil, err
	}
	if e, err = s.Yard.ChangeEndpoint(ctx, e.NetworkID, e.ID, q.Options); err != nil {
		return nil, err
	}
	return s.view(e, n), nil
}
