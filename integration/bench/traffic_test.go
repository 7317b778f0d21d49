package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"netyard/integration/lab"
	"netyard/integration/turns"
)

// A road leads from one network namespace to a server in another.
type road struct {
	name     string
	from, to *lab.Net
	dial     string // the address and port that the client connects to
	serve    int    // the port that the server listens on
}

// A kind is a kind of traffic.
type kind struct {
	name, unit, network string
	// client and server use the socket until stop is set, and return what they counted.
	client, server func(fd int, stop *atomic.Bool) int
	// value returns the value: of the client's or the server's count, for a second.
	value func(client, server float64) float64
}

const (
	datagram = 64        // bytes
	block    = 128 << 10 // bytes that are written at a time
)

func stream() kind {
	return kind{
		name: "TCP stream", unit: "Gbit/s", network: "tcp4", client: writes(block), server: reads(2 * block),
		value: func(_, server float64) float64 { return server * 8 / 1e9 },
	}
}

func datagrams() kind {
	return kind{
		name: "UDP", unit: "kpps", network: "udp4", client: writes(datagram), server: reads(datagram),
		value: func(_, server float64) float64 { return server / datagram / 1e3 },
	}
}

// requests are bytes that the server sends back, one at a time.
func requests() kind {
	return kind{
		name: "TCP requests", unit: "/s", network: "tcp4",
		client: func(fd int, stop *atomic.Bool) (n int) {
			for b := make([]byte, 1); !stop.Load(); n++ {
				if again(unix.Write, fd, b) < 1 || again(unix.Read, fd, b) < 1 {
					break
				}
			}
			return n
		},
		server: func(fd int, stop *atomic.Bool) (n int) {
			for b := make([]byte, 1); ; {
				if again(unix.Read, fd, b) == 1 {
					again(unix.Write, fd, b)
				} else if stop.Load() {
					return n
				}
			}
		},
		value: func(client, _ float64) float64 { return client },
	}
}

func writes(size int) func(int, *atomic.Bool) int {
	return func(fd int, stop *atomic.Bool) (n int) {
		for b := make([]byte, size); !stop.Load(); {
			n += max(0, again(unix.Write, fd, b))
		}
		return n
	}
}

// reads reads until nothing comes any more, so that the next round finds nothing of this one.
func reads(size int) func(int, *atomic.Bool) int {
	return func(fd int, stop *atomic.Bool) (total int) {
		for b := make([]byte, size); ; {
			n := again(unix.Read, fd, b)
			total += max(0, n)
			if n <= 0 && stop.Load() {
				return total
			}
		}
	}
}

// again calls again what a signal interrupted. It returns -1 after the socket's time limit.
func again(call func(int, []byte) (int, error), fd int, b []byte) int {
	for {
		n, err := call(fd, b)
		if !errors.Is(err, unix.EINTR) {
			return n
		}
	}
}

// A link is a road with two sockets for one kind of traffic.
type link struct {
	kind           kind
	client, server int
}

// open connects sockets, which are closed with the benchmark.
func (r road) open(b *testing.B, k kind) link {
	b.Helper()
	l := link{kind: k}
	if err := r.connect(&l); err != nil {
		b.Fatalf("%s, %s: %v", r.name, k.name, err)
	}
	for _, fd := range []int{l.client, l.server} {
		b.Cleanup(func() { _ = unix.Close(fd) })
		limit := unix.Timeval{Usec: 50_000}
		for _, o := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
			if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, o, &limit); err != nil {
				b.Fatal(err)
			}
		}
	}
	return l
}

func (r road) connect(l *link) error {
	var server func() (syscall.Conn, error)
	listen := func() error {
		c := net.ListenConfig{}
		c.SetMultipathTCP(false)
		addr := fmt.Sprint(":", r.serve)
		if l.kind.network == "udp4" {
			s, err := c.ListenPacket(context.Background(), l.kind.network, addr)
			server = func() (syscall.Conn, error) { return asFile(s) }
			return err
		}
		s, err := c.Listen(context.Background(), l.kind.network, addr)
		server = func() (syscall.Conn, error) {
			defer s.Close()
			c, err := s.Accept()
			if err != nil {
				return nil, err
			}
			return asFile(c)
		}
		return err
	}
	if err := r.to.Do(listen); err != nil {
		return err
	}
	err := r.from.Do(func() error {
		d := net.Dialer{Timeout: 5 * time.Second}
		d.SetMultipathTCP(false)
		c, err := d.Dial(l.kind.network, r.dial)
		if err != nil {
			return err
		}
		file, err := asFile(c)
		if err != nil {
			return err
		}
		l.client, err = plain(file)
		return err
	})
	if err != nil {
		return err
	}
	c, err := server()
	if err != nil {
		return err
	}
	l.server, err = plain(c)
	return err
}

func asFile(c any) (syscall.Conn, error) {
	if f, ok := c.(syscall.Conn); ok {
		return f, nil
	}
	return nil, fmt.Errorf("%T has no file descriptor", c)
}

// plain turns a connection into a file descriptor that blocks: Go's way of waiting would cost as much as the packet's
// way.
func plain(c syscall.Conn) (fd int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	if e := raw.Control(func(its uintptr) { fd, err = unix.FcntlInt(its, unix.F_DUPFD_CLOEXEC, 0) }); e != nil {
		return 0, e
	}
	if err != nil {
		return 0, err
	}
	if c, ok := c.(interface{ Close() error }); ok {
		_ = c.Close()
	}
	return fd, unix.SetNonblock(fd, false)
}

// measure lets traffic run for a while, client and server on one core, and returns the value for a second of that core,
// so what others do on it does not count. The kernel's work for packets counts as that of the thread it interrupts,
// unless the kernel accounts for it apart (IRQ_TIME_ACCOUNTING).
func (l link) measure(during time.Duration) float64 {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(runtime.NumCPU() + 4)) // a thread that blocks takes one for a while
	type result struct{ count, seconds float64 }
	var stop atomic.Bool
	run := func(work func(int, *atomic.Bool) int, fd int) chan result {
		done := make(chan result, 1)
		go func() {
			runtime.LockOSThread() // the thread ends with the goroutine, and with it the choice of the core
			var core unix.CPUSet
			core.Set(runtime.NumCPU() - 1)
			_ = unix.SchedSetaffinity(0, &core)
			var before, after unix.Rusage
			_ = unix.Getrusage(unix.RUSAGE_THREAD, &before)
			n := work(fd, &stop)
			_ = unix.Getrusage(unix.RUSAGE_THREAD, &after)
			done <- result{float64(n), busy(after) - busy(before)}
		}()
		return done
	}
	receiver := run(l.kind.server, l.server)
	sender := run(l.kind.client, l.client)
	defer time.AfterFunc(during, func() { stop.Store(true) }).Stop()
	client, server := <-sender, <-receiver
	took := client.seconds + server.seconds
	return l.kind.value(client.count/took, server.count/took)
}

func busy(u unix.Rusage) float64 {
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

// drive measures roads in turn with a kind of traffic.
func drive(b *testing.B, k kind, roads ...road) turns.Rounds {
	b.Helper()
	during := time.Duration(turns.Scaled(600, 100)) * time.Millisecond
	var sides []turns.Side
	for _, r := range roads {
		l := r.open(b, k)
		sides = append(sides, turns.Side{Name: r.name, Measure: func() float64 { return l.measure(during) }})
	}
	return turns.Take(b, 11, sides...)
}
