package core

import (
	"context"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
)

// Follow calls f with the messages that a socket receives, until ctx ends. When the socket's buffer overruns, or
// another error occurs, it calls f without messages: something may have changed.
func Follow(ctx context.Context, sock *nl.NetlinkSocket, f func([]syscall.NetlinkMessage)) {
	go func() {
		<-ctx.Done()
		sock.Close()
	}()
	go func() {
		for ctx.Err() == nil {
			msgs, _, err := sock.Receive()
			if err != nil && ctx.Err() != nil {
				return
			}
			f(msgs)
			if err != nil {
				time.Sleep(time.Millisecond) // so that a socket which fails at once does not occupy a processor
			}
		}
	}()
}
