package kernel_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"netyard/kernel/core"
	"netyard/kernel/kerneltest"
	"netyard/kernel/sandbox"
)

// sandboxOf opens a namespace as the watcher of sandboxes does.
func sandboxOf(t testing.TB, h *kerneltest.Host) *sandbox.Sandbox {
	t.Helper()
	var s *sandbox.Sandbox
	err := h.Do(func() error {
		path := fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), syscall.Gettid())
		got := make(chan error, 1)
		go func() { // from another namespace
			var err error
			s, err = sandbox.OpenSandbox(path, core.NamespaceID{})
			got <- err
		}()
		return <-got
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// TestSandbox: what is said of the sockets of another namespace.
func TestSandbox(t *testing.T) {
	t.Parallel()
	h := kerneltest.New(t)
	s := sandboxOf(t, h)
	var open []interface{ Close() error }
	err := h.Do(func() error {
		var c net.ListenConfig
		for _, at := range []string{
			"tcp4 0.0.0.0:80", "tcp6 [::1]:81", "tcp :82", "udp4 0.0.0.0:53",
			"udp6 [::]:54", "udp4 0.0.0.0:40000", "udp4 127.0.0.1:55",
		} {
			var proto, addr string
			if _, err := fmt.Sscan(at, &proto, &addr); err != nil {
				return err
			}
			if proto[:3] == "tcp" {
				l, err := c.Listen(context.Background(), proto, addr)
				if err != nil {
					return err
				}
				open = append(open, l)
				continue
			}
			l, err := c.ListenPacket(context.Background(), proto, addr)
			if err != nil {
				return err
			}
			open = append(open, l)
		}
		bound := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
			_ = raw.Control(func(fd uintptr) {
				err = syscall.SetsockoptString(int(fd), syscall.SOL_SOCKET, syscall.SO_BINDTODEVICE, "lo")
			})
			return err
		}}
		l, err := bound.ListenPacket(context.Background(), "udp4", "0.0.0.0:68")
		open = append(open, l)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	type said struct {
		addr                  netip.Addr
		both, bound, fleeting bool
	}
	got := map[string]said{}
	ls, err := s.Listeners()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range ls {
		got[fmt.Sprint(l.Proto, l.Port)] = said{l.Addr, l.Both, l.Bound, l.Ephemeral}
	}
	any4, any6 := netip.IPv4Unspecified(), netip.IPv6Unspecified()
	want := map[string]said{
		"tcp80": {addr: any4}, "tcp81": {addr: netip.IPv6Loopback()}, "tcp82": {addr: any6, both: true}, "udp53": {addr: any4}, "udp54": {addr: any6},
		"udp40000": {addr: any4, fleeting: true}, "udp55": {addr: netip.MustParseAddr("127.0.0.1")}, "udp68": {addr: any4, bound: true},
	}
	for port, w := range want {
		if got[port] != w {
			t.Errorf("%s: %+v, want %+v", port, got[port], w)
		}
	}
	if len(got) != len(want) {
		t.Errorf("it has %v", got)
	}
	for _, c := range open {
		_ = c.Close()
	}
	kerneltest.Released(t, s.Listeners, 80, 81, 82, 53, 54, 40000, 55, 68)
	if ls, err := s.Listeners(); err != nil || len(ls) > 0 {
		t.Errorf("after all were closed it has %v %v", ls, err)
	}
}

// BenchmarkSandboxes is the watcher's look at 50 idle sandboxes, each with two sockets such as an engine's name server
// has. cpu-us/op is the processor's time, in µs, that other work on the machine does not lengthen.
func BenchmarkSandboxes(b *testing.B) {
	const count = 50
	var all []*sandbox.Sandbox
	for range count {
		h := kerneltest.New(b)
		err := h.Do(func() error {
			l, err := net.Listen("tcp4", "127.0.0.11:0")
			if err != nil {
				return err
			}
			b.Cleanup(func() { _ = l.Close() })
			u, err := net.ListenPacket("udp4", "127.0.0.11:0")
			if err != nil {
				return err
			}
			b.Cleanup(func() { _ = u.Close() })
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
		all = append(all, sandboxOf(b, h))
	}
	before := processorTime(b)
	b.ResetTimer()
	for range b.N {
		for _, s := range all {
			if _, err := s.Listeners(); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.StopTimer()
	b.ReportMetric(float64((processorTime(b)-before).Microseconds())/float64(b.N), "cpu-us/op")
}

func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
