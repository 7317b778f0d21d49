package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"netyard/yard/event"
)

// events answers with the events that are kept: as a list, or with follow=1 as a stream of JSON values that continues
// with new events until the client or the daemon ends it. after=ID leaves out events up to that one.
func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	var after uint64
	if text := q.Get("after"); text != "" {
		var err error
		if after, err = strconv.ParseUint(text, 10, 64); err != nil {
			s.serve(w, r, func(context.Context, *http.Request) (any, error) {
				return nil, badRequestf("after=%s: not the number of an event", text)
			})
			return
		}
	}
	if q.Get("follow") == "" {
		s.serve(w, r, func(context.Context, *http.Request) (any, error) {
			some, _ := s.Yard.Events(after)
			return append([]event.Event{}, some...), nil
		})
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	out := json.NewEncoder(w)
	for {
		some, more := s.Yard.Events(after)
		for _, e := range some {
			if err := out.Encode(e); err != nil {
				return // the client has closed the connection
			}
			after = e.ID
		}
		if err := http.NewResponseController(w).Flush(); err != nil || more == nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-more:
		}
	}
}

// Events lists the events that the daemon keeps.
func (c *Client) Events(ctx context.Context) ([]event.Event, error) {
	return do[[]event.Event](ctx, c, http.MethodGet, "/v1/events", nil)
}

// Follow calls show for every event that the daemon keeps, and then for each new one, until ctx or the daemon ends.
func (c *Client) Follow(ctx context.Context, show func(event.Event) error) error {
	unlimited := *c.http
	unlimited.Timeout = 0 // there may be no event for days
	w, err := request(ctx, &Client{socket: c.socket, http: &unlimited}, http.MethodGet, "/v1/events?follow=1", nil)
	if err != nil {
		return err
	}
	defer w.Body.Close() //nolint:errcheck // read only
	in := json.NewDecoder(w.Body)
	for {
		var e event.Event
		err := in.Decode(&e)
		switch {
		case ctx.Err() != nil, errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("read the daemon's events: %w", err)
		}
		if err := show(e); err != nil {
			return err
		}
	}
}
