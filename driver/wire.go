package driver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/docker/go-plugins-helpers/sdk"

	"netyard/yard"
)

const (
	// deadline bounds every call: an engine holds locks while it waits for a plugin, and has no time limit of its own.
	deadline = 9 * time.Second

	// maxBody is room for every port of a container being published.
	maxBody = 64 << 20
)

// errEmpty refuses a call without a body. An engine whose plugin died in mid-call sends the call again with the body it
// has already read out: empty (moby/moby#39331). Taken for a request, that would be one with every field zero.
var errEmpty = errors.New("the request has no body; the engine sent it again after a failure and lost it")

// A request is what a handler can check before it starts.
type request interface {
	// missing names the required field that is not there; empty when nothing is missing.
	missing() string
}

// call makes an HTTP handler of a verb: decode, do, encode, in time whatever hangs. Errors go out under both keys
// engines look for, with status 200: network drivers' are read from Err, IPAM drivers' from Error.
func call[Q request, A any](y *yard.Yard, log *slog.Logger, verb string, do func(context.Context, Q) (A, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), deadline)
		defer cancel()
		start := time.Now()
		q, err := decode[Q](http.MaxBytesReader(w, r.Body, maxBody))
		if err != nil {
			log.Warn("refuse a request", "verb", verb, "err", err)
			reply(w, http.StatusBadRequest, failure{Err: err.Error(), Error: err.Error()})
			return
		}
		a, err := yard.InTime(ctx, y, func() (A, error) { return do(ctx, q) }, func(_ A, err error) {
			log.Info("a request that took too long has ended", "verb", verb, "took", time.Since(start), "err", err)
		})
		if err != nil {
			log.Warn("request failed", "verb", verb, "took", time.Since(start), "err", err)
			text := strings.ReplaceAll(err.Error(), "\n", "; ") // one line: people see it behind the engine's own words
			reply(w, http.StatusOK, failure{Err: text, Error: text})
			return
		}
		log.Debug("request done", "verb", verb, "took", time.Since(start))
		reply(w, http.StatusOK, a)
	}
}

// answer makes an HTTP handler of a verb that asks nothing.
func answer[A any](get func() A) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { reply(w, http.StatusOK, get()) }
}

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", sdk.DefaultContentTypeV1_1)
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // a caller that went away reads nothing
}

// failure is an error as both subsystems of an engine read it.
type failure struct{ Err, Error string }

// empty is the answer of verbs that only succeed or fail.
type empty struct{}

// decode reads one whole JSON object and nothing behind it.
func decode[Q request](body io.Reader) (q Q, err error) {
	d := json.NewDecoder(body)
	if err := d.Decode(&q); errors.Is(err, io.EOF) {
		return q, errEmpty
	} else if err != nil {
		return q, fmt.Errorf("decode request: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return q, errors.New("decode request: there is more behind the object")
	}
	if f := q.missing(); f != "" {
		return q, fmt.Errorf("decode request: %s is missing", f)
	}
	return q, nil
}
