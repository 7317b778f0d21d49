package driver

import (
	"context"
	"net"

	"netyard/yard"
)

// callerKey is the context key of the engine's process.
type callerKey struct{}

// WithCaller adds the process at the other end of a connection to its context. It is the ConnContext of the server that
// runs a Door's Handler.
func WithCaller(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, callerKey{}, yard.PeerOf(c))
}

// caller returns the process of the engine that sent a request, or the zero Process if it is not known.
func caller(ctx context.Context) yard.Process {
	p, _ := ctx.Value(callerKey{}).(yard.Process)
	return p
}
