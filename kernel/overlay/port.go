package overlay

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"netyard/kernel/core"
	"netyard/kernel/sandbox"
)

// A udpPort is a port of the host that one of netyard's links needs.
type udpPort struct {
	number uint16
	link   string // the one that needs it
	remedy string
}

// explain names the port, who has it, and the remedy, if an error says that the port is taken.
func (p udpPort) explain(k *core.Handle, err error) error {
	if !errors.Is(err, unix.EADDRINUSE) {
		return err
	}
	return fmt.Errorf("UDP port %d is in use%s; %s: %w", p.number, p.holder(k), p.remedy, err)
}

// holder returns " by " and who has the port, or "" if that is not known.
func (p udpPort) holder(k *core.Handle) string {
	links, _ := core.Retry(k.NL.LinkList)
	for _, l := range links {
		if x, ok := l.(*netlink.Vxlan); ok && x.Port == int(p.number) && x.Name != p.link {
			return " by VXLAN link " + x.Name
		}
	}
	all, _ := sandbox.Listeners(k, "udp")
	for _, l := range all {
		if l.Receives("udp", netip.IPv4Unspecified(), p.number, 1) ||
			l.Receives("udp", netip.IPv6Unspecified(), p.number, 1) {
			return " by " + l.Owner()
		}
	}
	return ""
}
