package core

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Ask sends one request and returns the answers. It repeats a dump that was interrupted.
func Ask(k *Handle, verb, flags int, data nl.NetlinkRequestData) ([][]byte, error) {
	return Retry(func() ([][]byte, error) {
		req := nl.NewNetlinkRequest(verb, flags)
		req.Sockets = k.Sockets
		req.AddData(data)
		return req.Execute(unix.NETLINK_ROUTE, 0)
	})
}

// Within returns the attributes inside one of a message's attributes.
func Within(raw []byte, of uint16) []syscall.NetlinkRouteAttr {
	outer, _ := nl.ParseRouteAttr(raw)
	for _, a := range outer {
		if a.Attr.Type&^unix.NLA_F_NESTED == of {
			inner, _ := nl.ParseRouteAttr(a.Value)
			return inner
		}
	}
	return nil
}

// HasQueue reports whether a link has a qdisc other than the one that virtual links have by themselves.
func HasQueue(k *Handle, index int) (bool, error) {
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index) //nolint:gosec // an index from the kernel
	links, err := Ask(k, unix.RTM_GETLINK, unix.NLM_F_ACK, msg)
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return false, fmt.Errorf("read the qdisc of a link: %w", err)
	}
	for _, m := range links {
		attrs, _ := nl.ParseRouteAttr(m[min(len(m), unix.SizeofIfInfomsg):])
		for _, a := range attrs {
			if a.Attr.Type == unix.IFLA_QDISC {
				return nl.BytesToString(a.Value) != "noqueue", nil
			}
		}
	}
	return false, nil
}
