package book

import (
	"net/netip"

	"netyard/ipam"
)

// DHCPSpace is the address space of DHCP pools.
const DHCPSpace = "netyard-dhcp"

// A DHCPRequest is a request for a DHCP pool, as from docker network create.
type DHCPRequest struct {
	Subnet  netip.Prefix
	Options map[string]string
	MACs    bool // see DHCPPool
}

// A NetworkRequest is a request for a network by the admin or a CNI configuration.
type NetworkRequest struct {
	// ID is empty for a new one.
	ID       string
	Name     string
	Mode     string            // empty: that of the option mode, else bridge
	Options  map[string]string // as the admin typed them
	Internal bool
	IPv6     bool
	Subnets  []SubnetRequest
	// Grow adds subnets that an existing network lacks, and keeps those that it has besides.
	Grow bool
	// NoSubnets asks for a network without subnets; otherwise netyard chooses some if Subnets is empty.
	NoSubnets bool
	// DHCP says that the LAN's DHCP server gives the addresses; nil: it does not.
	DHCP *DHCPRequest
}

// A SubnetRequest is a request for one subnet of a network.
type SubnetRequest struct {
	// Pool is the request to netyard's IPAM.
	Pool ipam.PoolRequest
	// Gateway is the requested gateway; invalid: the first address.
	Gateway netip.Addr
	// NoGateway says that the host gets no address there. Gateway, if valid, is then reserved for another device.
	NoGateway bool
	// Aux are addresses that containers do not get, by the names of their owners.
	Aux map[string]netip.Addr
}
