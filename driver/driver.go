// Package driver is Docker's door: it serves the protocol of libnetwork's remote network drivers and IPAM drivers. A
// Door serves one plugin name; all doors use the same yard.
package driver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"

	"netyard/modes"
	"netyard/yard"
	"netyard/yard/book"
	"netyard/yard/reconcile"
)

// A Door serves one plugin name, as in docker network create -d NAME.
type Door struct {
	// Name is the plugin's name: "netyard", whose networks name their mode in the option mode, or "netyard-MODE".
	Name string
	// Mode is the mode of every network created by this door. If empty, the option mode of each network names it.
	Mode string
	// DHCP makes this a door for addresses from the LANs' DHCP servers only, without networks.
	DHCP bool
	Yard *yard.Yard
	Log  *slog.Logger
	// OnActivate is called when an engine activates the plugin or asks for its capabilities, as it does when it starts.
	OnActivate func()
	// Alone reports whether a network is the only one of each container that may be joining it now. If it is not known,
	// it is false.
	Alone func(context.Context, modes.Network) bool
}

// Handler returns the HTTP handler of the plugin's verbs.
func (d *Door) Handler() http.Handler {
	mux := http.NewServeMux()
	log := d.Log.With("driver", d.Name)
	implements := []string{"NetworkDriver", "IpamDriver"}
	if d.DHCP {
		implements = implements[1:]
	}
	mux.Handle("/Plugin.Activate", answer(func() any {
		d.OnActivate()
		return map[string][]string{"Implements": implements}
	}))
	d.handleIPAM(mux, log)
	if !d.DHCP {
		d.handleNetworks(mux, log)
	}
	return mux
}

func (d *Door) handleNetworks(mux *http.ServeMux, log *slog.Logger) {
	n := func(verb string, h http.Handler) { mux.Handle("/NetworkDriver."+verb, h) }
	n("GetCapabilities", answer(d.capabilities))
	n("GwAllocCheck", call(d.Yard, log, "GwAllocCheck", d.gwAllocCheck))
	n("AllocateNetwork", call(d.Yard, log, "AllocateNetwork", d.allocateNetwork))
	n("FreeNetwork", call(d.Yard, log, "FreeNetwork", nothing[freeNetwork]))
	n("CreateNetwork", call(d.Yard, log, "CreateNetwork", d.createNetwork))
	n("DeleteNetwork", call(d.Yard, log, "DeleteNetwork", d.deleteNetwork))
	n("CreateEndpoint", call(d.Yard, log, "CreateEndpoint", d.createEndpoint))
	n("DeleteEndpoint", call(d.Yard, log, "DeleteEndpoint", d.deleteEndpoint))
	n("EndpointOperInfo", call(d.Yard, log, "EndpointOperInfo", operInfoAnswer))
	n("Join", call(d.Yard, log, "Join", d.join))
	n("Leave", call(d.Yard, log, "Leave", d.leave))
	n("ProgramExternalConnectivity", call(d.Yard, log, "ProgramExternalConnectivity", d.program))
	n("RevokeExternalConnectivity", call(d.Yard, log, "RevokeExternalConnectivity", d.revoke))
	n("DiscoverNew", call(d.Yard, log, "DiscoverNew", nothing[discovery]))
	n("DiscoverDelete", call(d.Yard, log, "DiscoverDelete", nothing[discovery]))
}

// nothing handles a verb that needs no work.
func nothing[Q request](context.Context, Q) (empty, error) { return empty{}, nil }

func (d *Door) capabilities() capabilities {
	d.OnActivate()
	return capabilities{Scope: "local", ConnectivityScope: "local", GwAllocChecker: true}
}

func (d *Door) gwAllocCheck(_ context.Context, q gwAllocCheck) (gwAllocAnswer, error) {
	mode, opts, err := d.options(q.Options)
	if err != nil {
		return gwAllocAnswer{}, err
	}
	n := modes.Network{Mode: mode, Options: opts}
	n.Internal, _ = q.Options[labelInternal].(bool)
	v4, v6 := d.Yard.Gatewayless(n)
	return gwAllocAnswer{SkipIPv4: v4, SkipIPv6: v6}, nil
}

// allocateNetwork refuses a call that a swarm's manager sends only to drivers of global scope; netyard's scope is
// local.
func (*Door) allocateNetwork(context.Context, allocate) (empty, error) {
	return empty{}, errors.New("allocate network: netyard's networks are local to their host, " +
		"and a swarm allocates none; create the network on each host, without --scope swarm")
}

func (d *Door) createNetwork(ctx context.Context, q createNetwork) (empty, error) {
	n, err := d.network(q)
	if err != nil {
		return empty{}, err
	}
	return empty{}, d.Yard.CreateNetwork(ctx, n)
}

func (d *Door) deleteNetwork(ctx context.Context, q deleteNetwork) (empty, error) {
	return empty{}, d.Yard.DeleteNetwork(ctx, q.NetworkID)
}

