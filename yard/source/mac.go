package source

import (
	"errors"
	"fmt"
	"net"

	"netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/modes"
	"netyard/store"
	"netyard/yard/book"
	"netyard/yard/index"
)

// KeepMAC gives an endpoint its hardware address: the requested one, or the one that follows from its address, or, if
// another endpoint has requested that one, one that follows from its ID. It refuses a requested one that another
// endpoint has. It belongs to the transaction that records the endpoint.
func KeepMAC(y *book.Book, tx store.Tx, n modes.Network, e *modes.Endpoint) error {
	rule, asked := y.Traits(n).MAC, e.MAC
	if asked == "" {
		e.MAC = rule.Default(*e)
	}
	if rule != modes.MACDerived {
		return nil
	}
	other, err := macHolder(y, tx, n, *e)
	if err != nil {
		return err
	}
	host := ""
	if c := y.Traits(n).Cluster; c != nil && y.Config.Fabric != nil {
		host = y.Config.Fabric.HostOf(*c, e.MAC)
	}
	switch {
	case other.ID == "" && host == "":
		return nil
	case asked == "":
		e.MAC = modes.LocalMAC(e.ID).String()
		return nil
	case other.ID == "":
		return fmt.Errorf("mac-address %s: %w by a container on host %s; use another", asked, book.ErrInUse, host)
	}
	h := book.Holder{Network: other.NetworkID, Endpoint: other.ID}
	return &book.HeldError{
		Err:     fmt.Errorf("mac-address %s: %w by %s; use another", asked, book.ErrInUse, book.InUseBy(tx, h)),
		Holders: []book.Holder{h},
	}
}

// CheckMAC refuses a requested hardware address that no container can have, or that the host itself has on the network.
func CheckMAC(y *book.Book, n modes.Network, asked string) error {
	rule := y.Traits(n).MAC
	if asked == "" || rule == modes.MACNone { // the latter is refused otherwise
		return nil
	}
	mac, err := net.ParseMAC(asked)
	if err != nil || len(mac) != len(core.MAC{}) || mac[0]&1 != 0 || core.MACOf(mac) == (core.MAC{}) {
		return modes.Refuse("mac-address %s: want a unicast address of 6 bytes", asked)
	}
	if rule == modes.MACAsIs { // the container has the host's link to itself
		return nil
	}
	link, host, err := hostMAC(y, n)
	if err == nil && host == mac.String() {
		err = modes.Refuse("mac-address %s: it is the host's own, on %s; use another", asked, link)
	}
	return err
}

// hostMAC returns the hardware address that the host has on a network, and the link that has it; empty: none is known.
func hostMAC(y *book.Book, n modes.Network) (link, mac string, err error) {
	if link = y.Traits(n).HostLink; link != "" {
		info, _, err := y.Config.Kernel.FindLink(link)
		return link, info.MAC, err
	}
	m, err := y.Mode(n.Mode)
	if err != nil {
		return "", "", err
	}
	for _, o := range m.Objects(n) {
		if b, ok := o.(bridge.Bridge); ok {
			return b.Name, b.MAC.String(), nil
		}
	}
	return "", "", nil
}

// macHolder returns another endpoint that has the hardware address of e, on its network or another one of the same LAN;
// it has no ID if none has.
func macHolder(y *book.Book, tx store.Tx, n modes.Network, e modes.Endpoint) (modes.Endpoint, error) {
	other, err := endpointWith(tx, n.ID, e.MAC)
	link := y.Traits(n).HostLink
	if err != nil || other.ID != "" && other.ID != e.ID || link == "" {
		return not(e, other), err
	}
	ns, err := book.Networks.List(tx, "")
	if err != nil {
		return modes.Endpoint{}, err
	}
	for _, o := range ns {
		if o.ID == n.ID || y.Traits(o).HostLink != link {
			continue
		}
		if other, err = endpointWith(tx, o.ID, e.MAC); err != nil || other.ID != "" {
			return other, err
		}
	}
	return modes.Endpoint{}, nil
}

// not returns an endpoint without an ID if the other one is e itself.
func not(e, other modes.Endpoint) modes.Endpoint {
	if other.ID == e.ID {
		return modes.Endpoint{}
	}
	return other
}

// endpointWith returns the endpoint of a network that has a hardware address; it has no ID if none has.
func endpointWith(tx store.Tx, network, mac string) (e modes.Endpoint, err error) {
	id, err := index.WithMAC(tx, network, mac)
	if err == nil {
		e, err = book.GetEndpoint(tx, network, id)
	}
	switch {
	case errors.Is(err, store.ErrNotFound), errors.Is(err, book.ErrNotFound):
		return modes.Endpoint{}, nil
	case err != nil || e.MAC != mac || e.Phase == modes.Deleting:
		return modes.Endpoint{}, err
	}
	return e, nil
}
