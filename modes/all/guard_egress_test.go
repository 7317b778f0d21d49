package all_test

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"netyard/kernel/kerneltest"
)

// A leak is a packet that needs no address of its own in a policy, and where it may be seen.
type leak struct {
	name string
	// to is the hardware address, raw the packet behind the EtherType.
	to        net.HardwareAddr
	etherType uint16
	raw       []byte
	// outside: it leaves the host of who has no policy; link: it stays on the link of everybody.
	outside, link bool
}

// TestEgressClosed: from who may send nothing (`egress: {}`), messages of IPv6's link leave only as such, and no
// request of DHCP leaves. The same frames of who has no policy do leave, so that the test can fail.
func TestEgressClosed(t *testing.T) {
	t.Parallel()
	l := newGuardLab(t, false)
	wire := kerneltest.NewWire(t, l.outside, "eth0")
	mac := macOf(t, l.outside, "eth0") // the host has not to ask for it, and so nothing waits
	l.host.Sh(t, fmt.Sprintf("for a in 203.0.113.1 2001:db8:113::1; do "+
		"ip neigh replace $a lladdr %s dev eth-out nud permanent; done", mac))
	free := l.site(t, siteSpec{name: "open sender", mode: "bridge"})
	closed := l.site(t, siteSpec{name: "closed sender", mode: "bridge", closedOut: true})
	// It is made last: the last one is what is enforced.
	id := 0
	for _, s := range []*site{closed, free} {
		all, ids := s.leaks(id), map[int]leak{}
		var frames []kerneltest.Frame
		for _, k := range all {
			id++
			ids[id] = k
			head := append(append([]byte{}, k.to...), s.evil.MAC...)
			frames = append(frames, kerneltest.Frame{
				Raw: append(binary.BigEndian.AppendUint16(head, k.etherType), k.raw...),
			})
		}
		if err := s.evil.host.Do(func() error { return kerneltest.SendFrames("eth0", frames) }); err != nil {
			t.Fatal(err)
		}
		outside, link := map[int]bool{}, map[int]bool{}
		for _, f := range wire.Drain(t) {
			for _, id := range idsIn(f) {
				outside[id] = true
			}
		}
		for _, f := range s.victim.wire.Drain(t) {
			for _, id := range idsIn(f) {
				link[id] = true
			}
		}
		for id, k := range ids {
			if want := k.outside && s == free; outside[id] != want {
				t.Errorf("%s, %s: outside: %v, want %v", s.name, k.name, outside[id], want)
			}
			if want := k.link; link[id] != want && (want || s == closed) {
				t.Errorf("%s, %s: on the neighbour's link: %v, want %v", s.name, k.name, link[id], want)
			}
		}
	}
}

// leaks returns the packets of the site's sender, numbered from first+1.
func (s *site) leaks(first int) (all []leak) {
	const ip4, ip6, icmp6, mld, ask = 0x0800, 0x86dd, 58, 132, 135
	me, far6 := s.evil, netip.MustParseAddr("2001:db8:113::1")
	message := func(kind byte) []byte { // 16 bytes of a group or a target
		body := append([]byte{kind, 0, 0, 0, 0, 0, 0, 0}, idText(first+len(all)+1)...)
		return append(body, make([]byte, 24-len(body))...)
	}
	v6 := func(name string, to netip.Addr, kind, hops byte, outside, link bool) {
		body := message(kind)
		p := binary.BigEndian.AppendUint16([]byte{0x60, 0, 0, 0}, uint16(len(body)))
		p = append(append(append(append(p, icmp6, hops), me.V6.AsSlice()...), to.AsSlice()...), body...)
		k := leak{fmt.Sprintf("%s, type %d, hop limit %d", name, kind, hops), s.host.MAC, ip6, p, outside, link}
		if link {
			k.to = s.victim.MAC
		}
		all = append(all, k)
	}
	for kind := byte(130); kind <= mld; kind++ {
		for _, hops := range []byte{2, 64, 255} {
			v6("to a global address", far6, kind, hops, true, false)
		}
		v6("to a group", netip.MustParseAddr("ff02::16"), kind, 1, false, true)
		v6("to a link-local address", s.victim.Local(), kind, 1, false, true)
	}
	v6("to a global address", far6, ask, 255, true, false)
	v6("to a global address", far6, ask, 64, true, false)
	v6("to the neighbour", s.victim.V6, ask, 255, false, true)
	v4 := func(from, to netip.Addr, proto byte, body []byte) []byte {
		p := binary.BigEndian.AppendUint16([]byte{0x45, 0}, uint16(20+len(body)))
		p = append(p, 0, 1, 0, 0, 64, proto, 0, 0)
		p = append(append(p, from.AsSlice()...), to.AsSlice()...)
		sum := 0
		for i := 0; i < len(p); i += 2 {
			sum += int(p[i])<<8 | int(p[i+1])
		}
		binary.BigEndian.PutUint16(p[10:], ^uint16(sum>>16+sum&0xffff))
		return append(p, body...)
	}
	all = append(all, leak{
		"ICMPv6 in IPv4", s.host.MAC, ip4,
		v4(me.V4, netip.MustParseAddr("203.0.113.1"), icmp6, message(ask)), true, false,
	})
	for _, to := range []netip.Addr{netip.MustParseAddr("255.255.255.255"), s.victim.V4} {
		data := append([]byte{0, 68, 0, 67, 0, 18, 0, 0}, idText(first+len(all)+1)...)
		all = append(all, leak{
			"DHCP to " + to.String(), s.victim.MAC, ip4, v4(netip.IPv4Unspecified(), to, udp, data), false, false,
		})
	}
	return all
}
