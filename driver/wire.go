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

	// maxBody is the largest request body, in bytes; a request that publishes every port of a container is smaller.
	maxBody = 64 << 20
)

// errEmpty refuses a call without a body. When a plugin dies during a call, the engine sends the call again with the
// body that it has already consumed, so empty (moby/moby#39331). Decoded, that would be a request with every field
// zero.
var errEmpty = errors.New("decode request: it has no body; the engine sent it again after a failure and lost the body")

// A request can be checked before its handler starts.
type request interface {
	// missing returns the name of a required field that is absent, or "".
	missing() string
}

// call returns the HTTP handler of a verb: it decodes the request, calls do and encodes the answer, and answers by the
// deadline even if do hangs. A failure is answered with status 200 and the error under both keys that engines read: Err
// for network drivers, Error for IPAM drivers.
func call[Q request, A any](
	y *yard.Yard, log *slog.Logger, verb string, do func(context.Context, Q) (A, error),
) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), deadline)
		defer cancel()
		start := time.Now()
		q, err := decode[Q](http.MaxBytesReader(w, r.Body, maxBody))
		if err != nil {
			log.Warn("request refused", "verb", verb, "err", err)
			reply(w, http.StatusBadRequest, failure{Err: err.Error(), Error: err.Error()})
			return
		}
		a, err := yard.InTime(ctx, y, func() (A, error) { return do(ctx, q) }, func(_ A, err error) {
			log.Info("timed-out request ended", "verb", verb, "took", time.Since(start), "err", err)
		})
		if err != nil {
			log.Warn("request failed", "verb", verb, "took", time.Since(start), "err", err)
			text := strings.ReplaceAll(err.Error(), "\n", "; ") // the engine shows it after its own text, on one line
			reply(w, http.StatusOK, failure{Err: text, Error: text})
			return
		}
		log.Debug("request done", "verb", verb, "took", time.Since(start))
		reply(w, http.StatusOK, a)
	}
}

// answer returns the HTTP handler of a verb whose request has no fields.
func answer[A any](get func() A) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { reply(w, http.StatusOK, get()) }
}

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", sdk.DefaultContentTypeV1_1)
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // fails only when the caller has closed the connection
}

// failure carries an error under the keys that both subsystems of an engine read.
type failure struct{ Err, Error string }

// empty is the answer of verbs that only succeed or fail.
type empty struct{}

// decode decodes exactly one JSON object and checks that its required fields are set.
func decode[Q request](body io.Reader) (q Q, err error) {
	d := json.NewDecoder(body)
	if err := d.Decode(&q); errors.Is(err, io.EOF) {
		return q, errEmpty
	} else if err != nil {
		return q, fmt.Errorf("decode request: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return q, errors.New("decode request: data follows the JSON object")
	}
	if f := q.missing(); f != "" {
		return q, fmt.Errorf("decode request: %s is missing", f)
	}
	return q, nil
}
