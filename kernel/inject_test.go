package kernel_test

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"netyard/kernel"
	"netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/kernel/kerneltest"
	"netyard/kernel/lan"
	"netyard/kernel/nft"
	"netyard/kernel/overlay"
)

const (
	otherVNI  = 0x00abcdef
	plainPort = 7777
	dnatPort  = 9999
	forger    = "02:ba:d0:00:00:01"
	evilNet   = "cccccccccccc3333"
)

// A lab is two hosts of an overlay. On the first one there are senders other than its VXLAN devices.
type lab struct {
	t        *testing.T
	a, b     *overlaid
	blue     []*kerneltest.Host
	v6       bool
	tunneled bool
	subnets  int
}

// A sender is something on the first host that sends datagrams.
type sender struct {
	name string
	*kerneltest.Host
	addr netip.Addr
	mac  net.HardwareAddr
	// localOnly: it reaches only this host.
	localOnly bool
}

// newLab makes the hosts, with the network blue on both. With tunnel, blue is encrypted, by WireGuard or by a link that
// stands for it.
func newLab(t *testing.T, v6 bool, tunnel func(l *lab)) *lab {
	t.Helper()
	hosts := overlayOf(t, 2, v6)
	l := &lab{t: t, a: hosts[0], b: hosts[1], v6: v6, tunneled: tunnel != nil}
	for _, o := range hosts {
		o.Sh(t, "for f in all default eth0; do sysctl -qw net.ipv4.conf.$f.rp_filter=0; done")
		o.Sh(t, "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
	}
	if l.tunneled {
		tunnel(l)
	}
	l.blue = join(t, hosts, blueNet, blueVNI, 20)
	if l.tunneled {
		for _, o := range hosts {
			o.vtep = netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", o.n))
		}
	}
	for _, o := range hosts {
		l.count(o)
	}
	return l
}

// count makes a host count what it accepts, after everything that may drop it: frames of the forger, also when they
// have come out of the VXLAN device, frames with an unknown VNI, and datagrams that are not VXLAN.
func (l *lab) count(o *overlaid) {
	l.t.Helper()
	// The source address of a frame is 22 bytes after the start of UDP: 8 of UDP, 8 of VXLAN, 6 of the destination.
	o.Sh(l.t, `nft -f - <<'END'
table inet probe {
	counter forged { }
	counter others { }
	counter plain { }
	chain in {
		type filter hook input priority 300
		udp dport 4789 @th,176,48 0x02bad0000001 @th,96,24 `+fmt.Sprintf("%#x", blueVNI)+` counter name forged
		udp dport 4789 @th,96,24 `+fmt.Sprintf("%#x", otherVNI)+` counter name others
		udp dport `+fmt.Sprint(plainPort)+` counter name plain
	}
}
table bridge probe {
	counter inside { }
	chain in {
		type filter hook prerouting priority 0
		iifname "nyx-*" ether saddr `+forger+` counter name inside
	}
}
END`)
}

func counters(t *testing.T, o *overlaid) map[string]int {
	t.Helper()
	var said struct {
		Nftables []struct {
			Counter struct {
				Name    string
				Packets int
			}
		}
	}
	must(t, json.Unmarshal([]byte(o.Sh(t, "nft -j list counters")), &said))
	all := map[string]int{}
	for _, c := range said.Nftables {
		all[c.Counter.Name] = c.Counter.Packets
	}
	return all
}

// at returns the address at which a host receives frames of blue.
func (l *lab) at(o *overlaid) netip.Addr {
	if l.tunneled {
		return netip.MustParseAddr(fmt.Sprintf("fd99::%d", o.n))
	}
	return o.vtep
}

// fresh returns addresses of a new subnet: of a gateway, and of a container.
func (l *lab) fresh() (gw4, gw6, me4, me6 string) {
	l.subnets++
	n := l.subnets
	return fmt.Sprintf("10.%d.0.1/24", 100+n), fmt.Sprintf("fd64:%d::1/64", n),
		fmt.Sprintf("10.%d.0.2/24", 100+n), fmt.Sprintf("fd64:%d::2/64", n)
}

func (l *lab) pick(v4, v6 string) netip.Addr {
	if l.v6 || l.tunneled {
		v4 = v6
	}
	return netip.MustParsePrefix(v4).Addr()
}

// configure gives a sender its addresses and default routes.
func (l *lab) configure(c *kerneltest.Host, gw4, gw6, me4, me6 string) {
	l.t.Helper()
	c.Sh(l.t, fmt.Sprintf("ip addr add %s dev eth0 && ip addr add %s dev eth0 nodad && "+
		"ip route add default via %s && ip -6 route add default via %s",
		me4, me6, netip.MustParsePrefix(gw4).Addr(), netip.MustParsePrefix(gw6).Addr()))
}

// container starts a container on a bridge network of netyard's.
func (l *lab) container(name string, nat, internal, open bool) *sender {
	l.t.Helper()
	gw4, gw6, me4, me6 := l.fresh()
	nid, eid := fmt.Sprintf("%d%s", l.subnets, evilNet), fmt.Sprintf("f%d%s", l.subnets, strings.Repeat("e", 12))
	br, mac := core.Name(core.BridgePrefix, nid), net.HardwareAddr{2, 0x42, 0xee, 0, 0, byte(l.subnets)}
	v := bridge.Veth{
		Name: core.Name(core.VethPrefix, eid), Peer: core.Name(core.PeerPrefix, eid), Alias: core.Alias(nid, eid),
		Master: br, MTU: 1500, MAC: mac,
	}
	addrs := []netip.Addr{netip.MustParsePrefix(me4).Addr(), netip.MustParsePrefix(me6).Addr()}
	guard := bridge.PortGuard{Port: v.Name, MAC: mac, Addrs: addrs, Open: open}
	objects := []core.Object{
		bridge.Bridge{Name: br, Alias: core.Alias(nid, ""), MTU: 1500, IPv6: true},
		core.Addr{Link: br, Alias: core.Alias(nid, ""), Prefix: netip.MustParsePrefix(gw4)},
		core.Addr{Link: br, Alias: core.Alias(nid, ""), Prefix: netip.MustParsePrefix(gw6)},
		nft.InterfaceIn(bridge.Bridges, br), nft.InterfaceIn(bridge.Own, br, br),
		nft.InterfaceIn(bridge.Reachable, br, br),
		v,
	}
	if nat {
		objects = append(objects, nft.SubnetIn(bridge.NAT4, netip.MustParsePrefix(me4)),
			nft.SubnetIn(bridge.NAT6, netip.MustParsePrefix(me6)))
	}
	if internal {
		objects = append(objects, nft.InterfaceIn(bridge.Internal, br))
	}
	must(l.t, l.a.Ensure(l.t.Context(), append(objects, guard.Objects()...)...))
	c := kerneltest.New(l.t)
	c.Take(l.t, l.a.Host, v.Peer)
	l.configure(c, gw4, gw6, me4, me6)
	return &sender{name: name, Host: c, addr: l.pick(me4, me6), mac: mac, localOnly: internal}
}

// other starts a sender behind a bridge of another manager, which masquerades by iptables as Docker and libvirt do.
func (l *lab) other(name, bridge string) *sender {
	l.t.Helper()
	gw4, gw6, me4, me6 := l.fresh()
	c := kerneltest.New(l.t)
	l.a.Sh(l.t, fmt.Sprintf("ip link add %[1]s type bridge && ip link set %[1]s up && "+
		"ip addr add %[2]s dev %[1]s && ip addr add %[3]s dev %[1]s nodad", bridge, gw4, gw6))
	l.a.Sh(l.t, fmt.Sprintf("ip link add p-%s type veth peer name e-%[1]s && "+
		"ip link set p-%[1]s master %[1]s up", bridge))
	for cmd, from := range map[string]string{"iptables": me4, "ip6tables": me6} {
		l.a.Sh(l.t, fmt.Sprintf("%s -w 30 -t nat -A POSTROUTING -s %s ! -o %s -j MASQUERADE",
			cmd, netip.MustParsePrefix(from).Masked(), bridge))
	}
	c.Take(l.t, l.a.Host, "e-"+bridge)
	l.configure(c, gw4, gw6, me4, me6)
	return &sender{name: name, Host: c, addr: l.pick(me4, me6)}
}

// cni starts a sender that the stock CNI bridge plugin attaches, with ipMasq.
func (l *lab) cni() *sender {
	l.t.Helper()
	_, _, me4, me6 := l.fresh()
	c := kerneltest.New(l.t)
	conf := fmt.Sprintf(`{"cniVersion":"0.4.0","name":"stock","type":"bridge","bridge":"cni0","isGateway":true,
		"ipMasq":true,"ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":%q}],[{"subnet":%q}]],
		"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]}}`,
		l.t.TempDir(), netip.MustParsePrefix(me4).Masked(), netip.MustParsePrefix(me6).Masked())
	must(l.t, l.a.Do(func() error {
		cmd := exec.Command("/usr/lib/cni/bridge")
		cmd.Stdin = strings.NewReader(conf)
		cmd.Env = append(os.Environ(), "CNI_COMMAND=ADD", "CNI_CONTAINERID=stock", "CNI_IFNAME=eth0",
			"CNI_PATH=/usr/lib/cni", fmt.Sprintf("CNI_NETNS=/proc/%d/fd/%d", os.Getpid(), c.NS()))
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("the stock bridge plugin: %w: %s", err, out)
		}
		return nil
	}))
	return &sender{name: "a container of the stock CNI bridge", Host: c, addr: l.pick(me4, me6)}
}

