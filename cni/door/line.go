package door

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"netyard/cni"
)

// turnTime is how long a request keeps others from their turns. One that takes longer waits for something else than a
// processor, such as a DHCP server.
const turnTime = 2 * time.Second

// lines are where requests wait for their turns. Those that make something have a line of their own, so that what
// removes something never waits for them.
type lines struct{ adding, others line }

func newLines() lines { return lines{newLine(), newLine()} }

func (l lines) of(command string) line {
	if command == "ADD" {
		return l.adding
	}
	return l.others
}

// A line admits a few requests at a time, in the order in which they came. Many that are worked on at once all end
// late, and on a busy host beyond their deadlines.
type line struct{ turns *semaphore.Weighted }

func newLine() line {
	const each = 2 // more than one: requests also wait for the disk and for the kernel's locks
	return line{semaphore.NewWeighted(int64(each * runtime.GOMAXPROCS(0)))}
}

// enter waits for a turn. While it waits, it calls sign each SignInterval, and then once more. The caller ends its turn
// by leave.
func (l line) enter(ctx context.Context, sign func()) (leave func(), err error) {
	if !l.turns.TryAcquire(1) {
		if err := l.wait(ctx, sign); err != nil {
			return nil, err
		}
		sign()
	}
	end := sync.OnceFunc(func() { l.turns.Release(1) })
	timer := time.AfterFunc(turnTime, end)
	return func() {
		timer.Stop()
		end()
	}, nil
}

// wait waits for a turn and calls sign meanwhile.
func (l line) wait(ctx context.Context, sign func()) error {
	ctx, cancel := context.WithTimeout(ctx, cni.MaxWait)
	defer cancel()
	got := make(chan error, 1)
	go func() { got <- l.turns.Acquire(ctx, 1) }()
	tick := time.NewTicker(cni.SignInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			sign()
		case err := <-got:
			if err != nil {
				err = fmt.Errorf("wait for other CNI requests: %w; nothing was changed; try again", err)
			}
			return err
		}
	}
}
