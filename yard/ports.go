package yard

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"netyard/kernel"
	"netyard/modes"
	"netyard/store"
)

// portClaims says which endpoint has a port of the host, by protocol, range and address.
var portClaims = store.Bucket[portClaim]{Name: "ports"}

type portClaim struct{ Network, Endpoint string }

// An Ask is a port that somebody wants to have published.
type Ask struct {
	Proto         string
	ContainerPort uint16
	// HostIP is the host's address; invalid: the network's default.
	HostIP netip.Addr
	// HostPort is 0 for any free one; HostPortEnd is the last of those that will do.
	HostPort, HostPortEnd uint16
}

// String is how -p says it.
func (a Ask) String() string {
	host := ""
	if a.HostIP.IsValid() {
		host = a.HostIP.String() + ":"
		if a.HostIP.Is6() {
			host = "[" + a.HostIP.String() + "]:"
		}
	}
	switch {
	case a.HostPort == 0:
	case a.HostPortEnd > a.HostPort:
		host += fmt.Sprintf("%d-%d:", a.HostPort, a.HostPortEnd)
	default:
		host += fmt.Sprintf("%d:", a.HostPort)
	}
	return fmt.Sprintf("%s%d/%s", host, a.ContainerPort, a.Proto)
}

// Publish gives an endpoint just these ports of the host, whatever it had before. All of them, or none.
func (y *Yard) Publish(ctx context.Context, network, id string, asks []Ask) ([]modes.Port, error) {
	return y.publish(ctx, network, id, asks, false)
}

// publish is Publish, or lends the ports to the endpoint. Dead endpoints that have one of them give way.
func (y *Yard) publish(ctx context.Context, network, id string, asks []Ask, lent bool) (ports []modes.Port, err error) {
	err = y.past(ctx, func(j *judge) error {
		ports, err = y.publishOnce(ctx, j, network, id, asks, lent)
		return err
	})
	return ports, err
}

func (y *Yard) publishOnce(
	ctx context.Context, j *judge, network, id string, asks []Ask, lent bool,
) ([]modes.Port, error) {
	release, err := y.hold(ctx, network, id)
	if err != nil {
		return nil, err
	}
	defer release()
	m, n, e, err := y.whole(network, id)
	if err != nil {
		return nil, err
	}
	if _, shares := sharesHost(m, n); shares {
		y.ignore(n, e, asks)
		return e.Ports, nil
	}
	fresh, robbed := e, []modes.Endpoint(nil)
	fresh.Lent = lent
	asked := len(asks) > 0
	asks, own, err := widen(m, n, fresh, asks)
	if err != nil {
		return nil, err
	}
	choice := &choice{y: y, e: e, judge: j}
	if err := choice.look(asks); err != nil {
		return nil, err
	}
	err = y.update("ports recorded", func(tx store.Tx) error {
		if fresh, err = getEndpoint(tx, network, id); err != nil {
			return err
		}
		if asked {
			if robbed, err = reclaim(tx, fresh); err != nil {
				return err
			}
		}
		if fresh.Ports, err = choice.ports(tx, asks); err != nil {
			return err
		}
		fresh.Ports, fresh.Lent = append(fresh.Ports, own...), lent && asked
		return putEndpoint(tx, fresh)
	})
	if err != nil {
		return nil, choice.explain(err)
	}
	for _, was := range robbed {
		if err := y.withdraw(ctx, was); err != nil {
			return nil, err
		}
	}
	err = y.program(ctx, m, n, e, fresh)
	if err == nil && asked && ctx.Err() != nil { // nobody waited for it
		err = fmt.Errorf("publish ports of endpoint %s: %w", modes.Short(id), ctx.Err())
	}
	if err != nil {
		back := y.update("ports taken back", func(tx store.Tx) error { return putEndpoint(tx, e) })
		return nil, errors.Join(err, back, y.program(context.WithoutCancel(ctx), m, n, fresh, e))
	}
	y.tellPorts(n, e, fresh, nil)
	y.c.Changed()
	return fresh.Ports, nil
}

