package door

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"netyard/cni"
)

// admitted is how many requests a line admits at a time.
func admitted() int { return 2 * runtime.GOMAXPROCS(0) }

// TestLine shows that many requests that come at once are worked on a few at a time, in their order, and that those who
// wait hear of it often enough not to give up.
func TestLine(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const many, work = 100, 1900 * time.Millisecond
		l := newLine()
		var mu sync.Mutex
		var order []int
		now, most := 0, 0
		var all sync.WaitGroup
		for i := range many {
			all.Go(func() {
				heard := time.Now()
				leave, err := l.enter(t.Context(), func() {
					if time.Since(heard) > cni.Deadline {
						t.Errorf("request %d heard nothing for %s", i, time.Since(heard))
					}
					heard = time.Now()
				})
				if err != nil {
					t.Errorf("request %d: %v", i, err)
					return
				}
				defer leave()
				if silent := time.Since(heard); silent > 0 {
					t.Errorf("request %d was admitted %s after the last sign", i, silent)
				}
				mu.Lock()
				order, now = append(order, i), now+1
				most = max(most, now)
				mu.Unlock()
				<-time.After(work)
				mu.Lock()
				now--
				mu.Unlock()
			})
			synctest.Wait()
		}
		all.Wait()
		for at, i := range order {
			if at/admitted() != i/admitted() {
				t.Errorf("request %d was admitted as number %d", i, at)
			}
		}
		if most != admitted() || len(order) != many {
			t.Errorf("%d of %d requests, %d at a time, want %d", len(order), many, most, admitted())
		}
	})
}

// TestLineGoesOn shows that requests that hang do not keep others from their turns for long, that who gives up leaves
// the line, and that nobody waits for ever.
func TestLineGoesOn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLine()
		enter := func(ctx context.Context) (func(), error) { return l.enter(ctx, func() {}) }
		for range admitted() {
			leave, err := enter(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer leave() // much later: it must not end another one's turn
		}
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := enter(gone); !errors.Is(err, context.Canceled) {
			t.Errorf("a plugin that is gone: %v", err)
		}
		began := time.Now()
		leave, err := enter(t.Context())
		if err != nil || time.Since(began) != turnTime {
			t.Fatalf("behind requests that hang: %v after %s", err, time.Since(began))
		}
		leave()
		leave()
		if err := l.turns.Acquire(t.Context(), int64(admitted())); err != nil { // for ever
			t.Fatal(err)
		}
		began = time.Now()
		_, err = enter(t.Context())
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != cni.MaxWait ||
			cniError(err).Code != cni.CodeTryAgain || !strings.Contains(err.Error(), "try again") {
			t.Errorf("without a turn: %v after %s", err, time.Since(began))
		}
	})
}

// TestTurn shows that a request that waits for its turn is answered although its plugin's first deadline is over, and
// that what removes something does not wait for what makes something.
func TestTurn(t *testing.T) {
	t.Parallel()
	d := newRecordingDoor(t)
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	full := newLines()
	if err := full.adding.turns.Acquire(t.Context(), int64(admitted())); err != nil {
		t.Fatal(err)
	}
	go func() {
		for c, err := l.Accept(); err == nil; c, err = l.Accept() {
			go d.serve(context.WithoutCancel(t.Context()), c, full)
		}
	}()
	q, netns := d.request("ADD", "c1", fmt.Sprintf(bridgeConfig, 8080))
	const patience = cni.SignInterval + 500*time.Millisecond
	answered := make(chan error, 1)
	go func() {
		_, err := cni.Call(time.Now().Add(patience), l.Addr().String(), q, netns)
		answered <- err
	}()
	del, _ := d.request("DEL", "c2", fmt.Sprintf(bridgeConfig, 8080))
	if _, err := cni.Call(time.Now().Add(patience), l.Addr().String(), del, nil); err != nil {
		t.Errorf("DEL while all turns of ADD are taken: %v", err)
	}
	select {
	case err := <-answered:
		t.Fatalf("ADD did not wait for its turn: %v", err)
	case <-time.After(patience + 100*time.Millisecond): // beyond the plugin's first deadline
	}
	full.adding.turns.Release(int64(admitted()))
	var refused *cni.Error // the recording kernel does not know a sandbox that came through a socket
	if err := <-answered; !errors.As(err, &refused) || refused.Code != cni.CodeNamespace {
		t.Errorf("ADD after its turn came: %v", err)
	}
}
