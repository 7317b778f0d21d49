package all_test

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"netyard/kernel/kerneltest"
	"netyard/kernel/overlay"
)

// TestOverlayPort: what another host of an overlay sends reaches this one by the network's bridge, and not by the VXLAN
// device itself, past the bridge. A bridge does not send such frames to others, but who gets into an overlay can.
func TestOverlayPort(t *testing.T) {
	l := newGuardLab(t, false)
	s := l.site(t, siteSpec{name: "overlay", mode: "overlay", opts: map[string]string{"overlay": "blue"}})
	const vni, port = 0x1234, 4789
	for _, e := range overlay.VTEPElements(port, vni, []netip.Addr{netip.MustParseAddr("203.0.113.1")}) {
		if err := l.host.Ensure(t.Context(), e.For("test")); err != nil {
			t.Fatal(err)
		}
	}
	wire := kerneltest.NewWire(t, l.outside, "eth0")
	from := kerneltest.Station{MAC: net.HardwareAddr{2, 0, 0, 0, 0, 9}, V4: s.v4(9), V6: s.v6(9)}
	send := func(inner []byte) {
		header := []byte{8, 0, 0, 0, vni >> 16, vni >> 8 & 0xff, vni & 0xff, 0} // RFC 7348
		to := netip.AddrPortFrom(netip.MustParseAddr(outAddr4), port)
		p := kerneltest.UDP(netip.MustParseAddrPort("203.0.113.1:50000"), to, append(header, inner...))
		wire.Send(t, p.Frame(macOf(t, l.outside, "eth0"), macOf(t, l.host, "eth-out")))
	}
	datagram := func(id int, v6 bool) kerneltest.Packet {
		src, dst := from.V4, s.host.V4
		if v6 {
			src, dst = from.V6, s.host.V6
		}
		return kerneltest.UDP(netip.AddrPortFrom(src, 5000), netip.AddrPortFrom(dst, dataPort), idText(id))
	}
	strangers := map[int]netip.Addr{}
	for group := 2; group < 16; group++ {
		to := net.HardwareAddr{0x01, 0x80, 0xc2, 0, 0, byte(group)}
		strangers[group] = s.stranger(false)
		send(datagram(group, false).Frame(from.MAC, to))
		send(datagram(100+group, true).Frame(from.MAC, to))
		send(datagram(200+group, false).Tagged(0x8100, 0).Frame(from.MAC, to))
		send(kerneltest.WhoHas(from.MAC, strangers[group], s.host.V4).Frame(from.MAC, to))
	}
	honest := []int{998, 999}
	send(datagram(honest[0], true).Frame(from.MAC, s.host.MAC))
	send(datagram(honest[1], false).Frame(from.MAC, s.host.MAC))
	for _, id := range honest {
		l.socket.drain(t, id)
		delete(l.socket.got, id)
	}
	for id := range l.socket.got {
		t.Errorf("the host took packet %d from the VXLAN device itself", id)
	}
	known := l.host.Sh(t, "ip neigh show nud all")
	for group, a := range strangers {
		if strings.Contains(known, a.String()+" ") {
			t.Errorf("the host took a neighbour from the VXLAN device itself, by group %02x", group)
		}
	}
}