// lanMember starts a macvlan container that the host reaches by a shim.
func (l *lab) lanMember() *sender {
	l.t.Helper()
	c := kerneltest.New(l.t)
	me := "192.0.2.77/24"
	if l.v6 {
		me = "2001:db8::77/120"
	}
	addr, mac := netip.MustParsePrefix(me).Addr(), net.HardwareAddr{2, 0x42, 0, 0, 0, 0x77}
	shim := lan.ShimOn(lan.Parent{Name: "eth0"}, "macvlan", "bridge", evilNet)
	must(l.t, l.a.Ensure(l.t.Context(), shim, lan.HostRoute{Shim: shim, Dst: addr, MAC: mac}))
	l.a.Sh(l.t, fmt.Sprintf("ip link add mv0 link eth0 address %s type macvlan mode bridge", mac))
	c.Take(l.t, l.a.Host, "mv0", fmt.Sprintf("ip addr add %s dev eth0 nodad && ip -%d route add default via %s",
		me, map[bool]int{false: 4, true: 6}[l.v6], l.a.vtep))
	// The host's address is behind the shim; without this entry it takes the container several requests to find it.
	c.Sh(l.t, fmt.Sprintf("ip neigh replace %s lladdr %s dev eth0 nud permanent",
		l.a.vtep, macOf(l.t, l.a.Host, shim.Name)))
	return &sender{name: "a container on macvlan with host_access", Host: c, addr: addr, localOnly: true}
}

