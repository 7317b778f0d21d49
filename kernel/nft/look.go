package nft

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"netyard/kernel/core"
)

// A reader asks the kernel what nftables has, by a socket of its own: questions are answered while a transaction waits,
// no table belongs to the socket, and so it is replaced whenever anything went wrong with it.
type reader struct {
	ns   int
	mu   sync.Mutex
	conn *nftables.Conn
	sock *netlink.Conn // the socket below conn
}

func (r *reader) open() (err error) {
	if r.conn != nil {
		return nil
	}
	r.conn, err = nftables.New(nftables.AsLasting(), nftables.WithNetNSFd(r.ns), nftables.WithSockOptions(func(c *netlink.Conn) error {
		r.sock = c
		return c.SetReadBuffer(NetfilterBuffer)
	}))
	if err != nil {
		r.conn = nil
		return fmt.Errorf("open nftables: %w", err)
	}
	return nil
}

func (r *reader) drop() error {
	if r.conn == nil {
		return nil
	}
	err := r.conn.CloseLasting()
	r.conn, r.sock = nil, nil
	return err
}

func (r *reader) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.drop()
}

// A View is nftables as one look sees it.
type View struct {
	*nftables.Conn

	Sock *netlink.Conn
}

// looks is how often a look is taken that a change came between, and how often one whose answers are late or lost.
const looks = 4

// Look has f read what the kernel has, all of it between two transactions of anybody. It is repeated, so f begins anew
// each time, when a transaction came between, and, with another socket, when an answer is late or lost. Where changes
// never cease, the last look has to do.
func (r *reader) Look(f func(v View) error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for changed, lost := 0, 0; changed < looks; {
		whole, err := r.once(f)
		switch {
		case err == nil && whole:
			return nil
		case err == nil:
			changed++
		default:
			err = errors.Join(err, r.drop())
			if lost++; answered(err) || lost == looks {
				return err
			}
		}
	}
	return nil
}

func (r *reader) once(f func(v View) error) (whole bool, err error) {
	if err := r.open(); err != nil {
		return false, err
	}
	if err := r.sock.SetDeadline(time.Now().Add(core.NetlinkTimeout)); err != nil {
		return false, fmt.Errorf("bound netlink's waits: %w", err)
	}
	before, err := generation(r.sock)
	if err != nil {
		return false, err
	}
	if err := f(View{r.conn, r.sock}); err != nil {
		return false, err
	}
	after, err := generation(r.sock)
	return before == after, err
}

// generation is a number that grows with each transaction (nf_tables_gen_info, net/netfilter/nf_tables_api.c).
func generation(c *netlink.Conn) (string, error) {
	answers, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN, Flags: netlink.Request}, Data: []byte{0, 0, 0, 0},
	})
	if err != nil {
		return "", fmt.Errorf("read the generation of nftables: %w", err)
	}
	for _, a := range answers {
		attrs, err := netlink.UnmarshalAttributes(a.Data[min(len(a.Data), unix.SizeofNlAttr):])
		if err != nil {
			return "", fmt.Errorf("read the generation of nftables: %w", err)
		}
		for _, one := range attrs {
			if one.Type == unix.NFTA_GEN_ID {
				return string(one.Data), nil
			}
		}
	}
	return "", errors.New("read the generation of nftables: there is none in the answer")
}

// answered says whether an error is the kernel's answer, and not that there was none.
func answered(err error) bool {
	var code syscall.Errno
	if !errors.As(err, &code) {
		return false
	}
	none := []syscall.Errno{unix.EAGAIN, unix.EBUSY, unix.EINTR, unix.ENOBUFS, unix.ENOMEM}
	return !slices.Contains(none, code)
}
