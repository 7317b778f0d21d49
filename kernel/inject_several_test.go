package kernel_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"netyard/kernel/kerneltest"
)

// sendAs sends what any program may. size splits the payload into several datagrams, which the kernel does after all
// rules (UDP_SEGMENT, udp(7)). from, if valid, is an address that need not be the sender's. What a rule or a missing
// route refuses is not sent.
func sendAs(h *kerneltest.Host, from netip.Addr, to netip.AddrPort, size int, payload []byte) error {
	type option struct{ level, name, value int }
	options := []option{{unix.IPPROTO_UDP, unix.UDP_SEGMENT, size}}
	d := net.Dialer{}
	if from.IsValid() {
		d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
		if from.Is4() {
			options = append(options, option{unix.SOL_IP, unix.IP_TRANSPARENT, 1})
		} else {
			options = append(options, option{unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1})
		}
	}
	d.Control = func(_, _ string, c syscall.RawConn) (err error) {
		return errors.Join(c.Control(func(fd uintptr) {
			for _, o := range options {
				err = errors.Join(err, unix.SetsockoptInt(int(fd), o.level, o.name, o.value))
			}
		}), err)
	}
	return h.Do(func() error {
		c, err := d.Dial("udp", to.String())
		if errors.Is(err, unix.ENETUNREACH) {
			return nil
		}
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err = c.Write(payload); errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENETUNREACH) {
			err = nil
		}
		return err
	})
}

// noOffload makes datagrams leave the first host one by one, as from a card without segmentation offload.
func (l *lab) noOffload() {
	l.t.Helper()
	l.a.Sh(l.t, "ip link set eth0 gso_max_segs 1; "+
		"! ip link show nyt-overlay || ip link set nyt-overlay gso_max_segs 1")
}

// hidden returns payloads with forged frames of blue after a datagram that may pass.
func (l *lab) hidden(to *overlaid) map[string][]byte {
	frame := l.forged(blueVNI, to)
	zeros := make([]byte, len(frame))
	return map[string][]byte{
		"behind an unknown VNI": slices.Concat(l.forged(otherVNI, to), frame),
		"behind zeros":          slices.Concat(zeros, frame),
		"behind several":        slices.Concat(l.forged(otherVNI, to), zeros, frame, frame),
	}
}

// several checks that no frame is accepted from a sender that hands several datagrams over as one. from is a source
// address that is not its own.
func (l *lab) several(s *sender, to *overlaid, from netip.Addr) {
	l.t.Helper()
	size := len(l.forged(blueVNI, to))
	for how, payload := range l.hidden(to) {
		for _, source := range []netip.Addr{{}, from} {
			name := fmt.Sprintf("%s, to host %d, %s, from %v", s.name, to.n, how, source)
			l.refused(name, s, to, func() error {
				return sendAs(s.Host, source, netip.AddrPortFrom(l.at(to), vxlanPort), size, payload)
			})
		}
	}
}

// TestVXLANSeveral: a program that hands several datagrams to the kernel as one gets no frame into an overlay behind a
// datagram that may pass, neither on another member nor on the host itself. Without rules it does.
func TestVXLANSeveral(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		v6     bool
		tunnel func(*lab)
	}{"over IPv4": {false, nil}, "over IPv6": {true, nil}, "encrypted": {true, standsForTunnel}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, c.v6, c.tunnel)
			l.noOffload()
			docker := l.other("a container of Docker's bridge", "docker0")
			for _, s := range []*sender{
				docker, l.container("a container of a bridge network", true, false, false), l.cni(),
				l.container("a container with antispoof=false", true, false, true), l.onOverlay(),
				{name: "a program of the host", Host: l.a.Host, addr: l.a.vtep},
			} {
				l.several(s, l.b, l.at(l.a))
				l.several(s, l.a, l.at(l.b))
			}
			group := map[bool]string{false: "192.0.2.255:4789", true: "[ff02::1%eth0]:4789"}[c.v6]
			broadcast := netip.MustParseAddrPort(group)
			program := &sender{name: "a program of the host, by broadcast", Host: l.a.Host, addr: l.a.vtep}
			for how, payload := range l.hidden(l.b) {
				l.refused(program.name+", "+how, program, l.b, func() error {
					return sendAs(l.a.Host, netip.Addr{}, broadcast, len(l.forged(blueVNI, l.b)), payload)
				})
			}
			l.flows("at last")
			for _, o := range []*overlaid{l.a, l.b} {
				must(t, o.UnloadFirewall())
			}
			for _, to := range []*overlaid{l.a, l.b} {
				for how, payload := range l.hidden(to) {
					l.accepted(how, to, func() error {
						at := netip.AddrPortFrom(l.at(to), vxlanPort)
						return sendAs(docker.Host, netip.Addr{}, at, len(l.forged(blueVNI, to)), payload)
					})
				}
			}
		})
	}
}

