package exchange_test

import (
	"encoding/binary"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"netyard/kernel/exchange"
	"netyard/kernel/exchange/exchangetest"
)

// A fakeKernel answers transactions. Each of its sockets has a receive buffer of its own, as the kernel's have.
type fakeKernel struct {
	t *testing.T
	// deal returns the answers to a transaction, in any order and number. Nil: every message is acknowledged.
	deal func(seqs []uint32) (answers [][]byte)
	// overrun makes the next Receive report an overrun of the buffer.
	overrun bool
	opened  int
	done    int
}

type fakePeer struct {
	k      *fakeKernel
	number int
	buffer [][]byte
	closed bool
}

func (k *fakeKernel) dial() (exchange.Socket, error) {
	k.opened++
	return &fakePeer{k: k, number: k.opened}, nil
}

func (p *fakePeer) Port() uint32 { return uint32(p.number) } //nolint:gosec // a handful

func (p *fakePeer) Close() error { p.closed = true; return nil }

func (p *fakePeer) Send(raw []byte) error {
	if p.closed {
		p.k.t.Error("a transaction was sent by a closed socket")
	}
	seqs := exchangetest.SeqsOf(raw)
	if p.k.deal == nil {
		p.k.done++
		p.buffer = append(p.buffer, acks(seqs[1:len(seqs)-1], 0)...)
		return nil
	}
	p.buffer = append(p.buffer, p.k.deal(seqs)...)
	return nil
}

func (p *fakePeer) Receive() ([]byte, error) {
	if p.k.overrun {
		p.k.overrun = false
		return nil, unix.ENOBUFS
	}
	if len(p.buffer) == 0 {
		return nil, exchange.ErrNothing
	}
	raw := p.buffer[0]
	p.buffer = p.buffer[1:]
	return raw, nil
}

func acks(seqs []uint32, code unix.Errno) (all [][]byte) {
	for _, s := range seqs {
		all = append(all, exchangetest.Ack(s, code))
	}
	return all
}

// send sends a transaction of n messages.
func send(t *testing.T, w *exchange.Writer, n int) error {
	t.Helper()
	tx := exchange.NewTransaction()
	for range n {
		tx.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "x"})
	}
	msgs, err := tx.All()
	if err != nil {
		t.Fatal(err)
	}
	if len(msgs) != n {
		t.Fatalf("a transaction of %d messages has %d", n, len(msgs))
	}
	return w.Send("test", msgs)
}

