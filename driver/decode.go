package driver

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/docker/go-plugins-helpers/network"

	"netyard/modes"
	"netyard/yard/book"
	"netyard/yard/lease"
	"netyard/yard/reconcile"
)

// The option keys of libnetwork (moby, libnetwork/netlabel/labels.go).
const (
	labelGeneric  = "com.docker.network.generic"
	labelInternal = "com.docker.network.internal"
	labelIPv6     = "com.docker.network.enable_ipv6"
	labelPortMap  = "com.docker.network.portmap"
	labelIfName   = "com.docker.network.endpoint.ifname"
	labelEngine   = "com.docker.network."
)

// options returns the mode and the -o options of a network, from the options that an engine sent with it.
func (d *Door) options(sent map[string]any) (mode string, opts map[string]string, err error) {
	given := map[string]string{}
	generic, _ := sent[labelGeneric].(map[string]any)
	for k, v := range generic {
		s, ok := v.(string)
		if !ok {
			return "", nil, modes.Refuse("%s: want text, not %T", k, v)
		}
		given[k] = s
	}
	return d.Yard.ResolveFromEngine(d.Mode, given)
}

// network returns the network that an engine wants.
func (d *Door) network(q createNetwork) (n modes.Network, err error) {
	n.ID, n.Engine = q.NetworkID, book.Docker
	if n.Mode, n.Options, err = d.options(q.Options); err != nil {
		return n, err
	}
	n.Internal, _ = q.Options[labelInternal].(bool)
	n.IPv6, _ = q.Options[labelIPv6].(bool)
	for _, data := range slices.Concat(q.IPv4Data, q.IPv6Data) {
		if data == nil {
			return n, errors.New("decode request: an entry of IPv4Data or IPv6Data is empty")
		}
		s, err := subnet(*data)
		if err != nil {
			return n, err
		}
		if pool := lease.DHCPPoolOf(s.Gateway.Addr()); pool != "" {
			n.DHCP, s.Space, s.Gateway = append(n.DHCP, pool), book.DHCPSpace, netip.Prefix{}
		}
		if s.Pool.Bits() > 0 { // with 0.0.0.0/0 the null IPAM says that there are no addresses
			n.Subnets = append(n.Subnets, s)
		}
	}
	return n, nil
}

func subnet(data network.IPAMData) (s modes.Subnet, err error) {
	s.Space = data.AddressSpace
	if s.Pool, err = netip.ParsePrefix(data.Pool); err != nil {
		return s, fmt.Errorf("subnet %q: %w", data.Pool, err)
	}
	s.Pool = s.Pool.Masked()
	s.Chosen = s.Space == dockerSpace && dockerChooses(s.Pool) && len(data.AuxAddresses) == 0
	if data.Gateway != "" {
		if s.Gateway, err = netip.ParsePrefix(data.Gateway); err != nil {
			return s, fmt.Errorf("gateway %q: %w", data.Gateway, err)
		}
	}
	for name, v := range data.AuxAddresses {
		text, _ := v.(string)
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return s, fmt.Errorf("aux-address %s=%q: %w", name, text, err)
		}
		if s.Aux == nil {
			s.Aux = map[string]netip.Prefix{}
		}
		s.Aux[name] = p
	}
	return s, nil
}

// dockerSpace is the address space of Docker's own IPAM.
const dockerSpace = "LocalDefault"

// dockerChooses reports whether a subnet looks like one that Docker's IPAM chose itself (moby,
// libnetwork/ipamutils/utils.go). An engine does not say whether the user named the subnet.
func dockerChooses(p netip.Prefix) bool {
	large := p.Bits() == 16 && netip.MustParsePrefix("172.16.0.0/12").Contains(p.Addr())
	small := p.Bits() == 20 && netip.MustParsePrefix("192.168.0.0/16").Contains(p.Addr())
	return large || small
}

// numberedZero matches the interface names that every engine can set: it appends the lowest free number to the prefix
// in the answer to Join.
var numberedZero = regexp.MustCompile(`^[A-Za-z_-]+0$`)

// checkIfName refuses an interface name that the engine cannot set. From 29.8 on, an engine takes the whole name from
// the answer to Join (moby/moby#52866).
func (d *Door) checkIfName(name string) error {
	if !modes.ValidInnerName(name) {
		return modes.Refuse("%s=%s: want an interface name, not lo: "+
			"1 to 15 letters, digits, dots, dashes or underscores", labelIfName, name)
	}
	if numberedZero.MatchString(name) {
		return nil
	}
	version, err := reconcile.EngineVersion(d.Yard, book.Docker)
	if err != nil || takesNames(version) {
		return err
	}
	return modes.Refuse("%s=%s: engine %s can only set names of letters that end in 0, such as wan0; "+
		"others need engine 29.8 or newer", labelIfName, name, cmp.Or(version, "of unknown version (see docker_host)"))
}

