package ipvlan_test

import (
	"net/netip"
	"testing"

	"netyard/kernel/kerneltest"
	"netyard/modes"
	"netyard/modes/ipvlan"
	"netyard/modes/modetest"
)

// TestPorts: a port that a container publishes is one of its own address, whichever way the kernel takes to it.
func TestPorts(t *testing.T) {
	t.Parallel()
	kerneltest.Needs(t, "ipvlan")
	for _, mode := range []string{"l2", "l3", "l3s"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			l := modetest.NewLAN(t, ipvlan.New)
			n := lanNetwork(l, netB, mode, options("parent", "eth0", "ipvlan_mode", mode, "host_access", "true"))
			c, sibling := l.Run(n, one, at(mode, 11)...), l.Run(n, two, at(mode, 12)...)
			l.PublishTest(t, &c, sibling, map[string]modetest.Client{
				"LAN":     modetest.At(l.One, modetest.OneAddr, modetest.OneAddr6),
				"sibling": modetest.At(sibling.Host, addr(mode, 12, 0), addr(mode, 12, 1)),
				"host":    modetest.At(l.Host, modetest.HostAddr, modetest.HostAddr6),
				"itself":  modetest.At(c.Host, addr(mode, 11, 0), addr(mode, 11, 1)),
			})
			l.Stop(c)
			l.Stop(sibling)
		})
	}
}

// TestHostPublish: ports of the host lead to a container behind it.
func TestHostPublish(t *testing.T) {
	t.Parallel()
	kerneltest.Needs(t, "ipvlan")
	for _, mode := range []string{"l3", "l3s"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			l := modetest.NewLAN(t, ipvlan.New)
			n := l.Network(netA, "ipvlan",
				options("parent", "eth0", "ipvlan_mode", mode, "host_access", "true", "host_publish", "true"))
			n.Subnets = []modes.Subnet{
				{Pool: netip.MustParsePrefix("10.9.0.0/24")},
				{Pool: netip.MustParsePrefix("2001:db8:9::/64")},
			}
			l.HostPublishTest(t, n, at(mode, 11), at(mode, 12), mode == "l3s", false)
		})
	}
}
