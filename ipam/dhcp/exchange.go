package dhcp

import (
	"context"
	"math/rand/v2"
	"time"
)

// exchange sends a message and receives answers, until take accepts one or returns an error, or ctx ends. It sends the
// message again after intervals that double, and that differ by up to a quarter, so that clients that start together do
// not go on together (RFC 2131, 4.1; RFC 8415, 15).
func exchange[From any](ctx context.Context, send func() error, receive func(context.Context) ([]byte, From, error),
	take func(raw []byte, from From) (l Lease, done bool, err error),
) (Lease, error) {
	for wait := firstWait; ; wait *= 2 {
		if err := send(); err != nil {
			return Lease{}, err
		}
		l, done, err := listen(ctx, jittered(wait), receive, take)
		if done || err != nil {
			return l, err
		}
		if ctx.Err() != nil {
			return Lease{}, ErrNoServer
		}
	}
}

// jittered returns a duration that is at most a quarter longer or shorter.
func jittered(d time.Duration) time.Duration {
	const part = 4
	return d - d/part + rand.N(2*d/part) //nolint:gosec // nobody gains by foreseeing it
}

// listen passes received messages to take for the duration of wait.
func listen[From any](ctx context.Context, wait time.Duration, receive func(context.Context) ([]byte, From, error),
	take func(raw []byte, from From) (l Lease, done bool, err error),
) (l Lease, done bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		raw, from, err := receive(ctx)
		if ctx.Err() != nil {
			return Lease{}, false, nil
		}
		if err != nil {
			return Lease{}, false, err
		}
		if l, done, err := take(raw, from); done || err != nil {
			return l, done, err
		}
	}
}
