// Package driver is Docker's door: the protocol of libnetwork's remote network drivers and IPAM drivers. One Door is
// one plugin name; all of them lead to the same yard.
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

// A Door is one plugin name, as in docker network create -d NAME.
type Door struct {
	// Name is the plugin's name: "netyard", whose networks say their mode themselves, or "netyard-MODE".
	Name string
	// Mode is the mode of every network that comes in here; empty: the option mode says it.
	Mode string
	// DHCP: it leads to addresses from the LANs' DHCP servers, and to no networks.
	DHCP bool
	Yard *yard.Yard
	Log  *slog.Logger
	// Greeted is called when an engine makes itself known, as it does when it starts.
	Greeted func()
}

// Handler answers an engine.
func (d *Door) Handler() http.Handler {
	mux := http.NewServeMux()
	log := d.Log.With("driver", d.Name)
	implements := []string{"NetworkDriver", "IpamDriver"}
	if d.DHCP {
		implements = implements[1:]
	}
	mux.Handle("/Plugin.Activate", answer(func() any {
		d.Greeted()
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

// nothing is a verb with nothing to do.
func nothing[Q request](context.Context, Q) (empty, error) { return empty{}, nil }

func (d *Door) capabilities() capabilities {
	d.Greeted()
	return capabilities{Scope: "local", ConnectivityScope: "local", GwAllocChecker: true}
}

func (d *Door) gwAllocCheck(_ context.Context, q gwAllocCheck) (gwAllocAnswer, error) {
	mode, opts, err := d.options(q.Options)
	if err != nil {
		return gwAllocAnswer{}, err
	}
	v4, v6 := d.Yard.Gatewayless(modes.Network{Mode: mode, Options: opts})
	return gwAllocAnswer{SkipIPv4: v4, SkipIPv6: v6}, nil
}

// allocateNetwork is only sent by a swarm's manager to drivers of global scope, which netyard never says to be.
func (*Door) allocateNetwork(context.Context, allocate) (empty, error) {
	return empty{}, fmt.Errorf("netyard's networks are local to their host; a swarm can use them with --config-only and --config-from")
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
	n, err := d.Yard.Network(q.NetworkID)
	if err != nil {
		return endpointAnswer{}, d.hint(err)
	}
	e, err := d.endpoint(q, n.Mode)
	if err != nil {
		return endpointAnswer{}, err
	}
	if d.Yard.Addressless(n.Mode) { // no gateway, so program will never be sent
		if err := refusePorts(q.Options, "a network of mode "+n.Mode+" has no addresses to publish them on"); err != nil {
			return endpointAnswer{}, err
		}
	}
	given := e.MAC
	e.Maker = caller(ctx)
	if e, err = d.Yard.CreateEndpoint(ctx, e); err != nil {
		return endpointAnswer{}, err
	}
	a := endpointAnswer{Interface: &interfaceAnswer{}}
	if given == "" {
		a.Interface.MacAddress = e.MAC
	}
	return a, nil
}

func (d *Door) deleteEndpoint(ctx context.Context, q deleteEndpoint) (empty, error) {
	return empty{}, d.Yard.DeleteEndpoint(ctx, q.NetworkID, q.EndpointID)
}

// operInfoAnswer tells nothing: engines ask often and show it to nobody.
func operInfoAnswer(context.Context, operInfo) (infoAnswer, error) {
	return infoAnswer{Value: map[string]any{}}, nil
}

func (d *Door) join(ctx context.Context, q join) (joinAnswer, error) {
	ports, err := portMap(q.Options)
	if err != nil {
		return joinAnswer{}, err
	}
	asks, err := asked(ports)
	if err != nil {
		return joinAnswer{}, err
	}
	n, link, err := d.Yard.Join(ctx, q.NetworkID, q.EndpointID, q.SandboxKey)
	if err != nil {
		return joinAnswer{}, err
	}
	if err := d.Yard.Lend(ctx, n, link, q.EndpointID, asks); err != nil {
		return joinAnswer{}, errors.Join(err, d.Yard.Leave(context.WithoutCancel(ctx), q.NetworkID, q.EndpointID))
	}
	return joined(link), nil
}

func (d *Door) leave(ctx context.Context, q leave) (empty, error) {
	return empty{}, d.Yard.Leave(ctx, q.NetworkID, q.EndpointID)
}

// program is sent for the endpoint that has the container's default route, with the ports to publish. Engine 29 may
// send it twice.
func (d *Door) program(ctx context.Context, q program) (empty, error) {
	ports, err := portMap(q.Options)
	if err != nil {
		return empty{}, err
	}
	asks, err := asked(ports)
	if err != nil {
		return empty{}, err
	}
	_, err = d.Yard.Publish(ctx, q.NetworkID, q.EndpointID, asks)
	return empty{}, err
}

func (d *Door) revoke(ctx context.Context, q revoke) (empty, error) {
	return empty{}, d.Yard.Withdraw(ctx, q.NetworkID, q.EndpointID)
}

func refusePorts(given options, why string) error {
	ports, err := portMap(given)
	if err != nil || len(ports) == 0 {
		return err
	}
	first, err := ports[0].ask()
	if err != nil {
		return err
	}
	return fmt.Errorf("publish %s: %s; leave -p and -P out", first, why)
}

// hint says what to do about a network that netyard should know.
func (d *Door) hint(err error) error {
	if !errors.Is(err, book.ErrNotFound) {
		return err
	}
	if reconcile.Rebuilding(d.Yard) {
		return fmt.Errorf("%w: netyard lost its records and is rebuilding them; try again in a moment", err)
	}
	return fmt.Errorf("%w in netyard's records; if its state was lost, remove the network and create it again", err)
}

// DHCPName is the name of the door that leads to addresses only.
const DHCPName = "netyard-dhcp"

// Modes lists the doors there are for a table of modes: the one that asks, and one a mode.
func Modes(table map[string]modes.New) map[string]string {
	doors := map[string]string{"netyard": ""}
	for m := range table {
		doors["netyard-"+m] = m
	}
	return doors
}
