// Package exchange sends nftables transactions to the kernel, and finds out what became of each.
package exchange

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// The kernel runs an nftables transaction inside the system call that sends it, and has queued the answer to every
// message when that call returns (nfnetlink_rcv_batch, net/netfilter/nfnetlink.c). The call waits for transactions of
// other programs, however long those take. So an exchange has no deadline: it sends, reads the answers that are there,
// and matches each with its request by sequence number. Callers wait with a deadline of their own (nft.Firewall.Run).

// ErrUnknown means that an answer was lost: the kernel may have made the transaction or not.
var ErrUnknown = errors.New("the kernel's answer was lost")

// ErrNothing means that a socket has nothing to read.
var ErrNothing = errors.New("nothing to read")

// Buffer is the size of a socket's buffers, in bytes: enough for a batch that loads the ruleset with tens of
// thousands of elements.
const Buffer = 8 << 20

// A Socket is the socket to the kernel, or what stands in for it in tests.
type Socket interface {
	// Send returns when the kernel has processed a transaction. After an error the kernel has not seen it.
	Send(raw []byte) error
	// Receive reads one answer without waiting. It returns ErrNothing if there is none.
	Receive() ([]byte, error)
	// Port returns the socket's netlink port ID (netlink(7), nl_pid).
	Port() uint32
	Close() error
}

// A Writer sends transactions to the kernel, one after the other.
type Writer struct {
	// Dial opens a socket, P is the open one; nil: to be opened.
	Dial func() (Socket, error)
	P    Socket
	// Orphaned: the tables belong to a socket that is closed. Whoever takes ownership again resets it.
	Orphaned bool
	Log      *slog.Logger

	seq uint32
	// own is the port ID of the current socket, by which the watcher knows netyard's own changes.
	own atomic.Uint32
	// since is when the current exchange began, in nanoseconds; 0: there is none.
	since atomic.Int64
}

// To returns a writer to the kernel of a namespace. It opens its socket when it first needs it.
func To(ns int, log *slog.Logger) *Writer {
	return &Writer{Log: log, Dial: func() (Socket, error) { return dial(ns) }}
}

// Port returns the netlink port ID of the current socket (netlink(7), nl_pid).
func (t *Writer) Port() uint32 { return t.own.Load() }

// Open opens the socket unless it is open.
func (t *Writer) Open() error {
	if t.P != nil {
		return nil
	}
	p, err := t.Dial()
	if err != nil {
		return err
	}
	t.P = p
	t.own.Store(p.Port())
	return nil
}

// Drop closes a socket that cannot be trusted any more, with the answers left in it.
func (t *Writer) Drop() error {
	if t.P == nil {
		return nil
	}
	err := t.P.Close()
	t.P, t.Orphaned = nil, true
	return err
}

// Slow is how long an exchange takes before it is logged.
const Slow = time.Second

// Send sends one transaction. It returns nil if the kernel made it, ErrUnknown if that is not known (it has
// closed the socket then), and any other error if the kernel did not make it.
func (t *Writer) Send(act string, msgs []netlink.Message) error {
	if err := t.Open(); err != nil {
		return err
	}
	msgs = framed(msgs)
	raw, wants := t.number(msgs)
	start := time.Now()
	t.since.Store(start.UnixNano())
	warning := time.AfterFunc(Slow, func() {
		t.Log.Warn("nftables transaction slow; another program probably holds the lock", "act", act)
	})
	defer func() {
		t.since.Store(0)
		if !warning.Stop() {
			took := time.Since(start).Round(time.Millisecond)
			t.Log.Info("slow nftables transaction ended", "act", act, "took", took)
		}
	}()
	if err := t.P.Send(raw); err != nil {
		return fmt.Errorf("send transaction: %w", err)
	}
	err := t.readAnswers(wants)
	if errors.Is(err, ErrUnknown) {
		err = errors.Join(err, t.Drop())
	}
	return err
}

