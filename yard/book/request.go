package book

import (
	"net/netip"

	"netyard/ipam"
)

// DHCPSpace is the address space of the pools whose addresses DHCP servers give.
const DHCPSpace = "netyard-dhcp"

// A DHCPRequest is what docker network create says of a pool of DHCP's.
type DHCPRequest struct {
	Subnet  netip.Prefix
	Options map[string]string
	MACs    bool // see DHCPPool
}

// A NetworkRequest is a network as the admin, or a CNI configuration, asks for it.
type NetworkRequest struct {
	// ID is empty for a fresh one.
	ID       string
	Name     string
	Mode     string            // empty: the option mode says it, or else it is bridge
	Options  map[string]string // as they were typed
	Internal bool
	IPv6     bool
	Subnets  []SubnetRequest
	// NoSubnets asks for a network without any, instead of subnets that netyard chooses.
	NoSubnets bool
	// DHCP: the addresses are the LAN's DHCP server's to give; nil: they are not.
	DHCP *DHCPRequest
}

// A SubnetRequest is one address range of it.
type SubnetRequest struct {
	// Pool is what to ask netyard's IPAM for.
	Pool ipam.PoolRequest
	// Gateway is the address asked for; not valid: the first one.
	Gateway netip.Addr
	// NoGateway keeps the host from having an address there; Gateway, if it is valid, is kept for somebody else then.
	NoGateway bool
	// Aux are addresses that nobody gets, by the names of what has them.
	Aux map[string]netip.Addr
}
