package macvlan_test

import (
	"testing"

	"netyard/modes/macvlan"
	"netyard/modes/modetest"
)

// TestPorts: a port that a container publishes is one of its own address.
func TestPorts(t *testing.T) {
	t.Parallel()
	l := modetest.NewLAN(t, macvlan.New)
	n := l.Up(l.Network(netA, "macvlan", options("parent", "eth0", "host_access", "true")))
	c := l.Run(n, one, "192.168.7.11/24", "2001:db8:7::11/64")
	sibling := l.Run(n, two, "192.168.7.12/24", "2001:db8:7::12/64")
	l.PublishTest(t, &c, sibling, map[string]modetest.Client{
		"LAN":     modetest.At(l.One, modetest.OneAddr, modetest.OneAddr6),
		"sibling": modetest.At(sibling.Host, "192.168.7.12", "2001:db8:7::12"),
		"host":    modetest.At(l.Host, modetest.HostAddr, modetest.HostAddr6),
		"itself":  modetest.At(c.Host, "192.168.7.11", "2001:db8:7::11"),
	})
	l.Stop(c)
	l.Stop(sibling)
}

// TestHostPublish: ports of the host lead to a container on its LAN.
func TestHostPublish(t *testing.T) {
	t.Parallel()
	l := modetest.NewLAN(t, macvlan.New)
	n := l.Network(netA, "macvlan", options("parent", "eth0", "host_access", "true", "host_publish", "true"))
	l.HostPublishTest(t, n, []string{"192.168.7.11/24", "2001:db8:7::11/64"},
		[]string{"192.168.7.12/24", "2001:db8:7::12/64"}, false, true)
}