// framed puts the messages that begin and end a batch around a transaction's (struct nfgenmsg, with the subsystem as
// res_id).
func framed(msgs []netlink.Message) []netlink.Message {
	mark := func(kind uint16) netlink.Message {
		return netlink.Message{
			Header: netlink.Header{Type: netlink.HeaderType(kind), Flags: netlink.Request},
			Data:   []byte{0, 0, 0, unix.NFNL_SUBSYS_NFTABLES},
		}
	}
	all := append([]netlink.Message{mark(unix.NFNL_MSG_BATCH_BEGIN)}, msgs...)
	return append(all, mark(unix.NFNL_MSG_BATCH_END))
}

// number encodes the messages, each with a sequence number of its own, and returns which of them the kernel has to
// acknowledge.
func (t *Writer) number(msgs []netlink.Message) (raw []byte, wants map[uint32]bool) {
	wants = map[uint32]bool{}
	for _, m := range msgs {
		t.seq++
		if m.Header.Flags&netlink.Acknowledge != 0 {
			wants[t.seq] = true
		} else {
			wants[t.seq] = false // the kernel answers it only if it fails
		}
		at := len(raw)
		raw = append(raw, make([]byte, unix.NLMSG_HDRLEN)...)
		raw = append(raw, m.Data...)
		binary.NativeEndian.PutUint32(raw[at:], uint32(len(raw)-at)) //nolint:gosec // a message of a few KiB
		binary.NativeEndian.PutUint16(raw[at+4:], uint16(m.Header.Type))
		binary.NativeEndian.PutUint16(raw[at+6:], uint16(m.Header.Flags))
		binary.NativeEndian.PutUint32(raw[at+8:], t.seq)
		for len(raw)%unix.NLMSG_ALIGNTO != 0 {
			raw = append(raw, 0)
		}
	}
	return raw, wants
}

// readAnswers reads all answers that are there, and returns the outcome of the transaction. If the kernel refused one
// message, it did nothing of the transaction. The transaction is done if every message that wants an acknowledgement
// has it, and no answer was lost: the answer to the first message would tell that the commit failed.
func (t *Writer) readAnswers(wants map[uint32]bool) error {
	var refused error
	lost, open := false, 0
	for _, want := range wants {
		if want {
			open++
		}
	}
	for {
		raw, err := t.P.Receive()
		if errors.Is(err, ErrNothing) {
			break
		}
		if errors.Is(err, unix.ENOBUFS) { // more answers than the socket's buffer holds; the others can be read
			lost = true
			continue
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrUnknown, err)
		}
		answers, err := syscall.ParseNetlinkMessage(raw)
		lost = lost || err != nil
		for _, a := range answers {
			want, ours := wants[a.Header.Seq]
			if !ours || a.Header.Type != unix.NLMSG_ERROR {
				continue // an answer to an earlier exchange
			}
			if len(a.Data) < 4 {
				lost = true
				continue
			}
			code := unix.Errno(-int32(binary.NativeEndian.Uint32(a.Data))) //nolint:gosec // a negative errno
			if code != 0 && refused == nil {
				refused = code
			}
			if want {
				wants[a.Header.Seq] = false
				open--
			}
		}
	}
	switch {
	case refused != nil:
		return refused
	case lost || open > 0:
		return ErrUnknown
	}
	return nil
}

// A Transaction collects messages, to be sent all at once.
type Transaction struct {
	*nftables.Conn

	msgs []netlink.Message
}

var errQuery = errors.New("a transaction cannot query the kernel")

// NewTransaction returns an empty transaction.
func NewTransaction() *Transaction { return new(Transaction).Empty() }

