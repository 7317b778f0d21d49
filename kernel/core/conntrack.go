package core

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ForgetFlows deletes the conntrack entries of these families that a filter matches, and returns how many it deleted.
func (k *Handle) ForgetFlows(
	filter netlink.CustomConntrackFilter, families ...netlink.InetFamily,
) (count uint, err error) {
	h, err := netlink.NewHandleAt(k.NS, unix.NETLINK_NETFILTER)
	if err != nil {
		return 0, fmt.Errorf("open conntrack: %w", err)
	}
	defer h.Close()
	if err := h.SetSocketTimeout(NetlinkTimeout); err != nil {
		return 0, fmt.Errorf("set conntrack timeout: %w", err)
	}
	var errs []error
	for _, family := range families {
		n, err := Retry(func() (uint, error) {
			return h.ConntrackDeleteFilters(netlink.ConntrackTable, family, filter)
		})
		count += n
		errs = append(errs, err)
	}
	return count, errors.Join(errs...)
}