// TestExchange: in whatever way the answers arrive, a refused transaction never counts as done, one whose outcome is
// unknown is reported as such, and the next transaction is judged by its own answers.
func TestExchange(t *testing.T) {
	t.Parallel()
	const n = 100
	middle := func(seqs []uint32) []uint32 { return seqs[1 : len(seqs)-1] }
	joined := func(all [][]byte) [][]byte { // several answers in one read
		var one []byte
		for _, a := range all {
			one = append(one, a...)
		}
		return [][]byte{one}
	}
	for _, c := range []struct {
		name    string
		deal    func(seqs []uint32) [][]byte
		overrun bool
		want    error
	}{
		{"all acknowledged", func(s []uint32) [][]byte { return acks(middle(s), 0) }, false, nil},
		{"all acknowledged in one read", func(s []uint32) [][]byte { return joined(acks(middle(s), 0)) }, false, nil},
		{"in another order", func(s []uint32) [][]byte {
			return append(acks(s[50:len(s)-1], 0), acks(s[1:50], 0)...)
		}, false, nil},
		{"answers of another exchange between", func(s []uint32) [][]byte {
			others := [][]byte{exchangetest.Ack(s[0]-7, unix.EEXIST), exchangetest.Ack(s[0]-6, 0)}
			return append(others, acks(middle(s), 0)...)
		}, false, nil},
		{"one refused", func(s []uint32) [][]byte {
			all := acks(middle(s), 0)
			all[42] = exchangetest.Ack(s[43], unix.EEXIST)
			return all
		}, false, unix.EEXIST},
		{"the last refused", func(s []uint32) [][]byte {
			return append(acks(s[1:len(s)-2], 0), exchangetest.Ack(s[len(s)-2], unix.ENOENT))
		}, false, unix.ENOENT},
		{"all refused", func(s []uint32) [][]byte { return acks(middle(s), unix.ENOENT) }, false, unix.ENOENT},
		{"the sender lacks the permission", func(s []uint32) [][]byte {
			return [][]byte{exchangetest.Ack(s[0], unix.EPERM)}
		}, false, unix.EPERM},
		// The commit fails: the first message is refused, and then every message is acknowledged (nfnetlink_rcv_batch).
		{"the commit refused", func(s []uint32) [][]byte {
			return append([][]byte{exchangetest.Ack(s[0], unix.ENOMEM)}, acks(middle(s), 0)...)
		}, false, unix.ENOMEM},
		{"one acknowledgement missing", func(s []uint32) [][]byte {
			return acks(s[1:len(s)-2], 0)
		}, false, exchange.ErrUnknown},
		{"no answer", func([]uint32) [][]byte { return nil }, false, exchange.ErrUnknown},
		{"only answers to another exchange", func(s []uint32) [][]byte {
			return [][]byte{exchangetest.Ack(s[0]-3, 0), exchangetest.Ack(s[0]-2, 0)}
		}, false, exchange.ErrUnknown},
		{"an overrun, and some acknowledgements", func(s []uint32) [][]byte {
			return acks(s[20:len(s)-1], 0)
		}, true, exchange.ErrUnknown},
		// The lost answer may be one to the first message, which would tell that the commit failed.
		{"an overrun, and all acknowledgements", func(s []uint32) [][]byte {
			return acks(middle(s), 0)
		}, true, exchange.ErrUnknown},
		{"an overrun, and a refusal", func(s []uint32) [][]byte {
			return [][]byte{exchangetest.Ack(s[9], unix.EEXIST)}
		}, true, unix.EEXIST},
		{"half a message", func(s []uint32) [][]byte {
			return append(acks(s[1:len(s)-2], 0), exchangetest.Ack(s[len(s)-2], 0)[:18])
		}, false, exchange.ErrUnknown},
		{"a message of the wrong length", func(s []uint32) [][]byte {
			bad := exchangetest.Ack(s[1], 0)
			binary.NativeEndian.PutUint32(bad, 400)
			return append([][]byte{bad}, acks(middle(s), 0)...)
		}, false, exchange.ErrUnknown},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			k := &fakeKernel{t: t, deal: c.deal, overrun: c.overrun}
			w := &exchange.Writer{Dial: k.dial, Log: slog.New(slog.DiscardHandler)}
			err := send(t, w, n)
			if !errors.Is(err, c.want) || c.want == nil && err != nil {
				t.Errorf("the exchange ended with %v, want %v", err, c.want)
			}
			if err != nil && strings.Count(err.Error(), "\n") > 0 {
				t.Errorf("the error has several lines: %v", err)
			}
			if unknown := errors.Is(c.want, exchange.ErrUnknown); unknown != (w.P == nil) || unknown != w.Orphaned {
				t.Errorf("the socket was closed: %v, want %v", w.P == nil, unknown)
			}

			k.deal = func(s []uint32) [][]byte { return acks(middle(s), unix.EEXIST) } // refused
			if err := send(t, w, 2); !errors.Is(err, unix.EEXIST) {
				t.Errorf("the next transaction, which is refused, ended with %v", err)
			}
			k.deal = nil
			if err := send(t, w, 3); err != nil || k.done != 1 {
				t.Errorf("the one after that, which is made, ended with %v", err)
			}
		})
	}
}

// TestLateAnswers: late answers to earlier exchanges are never taken as answers to a later one.
func TestLateAnswers(t *testing.T) {
	t.Parallel()
	k := &fakeKernel{t: t}
	w := &exchange.Writer{Dial: k.dial, Log: slog.New(slog.DiscardHandler)}
	var late [][]byte
	k.deal = func(s []uint32) [][]byte {
		late = append(late, acks(s[1:len(s)-1], 0)...)
		return acks(s[1:len(s)-1], unix.EEXIST)
	}
	for range 5 {
		if err := send(t, w, 4); !errors.Is(err, unix.EEXIST) {
			t.Fatalf("a refused transaction ended with %v", err)
		}
		p, ok := w.P.(*fakePeer)
		if !ok {
			t.Fatal("the socket was closed")
		}
		p.buffer = append(p.buffer, late...) // they acknowledge every message
	}
}