// Empty removes all messages, and returns the transaction. google/nftables encodes them and does not expose them: it
// gets a fake socket that stores them.
func (t *Transaction) Empty() *Transaction {
	t.msgs = nil
	t.Conn = &nftables.Conn{TestDial: func(msgs []netlink.Message) ([]netlink.Message, error) {
		if len(msgs) < 2 || msgs[0].Header.Type != unix.NFNL_MSG_BATCH_BEGIN {
			return nil, errQuery
		}
		t.msgs = append(t.msgs, msgs[1:len(msgs)-1]...)
		return nil, io.EOF
	}}
	return t
}

// Add appends a message that google/nftables cannot encode.
func (t *Transaction) Add(m netlink.Message) error {
	_, err := t.All()
	t.msgs = append(t.msgs, m)
	return err
}

// All returns the messages so far.
func (t *Transaction) All() ([]netlink.Message, error) {
	if err := t.Flush(); err != nil {
		return nil, fmt.Errorf("encode transaction: %w", err)
	}
	return t.msgs, nil
}

// A netfilterSocket is the Socket that talks to the kernel.
type netfilterSocket struct {
	conn *netlink.Conn
	raw  syscall.RawConn
	pid  uint32
	buf  []byte
}

func dial(ns int) (Socket, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: ns})
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	s := &netfilterSocket{conn: c, buf: make([]byte, os.Getpagesize())}
	err = errors.Join(c.SetReadBuffer(Buffer), c.SetWriteBuffer(Buffer))
	if err == nil {
		s.raw, err = c.SyscallConn()
	}
	if err == nil {
		err = s.readPort()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open nftables: %w", err), c.Close())
	}
	return s, nil
}

func (s *netfilterSocket) readPort() (err error) {
	ctl := s.raw.Control(func(fd uintptr) {
		var name unix.Sockaddr
		if name, err = unix.Getsockname(int(fd)); err != nil {
			return
		}
		if own, ok := name.(*unix.SockaddrNetlink); ok {
			s.pid = own.Pid
		}
	})
	return errors.Join(ctl, err)
}

// Port returns the socket's netlink port ID.
func (s *netfilterSocket) Port() uint32 { return s.pid }

// Close closes the socket.
func (s *netfilterSocket) Close() error { return s.conn.Close() }

// Send sends a transaction.
func (s *netfilterSocket) Send(raw []byte) (err error) {
	ctl := s.raw.Control(func(fd uintptr) {
		for {
			err = unix.Sendto(int(fd), raw, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
			if !errors.Is(err, unix.EINTR) {
				return
			}
		}
	})
	return errors.Join(ctl, err)
}

// Receive reads one datagram, whatever its size.
func (s *netfilterSocket) Receive() (raw []byte, err error) {
	ctl := s.raw.Control(func(fd uintptr) {
		const look = unix.MSG_PEEK | unix.MSG_TRUNC | unix.MSG_DONTWAIT
		var n int
		if n, _, err = unix.Recvfrom(int(fd), nil, look); err != nil {
			return
		}
		if n+unix.NLMSG_ALIGNTO > len(s.buf) {
			s.buf = make([]byte, n+unix.NLMSG_ALIGNTO)
		}
		if n, _, err = unix.Recvfrom(int(fd), s.buf, unix.MSG_DONTWAIT); err == nil {
			raw = s.buf[:(n+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1)]
		}
	})
	switch {
	case ctl != nil:
		return nil, ctl
	case errors.Is(err, unix.EAGAIN):
		return nil, ErrNothing
	}
	return raw, err
}

// Took returns how long the current exchange has taken so far; 0 if there is none.
func (t *Writer) Took() time.Duration {
	since := t.since.Load()
	if since == 0 {
		return 0
	}
	return time.Since(time.Unix(0, since))
}

// ForHowLong says it in words, for an error. An exchange that takes long waits for another program's change.
func (t *Writer) ForHowLong() string {
	took := t.Took()
	if took < Slow/4 {
		return ""
	}
	return fmt.Sprintf(" with another program's change (for %s now)", took.Round(100*time.Millisecond))
}
