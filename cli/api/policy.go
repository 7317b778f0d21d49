package api

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"

	"go.yaml.in/yaml/v3"

	"netyard/modes"
	"netyard/policy"
	"netyard/yard/enforce"
)

// A Policy is a policy as the admin socket shows it.
type Policy struct {
	Name string `json:"name"`
	// Selects, Ingress and Egress summarize it in words.
	Selects string `json:"selects"`
	Ingress string `json:"ingress,omitempty"`
	Egress  string `json:"egress,omitempty"`
	// Endpoints has the names of the containers that it selects now, or the endpoint's ID if the name is not known yet.
	Endpoints []string `json:"endpoints"`
	// Change says what the request did: created, changed, unchanged or removed.
	Change string `json:"change,omitempty"`
	// Text is the whole policy, in YAML.
	Text string `json:"text"`
}

// A PolicyRequest contains a policy file.
type PolicyRequest struct {
	Text   string `json:"text"`
	DryRun bool   `json:"dry_run,omitempty"`
}

// policyFileMax bounds a policy file, in bytes; real ones are smaller.
const policyFileMax = 4 << 20

func policyView(s enforce.PolicyState) (Policy, error) {
	text, err := yaml.Marshal(s.Policy)
	if err != nil {
		return Policy{}, fmt.Errorf("print policy %s: %w", s.Name, err)
	}
	v := Policy{
		Name: s.Name, Selects: s.Select.String(), Ingress: s.Ingress.Summary(), Egress: s.Egress.Summary(),
		Change: s.Change, Endpoints: []string{}, Text: string(text),
	}
	for _, e := range s.Endpoints {
		v.Endpoints = append(v.Endpoints, cmp.Or(e.Container.Name, modes.Short(e.ID)))
	}
	slices.Sort(v.Endpoints)
	return v, nil
}

func policyViews(states []enforce.PolicyState, err error) (any, error) {
	views := []Policy{}
	for _, s := range states {
		v, viewErr := policyView(s)
		err = cmp.Or(err, viewErr)
		views = append(views, v)
	}
	return views, err
}

func (s *Server) policies(context.Context, *http.Request) (any, error) {
	return policyViews(enforce.Policies(s.Yard.Book))
}

func (s *Server) policy(_ context.Context, r *http.Request) (any, error) {
	state, err := enforce.Policy(s.Yard.Book, r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	return policyView(state)
}

func (s *Server) applyPolicies(ctx context.Context, r *http.Request) (any, error) {
	var q PolicyRequest
	if err := json.NewDecoder(io.LimitReader(r.Body, policyFileMax)).Decode(&q); err != nil {
		return nil, badRequestf("decode the policies: %w", err)
	}
	fresh, err := policy.Parse([]byte(q.Text))
	if err != nil {
		return nil, err
	}
	return policyViews(enforce.ApplyPolicies(ctx, s.Yard.Book, fresh, q.DryRun))
}

func (s *Server) removePolicy(ctx context.Context, r *http.Request) (any, error) {
	state, err := enforce.RemovePolicy(ctx, s.Yard.Book, r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	return policyView(state)
}
