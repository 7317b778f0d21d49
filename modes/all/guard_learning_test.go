package all_test

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"netyard/kernel/kerneltest"
)

// TestForwardingTable: by a neighbour's hardware address, on any frame, a container does not get what is for that
// neighbour. A bridge learns from frames to reserved group addresses too, which the guard does not see
// (__br_handle_local_finish, net/bridge/br_input.c). Who is bound to his address keeps it, also beside one that may use
// any. Where nobody guards, it works.
func TestForwardingTable(t *testing.T) {
	l := newGuardLab(t, false)
	for _, spec := range sites() {
		if spec.guard == roles && !spec.evilOnly || spec.apart || spec.closedOut || spec.closedIn {
			continue // whose neighbours are bound to no address; or hear nothing of each other
		}
		t.Run(spec.name, func(t *testing.T) { l.site(t, spec).steal(t) })
	}
}

func (s *site) steal(t *testing.T) {
	t.Helper()
	const groups, behind, first = 16, 5000, 1000
	learn := kerneltest.UDP(netip.AddrPortFrom(s.evil.V4, 1), netip.AddrPortFrom(s.host.V4, 1), []byte("learn"))
	topologyChange := append([]byte{0x42, 0x42, 3, 0, 0, 0, 0x80}, make([]byte, 39)...) // IEEE 802.1D
	packets := []kerneltest.Packet{
		learn, learn.Tagged(0x8100, 0), {Type: 0x88cc, Data: make([]byte, 46)}, {Type: 38, Data: topologyChange},
	}
	stolen, kept, all := 0, 0, (groups+1)*len(packets)
	for group := range groups + 1 {
		mac := net.HardwareAddr{0x01, 0x80, 0xc2, 0, 0, byte(group)}
		if group == groups {
			mac = s.host.MAC
		}
		for i, p := range packets {
			id := first + group*len(packets) + i
			s.other.wire.Send(t, s.from(s.other, s.victim, 1))
			s.evil.wire.Send(t, p.Frame(s.other.MAC, mac))
			s.victim.wire.Send(t, s.from(s.victim, s.other, id), s.from(s.victim, s.evil, id+behind))
			s.evil.socket.drain(t, id+behind)
			s.other.socket.drain(t, 0)
			if s.other.socket.got[id] {
				kept++
			}
			for _, f := range s.evil.wire.Drain(t) {
				if slices.Contains(idsIn(f), id) {
					stolen++
				}
			}
		}
	}
	if s.guard == nothing && stolen == 0 || s.guard != nothing && (stolen > 0 || kept != all) {
		t.Errorf("of %d packets for another container, %d came to it, and %d to who used its hardware address",
			all, kept, stolen)
	}
}

// TestSpanningTree: a container does not make itself the root of a LAN's spanning tree. On a bridge that nobody guards
// it does.
func TestSpanningTree(t *testing.T) {
	l := newGuardLab(t, false)
	for _, spec := range []siteSpec{
		{name: "no network of netyard's", guard: nothing},
		{name: "a bridge of the host's owner", mode: "bridge", guard: hardware},
	} {
		t.Run(spec.name, func(t *testing.T) {
			s := l.site(t, spec)
			l.host.Sh(t, "ip link set "+s.bridge+" type bridge stp_state 1")
			root := append([]byte{0, 0}, s.evil.MAC...) // the best priority there is
			bpdu := append(append(append([]byte{0x42, 0x42, 3, 0, 0, 0, 0, 0}, root...), 0, 0, 0, 0), root...)
			// port, age, maximal age, hello time, forward delay
			bpdu = append(bpdu, 0x80, 1, 0, 0, 20, 0, 2, 0, 15, 0)
			packet := kerneltest.Packet{Type: uint16(len(bpdu)), Data: bpdu} //nolint:gosec // short
			s.evil.wire.Send(t, packet.Frame(s.evil.MAC, net.HardwareAddr{0x01, 0x80, 0xc2, 0, 0, 0}))
			// What was sent before has been looked at when the port has got the next.
			seen := kerneltest.NewWire(t, l.host, s.evil.port)
			const id = 77
			s.evil.wire.Send(t, s.from(s.evil, s.host, id))
			next := func(f []byte) bool { return slices.Contains(idsIn(f), id) }
			came := func() bool { return slices.ContainsFunc(seen.Drain(t), next) }
			for end := time.Now().Add(patience); !came(); time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatal("the port does not get what its container sends")
				}
			}
			taken := !strings.Contains(l.host.Sh(t, "ip -d -o link show "+s.bridge), " root_port 0 ")
			if taken != (spec.guard == nothing) {
				t.Errorf("a container is the root of the spanning tree: %v", taken)
			}
		})
	}
}

// from returns a packet that is not forged.
func (s *site) from(from, to *party, id int) []byte {
	p := kerneltest.UDP(netip.AddrPortFrom(from.V4, 5000), netip.AddrPortFrom(to.V4, openPort), idText(id))
	return p.Frame(from.MAC, to.MAC)
}
