package sandbox

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"netyard/kernel/core"
	"netyard/kernel/rule"
)

// A Listener is a socket of the host that waits for packets to a port.
type Listener struct {
	Proto string
	// Addr is what it is bound to; Both says that it is bound to all addresses of both families.
	Addr netip.Addr
	Both bool
	Port uint16
	// Bound says that it hears one interface only (SO_BINDTODEVICE).
	Bound bool
	// Fleeting says that the port is one of those given to who does not ask for one, and that it is not known whether
	// the socket waits for anybody: a client of UDP has such a socket too, for as long as it waits for an answer.
	Fleeting bool
	inode    uint32
}

// Listeners lists the sockets of the host that wait for TCP connections and UDP datagrams (sock_diag(7)). Who names
// protocols is told of no other: each is two dumps of tables whose size is the host's.
func Listeners(k *core.Handle, protos ...string) ([]Listener, error) {
	where := &netlink.Config{} // a socket in another namespace takes a thread, which ends with it
	if k.Threads.IsOpen() {
		where.NetNS = int(k.Threads)
	}
	var all []Listener
	err := core.Again(func() error {
		c, err := netlink.Dial(unix.NETLINK_INET_DIAG, where)
		if err != nil {
			return fmt.Errorf("open sock_diag: %w", err)
		}
		defer c.Close() //nolint:errcheck // nothing was written
		all, err = allListeners(c, protos...)
		return err
	})
	return all, err
}

// allListeners lists the sockets of the namespace that c is of.
func allListeners(c *netlink.Conn, protos ...string) (all []Listener, err error) {
	if err := c.SetDeadline(time.Now().Add(core.NetlinkTimeout)); err != nil {
		return nil, fmt.Errorf("bound sock_diag's waits: %w", err)
	}
	for _, proto := range []string{"tcp", "udp"} {
		if len(protos) > 0 && !slices.Contains(protos, proto) {
			continue
		}
		for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
			some, err := listeners(c, proto, family)
			if err != nil {
				return nil, fmt.Errorf("list %s sockets: %w", proto, err)
			}
			all = append(all, some...)
		}
	}
	return all, nil
}

func listeners(c *netlink.Conn, proto string, family byte) (all []Listener, err error) {
	const (
		closed, listen = 7, 10 // states (tcp_states.h); an unconnected UDP socket is closed
		size           = 56    // struct inet_diag_req_v2 (linux/inet_diag.h)
	)
	state := map[string]uint{"tcp": listen, "udp": closed}[proto]
	q := make([]byte, size)
	q[0], q[1] = family, rule.ProtoNumber(proto)
	binary.NativeEndian.PutUint32(q[4:], 1<<state)
	answers, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.SOCK_DIAG_BY_FAMILY, Flags: netlink.Request | netlink.Dump}, Data: q,
	})
	if err != nil {
		return nil, err
	}
	for _, a := range answers {
		if l, ok := parseListener(proto, a.Data); ok {
			all = append(all, l)
		}
	}
	return all, nil
}

// parseListener reads a struct inet_diag_msg and the attributes behind it.
func parseListener(proto string, data []byte) (l Listener, ok bool) {
	const size, v6OnlyAttr = 72, 11 // INET_DIAG_SKV6ONLY
	if len(data) < size {
		return l, false
	}
	l = Listener{
		Proto: proto, Port: binary.BigEndian.Uint16(data[4:]), inode: binary.NativeEndian.Uint32(data[68:]),
		Bound: binary.NativeEndian.Uint32(data[40:]) != 0,
	}
	if data[0] == unix.AF_INET {
		l.Addr = netip.AddrFrom4([4]byte(data[8:12]))
		return l, true
	}
	l.Addr = netip.AddrFrom16([16]byte(data[8:24])).Unmap()
	l.Both = l.Addr == netip.IPv6Unspecified()
	attrs, err := netlink.UnmarshalAttributes(data[size:])
	for _, a := range attrs {
		if a.Type == v6OnlyAttr && len(a.Data) > 0 && a.Data[0] != 0 {
			l.Both = false
		}
	}
	return l, err == nil
}

// Takes says whether the socket gets what comes for one of the ports at an address; the unspecified one is any of its
// family.
func (l Listener) Takes(proto string, a netip.Addr, first, count uint16) bool {
	if l.Proto != proto || l.Port < first || l.Port-first >= max(count, 1) {
		return false
	}
	return l.Both || l.Addr == a || l.Addr.Is4() == a.Is4() && (l.Addr.IsUnspecified() || a.IsUnspecified())
}

// Owner says in words whose the socket is. It looks through the files of every process, so only for somebody who has to
// be told.
func (l Listener) Owner() string {
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, proc := range procs {
		if !holds(proc, l.inode) {
			continue
		}
		raw, err := os.ReadFile(filepath.Join(proc, "cmdline"))
		if err != nil {
			continue
		}
		args := strings.Split(strings.TrimRight(string(raw), "\x00"), "\x00")
		text := fmt.Sprintf("process %s (pid %s)", filepath.Base(args[0]), filepath.Base(proc))
		if to := proxied(args); to != "" {
			text += ", which publishes " + to + " for Docker"
		}
		return text
	}
	return "a process of another namespace"
}

// HeldBy says whether a process has the socket open.
func (l Listener) HeldBy(pid int) bool {
	return pid > 0 && holds(filepath.Join("/proc", strconv.Itoa(pid)), l.inode)
}

func holds(proc string, inode uint32) bool {
	want := fmt.Sprintf("socket:[%d]", inode)
	fds, _ := filepath.Glob(filepath.Join(proc, "fd", "*"))
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && to == want {
			return true
		}
	}
	return false
}

// proxied is the container behind a docker-proxy.
func proxied(args []string) string {
	if len(args) == 0 || filepath.Base(args[0]) != "docker-proxy" {
		return ""
	}
	said := map[string]string{}
	for i := 1; i+1 < len(args); i += 2 {
		said[strings.TrimLeft(args[i], "-")] = args[i+1]
	}
	return said["container-ip"] + ":" + said["container-port"]
}

// EphemeralPorts are the first and the last port that the host gives to who does not ask for one (ip_local_port_range,
// ip(7)).
func EphemeralPorts(k *core.Handle) (first, last uint16, err error) {
	text, err := k.ReadSysctl(ephemeralFile)
	if err != nil {
		return 0, 0, fmt.Errorf("read the range of ephemeral ports: %w", err)
	}
	return parseEphemeral(text)
}

const ephemeralFile = "/proc/sys/net/ipv4/ip_local_port_range"

func parseEphemeral(text string) (first, last uint16, err error) {
	if _, err := fmt.Sscan(text, &first, &last); err != nil || first == 0 || last < first {
		return 0, 0, fmt.Errorf("read the range of ephemeral ports: %q", text)
	}
	return first, last, nil
}

// HasAddr says whether an address is one of the host's own.
func HasAddr(k *core.Handle, a netip.Addr) (bool, error) {
	addrs, _, err := k.HostAddrs()
	return a.IsLoopback() || addrs[a], err
}