// macOf returns the hardware address of a link.
func macOf(t *testing.T, h *kerneltest.Host, link string) string {
	t.Helper()
	return h.Sh(t, "ip -o link show "+link+" | sed 's/.*link.ether \\([^ ]*\\).*/\\1/'")
}

// onOverlay starts a container on another overlay, whose gateway is the host.
func (l *lab) onOverlay() *sender {
	l.t.Helper()
	join(l.t, []*overlaid{l.a}, greenNet, greenVNI, 30)
	must(l.t, l.a.Ensure(l.t.Context(), nft.SubnetIn(bridge.NAT4, netip.MustParsePrefix("10.30.0.0/16")),
		nft.SubnetIn(bridge.NAT6, netip.MustParsePrefix("fd30::/64"))))
	c := l.a.container(greenNet, 30, 3)
	c.Sh(l.t, "ip -6 route add default via fd30::1")
	v4, v6 := containerAddrs(30, 1, 3)
	return &sender{name: "a container of another overlay", Host: c, addr: l.pick(v4.String()+"/16", v6.String()+"/64")}
}

// forged returns what would be a frame of blue from the other host's container, except for its source address.
func (l *lab) forged(vni uint32, to *overlaid) []byte {
	var victim, me kerneltest.Station
	victim.V4, victim.V6 = containerAddrs(20, to.n, 2)
	victim.MAC, _ = net.ParseMAC(containerMAC(to.n, 2))
	me.V4, me.V6 = containerAddrs(20, 3-to.n, 2)
	me.MAC, _ = net.ParseMAC(forger)
	return vxlanFrame(vni, kerneltest.Honest(me, victim)[0].Raw)
}

