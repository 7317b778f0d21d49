package kerneltest

import (
	"bytes"
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// roomy is the size of a buffer that holds all that a test sends, in bytes.
const roomy = 64 << 20

// Roomy gives a socket room for all that a test sends before it reads.
func Roomy(c *net.UDPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, roomy) })
	if err == nil {
		err = failed
	}
	return err
}

// A Wire keeps the frames that come in by a link until they are asked for.
type Wire struct{ fd int }

// NewWire begins to look, until the test ends.
func NewWire(t testing.TB, h *Host, link string) *Wire {
	t.Helper()
	w := &Wire{}
	err := h.Do(func() (err error) {
		if w.fd, err = packetSocket(link); err != nil {
			return err
		}
		return unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, roomy)
	})
	if err != nil {
		t.Fatalf("look at %s: %v", link, err)
	}
	t.Cleanup(func() { _ = unix.Close(w.fd) })
	return w
}

// Drain returns the frames that came in since the last time. It fails the test when there were more than it had room for.
func (w *Wire) Drain(t testing.TB) (frames [][]byte) {
	t.Helper()
	buf := make([]byte, 1<<16)
	for {
		n, from, err := unix.Recvfrom(w.fd, buf, unix.MSG_DONTWAIT)
		if err != nil {
			break
		}
		if l, ok := from.(*unix.SockaddrLinklayer); !ok || l.Pkttype != unix.PACKET_OUTGOING {
			frames = append(frames, bytes.Clone(buf[:n]))
		}
	}
	if stats, err := unix.GetsockoptTpacketStats(w.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err != nil || stats.Drops > 0 {
		t.Fatalf("%d frames were not seen: %v", stats.Drops, err)
	}
	return frames
}
