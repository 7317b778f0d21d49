package kerneltest

import (
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A Sniffer passes all incoming and outgoing frames of a link to a function.
type Sniffer struct {
	t   testing.TB
	fd  int
	see func(frame []byte)
	mu  sync.Mutex
}

// Sniff calls see with all frames of a link of the namespace, until the test ends. The test fails if the kernel dropped
// frames because the buffer was full.
func (h *Host) Sniff(t testing.TB, link string, see func(frame []byte)) *Sniffer {
	t.Helper()
	s := &Sniffer{t: t, see: see}
	const room = 64 << 20 // bytes: a busy machine may read it only now and then
	err := h.Do(func() (err error) {
		if s.fd, err = packetSocket(link); err != nil {
			return err
		}
		return unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, room)
	})
	if err != nil {
		t.Fatalf("sniff at %s: %v", link, err)
	}
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-end:
				return
			case <-time.After(10 * time.Millisecond):
				s.Look()
			}
		}
	}()
	t.Cleanup(func() {
		close(end)
		<-ended
		s.Look()
		stats, err := unix.GetsockoptTpacketStats(s.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
		if err != nil || stats.Drops > 0 {
			t.Errorf("sniff at %s: %d frames were dropped, %v", link, stats.Drops, err)
		}
		_ = unix.Close(s.fd)
	})
	return s
}

// Look calls see with the frames that have arrived so far.
func (s *Sniffer) Look() {
	s.mu.Lock()
	defer s.mu.Unlock()
	buf := make([]byte, 1<<16)
	for {
		n, _, err := unix.Recvfrom(s.fd, buf, unix.MSG_DONTWAIT)
		if err != nil {
			return
		}
		s.see(buf[:n])
	}
}