// A shape is a way to put a datagram into packets.
type shape struct {
	name string
	make func(from, to netip.AddrPort, payload []byte) [][]byte
	v4   bool
}

func shapes() []shape {
	whole := func(from, to netip.AddrPort, payload []byte) []byte { return udpSegment(from, to, payload, true) }
	return []shape{
		{name: "as it is", make: func(from, to netip.AddrPort, p []byte) [][]byte {
			return [][]byte{ipPacket(from.Addr(), to.Addr(), nil, 0, false, whole(from, to, p))}
		}},
		{name: "without a checksum", v4: true, make: func(from, to netip.AddrPort, p []byte) [][]byte {
			return [][]byte{ipPacket(from.Addr(), to.Addr(), nil, 0, false, udpSegment(from, to, p, false))}
		}},
		{name: "with options", make: func(from, to netip.AddrPort, p []byte) [][]byte {
			options := []byte{1, 1, 1, 1, 1, 1, 1, 0}
			return [][]byte{ipPacket(from.Addr(), to.Addr(), options, 0, false, whole(from, to, p))}
		}},
		{name: "in fragments", make: func(from, to netip.AddrPort, p []byte) [][]byte {
			return fragments(from, to, whole(from, to, p), 24)
		}},
		{name: "in fragments after the UDP header", make: func(from, to netip.AddrPort, p []byte) [][]byte {
			return fragments(from, to, whole(from, to, p), 8)
		}},
		{name: "in fragments, the last one first", make: func(from, to netip.AddrPort, p []byte) [][]byte {
			all := fragments(from, to, whole(from, to, p), 16)
			slices.Reverse(all)
			return all
		}},
	}
}

func udpSegment(from, to netip.AddrPort, payload []byte, sum bool) []byte {
	b := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, from.Port()), to.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
	b = append(append(b, 0, 0), payload...)
	if sum || to.Addr().Is6() {
		pseudo := append(from.Addr().AsSlice(), to.Addr().AsSlice()...)
		pseudo = append(pseudo, 0, 0, byte(len(b)>>8), byte(len(b)), 0, 0, 0, unix.IPPROTO_UDP)
		binary.BigEndian.PutUint16(b[6:], internetSum(append(pseudo, b...)))
	}
	return b
}

// internetSum returns the Internet checksum (RFC 1071).
func internetSum(b []byte) uint16 {
	var sum uint32
	for i, c := range b {
		sum += uint32(c) << (8 * (1 - i%2))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// ipPacket returns a packet with eight bytes of options or none. offset, in bytes, and more say which fragment it is.
func ipPacket(from, to netip.Addr, options []byte, offset int, more bool, payload []byte) []byte {
	const packetID = 0x4242
	fragment := offset > 0 || more
	if from.Is4() {
		h := []byte{0x40 | byte(5+len(options)/4), 0}
		h = binary.BigEndian.AppendUint16(h, uint16(20+len(options)+len(payload)))
		bits := uint16(offset / 8)
		if more {
			bits |= 0x2000
		}
		h = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(h, packetID), bits)
		h = append(append(h, 64, unix.IPPROTO_UDP, 0, 0), from.AsSlice()...)
		h = append(append(h, to.AsSlice()...), options...)
		binary.BigEndian.PutUint16(h[10:], internetSum(h))
		return append(h, payload...)
	}
	next := byte(unix.IPPROTO_UDP)
	if fragment {
		bits := uint16(offset)
		if more {
			bits |= 1
		}
		header := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16([]byte{next, 0}, bits), packetID)
		payload = append(header, payload...)
		next = unix.IPPROTO_FRAGMENT
	}
	if len(options) > 0 {
		payload = append([]byte{next, 0, 1, 4, 0, 0, 0, 0}, payload...) // PadN
		next = unix.IPPROTO_DSTOPTS
	}
	h := binary.BigEndian.AppendUint16([]byte{0x60, 0, 0, 0}, uint16(len(payload)))
	return append(append(append(append(h, next, 64), from.AsSlice()...), to.AsSlice()...), payload...)
}

func fragments(from, to netip.AddrPort, segment []byte, first int) [][]byte {
	return [][]byte{
		ipPacket(from.Addr(), to.Addr(), nil, 0, true, segment[:first]),
		ipPacket(from.Addr(), to.Addr(), nil, first, false, segment[first:]),
	}
}

