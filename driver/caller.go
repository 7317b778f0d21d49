package driver

import (
	"context"
	"net"

	"netyard/yard"
)

// callerKey finds the engine's process in the context of a request.
type callerKey struct{}

// WithCaller notes whose connection it is: the ConnContext of a server that has a Door's Handler.
func WithCaller(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, callerKey{}, yard.PeerOf(c))
}

// caller is the process of the engine that sent a request; not known where that cannot be seen.
func caller(ctx context.Context) yard.Process {
	p, _ := ctx.Value(callerKey{}).(yard.Process)
	return p
}
