package modetest

import (
	"fmt"
	"net/netip"
	"testing"

	"netyard/kernel/core"
	"netyard/kernel/kerneltest"
	"netyard/modes"
)

// The addresses of a LAN's members, IPv4 and IPv6. The far ones are behind the router.
const (
	HostAddr    = "192.168.7.2"
	HostAddr6   = "2001:db8:7::2"
	OneAddr     = "192.168.7.3"
	OneAddr6    = "2001:db8:7::3"
	RouterAddr  = "192.168.7.1"
	RouterAddr6 = "2001:db8:7::1"
	FarAddr     = "198.51.100.1"
	FarAddr6    = "2001:db8:100::1"
)

// A LAN is a host with eth0 on a switch, another host and the router there, and a mode at work on the host. Containers
// are namespaces.
type LAN struct {
	TB     testing.TB
	Host   *kerneltest.Host
	One    *kerneltest.Host // another host of the LAN
	Router *kerneltest.Host
	Switch *kerneltest.Host // with the ports host, one and router
	Mode   Live

	newMode modes.New
}

// NewLAN makes a LAN.
func NewLAN(t testing.TB, newMode modes.New) *LAN {
	t.Helper()
	l := &LAN{TB: t, Switch: kerneltest.New(t), newMode: newMode}
	l.Switch.Sh(t, "sysctl -qw net.ipv6.conf.all.disable_ipv6=1; ip link add br0 type bridge mcast_snooping 0 && "+
		"ip link set br0 up")
	member := func(port, addr, addr6, mac string) *kerneltest.Host {
		h := l.Switch.Peer(t, port)
		l.Switch.Sh(t, "ip link set "+port+" master br0")
		h.Sh(t, fmt.Sprintf("ip link set eth0 down && ip link set eth0 address %s up && "+
			"ip addr add %s/24 dev eth0 && ip addr add %s/64 dev eth0 nodad", mac, addr, addr6))
		return h
	}
	l.Host = member("host", HostAddr, HostAddr6, "02:00:00:00:07:02")
	l.One = member("one", OneAddr, OneAddr6, "02:00:00:00:07:03")
	l.Router = member("router", RouterAddr, RouterAddr6, "02:00:00:00:07:01")
	l.Router.Sh(t, "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1; ip addr add "+FarAddr+
		"/32 dev lo; ip addr add "+FarAddr6+"/128 dev lo nodad")
	for _, h := range []*kerneltest.Host{l.Host, l.One} {
		h.Sh(t, "ip route add default via "+RouterAddr+"; ip route add default via "+RouterAddr6)
	}
	if err := l.Host.LoadFirewall(); err != nil {
		t.Fatal(err)
	}
	l.remake()
	return l
}

// remake makes the mode anew, as a daemon that starts does.
func (l *LAN) remake() {
	l.Mode = On(l.Host.Kernel, l.newMode, nil)
}

// Network returns a network on the LAN.
func (*LAN) Network(id, mode string, options map[string]string) modes.Network {
	return Network(id, mode, options)
}

// Network returns a network on such a LAN: its subnets, and the router as the gateway.
func Network(id, mode string, options map[string]string) modes.Network {
	subnet := func(pool, gateway string) modes.Subnet {
		return modes.Subnet{Pool: netip.MustParsePrefix(pool), Gateway: netip.MustParsePrefix(gateway)}
	}
	return modes.Network{ID: id, Mode: mode, Options: options, Subnets: []modes.Subnet{
		subnet("192.168.7.0/24", RouterAddr+"/24"), subnet("2001:db8:7::/64", RouterAddr6+"/64"),
	}}
}

// Up settles a network and brings it up.
func (l *LAN) Up(n modes.Network) modes.Network {
	l.TB.Helper()
	var err error
	if n.Settled, err = l.Mode.Settle(l.TB.Context(), n); err != nil {
		l.TB.Fatal(err)
	}
	n.Phase = modes.Ready
	if err := l.Mode.Up(l.TB.Context(), n); err != nil {
		l.TB.Fatal(err)
	}
	return n
}

// A Container is a namespace with an endpoint of a network.
type Container struct {
	*kerneltest.Host
	Network  modes.Network
	Endpoint modes.Endpoint
	Link     modes.Link
}

// Run starts a container: it does with the link what an engine does.
func (l *LAN) Run(n modes.Network, id string, addrs ...string) Container {
	l.TB.Helper()
	c := Container{Host: kerneltest.New(l.TB), Network: n}
	c.Endpoint = modes.Endpoint{ID: id, NetworkID: n.ID, Sandbox: c.Path()}
	for _, a := range addrs {
		c.Endpoint.Addrs = append(c.Endpoint.Addrs, netip.MustParsePrefix(a))
	}
	var err error
	if c.Link, err = l.Mode.Attach(l.TB.Context(), n, c.Endpoint); err != nil {
		l.TB.Fatal(err)
	}
	c.Take(l.TB, l.Host, c.Link.SrcName)
	for _, a := range c.Endpoint.Addrs {
		dad := ""
		if a.Addr().Is6() {
			dad = " nodad"
		}
		c.Sh(l.TB, fmt.Sprintf("ip addr add %s dev eth0%s", a, dad))
	}
	for _, gw := range c.Link.Gateways {
		c.Sh(l.TB, "ip route add default via "+gw.String())
	}
	for _, r := range c.Link.Routes {
		way := "dev eth0"
		if r.Via.IsValid() {
			way = "via " + r.Via.String()
		}
		c.Sh(l.TB, fmt.Sprintf("ip route add %s %s", r.Dst, way))
	}
	return c
}

// Stop ends a container: its link comes back to the host, as an engine moves it, and goes.
func (l *LAN) Stop(c Container) {
	l.TB.Helper()
	c.Sh(l.TB, "ip link set eth0 down && ip link set eth0 name "+c.Link.SrcName)
	c.Give(l.TB, l.Host, c.Link.SrcName)
	c.Endpoint.Sandbox = ""
	if err := l.Mode.Detach(c.Network, c.Endpoint); err != nil {
		l.TB.Fatal(err)
	}
}

// Reaches checks a line of a reachability matrix.
func (l *LAN) Reaches(what string, from *kerneltest.Host, to string, want bool) {
	l.TB.Helper()
	if got := from.Pings(to, want); got != want {
		l.TB.Errorf("%s: ping %s: %v, want %v", what, to, got, want)
	}
}

// Audit wants what the mode says that there is to be there, and nothing else of netyard's.
func (l *LAN) Audit(ns []modes.Network, cs ...Container) {
	l.TB.Helper()
	var objects []core.Object
	for _, n := range ns {
		var es []modes.Endpoint
		for _, c := range cs {
			if c.Network.ID == n.ID {
				es = append(es, c.Endpoint)
			}
		}
		objects = append(objects, l.Mode.Objects(n, es...)...)
	}
	snap, err := l.Host.Snapshot()
	if err != nil {
		l.TB.Fatal(err)
	}
	for _, f := range snap.Faults(objects) {
		l.TB.Errorf("a fault where all is well: %s", f.Text)
	}
	for _, s := range snap.Strays(objects) {
		l.TB.Errorf("a stray where all is wanted: %s", s.Text)
	}
}