// raw sends packets unchanged. What the kernel or a rule of this namespace refuses is not sent.
func raw(h *kerneltest.Host, to netip.Addr, packets [][]byte) error {
	return h.Do(func() error {
		family, addr := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: to.As16()})
		if to.Is4() {
			family, addr = unix.AF_INET, &unix.SockaddrInet4{Addr: to.As4()}
		}
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for _, p := range packets {
			if err := unix.Sendto(fd, p, 0, addr); err != nil && !errors.Is(err, unix.EPERM) {
				return err
			}
		}
		return nil
	})
}

// datagram sends a datagram as any program may. What a rule refuses is not sent.
func datagram(h *kerneltest.Host, to netip.AddrPort, payload []byte) error {
	return h.Do(func() error {
		c, err := net.Dial("udp", to.String())
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err = c.Write(payload); errors.Is(err, unix.EPERM) {
			err = nil
		}
		return err
	})
}

// refused checks that after send a host has accepted none of the forger's frames, but honest datagrams of the same
// sender.
func (l *lab) refused(name string, s *sender, to *overlaid, send func() error) {
	l.t.Helper()
	before := counters(l.t, to)
	must(l.t, send())
	honest := netip.AddrPortFrom(to.vtep, plainPort)
	other := vxlanFrame(otherVNI, l.forged(otherVNI, to)[8:])
	must(l.t, datagram(s.Host, netip.AddrPortFrom(to.vtep, vxlanPort), other))
	eventually(l.t, name+": an honest datagram arrives", func() bool {
		must(l.t, datagram(s.Host, honest, []byte("honest")))
		return counters(l.t, to)["plain"] > before["plain"]
	})
	eventually(l.t, name+": a frame with an unknown VNI arrives", func() bool {
		if counters(l.t, to)["others"] > before["others"] {
			return true
		}
		must(l.t, datagram(s.Host, netip.AddrPortFrom(to.vtep, vxlanPort), l.forged(otherVNI, to)))
		return false
	})
	if l.tunneled {
		reach(l.t, l.blue[0], "10.20.2.2", true) // what was sent before on the same path has arrived
	}
	if n := forgedOf(counters(l.t, to)) - forgedOf(before); n != 0 {
		l.t.Errorf("%s: %d forged frames were accepted", name, n)
	}
}

// forgedOf counts the forger's frames that a host accepted, where they come in or where they come out of the VXLAN
// device.
func forgedOf(counts map[string]int) int { return counts["forged"] + counts["inside"] }

// accepted checks that after send the forger's frames are accepted. It is the control: a host without rules accepts
// such frames.
func (l *lab) accepted(name string, to *overlaid, send func() error) {
	l.t.Helper()
	before := counters(l.t, to)
	eventually(l.t, name+": a host without rules accepts a forged frame", func() bool {
		must(l.t, send())
		return forgedOf(counters(l.t, to)) > forgedOf(before)
	})
}

// tryAll makes a sender try all ways to get a forged frame to a host.
func (l *lab) tryAll(s *sender, to *overlaid, all bool) {
	l.t.Helper()
	at := netip.AddrPortFrom(l.at(to), vxlanPort)
	frame := l.forged(blueVNI, to)
	where := map[*overlaid]string{l.a: "the host itself", l.b: "another member"}[to]
	l.refused(fmt.Sprintf("%s, to %s", s.name, where), s, to, func() error { return datagram(s.Host, at, frame) })
	forge := []netip.Addr{l.at(l.a), l.at(l.b)}
	for _, sh := range shapes() {
		if sh.v4 && at.Addr().Is6() || !all && sh.name != "as it is" {
			continue
		}
		for _, from := range append([]netip.Addr{s.addr}, forge...) {
			if from == at.Addr() {
				continue
			}
			l.refused(fmt.Sprintf("%s, to %s, %s, from %s", s.name, where, sh.name, from), s, to, func() error {
				return raw(s.Host, at.Addr(), sh.make(netip.AddrPortFrom(from, 40000), at, frame))
			})
		}
	}
}

