package core

import (
	"context"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
)

// Follow hands f what a socket receives until ctx ends. An overrun of its buffer is a change like any other.
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
				time.Sleep(time.Millisecond) // a failing socket must not take a core
			}
		}
	}()
}
