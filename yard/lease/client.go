package lease

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"net"

	"netyard/ipam/dhcp"
	kdhcp "netyard/kernel/dhcp"
	"netyard/modes"
	"netyard/yard/book"
)

// hasName reports whether the container has an identity that stays when the container is created again.
func (r Request) hasName() bool { return r.Name != "" || r.Attachment != "" }

// clientName returns a name for the client that differs from those of other engines' containers; empty if there is
// nothing to name it by.
func (r Request) clientName() string {
	switch {
	case r.Attachment != "":
		return "cni " + cmp.Or(r.Name, r.Attachment) + " " + r.IfName
	case r.Name != "":
		return r.Name
	case r.Addr.IsValid():
		return r.Addr.String()
	}
	return ""
}

// ClientMAC returns the MAC of the client: the parent's if it is shared, else the one that the engine gives, else one
// derived from the container's name, else a random one.
func ClientMAC(y *book.Book, r Request, lan kdhcp.LANPort) (net.HardwareAddr, error) {
	if lan.Shared() {
		return kdhcp.SharedMAC(y.Config.Handle, lan)
	}
	if r.MAC != "" {
		mac, err := net.ParseMAC(r.MAC)
		if err != nil {
			return nil, fmt.Errorf("mac-address %q: %w", r.MAC, err)
		}
		return mac, nil
	}
	const size, local = 6, 0x02
	if r.hasName() {
		id := ClientID(y, lan, r.clientName()) // its end depends on the name
		return append(net.HardwareAddr{local}, id[len(id)-size+1:]...), nil
	}
	mac := make(net.HardwareAddr, size)
	_, _ = rand.Read(mac[1:]) // it never fails (crypto/rand)
	mac[0] = local
	return mac, nil
}

// ClientID returns the client identifier of the container of a name on a LAN. It differs from that of a container of
// the same name on another host or LAN. It is of type 255 (RFC 4361): an identifier of the interface, and a DUID, here
// by UUID (RFC 6355).
func ClientID(y *book.Book, lan kdhcp.LANPort, name string) []byte {
	const idType, duidUUID, uuidSize, ifaceSize = 255, 4, 16, 4
	iface := sha256.Sum256([]byte("netyard " + lan.Parent))
	node := sha256.Sum256([]byte("netyard " + y.Config.HostID + " " + name))
	id := append([]byte{idType}, iface[:ifaceSize]...)
	return append(append(id, 0, duidUUID), node[:uuidSize]...)
}

// HostLabel returns a name with only the characters that a host name may have (RFC 1123, 2.1).
func HostLabel(name string) string {
	const most = 63
	var out []byte
	for _, c := range []byte(name) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
			out = append(out, c)
		case len(out) > 0 && (c == '-' || c == '_' || c == '.'):
			out = append(out, '-')
		}
	}
	out = out[:min(len(out), most)]
	for len(out) > 0 && out[len(out)-1] == '-' {
		out = out[:len(out)-1]
	}
	return string(out)
}

// client returns the DHCP client of a lease, on the given transport.
func client(y *book.Book, l DHCPLease, t dhcp.Transport) (*dhcp.Client, error) {
	mac, err := net.ParseMAC(l.MAC)
	if err != nil {
		return nil, fmt.Errorf("lease %s: mac-address %q: %w", l.ID, l.MAC, err)
	}
	return &dhcp.Client{
		Transport: t,
		Identity:  dhcp.Identity{MAC: mac, ID: l.ClientID, Hostname: l.Hostname, VendorClass: l.VendorClass},
		Now:       y.Config.Now,
		Probe:     modes.IPAMOpt(l.Options, "conflict") == "decline",
	}, nil
}
