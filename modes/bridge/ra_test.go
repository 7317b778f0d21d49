package bridge_test

import (
	"net"
	"strconv"
	"testing"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv6"

	"netyard/kernel/kerneltest"
)

// sendRA sends router advertisements from a container to all nodes (RFC 4861, section 4.2).
func sendRA(t *testing.T, from *kerneltest.Host) {
	t.Helper()
	err := from.Do(func() error {
		c, err := icmp.ListenPacket("ip6:ipv6-icmp", "::")
		if err != nil {
			return err
		}
		defer c.Close()
		ifi, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		p := c.IPv6PacketConn()
		if err := p.SetMulticastInterface(ifi); err != nil {
			return err
		}
		if err := p.SetMulticastHopLimit(255); err != nil {
			return err
		}
		body := []byte{64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0} // hop limit, flags, lifetime 1800 s, timers
		ra, err := (&icmp.Message{Type: ipv6.ICMPTypeRouterAdvertisement, Body: &icmp.RawBody{Data: body}}).Marshal(nil)
		if err != nil {
			return err
		}
		for range 3 {
			// By its number: Go remembers what number a name has, and in another namespace it has another.
			if _, err := c.WriteTo(ra,
				&net.IPAddr{IP: net.IPv6linklocalallnodes, Zone: strconv.Itoa(ifi.Index)}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
