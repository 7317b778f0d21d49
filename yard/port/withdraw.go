package port

import (
	"context"

	"netyard/modes"
	"netyard/yard/book"
)

// Withdraw removes the ports of an endpoint from the kernel. was is the endpoint as it had them.
func Withdraw(ctx context.Context, h *book.Held, was modes.Endpoint) error {
	if len(was.Ports) == 0 {
		return nil
	}
	is := was
	is.Ports, is.Sandbox = nil, ""
	h.Book.TellPorts(h.Network, was, is, nil)
	return Program(ctx, h, was, is)
}
