package port

import (
	"context"

	"netyard/modes"
	"netyard/yard/book"
)

// Withdraw removes the ports of an endpoint from the kernel. was is the endpoint as it had them.
func Withdraw(ctx context.Context, y *book.Book, was modes.Endpoint) error {
	if len(was.Ports) == 0 {
		return nil
	}
	n, err := y.Network(was.NetworkID)
	if err != nil {
		return err
	}
	m, err := y.Mode(n.Mode)
	if err != nil {
		return err
	}
	is := was
	is.Ports, is.Sandbox = nil, ""
	y.TellPorts(n, was, is, nil)
	return Program(ctx, y, m, n, was, is)
}
