package api

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"

	"netyard/ipam"
	"netyard/yard/book"
	"netyard/yard/own"
)

// makeNetwork creates a network that belongs to no engine.
func (s *Server) makeNetwork(ctx context.Context, r *http.Request) (any, error) {
	var q NetworkRequest
	if err := json.NewDecoder(io.LimitReader(r.Body, 1<<16)).Decode(&q); err != nil {
		return nil, badRequestf("decode the network: %w", err)
	}
	subnets, err := q.subnets()
	if err != nil {
		return nil, badRequest{err}
	}
	n, err := own.CreateNetwork(ctx, s.Yard, book.NetworkRequest{
		Name: q.Name, Mode: q.Mode, Options: q.Options, Internal: q.Internal, IPv6: q.IPv6, Subnets: subnets,
	})
	return networkView(n, 0), err
}

// subnets returns the subnets, each with its gateway, range and auxiliary addresses.
func (q NetworkRequest) subnets() (subnets []book.SubnetRequest, err error) {
	for _, text := range q.Subnets {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("subnet %q: %w", text, err)
		}
		subnets = append(subnets, book.SubnetRequest{Pool: ipam.PoolRequest{Subnet: p.Masked()}})
	}
	of := func(a netip.Addr) *book.SubnetRequest {
		for i := range subnets {
			if subnets[i].Pool.Subnet.Contains(a) {
				return &subnets[i]
			}
		}
		return nil
	}
	for _, text := range q.Gateways {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return nil, fmt.Errorf("gateway %q: %w", text, err)
		}
		s := of(a)
		if s == nil || s.Gateway.IsValid() {
			return nil, fmt.Errorf("gateway %s: not in a --subnet, or the subnet has another gateway", a)
		}
		s.Gateway = a
	}
	for _, text := range q.Ranges {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("ip-range %q: %w", text, err)
		}
		s := of(p.Addr())
		if s == nil || s.Pool.Range.IsValid() {
			return nil, fmt.Errorf("ip-range %s: not in a --subnet, or the subnet has another range", p)
		}
		s.Pool.Range = p.Masked()
	}
	return subnets, q.addAux(of)
}

// addAux adds each auxiliary address to the subnet that it is in.
func (q NetworkRequest) addAux(of func(netip.Addr) *book.SubnetRequest) error {
	for name, text := range q.Aux {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return fmt.Errorf("aux-address %s=%s: not an IP address", name, text)
		}
		s := of(a)
		if s == nil {
			return fmt.Errorf("aux-address %s=%s: not in a --subnet", name, text)
		}
		if s.Aux == nil {
			s.Aux = map[string]netip.Addr{}
		}
		s.Aux[name] = a
	}
	return nil
}

// removeNetwork removes a network that belongs to no engine.
func (s *Server) removeNetwork(ctx context.Context, r *http.Request) (any, error) {
	n, err := own.RemoveNetwork(ctx, s.Yard, r.PathValue("ref"))
	return networkView(n, 0), err
}