// TestVXLANToGroups: a host accepts no frame that was sent to an address which it shares with others: broadcast,
// multicast or anycast.
func TestVXLANToGroups(t *testing.T) {
	t.Parallel()
	for _, v6 := range []bool{false, true} {
		t.Run(map[bool]string{false: "over IPv4", true: "over IPv6"}[v6], func(t *testing.T) {
			t.Parallel()
			l := newLab(t, v6, nil)
			docker := l.other("a container of Docker's bridge", "docker0")                 // 10.101.0.0/24
			plain := l.container("a container of a bridge network", true, false, false)    // 10.102.0.0/24
			loose := l.container("a container with antispoof=false", true, false, true)    // 10.103.0.0/24
			inner := l.container("a container of an internal network", false, true, false) // 10.104.0.0/24
			lan, program := l.lanMember(), &sender{name: "a program of the host", Host: l.a.Host, addr: l.a.vtep}
			addrs := []string{
				"255.255.255.255", "224.0.0.1", "192.0.2.255",
				"10.101.0.255", "10.102.0.255", "10.103.0.255", "10.104.0.255",
			}
			if v6 {
				addrs = []string{
					"ff02::1%eth0", "ff01::1%eth0", "2001:db8::", "fd64:1::", "fd64:2::", "fd64:3::", "fd64:4::",
				}
			}
			frame := l.forged(blueVNI, l.a)
			for _, s := range []*sender{docker, plain, loose, inner, lan, program} {
				for _, a := range addrs {
					at := netip.AddrPortFrom(netip.MustParseAddr(a), vxlanPort)
					l.refused(s.name+", to "+a, s, l.a, func() error {
						return sendAs(s.Host, netip.Addr{}, at, 0, frame)
					})
				}
			}
			l.flows("at last")
			must(t, l.a.UnloadFirewall())
			// For IPv6 the address of another bridge: a packet to that of its own would not leave the sender.
			group := map[bool]string{false: "10.101.0.255", true: "fd64:2::"}[v6]
			if !v6 {
				l.accepted("to a group", l.a, func() error {
					return sendAs(docker.Host, netip.Addr{}, netip.MustParseAddrPort("224.0.0.1:4789"), 0, frame)
				})
			}
			l.accepted("to "+group, l.a, func() error {
				at := netip.AddrPortFrom(netip.MustParseAddr(group), vxlanPort)
				return sendAs(docker.Host, netip.Addr{}, at, 0, frame)
			})
		})
	}
}

// TestVXLANBehindBridge: a host behind a bridge of another host is a member of its own. Its frames pass the bridge,
// even where br_netfilter passes them to the rules for routed packets.
func TestVXLANBehindBridge(t *testing.T) {
	t.Parallel()
	for _, v6 := range []bool{false, true} {
		t.Run(map[bool]string{false: "over IPv4", true: "over IPv6"}[v6], func(t *testing.T) {
			t.Parallel()
			hosts := overlayOf(t, 2, v6)
			a := hosts[0]
			bits := map[bool]int{false: 24, true: 120}[v6]
			overBridge(a, fmt.Sprintf("%s/%d", a.vtep, bits))
			a.Sh(t, "sysctl -qw net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1")
			vm := &overlaid{
				Host: a.Peer(t, "vm0"), t: t, n: 3, v6: v6,
				vtep: netip.MustParseAddr(map[bool]string{false: "192.0.2.3", true: "2001:db8::3"}[v6]),
			}
			a.Sh(t, "ip link set vm0 master br-lan")
			vm.Sh(t, fmt.Sprintf("ip addr add %s/%d dev eth0 %s", vm.vtep, bits, map[bool]string{true: "nodad"}[v6]))
			vm.LeaveTablesOpen()
			must(t, vm.LoadFirewall())
			hosts = append(hosts, vm)
			blue := join(t, hosts, blueNet, blueVNI, 20)
			reach(t, blue[2], "10.20.2.2", true)
			reach(t, blue[1], "fd20::3:2", true)
			reach(t, blue[0], "10.20.2.2", true)
			reach(t, blue[2], "10.20.1.2", true)
			for range 2 { // a frame that has to be fragmented
				blue[2].Sh(t, "ping -c1 -W5 -s 4000 10.20.2.2")
			}
		})
	}
}
