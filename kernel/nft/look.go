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
	"netyard/kernel/exchange"
)

// A reader queries nftables by a socket of its own. The kernel answers queries while a transaction waits. No table
// belongs to this socket, so it can be replaced after any error.
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
	configure := nftables.WithSockOptions(func(c *netlink.Conn) error {
		r.sock = c
		return c.SetReadBuffer(exchange.Buffer)
	})
	r.conn, err = nftables.New(nftables.AsLasting(), nftables.WithNetNSFd(r.ns), configure)
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

// A View gives access to nftables during one Look.
type View struct {
	*nftables.Conn

	Sock *netlink.Conn
}

// lookTries limits how often Look repeats because of a change, and how often because of a lost answer.
const lookTries = 4

// Look calls f to read nftables in one consistent state, between two transactions of anybody. It calls f again, from
// the beginning, if a transaction happened meanwhile, and also, with a new socket, if an answer is late or lost. If
// changes do not stop, it settles for the last try.
func (r *reader) Look(f func(v View) error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for changed, lost := 0, 0; changed < lookTries; {
		whole, err := r.lookOnce(f)
		switch {
		case err == nil && whole:
			return nil
		case err == nil:
			changed++
		default:
			err = errors.Join(err, r.drop())
			if lost++; answered(err) || lost == lookTries {
				return err
			}
		}
	}
	return nil
}

func (r *reader) lookOnce(f func(v View) error) (whole bool, err error) {
	if err := r.open(); err != nil {
		return false, err
	}
	if err := r.sock.SetDeadline(time.Now().Add(core.NetlinkTimeout)); err != nil {
		return false, fmt.Errorf("set netlink timeout: %w", err)
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

// generation returns nftables' generation ID, which changes with each transaction (nf_tables_gen_info,
// net/netfilter/nf_tables_api.c).
func generation(c *netlink.Conn) (string, error) {
	answers, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN, Flags: netlink.Request},
		Data:   []byte{0, 0, 0, 0},
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
	return "", errors.New("read the generation of nftables: the kernel's answer has none")
}

// answered reports whether an error is the kernel's answer, and not a missing answer.
func answered(err error) bool {
	var code syscall.Errno
	if !errors.As(err, &code) {
		return false
	}
	none := []syscall.Errno{unix.EAGAIN, unix.EBUSY, unix.EINTR, unix.ENOBUFS, unix.ENOMEM}
	return !slices.Contains(none, code)
}