func (d *Door) createEndpoint(ctx context.Context, q createEndpoint) (endpointAnswer, error) {
	onNetwork, givenMAC := false, ""
	requested := func(n modes.Network) (modes.Endpoint, error) {
		onNetwork = true
		e, err := d.endpoint(q, n.Mode)
		if err != nil {
			return e, err
		}
		e.Maker, givenMAC = caller(ctx), e.MAC
		if d.Yard.Addressless(n.Mode) { // without a gateway, an engine never sends ProgramExternalConnectivity
			return e, d.leavePorts(ctx, n, q.Options)
		}
		return e, nil
	}
	e, err := d.Yard.CreateEndpoint(ctx, book.Holder{Network: q.NetworkID, Endpoint: q.EndpointID}, requested)
	if err != nil && !onNetwork {
		return endpointAnswer{}, d.hint(err)
	}
	if err != nil {
		return endpointAnswer{}, err
	}
	a := endpointAnswer{Interface: &interfaceAnswer{}}
	if givenMAC == "" {
		a.Interface.MacAddress = e.MAC
	}
	return a, nil
}

func (d *Door) deleteEndpoint(ctx context.Context, q deleteEndpoint) (empty, error) {
	return empty{}, d.Yard.DeleteEndpoint(ctx, q.NetworkID, q.EndpointID)
}

// operInfoAnswer returns no information: engines ask often and show it to nobody.
func operInfoAnswer(context.Context, operInfo) (infoAnswer, error) {
	return infoAnswer{Value: map[string]any{}}, nil
}

func (d *Door) join(ctx context.Context, q join) (joinAnswer, error) {
	ports, err := portMap(q.Options)
	if err != nil {
		return joinAnswer{}, err
	}
	asks, err := asksOf(ports)
	if err != nil {
		return joinAnswer{}, err
	}
	n, link, err := d.Yard.Join(ctx, q.NetworkID, q.EndpointID, q.SandboxKey)
	if err != nil {
		return joinAnswer{}, err
	}
	if err := d.Yard.PublishTentatively(ctx, n, link, q.EndpointID, asks); err != nil {
		return joinAnswer{}, errors.Join(err, d.Yard.Leave(context.WithoutCancel(ctx), q.NetworkID, q.EndpointID))
	}
	return joinAnswerOf(link), nil
}

func (d *Door) leave(ctx context.Context, q leave) (empty, error) {
	return empty{}, d.Yard.Leave(ctx, q.NetworkID, q.EndpointID)
}

// program publishes an endpoint's ports (ProgramExternalConnectivity). An engine sends it for the endpoint that has the
// container's default route; engine 29 may send it twice, or for two endpoints that have one each of IPv4 and IPv6.
func (d *Door) program(ctx context.Context, q program) (empty, error) {
	ports, err := portMap(q.Options)
	if err != nil {
		return empty{}, err
	}
	asks, err := asksOf(ports)
	if err != nil {
		return empty{}, err
	}
	_, err = d.Yard.Publish(ctx, q.NetworkID, q.EndpointID, asks)
	return empty{}, err
}

func (d *Door) revoke(ctx context.Context, q revoke) (empty, error) {
	return empty{}, d.Yard.Withdraw(ctx, q.NetworkID, q.EndpointID)
}

// leavePorts leaves an endpoint's ports to the other networks of its container, since the network has no addresses. It
// refuses them if there is no other network.
func (d *Door) leavePorts(ctx context.Context, n modes.Network, given options) error {
	ports, err := portMap(given)
	if err != nil || len(ports) == 0 {
		return err
	}
	first, err := ports[0].ask()
	if err != nil {
		return err
	}
	if d.Alone == nil || !d.Alone(ctx, n) {
		d.Log.Info("published ports left to the container's other networks: this one has no addresses",
			"network", n.Name, "network_id", n.ID, "port", first.String())
		return nil
	}
	return fmt.Errorf("publish %s: networks of mode %s have no addresses to publish ports on; remove -p and -P",
		first, n.Mode)
}

// hint adds the remedy to an error about a network that is not in the records.
func (d *Door) hint(err error) error {
	if !errors.Is(err, book.ErrNotFound) {
		return err
	}
	if reconcile.Rebuilding(d.Yard) {
		return fmt.Errorf("%w: netyard lost its records and is rebuilding them; try again in a moment", err)
	}
	return fmt.Errorf("%w in netyard's records; if they were lost, remove the network and create it again", err)
}

// DHCPName is the plugin name of the door for addresses from DHCP servers only.
const DHCPName = "netyard-dhcp"

// Modes returns the plugin names of a table of modes, each with the mode of its networks: "netyard", whose networks
// name their mode themselves, and one name for each mode.
func Modes(table map[string]modes.New) map[string]string {
	doors := map[string]string{"netyard": ""}
	for m := range table {
		doors["netyard-"+m] = m
	}
	return doors
}
