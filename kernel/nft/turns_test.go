package nft

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"netyard/kernel/core"
	"netyard/kernel/exchange"
	"netyard/kernel/exchange/exchangetest"
	"netyard/kernel/rule"
)

// willing is a kernel that makes every transaction.
type willing struct {
	exchange.Socket

	sent    int // messages of the last transaction
	answers [][]byte
}

func (*willing) Port() uint32 { return 1 }

func (k *willing) Send(raw []byte) error {
	seqs := exchangetest.SeqsOf(raw)
	seqs = seqs[1 : len(seqs)-1]
	k.sent = len(seqs)
	for _, s := range seqs {
		k.answers = append(k.answers, exchangetest.Ack(s, 0))
	}
	return nil
}

func (k *willing) Receive() ([]byte, error) {
	if len(k.answers) == 0 {
		return nil, exchange.ErrNothing
	}
	raw := k.answers[0]
	k.answers = k.answers[1:]
	return raw, nil
}

func silent() *slog.Logger { return slog.New(slog.DiscardHandler) }

// TestUnsentMessages: messages of a transaction that was not sent are not sent with the next one.
func TestUnsentMessages(t *testing.T) {
	t.Parallel()
	k := &willing{}
	dial := func() (exchange.Socket, error) { return k, nil }
	f := &Firewall{log: silent(), poke: func() {}, out: &exchange.Writer{Dial: dial, Log: silent()}}
	failed := errors.New("it cannot be encoded")
	err := f.RunNow(func() error {
		f.tx.FlushTable(rule.Tables()[0]) // as Load begins
		return failed
	})
	if !errors.Is(err, failed) {
		t.Fatal(err)
	}
	err = f.RunNow(func() error {
		f.tx.AddTable(rule.Tables()[0])
		return f.Flush("add one")
	})
	if err != nil || k.sent != 1 {
		t.Errorf("a transaction of one message had %d: %v", k.sent, err)
	}
}

// TestTurns: turns are granted one after the other, in the order of the requests; a place given up is skipped.
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
		t.Fatal("two turns are granted at once")
	default:
	}
	q.next()
	<-fourth
	q.leave(fourth) // its turn has come meanwhile: leave ends it
	<-q.queue()
}

// TestBusy: a caller that cannot wait for the end of a change gets ErrBusy; if the change is made later, it is undone
// before any other turn. RunLater's changes are made in any case, in their order.
func TestBusy(t *testing.T) {
	t.Parallel()
	f := &Firewall{log: silent(), poke: func() {}, out: &exchange.Writer{Log: silent()}}
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
	release, started := make(chan struct{}), make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	bounded, stop := context.WithTimeout(ctx, core.NetlinkTimeout*100)
	defer stop()
	hangs := make(chan error, 1)
	go func() {
		hangs <- f.Run(bounded, Turn{Act: "add one", Do: func() error {
			close(started)
			<-release
			return note("add one")()
		}, Undo: note("undo one")})
	}()
	<-started
	waits := make(chan error, 1)
	go func() {
		waits <- f.Run(bounded, Turn{Act: "add two", Do: note("add two"), Undo: note("undo two")})
	}()
	cancel()
	for _, ended := range []chan error{hangs, waits} {
		err := <-ended
		if !errors.Is(err, ErrBusy) || !errors.Is(err, context.Canceled) || strings.Contains(err.Error(), "\n") {
			t.Errorf("a caller that could not wait got %v", err)
		}
	}
	if err := f.RunLater(Turn{Act: "remove three", Do: note("remove three")}); err != nil {
		t.Errorf("RunLater returned %v", err)
	}
	close(release)
	if err := f.RunNow(note("add four")); err != nil {
		t.Error(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if got, want := strings.Join(did, ", "), "add one, undo one, remove three, add four"; got != want {
		t.Errorf("changes made: %s; want %s", got, want)
	}
}
