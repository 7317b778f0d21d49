package kernel

import (
	"context"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"netyard/kernel/exchange"
	"netyard/kernel/exchange/exchangetest"
	"netyard/kernel/nft"
	"netyard/kernel/overlay"
)

// LookAt makes another directory stand for /sys/class/net: no test machine has a wireless card.
func (k *Kernel) LookAt(dir string) { k.Sys = dir }

// CheckRelease reports whether a kernel of that release knows which packets its VXLAN devices made.
var CheckRelease = overlay.CheckRelease

// A slowPeer holds the next transaction back until goOn is closed, and may refuse it then.
type slowPeer struct {
	exchange.Socket

	sent, goOn chan struct{}
	refused    unix.Errno
	// next is the errno that refuses the transaction after that; 0: it is not refused.
	next    atomic.Uint32
	answers [][]byte
	done    bool
}

func (p *slowPeer) Send(raw []byte) error {
	if p.done {
		if code := unix.Errno(p.next.Swap(0)); code != 0 {
			p.answers = append(p.answers, exchangetest.Ack(exchangetest.SeqsOf(raw)[0], code))
			return nil
		}
		return p.Socket.Send(raw)
	}
	p.done = true
	close(p.sent)
	<-p.goOn
	if p.refused == 0 {
		return p.Socket.Send(raw)
	}
	p.answers = append(p.answers, exchangetest.Ack(exchangetest.SeqsOf(raw)[0], p.refused))
	return nil
}

func (p *slowPeer) Receive() ([]byte, error) {
	if len(p.answers) > 0 {
		raw := p.answers[0]
		p.answers = p.answers[1:]
		return raw, nil
	}
	return p.Socket.Receive()
}

// Stall makes the kernel hold the next transaction back until goOn is closed, and then refuse it unless the errno is 0.
// sent is closed when the transaction has been sent.
func (k *Kernel) Stall(refused unix.Errno) (sent, goOn chan struct{}, err error) {
	sent, goOn = make(chan struct{}), make(chan struct{})
	err = nft.Of(k.Handle).RunNow(func() error {
		return nft.Of(k.Handle).Intercept(func(p exchange.Socket) exchange.Socket {
			return &slowPeer{Socket: p, sent: sent, goOn: goOn, refused: refused}
		})
	})
	return sent, goOn, err
}

// RefuseNext makes the kernel refuse the transaction after the one that Stall holds back.
func (k *Kernel) RefuseNext(code unix.Errno) error {
	return nft.Of(k.Handle).Intercept(func(p exchange.Socket) exchange.Socket {
		if p, ok := p.(*slowPeer); ok {
			p.next.Store(uint32(code)) //nolint:gosec // an errno
		}
		return p
	})
}

// WatchTables is how Watch is told of changes to nftables.
func (k *Kernel) WatchTables(ctx context.Context) (<-chan bool, error) { return k.watchTables(ctx) }

// WatchLinks is how Watch is told of changes to links.
func (k *Kernel) WatchLinks(ctx context.Context) error {
	_, err := k.watchLinks(ctx)
	return err
}
