package nft

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

// The kernel runs an nftables transaction inside the system call that sends it, and has answered every message of it
// when that call returns (nfnetlink_rcv_batch, net/netfilter/nfnetlink.c). The call waits for the transactions of
// others, as long as those take. So an exchange has no deadline: it sends, reads what is there, and compares each
// answer with what was asked, by its number. Who waits for an exchange has a deadline of his own (turns).

// errUnsure says that an answer got lost: the transaction may be done or not.
var errUnsure = errors.New("the kernel's answer got lost")

// errNothing says that a socket has nothing to read.
var errNothing = errors.New("nothing to read")

// A Peer is the other end of a socket: the kernel.
type Peer interface {
	// Send returns when the kernel has dealt with a message; after an error it has not seen it.
	Send(raw []byte) error
	// Receive reads one answer that is there already, errNothing if none is.
	Receive() ([]byte, error)
	// port is what the kernel knows the socket by (netlink(7), nl_pid).
	port() uint32
	close() error
}

// A talker exchanges transactions with the kernel, one after the other.
type talker struct {
	dial func() (Peer, error)
	P    Peer // nil: to be opened
	seq  uint32
	// own is the port of the socket now, for who hears what it did.
	own atomic.Uint32
	// since is when the exchange that is under way began, in nanoseconds; 0: none is.
	since atomic.Int64
	// orphaned: the tables belonged to a socket before this one.
	orphaned bool
	log      *slog.Logger
}

// Open opens the socket unless it is open.
func (t *talker) Open() error {
	if t.P != nil {
		return nil
	}
	p, err := t.dial()
	if err != nil {
		return err
	}
	t.P = p
	t.own.Store(p.port())
	return nil
}

// drop closes a socket that is not to be trusted any more. What is left in it goes with it.
func (t *talker) drop() error {
	if t.P == nil {
		return nil
	}
	err := t.P.close()
	t.P, t.orphaned = nil, true
	return err
}

// slow is how long an exchange takes when it is worth a line in the log.
const slow = time.Second

// exchange sends one transaction and says what became of it: nil, it is done; errUnsure, nobody knows, and the socket
// is closed; any other error, it is not done.
func (t *talker) exchange(act string, msgs []netlink.Message) error {
	if err := t.Open(); err != nil {
		return err
	}
	msgs = framed(msgs)
	raw, wants := t.number(msgs)
	start := time.Now()
	t.since.Store(start.UnixNano())
	told := time.AfterFunc(slow, func() {
		t.log.Warn("the kernel's firewall is busy, with another program's change to all appearance; waiting for it", "to", act)
	})
	defer func() {
		t.since.Store(0)
		if !told.Stop() {
			t.log.Info("the kernel's firewall has answered", "to", act, "took", time.Since(start).Round(time.Millisecond))
		}
	}()
	if err := t.P.Send(raw); err != nil {
		return fmt.Errorf("send to the kernel: %w", err)
	}
	err := t.hear(wants)
	if errors.Is(err, errUnsure) {
		err = errors.Join(err, t.drop())
	}
	return err
}

// framed puts the marks of a transaction around messages (struct nfgenmsg, with the subsystem as the resource of a
// batch).
func framed(msgs []netlink.Message) []netlink.Message {
	mark := func(kind uint16) netlink.Message {
		return netlink.Message{
			Header: netlink.Header{Type: netlink.HeaderType(kind), Flags: netlink.Request}, Data: []byte{0, 0, 0, unix.NFNL_SUBSYS_NFTABLES},
		}
	}
	all := append([]netlink.Message{mark(unix.NFNL_MSG_BATCH_BEGIN)}, msgs...)
	return append(all, mark(unix.NFNL_MSG_BATCH_END))
}

// number gives each message a number that no other had, and says which of them are to be acknowledged.
func (t *talker) number(msgs []netlink.Message) (raw []byte, wants map[uint32]bool) {
	wants = map[uint32]bool{}
	for _, m := range msgs {
		t.seq++
		if m.Header.Flags&netlink.Acknowledge != 0 {
			wants[t.seq] = true
		} else {
			wants[t.seq] = false // it is answered if it fails
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

// hear reads all answers that are there. One refused message is enough: nothing of the transaction is done then. It is
// done if each message that was to be acknowledged is, and no answer got lost: the first one tells of a commit that
// failed.
func (t *talker) hear(wants map[uint32]bool) error {
	var refused error
	lost, open := false, 0
	for _, want := range wants {
		if want {
			open++
		}
	}
	for {
		raw, err := t.P.Receive()
		if errors.Is(err, errNothing) {
			break
		}
		if errors.Is(err, unix.ENOBUFS) { // more came than the socket holds; the rest is there
			lost = true
			continue
		}
		if err != nil {
			return fmt.Errorf("%w: %w", errUnsure, err)
		}
		answers, err := syscall.ParseNetlinkMessage(raw)
		lost = lost || err != nil
		for _, a := range answers {
			want, ours := wants[a.Header.Seq]
			if !ours || a.Header.Type != unix.NLMSG_ERROR {
				continue // of an exchange before this one
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
		return errUnsure
	}
	return nil
}

// A transaction is put together message by message, and sent at once. What is put together and not sent is forgotten.
type transaction struct {
	*nftables.Conn

	msgs []netlink.Message
}

var errNotAsked = errors.New("a transaction is not asked")

// newTransaction makes an empty one. google/nftables puts messages together and keeps them to itself: it is given a
// socket that hands them on.
func newTransaction() *transaction {
	t := &transaction{}
	t.Conn = &nftables.Conn{TestDial: func(msgs []netlink.Message) ([]netlink.Message, error) {
		if len(msgs) < 2 || msgs[0].Header.Type != unix.NFNL_MSG_BATCH_BEGIN {
			return nil, errNotAsked
		}
		t.msgs = append(t.msgs, msgs[1:len(msgs)-1]...)
		return nil, io.EOF
	}}
	return t
}

// all are the messages so far.
func (t *transaction) all() ([]netlink.Message, error) {
	if err := t.Flush(); err != nil {
		return nil, fmt.Errorf("put a transaction together: %w", err)
	}
	return t.msgs, nil
}

// A netfilterSocket is a peer that is the kernel.
type netfilterSocket struct {
	conn *netlink.Conn
	raw  syscall.RawConn
	pid  uint32
	buf  []byte
}

func dialNetfilter(ns int) (Peer, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: ns})
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	s := &netfilterSocket{conn: c, buf: make([]byte, os.Getpagesize())}
	err = errors.Join(c.SetReadBuffer(NetfilterBuffer), c.SetWriteBuffer(NetfilterBuffer))
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

func (s *netfilterSocket) port() uint32 { return s.pid }

func (s *netfilterSocket) close() error { return s.conn.Close() }

// Send sends messages.
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

// Receive reads one datagram.
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
		return nil, errNothing
	}
	return raw, err
}
