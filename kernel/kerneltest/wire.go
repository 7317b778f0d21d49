package kerneltest

import (
	"bytes"
	"errors"
	"net"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// roomy is the size of a receive buffer, in bytes, that holds everything that a test sends before it reads.
const roomy = 64 << 20

// Roomy sets a receive buffer that holds everything that a test sends before it reads.
func Roomy(c *net.UDPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, roomy)
	})
	return errors.Join(err, failed)
}

// Pending returns the datagrams that a socket has received and nobody has read yet.
func Pending(c *net.UDPConn) (datagrams [][]byte, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	buf := make([]byte, 1<<16)
	err = raw.Control(func(fd uintptr) {
		for {
			n, _, err := unix.Recvfrom(int(fd), buf, unix.MSG_DONTWAIT)
			if err != nil {
				return
			}
			datagrams = append(datagrams, bytes.Clone(buf[:n]))
		}
	})
	return datagrams, err
}

// A Wire is a packet socket on a link. It stores incoming frames until they are read, and sends frames.
type Wire struct{ fd int }

// NewWire opens a Wire, until the test ends.
func NewWire(t testing.TB, h *Host, link string) *Wire {
	t.Helper()
	w := &Wire{}
	err := h.Do(func() (err error) {
		if w.fd, err = packetSocket(link); err != nil {
			return err
		}
		return errors.Join(unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, roomy),
			unix.SetsockoptInt(w.fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1))
	})
	if err != nil {
		t.Fatalf("open a packet socket on %s: %v", link, err)
	}
	t.Cleanup(func() { _ = unix.Close(w.fd) })
	return w
}

// Drain returns the frames that came in since the last call. The test fails if the kernel dropped frames because the
// buffer was full.
func (w *Wire) Drain(t testing.TB) (frames [][]byte) {
	t.Helper()
	buf := make([]byte, 1<<16)
	for {
		n, _, err := unix.Recvfrom(w.fd, buf, unix.MSG_DONTWAIT)
		if err != nil {
			break
		}
		frames = append(frames, bytes.Clone(buf[:n]))
	}
	stats, err := unix.GetsockoptTpacketStats(w.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil || stats.Drops > 0 {
		t.Fatalf("%d frames were dropped, %v", stats.Drops, err)
	}
	return frames
}

// Send sends frames, all from one processor: when a frame arrives, the kernel has processed those sent before it.
func (w *Wire) Send(t testing.TB, frames ...[]byte) {
	t.Helper()
	if err := onOneProcessor(func() error {
		for _, f := range frames {
			if _, err := unix.Write(w.fd, f); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatalf("send a frame: %v", err)
	}
}

func onOneProcessor(f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return err
	}
	for cpu := 0; one.Count() == 0; cpu++ {
		if before.IsSet(cpu) {
			one.Set(cpu)
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return err
	}
	return errors.Join(f(), unix.SchedSetaffinity(0, &before))
}
