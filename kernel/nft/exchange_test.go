package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"netyard/kernel/core"
	"netyard/kernel/nft/nfttest"
	"netyard/kernel/rule"
)

// A fakeKernel answers transactions. What it has in its receive buffer belongs to one socket, as the kernel's does.
type fakeKernel struct {
	t *testing.T
	// deal says what becomes of a transaction: the answers to it, in whatever order and number. Nil: all is
	// acknowledged.
	deal func(seqs []uint32) (answers [][]byte)
	// overrun makes the next answer an overrun of the buffer.
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

func (k *fakeKernel) dial() (Peer, error) {
	k.opened++
	return &fakePeer{k: k, number: k.opened}, nil
}

func (p *fakePeer) port() uint32 { return uint32(p.number) } //nolint:gosec // a handful

func (p *fakePeer) close() error { p.closed = true; return nil }

func (p *fakePeer) Send(raw []byte) error {
	if p.closed {
		p.k.t.Error("something is sent by a closed socket")
	}
	seqs := nfttest.SeqsOf(raw)
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
		return nil, errNothing
	}
	raw := p.buffer[0]
	p.buffer = p.buffer[1:]
	return raw, nil
}

func acks(seqs []uint32, code unix.Errno) (all [][]byte) {
	for _, s := range seqs {
		all = append(all, nfttest.Ack(s, code))
	}
	return all
}

func silent(t *testing.T) *slog.Logger {
	t.Helper()
	return slog.New(slog.DiscardHandler)
}

// some is a transaction of n messages.
func some(t *testing.T, talk *talker, n int) error {
	t.Helper()
	tx := newTransaction()
	for range n {
		tx.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "x"})
	}
	msgs, err := tx.all()
	if err != nil {
		t.Fatal(err)
	}
	if len(msgs) != n {
		t.Fatalf("a transaction of %d messages has %d", n, len(msgs))
	}
	return talk.exchange("test", msgs)
}

// TestExchange: whatever way the answers take, a refused transaction never counts as done, one that may be done or not
// is known as such, and the next transaction is dealt with by its own answers.
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
			return append([][]byte{nfttest.Ack(s[0]-7, unix.EEXIST), nfttest.Ack(s[0]-6, 0)}, acks(middle(s), 0)...)
		}, false, nil},
		{"one refused", func(s []uint32) [][]byte {
			all := acks(middle(s), 0)
			all[42] = nfttest.Ack(s[43], unix.EEXIST)
			return all
		}, false, unix.EEXIST},
		{"the last refused", func(s []uint32) [][]byte {
			return append(acks(s[1:len(s)-2], 0), nfttest.Ack(s[len(s)-2], unix.ENOENT))
		}, false, unix.ENOENT},
		{"all refused", func(s []uint32) [][]byte { return acks(middle(s), unix.ENOENT) }, false, unix.ENOENT},
		{"the sender may not", func(s []uint32) [][]byte { return [][]byte{nfttest.Ack(s[0], unix.EPERM)} }, false, unix.EPERM},
		// The commit itself fails: the first message is refused, and then each is acknowledged (nfnetlink_rcv_batch).
		{"the commit refused", func(s []uint32) [][]byte {
			return append([][]byte{nfttest.Ack(s[0], unix.ENOMEM)}, acks(middle(s), 0)...)
		}, false, unix.ENOMEM},
		{"one acknowledgement missing", func(s []uint32) [][]byte { return acks(s[1:len(s)-2], 0) }, false, errUnsure},
		{"none", func([]uint32) [][]byte { return nil }, false, errUnsure},
		{"those of another exchange only", func(s []uint32) [][]byte { return [][]byte{nfttest.Ack(s[0]-3, 0), nfttest.Ack(s[0]-2, 0)} }, false, errUnsure},
		{"an overrun, and some of them", func(s []uint32) [][]byte { return acks(s[20:len(s)-1], 0) }, true, errUnsure},
		{"an overrun, and all of them", func(s []uint32) [][]byte { return acks(middle(s), 0) }, true, errUnsure}, // the first tells of the commit
		{"an overrun, and a refusal", func(s []uint32) [][]byte { return [][]byte{nfttest.Ack(s[9], unix.EEXIST)} }, true, unix.EEXIST},
		{"half a message", func(s []uint32) [][]byte {
			return append(acks(s[1:len(s)-2], 0), nfttest.Ack(s[len(s)-2], 0)[:18])
		}, false, errUnsure},
		{"a message of the wrong length", func(s []uint32) [][]byte {
			bad := nfttest.Ack(s[1], 0)
			binary.NativeEndian.PutUint32(bad, 400)
			return append([][]byte{bad}, acks(middle(s), 0)...)
		}, false, errUnsure},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			k := &fakeKernel{t: t, deal: c.deal, overrun: c.overrun}
			talk := &talker{dial: k.dial, log: silent(t)}
			err := some(t, talk, n)
			if !errors.Is(err, c.want) || c.want == nil && err != nil {
				t.Errorf("the exchange ended with %v, want %v", err, c.want)
			}
			if err != nil && strings.Count(err.Error(), "\n") > 0 {
				t.Errorf("one fault is said more than once: %v", err)
			}
			if unsure := errors.Is(c.want, errUnsure); unsure != (talk.P == nil) || unsure != talk.orphaned {
				t.Errorf("the socket was replaced: %v", talk.P == nil)
			}

			k.deal = func(s []uint32) [][]byte { return acks(middle(s), unix.EEXIST) } // refused
			if err := some(t, talk, 2); !errors.Is(err, unix.EEXIST) {
				t.Errorf("a refused transaction after it ended with %v", err)
			}
			k.deal = nil
			if err := some(t, talk, 3); err != nil || k.done != 1 {
				t.Errorf("a good one after that: %v", err)
			}
		})
	}
}