// bypass sends frames to reserved group addresses, which do not pass the bridge but end at the port itself.
func (l *lab) bypass(s *sender) {
	l.t.Helper()
	from, at := netip.AddrPortFrom(l.at(l.b), 40000), netip.AddrPortFrom(l.at(l.a), vxlanPort)
	packet := ipPacket(from.Addr(), at.Addr(), nil, 0, false, udpSegment(from, at, l.forged(blueVNI, l.a), true))
	kind := []byte{0x08, 0x00}
	if at.Addr().Is6() {
		kind = []byte{0x86, 0xdd}
	}
	mac := s.mac
	if mac == nil {
		mac, _ = net.ParseMAC(macOf(l.t, s.Host, "eth0"))
	}
	var frames []kerneltest.Frame
	for group := byte(0); group <= 0x0f; group++ {
		to := []byte{1, 0x80, 0xc2, 0, 0, group}
		frames = append(frames, kerneltest.Frame{Raw: slices.Concat(to, mac, kind, packet)})
	}
	l.refused(s.name+", past the bridge", s, l.a, func() error {
		return s.Do(func() error { return kerneltest.SendFrames("eth0", frames) })
	})
}

// translated sends to a port that a rule of the admin translates to the VXLAN port, of another member or of the host.
func (l *lab) translated(s *sender) {
	l.t.Helper()
	cmd, to := "iptables", l.at(l.b).String()
	if l.at(l.b).Is6() {
		cmd, to = "ip6tables", "["+to+"]"
	}
	for target, how := range map[*overlaid]string{
		l.b: fmt.Sprintf("DNAT --to-destination %s:%d", to, vxlanPort),
		l.a: fmt.Sprintf("REDIRECT --to-ports %d", vxlanPort),
	} {
		rule := fmt.Sprintf("-p udp -d %s --dport %d -j %s", l.a.vtep, dnatPort, how)
		l.a.Sh(l.t, fmt.Sprintf("%s -w 30 -t nat -I PREROUTING %s && %[1]s -w 30 -t nat -I OUTPUT %[2]s", cmd, rule))
		at := netip.AddrPortFrom(l.a.vtep, dnatPort)
		for _, who := range []*sender{s, {name: "the host", Host: l.a.Host, addr: l.a.vtep}} {
			name := fmt.Sprintf("%s, by a translated port to host %d", who.name, target.n)
			l.refused(name, who, target, func() error {
				return datagram(who.Host, at, l.forged(blueVNI, target))
			})
			l.refused(name+", from a member", who, target, func() error {
				from := netip.AddrPortFrom(l.b.vtep, 40000)
				return raw(who.Host, at.Addr(), shapes()[0].make(from, at, l.forged(blueVNI, target)))
			})
		}
		l.a.Sh(l.t, fmt.Sprintf("%s -w 30 -t nat -D PREROUTING %s && %[1]s -w 30 -t nat -D OUTPUT %[2]s", cmd, rule))
	}
}

// flows checks that the containers of blue reach each other.
func (l *lab) flows(when string) {
	l.t.Helper()
	for i, c := range l.blue {
		v4, v6 := containerAddrs(20, 2-i, 2)
		if !c.Pings(v4.String(), true) || !c.Pings(v6.String(), true) {
			l.t.Errorf("%s: the containers of the overlay do not reach each other", when)
		}
	}
}

// standsForTunnel joins the hosts by a veth pair that stands for the WireGuard link.
func standsForTunnel(l *lab) {
	l.t.Helper()
	l.a.Sh(l.t, "ip link add nyt-overlay type veth peer name tun0")
	l.a.Give(l.t, l.b.Host, "tun0")
	l.b.Sh(l.t, "ip link set tun0 name nyt-overlay")
	for _, o := range []*overlaid{l.a, l.b} {
		o.Sh(l.t, fmt.Sprintf("ip addr add fd99::%d/64 dev nyt-overlay nodad && ip link set nyt-overlay up", o.n))
		// Like WireGuard, the link needs no neighbour discovery.
		o.Sh(l.t, fmt.Sprintf("ip link set nyt-overlay address 02:00:00:00:99:%02x && "+
			"ip -6 neigh add fd99::%d lladdr 02:00:00:00:99:%02x dev nyt-overlay nud permanent", o.n, 3-o.n, 3-o.n))
		o.vtep = netip.MustParseAddr(fmt.Sprintf("fd99::%d", o.n))
		must(l.t, o.Ensure(l.t.Context(), objectsOf(overlay.EncryptElements(vxlanPort, blueVNI))...))
	}
}

