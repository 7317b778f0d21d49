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

// A Listener is a socket that receives packets to a port.
type Listener struct {
	Proto string
	// Addr is the address it is bound to. Both: it is bound to all addresses of both families.
	Addr netip.Addr
	Both bool
	Port uint16
	// Bound: it receives from one interface only (SO_BINDTODEVICE).
	Bound bool
	// Ephemeral: it is a UDP socket on an ephemeral port. It may not be a server's: a client has such a socket, too,
	// while it waits for an answer.
	Ephemeral bool
	inode     uint32
}

// Listeners lists the sockets of the host that listen for TCP connections, and its unconnected UDP sockets
// (sock_diag(7)). With protos it lists only those protocols: each takes two dumps of tables that may be large.
func Listeners(k *core.Handle, protos ...string) ([]Listener, error) {
	// A socket in another namespace needs a thread of its own, until it is closed.
	where := &netlink.Config{}
	if k.Threads.IsOpen() {
		where.NetNS = int(k.Threads)
	}
	var all []Listener
	err := core.RetryIdempotent(func() error {
		c, err := netlink.Dial(unix.NETLINK_INET_DIAG, where)
		if err != nil {
			return fmt.Errorf("open sock_diag: %w", err)
		}
		defer c.Close() //nolint:errcheck // nothing is written
		all, err = allListeners(c, protos...)
		return err
	})
	return all, err
}

// allListeners lists the sockets of the namespace that c was opened in.
func allListeners(c *netlink.Conn, protos ...string) (all []Listener, err error) {
	if err := c.SetDeadline(time.Now().Add(core.NetlinkTimeout)); err != nil {
		return nil, fmt.Errorf("set sock_diag timeout: %w", err)
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

// parseListener decodes a struct inet_diag_msg and the attributes that follow it.
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

// Receives reports whether the socket receives packets to an address and one of count ports from first. An unspecified
// a stands for any address of its family.
func (l Listener) Receives(proto string, a netip.Addr, first, count uint16) bool {
	if l.Proto != proto || l.Port < first || l.Port-first >= max(count, 1) {
		return false
	}
	return l.Both || l.Addr == a || l.Addr.Is4() == a.Is4() && (l.Addr.IsUnspecified() || a.IsUnspecified())
}

// Owner says which process has the socket, for messages. It reads the open files of every process, which is slow.
func (l Listener) Owner() string {
	if l.inode == 0 {
		return "a link of this kernel, such as a VXLAN or a WireGuard link"
	}
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, proc := range procs {
		if !hasOpen(proc, l.inode) {
			continue
		}
		raw, err := os.ReadFile(filepath.Join(proc, "cmdline"))
		if err != nil {
			continue
		}
		args := strings.Split(strings.TrimRight(string(raw), "\x00"), "\x00")
		text := fmt.Sprintf("process %s (pid %s)", filepath.Base(args[0]), filepath.Base(proc))
		if to := proxyTarget(args); to != "" {
			text += ", which publishes " + to + " for Docker"
		}
		return text
	}
	return "a process of another namespace"
}

// OpenIn reports whether a process has the socket open.
func (l Listener) OpenIn(pid int) bool {
	return pid > 0 && hasOpen(filepath.Join("/proc", strconv.Itoa(pid)), l.inode)
}

func hasOpen(proc string, inode uint32) bool {
	want := fmt.Sprintf("socket:[%d]", inode)
	fds, _ := filepath.Glob(filepath.Join(proc, "fd", "*"))
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && to == want {
			return true
		}
	}
	return false
}

// proxyTarget returns the container's address and port from the arguments of a docker-proxy; empty for other programs.
func proxyTarget(args []string) string {
	if len(args) == 0 || filepath.Base(args[0]) != "docker-proxy" {
		return ""
	}
	flags := map[string]string{}
	for i := 1; i+1 < len(args); i += 2 {
		flags[strings.TrimLeft(args[i], "-")] = args[i+1]
	}
	return flags["container-ip"] + ":" + flags["container-port"]
}

// EphemeralPorts returns the first and the last port of the host's ephemeral range. The kernel takes the port of a
// socket that asks for none from it (ip_local_port_range, ip(7)).
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
		return 0, 0, fmt.Errorf("parse the range of ephemeral ports %q: want two port numbers", text)
	}
	return first, last, nil
}

// HasAddr reports whether an address is one of the host's own.
func HasAddr(k *core.Handle, a netip.Addr) (bool, error) {
	addrs, _, err := k.HostAddrs()
	return a.IsLoopback() || addrs[a], err
}