// program makes the kernel go from what an endpoint was to what it is.
func (y *Yard) program(ctx context.Context, m modes.Mode, n modes.Network, was, is modes.Endpoint) error {
	if err := y.c.Kernel.Remove(without(m.Objects(n, []modes.Endpoint{was}), m.Objects(n, []modes.Endpoint{is}))...); err != nil {
		return err
	}
	y.c.Step("after ports withdrawn")
	if is.Sandbox == "" {
		return nil
	}
	_, err := m.Attach(ctx, n, is)
	y.c.Step("after ports published")
	return err
}

// without are the objects of one list that are not in the other.
func without(old, now []kernel.Object) (gone []kernel.Object) {
	still := map[string]bool{}
	for _, o := range now {
		still[o.String()] = true
	}
	for _, o := range old {
		if !still[o.String()] {
			gone = append(gone, o)
		}
	}
	return gone
}

// Withdraw takes all ports from an endpoint. An unknown endpoint has none.
func (y *Yard) Withdraw(ctx context.Context, network, id string) error {
	_, err := y.Publish(ctx, network, id, nil)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// A choice finds the ports of the host for what an endpoint asks.
type choice struct {
	y *Yard
	e modes.Endpoint
	// first and last are the host's range for who wants any port.
	first, last uint16
	listeners   []kernel.Listener
	claims      []claimedRange
	given       []modes.Port
	// reserver is a process that listens on the ports only to keep others off them; 0: there is none.
	reserver int
	// holders have ports that were asked for.
	judge   *judge
	holders []holder
}

// look finds out what the host has, outside of any transaction.
func (c *choice) look(asks []Ask) (err error) {
	if len(asks) == 0 {
		return nil
	}
	for _, a := range asks {
		if a.HostIP.IsUnspecified() {
			continue
		}
		ok, err := c.y.c.Kernel.HasAddr(a.HostIP)
		if err != nil {
			return err
		}
		if !ok {
			return fmt.Errorf("publish %s: %s is not an address of this host", a, a.HostIP)
		}
	}
	var protos []string
	for _, a := range asks {
		protos = append(protos, a.Proto)
		if a.HostPort > 0 || c.last > 0 {
			continue
		}
		if c.first, c.last, err = c.y.c.Kernel.EphemeralPorts(); err != nil {
			return err
		}
	}
	c.listeners, err = c.y.c.Kernel.Listeners(protos...)
	return err
}

// ports chooses a port for each ask and joins those in a row to ranges.
func (c *choice) ports(tx store.Tx, asks []Ask) ([]modes.Port, error) {
	if len(asks) == 0 {
		return nil, nil
	}
	if err := c.readClaims(tx); err != nil {
		return nil, err
	}
	for _, one := range chains(asks) {
		if err := c.chain(tx, one); err != nil {
			return nil, &heldError{error: err, holders: c.holders}
		}
	}
	// Who named a range gets the first port that nobody living has.
	if unjudged := c.unjudged(); len(unjudged) > 0 {
		return nil, &heldError{error: errUnjudged, holders: unjudged}
	}
	slices.SortFunc(c.given, comparePorts)
	return join(c.given), nil
}

// A claimedRange is a claim as its key says it.
type claimedRange struct {
	proto       string
	addr        netip.Addr
	first, last uint16
	key         string
}

func claimOf(p modes.Port) claimedRange {
	return claimedRange{proto: p.Proto, addr: p.HostIP, first: p.HostPort, last: p.HostPort + p.Count - 1}
}

func (r claimedRange) String() string {
	return fmt.Sprintf("%s/%05d-%05d/%s", r.proto, r.first, r.last, r.addr)
}

func parseClaim(key string) (r claimedRange, ok bool) {
	parts := strings.SplitN(key, "/", 3)
	if len(parts) != 3 {
		return r, false
	}
	first, last, _ := strings.Cut(parts[1], "-")
	a, err1 := strconv.ParseUint(first, 10, 16)
	b, err2 := strconv.ParseUint(last, 10, 16)
	addr, err3 := netip.ParseAddr(parts[2])
	return claimedRange{proto: parts[0], addr: addr, first: uint16(a), last: uint16(b), key: key}, errors.Join(err1, err2, err3) == nil
}

// readClaims reads who has which port, but for the endpoint itself.
func (c *choice) readClaims(tx store.Tx) error {
	own := map[string]bool{}
	now, err := getEndpoint(tx, c.e.NetworkID, c.e.ID)
	if err != nil {
		return err
	}
	for _, p := range now.Ports {
		own[claimOf(p).String()] = true
	}
	for _, key := range portClaims.Keys(tx, "") {
		if r, ok := parseClaim(key); ok && !own[key] {
			c.claims = append(c.claims, r)
		}
	}
	return nil
}

// taken says whether somebody has one of the ports of a range; why is for who asked for just these.
func (c *choice) taken(tx store.Tx, proto string, a netip.Addr, first, count uint16) (why error) {
	for _, r := range c.claims {
		if r.proto == proto && r.first <= first+count-1 && first <= r.last && sameAddr(r.addr, a) {
			c.meet(tx, r.key)
			return fmt.Errorf("%w: port %d/%s of the host is published by %s", ErrInUse, max(first, r.first), proto, claimant(tx, r.key))
		}
	}
	for _, p := range c.given {
		if p.Proto == proto && p.HostPort <= first+count-1 && first <= p.HostPort+p.Count-1 && sameAddr(p.HostIP, a) {
			return fmt.Errorf("%w: port %d/%s of the host is asked for twice", ErrInUse, max(first, p.HostPort), proto)
		}
	}
	for _, l := range c.listeners {
		if l.Takes(proto, a, first, count) && !l.HeldBy(c.reserver) {
			return listenerError{l}
		}
	}
	return nil
}

// A listenerError is a port that a program of the host has. Whose it is takes a look through all processes.
type listenerError struct{ kernel.Listener }

func (e listenerError) Error() string {
	return fmt.Sprintf("port %d/%s of the host is in use", e.Port, e.Proto)
}

func (listenerError) Unwrap() error { return ErrInUse }

// explain names the program that has a port; not within a transaction.
func (*choice) explain(err error) error {
	if l := (listenerError{}); errors.As(err, &l) {
		return fmt.Errorf("%w by %s", err, l.Owner())
	}
	return err
}

// sameAddr says whether a packet can be for both of two addresses that ports are published on.
func sameAddr(a, b netip.Addr) bool {
	return a == b || a.Is4() == b.Is4() && (a.IsUnspecified() || b.IsUnspecified())
}

// meet notes who has a port.
func (c *choice) meet(tx store.Tx, key string) {
	by, err := portClaims.Get(tx, key)
	if h := holder(by); err == nil && !slices.Contains(c.holders, h) {
		c.holders = append(c.holders, h)
	}
}

// unjudged are those holders of which it has not been found out whether they live.
func (c *choice) unjudged() []holder {
	if c.judge == nil {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(c.holders), func(h holder) bool { return c.judge.living[h] })
}

func claimant(tx store.Tx, key string) string {
	c, err := portClaims.Get(tx, key)
	if err != nil {
		return "somebody"
	}
	return inUseBy(tx, holder(c))
}

// hostPorts are those ports that are the host's.
func hostPorts(ports []modes.Port) []modes.Port {
	return slices.DeleteFunc(slices.Clone(ports), func(p modes.Port) bool { return p.Routed })
}

// setPortClaims makes the claims of an endpoint what its record says.
func setPortClaims(tx store.Tx, e modes.Endpoint) error {
	want := map[string]bool{}
	if e.Phase != modes.Deleting {
		for _, p := range hostPorts(e.Ports) {
			want[claimOf(p).String()] = true
		}
	}
	old, err := getEndpoint(tx, e.NetworkID, e.ID)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	for _, p := range old.Ports {
		key := claimOf(p).String()
		c, err := portClaims.Get(tx, key)
		if want[key] || errors.Is(err, store.ErrNotFound) || err == nil && c.Endpoint != e.ID {
			continue
		}
		if err != nil {
			return err
		}
		if err := portClaims.Delete(tx, key); err != nil {
			return err
		}
	}
	for key := range want {
		if err := portClaims.Put(tx, key, portClaim{e.NetworkID, e.ID}); err != nil {
			return err
		}
	}
	return nil
}