// throughWireGuard joins the hosts by WireGuard.
func throughWireGuard(l *lab) {
	l.t.Helper()
	var devices []overlay.WireGuard
	for _, o := range []*overlaid{l.a, l.b} {
		key, err := overlay.NewSecret()
		must(l.t, err)
		addr := netip.MustParsePrefix(fmt.Sprintf("fd99::%d/64", o.n))
		devices = append(devices, overlay.WireGuard{Key: key, Port: 14789, MTU: 1440, Addr: addr})
	}
	for i, o := range []*overlaid{l.a, l.b} {
		other := devices[1-i]
		at := netip.AddrPortFrom([]*overlaid{l.b, l.a}[i].vtep, 14789)
		peer := overlay.WireGuardPeer{Key: other.Key.Public(), Addr: other.Addr.Addr(), At: at}
		must(l.t, o.Ensure(l.t.Context(), objectsOf(overlay.EncryptElements(vxlanPort, blueVNI))...))
		must(l.t, o.Ensure(l.t.Context(), devices[i], overlay.WireGuardPeers{All: []overlay.WireGuardPeer{peer}}))
	}
	for _, o := range []*overlaid{l.a, l.b} {
		o.vtep = netip.MustParseAddr(fmt.Sprintf("fd99::%d", o.n))
	}
}

// TestWireGuardForged is the part of TestVXLANForged that differs with a real tunnel: the guest that has one is slow.
func TestWireGuardForged(t *testing.T) {
	t.Parallel()
	kerneltest.NeedsWireGuard(t)
	l := newLab(t, true, throughWireGuard)
	l.flows("at first")
	docker := l.other("a container of Docker's bridge", "docker0")
	program := &sender{name: "a program of the host", Host: l.a.Host, addr: l.a.vtep}
	for _, s := range []*sender{docker, program} {
		at := netip.AddrPortFrom(l.at(l.b), vxlanPort)
		l.refused(s.name, s, l.b, func() error { return datagram(s.Host, at, l.forged(blueVNI, l.b)) })
	}
	l.flows("at last")
	l.control(docker)
}

// TestVXLANForged: nothing on a host but its own VXLAN devices gets a frame into an overlay, neither on another member
// nor on the host itself. That holds for what the host masquerades, of any manager's container or virtual machine, and
// for what a program of the host sends, with any source address and however the datagram is fragmented. Datagrams that
// are not for netyard's networks pass, and so do frames of the network.
func TestVXLANForged(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		v6     bool
		tunnel func(*lab)
	}{"over IPv4": {false, nil}, "over IPv6": {true, nil}, "encrypted": {true, standsForTunnel}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			newLab(t, c.v6, c.tunnel).test()
		})
	}
}

func (l *lab) test() {
	l.t.Helper()
	l.flows("at first")
	docker := l.other("a container of Docker's bridge", "docker0")
	plain := l.container("a container of a bridge network", true, false, false)
	all := []*sender{
		docker, plain,
		l.other("a virtual machine", "virbr0"), l.cni(), l.onOverlay(),
		l.container("a container of a routed network", false, false, false),
		l.container("a container with antispoof=false", true, false, true),
		l.container("a container of an internal network", false, true, false),
		l.lanMember(),
		{name: "a program of the host", Host: l.a.Host, addr: l.a.vtep},
	}
	for _, s := range all {
		for _, to := range []*overlaid{l.a, l.b} {
			if to == l.a || !s.localOnly {
				l.tryAll(s, to, s == docker)
			}
		}
	}
	l.bypass(docker)
	l.bypass(plain)
	l.translated(docker)
	l.flows("at last")
	l.control(docker)
}

// control checks that hosts without rules accept the forged frames.
func (l *lab) control(s *sender) {
	l.t.Helper()
	for _, o := range []*overlaid{l.a, l.b} {
		must(l.t, o.UnloadFirewall())
	}
	at := netip.AddrPortFrom(l.at(l.b), vxlanPort)
	l.accepted("to another member", l.b, func() error { return datagram(s.Host, at, l.forged(blueVNI, l.b)) })
	here, from := netip.AddrPortFrom(l.at(l.a), vxlanPort), netip.AddrPortFrom(l.at(l.b), 40000)
	l.accepted("to the host itself", l.a, func() error {
		return raw(s.Host, here.Addr(), shapes()[0].make(from, here, l.forged(blueVNI, l.a)))
	})
}