// TestLateAnswers: what a socket still has of earlier exchanges is never taken for an answer to a later one.
func TestLateAnswers(t *testing.T) {
	t.Parallel()
	k := &fakeKernel{t: t}
	talk := &talker{dial: k.dial, log: silent(t)}
	var late [][]byte
	k.deal = func(s []uint32) [][]byte {
		late = append(late, acks(s[1:len(s)-1], 0)...)
		return acks(s[1:len(s)-1], unix.EEXIST)
	}
	for range 5 {
		if err := some(t, talk, 4); !errors.Is(err, unix.EEXIST) {
			t.Fatalf("a refused transaction ended with %v", err)
		}
		p, ok := talk.P.(*fakePeer)
		if !ok {
			t.Fatal("the socket is gone")
		}
		p.buffer = append(p.buffer, late...) // they say that all was done
	}
}

// TestHalfATransaction: what was put together and not sent does not go with the next transaction.
func TestHalfATransaction(t *testing.T) {
	t.Parallel()
	k := &fakeKernel{t: t}
	f := &Firewall{log: silent(t), poke: func() {}, out: &talker{dial: k.dial, log: silent(t)}}
	sent := 0
	k.deal = func(s []uint32) [][]byte {
		sent = len(s) - 2
		return acks(s[1:len(s)-1], 0)
	}
	failed := errors.New("it cannot be encoded")
	err := f.RunNow(func() error {
		f.Tx.FlushTable(rule.Tables()[0]) // as if the table were to be filled anew
		return failed
	})
	if !errors.Is(err, failed) {
		t.Fatal(err)
	}
	err = f.RunNow(func() error {
		f.Tx.AddTable(rule.Tables()[0])
		return f.Flush("add one")
	})
	if err != nil || sent != 1 {
		t.Errorf("a transaction of one message had %d: %v", sent, err)
	}
}

// TestTurns: one after the other, in the order in which they came; who gives up leaves no gap.
func TestTurns(t *testing.T) {
	t.Parallel()
	var q turns
	first := q.queue()
	<-first
	second, third, fourth := q.queue(), q.queue(), q.queue()
	q.leave(third)
	q.next()
	<-second
	select {
	case <-fourth:
		t.Fatal("two have it at once")
	default:
	}
	q.next()
	<-fourth
	q.leave(fourth) // it came meanwhile
	<-q.queue()
}

// TestBusy: who does not wait for the end of a change hears why, and what comes to be done after that is taken back
// before anything else is; what is to be done in any case is done, in its order.
func TestBusy(t *testing.T) {
	t.Parallel()
	f := &Firewall{log: silent(t), poke: func() {}, out: &talker{log: silent(t)}}
	var mu sync.Mutex
	var did []string
	note := func(what string) func() error {
		return func() error {
			mu.Lock()
			defer mu.Unlock()
			did = append(did, what)
			return nil
		}
	}
	release, begun := make(chan struct{}), make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	bounded, stop := context.WithTimeout(ctx, core.NetlinkTimeout*100)
	defer stop()
	hangs := make(chan error, 1)
	go func() {
		hangs <- f.Run(bounded, Turn{Act: "add one", Do: func() error {
			close(begun)
			<-release
			return note("add one")()
		}, Undo: note("take back one")})
	}()
	<-begun
	waits := make(chan error, 1)
	go func() {
		waits <- f.Run(bounded, Turn{Act: "add two", Do: note("add two"), Undo: note("take back two")})
	}()
	cancel()
	for _, ended := range []chan error{hangs, waits} {
		if err := <-ended; !errors.Is(err, ErrBusy) || !errors.Is(err, context.Canceled) || strings.Contains(err.Error(), "\n") {
			t.Errorf("who could not wait heard %v", err)
		}
	}
	if err := f.RunLater(Turn{Act: "remove three", Do: note("remove three")}); err != nil {
		t.Errorf("what is done in any case: %v", err)
	}
	close(release)
	if err := f.RunNow(note("add four")); err != nil {
		t.Error(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if got, want := strings.Join(did, ", "), "add one, take back one, remove three, add four"; got != want {
		t.Errorf("it came to %s; want %s", got, want)
	}
}
