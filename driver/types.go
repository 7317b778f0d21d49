package driver

import (
	"encoding/json"

	"github.com/docker/go-plugins-helpers/ipam"
	"github.com/docker/go-plugins-helpers/network"
)

// The requests are those of docker/go-plugins-helpers. The answers are defined here, because the library's lack fields
// that newer engines read.
type (
	createNetwork  struct{ network.CreateNetworkRequest }
	deleteNetwork  struct{ network.DeleteNetworkRequest }
	createEndpoint struct {
		network.CreateEndpointRequest
		Options options
	}
	deleteEndpoint struct{ network.DeleteEndpointRequest }
	join           struct {
		network.JoinRequest
		Options options
	}
	leave    struct{ network.LeaveRequest }
	operInfo struct{ network.InfoRequest }
	program  struct {
		network.ProgramExternalConnectivityRequest
		Options options
	}
	revoke struct {
		network.RevokeExternalConnectivityRequest
	}
	allocate       struct{ network.AllocateNetworkRequest }
	freeNetwork    struct{ network.FreeNetworkRequest }
	discovery      struct{ network.DiscoveryNotification }
	requestPool    struct{ ipam.RequestPoolRequest }
	releasePool    struct{ ipam.ReleasePoolRequest }
	requestAddress struct{ ipam.RequestAddressRequest }
	releaseAddress struct{ ipam.ReleaseAddressRequest }

	// gwAllocCheck asks whether the network needs a gateway address. Engines send it from 28.0 on.
	gwAllocCheck struct{ Options map[string]any }
)

// options are an endpoint's options, each undecoded: an engine lists every single port of a range, also in calls that
// do not use them.
type options map[string]json.RawMessage

// text returns an option that is a string.
func (o options) text(key string) (s string, ok bool) {
	ok = json.Unmarshal(o[key], &s) == nil
	return s, ok
}

// firstMissing takes pairs of a field's name and value, and returns the name of the first empty field, or "".
func firstMissing(fields ...string) string {
	for i := 0; i < len(fields); i += 2 {
		if fields[i+1] == "" {
			return fields[i]
		}
	}
	return ""
}

func endpointMissing(network, endpoint string) string {
	return firstMissing("NetworkID", network, "EndpointID", endpoint)
}

func (q createNetwork) missing() string  { return firstMissing("NetworkID", q.NetworkID) }
func (q deleteNetwork) missing() string  { return firstMissing("NetworkID", q.NetworkID) }
func (q createEndpoint) missing() string { return endpointMissing(q.NetworkID, q.EndpointID) }
func (q deleteEndpoint) missing() string { return endpointMissing(q.NetworkID, q.EndpointID) }
func (q leave) missing() string          { return endpointMissing(q.NetworkID, q.EndpointID) }
func (q operInfo) missing() string       { return endpointMissing(q.NetworkID, q.EndpointID) }
func (q program) missing() string        { return endpointMissing(q.NetworkID, q.EndpointID) }
func (q revoke) missing() string         { return endpointMissing(q.NetworkID, q.EndpointID) }
func (q allocate) missing() string       { return firstMissing("NetworkID", q.NetworkID) }
func (q freeNetwork) missing() string    { return firstMissing("NetworkID", q.NetworkID) }
func (q releasePool) missing() string    { return firstMissing("PoolID", q.PoolID) }
func (q requestAddress) missing() string { return firstMissing("PoolID", q.PoolID) }
func (discovery) missing() string        { return "" }
func (gwAllocCheck) missing() string     { return "" }
func (q requestPool) missing() string    { return firstMissing("AddressSpace", q.AddressSpace) }
func (q releaseAddress) missing() string {
	return firstMissing("PoolID", q.PoolID, "Address", q.Address)
}

func (q join) missing() string {
	return firstMissing("NetworkID", q.NetworkID, "EndpointID", q.EndpointID, "SandboxKey", q.SandboxKey)
}

type capabilities struct {
	Scope             string
	ConnectivityScope string
	GwAllocChecker    bool
}

type gwAllocAnswer struct{ SkipIPv4, SkipIPv6 bool }

type endpointAnswer struct{ Interface *interfaceAnswer }

// interfaceAnswer holds only values that the request left empty: an engine rejects answers that set its own values.
type interfaceAnswer struct {
	MacAddress string `json:",omitempty"`
}

type infoAnswer struct{ Value map[string]any }

type joinAnswer struct {
	InterfaceName         *interfaceName `json:",omitempty"`
	Gateway               string         `json:",omitempty"`
	GatewayIPv6           string         `json:",omitempty"`
	StaticRoutes          []staticRoute  `json:",omitempty"`
	DisableGatewayService bool
}

// interfaceName names the interface: DstName for engines that read it (moby/moby#52866); the others append a number to
// DstPrefix.
type interfaceName struct {
	SrcName   string
	DstPrefix string
	DstName   string `json:",omitempty"`
}

type staticRoute struct {
	Destination string
	RouteType   int // 0: via NextHop, 1: on-link
	NextHop     string
}

type ipamCapabilities struct {
	RequiresMACAddress    bool
	RequiresRequestReplay bool
}

type addressSpaces struct {
	LocalDefaultAddressSpace  string
	GlobalDefaultAddressSpace string
}

type poolAnswer struct {
	PoolID string
	Pool   string
	Data   map[string]string
}

type addressAnswer struct {
	Address string
	Data    map[string]string
}