// TestForgedOnTheLAN: on a bridge to the host's LAN, where nothing is routed, a container that may use any address
// cannot send frames with the source address of another member or the host, whole or in fragments. What is not for
// netyard's networks passes.
func TestForgedOnTheLAN(t *testing.T) {
	t.Parallel()
	for _, v6 := range []bool{false, true} {
		for _, kind := range []string{"antispoof=false", "addresses of the LAN's"} {
			t.Run(fmt.Sprintf("%s, IPv6 %t", kind, v6), func(t *testing.T) {
				t.Parallel()
				l := newLab(t, v6, nil)
				l.onLAN(kind)
			})
		}
	}
}

// overBridge connects a host to the LAN through a bridge.
func overBridge(o *overlaid, prefix string) {
	o.t.Helper()
	o.Sh(o.t, fmt.Sprintf("ip link add br-lan type bridge && ip addr flush dev eth0 scope global && "+
		"ip link set eth0 master br-lan && ip link set br-lan up && ip addr add %s dev br-lan nodad", prefix))
}

func (l *lab) onLAN(kind string) {
	t := l.t
	t.Helper()
	prefix := fmt.Sprintf("%s/%d", l.a.vtep, map[bool]int{false: 24, true: 120}[l.v6])
	overBridge(l.a, prefix)
	l.flows("over a bridge")
	mac := net.HardwareAddr{2, 0x42, 0xee, 0, 0, 0x66}
	me := netip.MustParseAddr(map[bool]string{false: "192.0.2.66", true: "2001:db8::66"}[l.v6])
	v := bridge.Veth{
		Name: core.Name(core.VethPrefix, evilNet), Peer: core.Name(core.PeerPrefix, evilNet),
		Alias: core.Alias(evilNet, evilNet), Master: "br-lan", MTU: 1500, MAC: mac,
	}
	guard := bridge.PortGuard{Port: v.Name, MAC: mac, Open: kind == "antispoof=false", LAN: true}
	must(t, l.a.Ensure(t.Context(), append([]core.Object{v}, guard.Objects()...)...))
	c := kerneltest.New(t)
	bits := map[bool]int{false: 24, true: 120}[l.v6]
	c.Take(t, l.a.Host, v.Peer, fmt.Sprintf("ip addr add %s/%d dev eth0 nodad", me, bits))
	s := &sender{name: "a container on the LAN, " + kind, Host: c, addr: me}
	to := netip.AddrPortFrom(l.b.vtep, vxlanPort)
	// From then on the container knows the hardware address of its neighbour.
	must(t, datagram(c, netip.AddrPortFrom(l.b.vtep, plainPort), []byte("who is it")))
	reach(t, c, l.b.vtep.String(), true)
	frame := l.forged(blueVNI, l.b)
	for _, sh := range shapes() {
		if sh.v4 && l.v6 {
			continue
		}
		l.refused(s.name+", "+sh.name, s, l.b, func() error {
			return raw(c, to.Addr(), sh.make(netip.AddrPortFrom(l.a.vtep, 40000), to, frame))
		})
	}
	l.noOffload()
	l.several(s, l.b, l.a.vtep)
	l.several(s, l.a, l.b.vtep)
	l.flows("at last")
	must(t, l.a.UnloadFirewall())
	l.accepted(s.name, l.b, func() error {
		return raw(c, to.Addr(), shapes()[0].make(netip.AddrPortFrom(l.a.vtep, 40000), to, frame))
	})
}

// TestTellsDevices: kernels that are too old are refused by their release, others are not, and neither is this one.
func TestTellsDevices(t *testing.T) {
	t.Parallel()
	for release, old := range map[string]bool{
		"4.18.0-553.el8": true, "5.4.0-200-generic": true, "5.6.19": true,
		"5.7.0": false, "5.10.0-30-amd64": false, "6.1.0": false, "unknown": false,
	} {
		err := kernel.CheckRelease(release)
		if (err != nil) != old || old && !strings.Contains(err.Error(), release) {
			t.Errorf("release %s: %v", release, err)
		}
	}
	if err := overlay.CheckKernel(); err != nil {
		t.Error(err)
	}
}