// takesNames reports whether an engine of a version takes whole interface names from a plugin.
func takesNames(version string) bool {
	var major, minor int
	_, err := fmt.Sscanf(version, "%d.%d", &major, &minor)
	return err == nil && (major > 29 || major == 29 && minor >= 8)
}

// endpoint returns the endpoint that an engine wants on a network of the mode.
func (d *Door) endpoint(q createEndpoint, mode string) (e modes.Endpoint, err error) {
	e = modes.Endpoint{ID: q.EndpointID, NetworkID: q.NetworkID, Container: modes.Container{Engine: book.Docker}}
	if i := q.Interface; i != nil {
		for field, text := range map[string]string{"Address": i.Address, "AddressIPv6": i.AddressIPv6} {
			if text == "" {
				continue
			}
			p, err := netip.ParsePrefix(text)
			if err != nil {
				return e, fmt.Errorf("%s %q: %w", field, text, err)
			}
			if p.Bits() > 0 {
				e.Addrs = append(e.Addrs, p)
			}
		}
		slices.SortFunc(e.Addrs, netip.Prefix.Compare)
		if e.MAC = i.MacAddress; e.MAC != "" {
			mac, err := net.ParseMAC(e.MAC)
			if err != nil {
				return e, fmt.Errorf("mac-address %q: %w", e.MAC, err)
			}
			e.MAC = mac.String()
		}
	}
	given := map[string]string{}
	for _, key := range slices.Sorted(maps.Keys(q.Options)) {
		if strings.HasPrefix(key, labelEngine) {
			continue
		}
		text, ok := q.Options.text(key)
		if !ok {
			return e, modes.Refuse("%s: want text, not %s", key, q.Options[key])
		}
		given[key] = text
	}
	if e.Options, err = d.Yard.Options.ResolveEndpoint(mode, given); err != nil {
		return e, err
	}
	if e.IfName, _ = q.Options.text(labelIfName); e.IfName != "" {
		return e, d.checkIfName(e.IfName)
	}
	return e, nil
}

// A port is one published port in libnetwork's form (moby, libnetwork/types.PortBinding).
type port struct {
	Proto       uint8
	IP          string
	Port        uint16
	HostIP      string
	HostPort    uint16
	HostPortEnd uint16
}

// ask returns the port in netyard's form.
func (p port) ask() (a book.PortRequest, err error) {
	a = book.PortRequest{ContainerPort: p.Port, HostPort: p.HostPort, HostPortEnd: p.HostPortEnd}
	if a.Proto = map[uint8]string{protoTCP: "tcp", protoUDP: "udp", protoSCTP: "sctp"}[p.Proto]; a.Proto == "" {
		return a, fmt.Errorf("publish port %d: protocol %d is not tcp, udp or sctp", p.Port, p.Proto)
	}
	if p.HostIP != "" {
		if a.HostIP, err = netip.ParseAddr(p.HostIP); err != nil {
			return a, fmt.Errorf("publish %s: %w", p.HostIP, err)
		}
		a.HostIP = a.HostIP.Unmap()
	}
	return a, nil
}

// IP protocol numbers (IANA).
const (
	protoTCP  = 6
	protoUDP  = 17
	protoSCTP = 132
)

// asksOf returns the ports in netyard's form.
func asksOf(ports []port) (asks []book.PortRequest, err error) {
	for _, p := range ports {
		a, err := p.ask()
		if err != nil {
			return nil, err
		}
		asks = append(asks, a)
	}
	return asks, nil
}

// portMap returns the published ports among an endpoint's options.
func portMap(given options) (ports []port, err error) {
	raw, ok := given[labelPortMap]
	if !ok {
		return nil, nil
	}
	if err := json.Unmarshal(raw, &ports); err != nil {
		return nil, fmt.Errorf("%s: %w", labelPortMap, err)
	}
	return ports, nil
}

// joinAnswerOf returns the answer to a Join with this link. It disables the engine's gateway service, which otherwise
// gives a container a second interface, on docker_gwbridge, when none of its networks has a gateway.
func joinAnswerOf(l modes.Link) joinAnswer {
	a := joinAnswer{DisableGatewayService: true}
	if l.SrcName != "" {
		a.InterfaceName = &interfaceName{SrcName: l.SrcName, DstPrefix: l.DstPrefix, DstName: l.DstName}
	}
	for _, gw := range l.Gateways {
		switch {
		case gw.Is4() && a.Gateway == "":
			a.Gateway = gw.String()
		case gw.Is6() && a.GatewayIPv6 == "":
			a.GatewayIPv6 = gw.String()
		}
	}
	for _, r := range l.Routes {
		s := staticRoute{Destination: r.Dst.String(), RouteType: 1}
		if r.Via.IsValid() {
			s.RouteType, s.NextHop = 0, r.Via.String()
		}
		a.StaticRoutes = append(a.StaticRoutes, s)
	}
	return a
}
