package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// callTime bounds one exchange with etcd. An engine's request has a few of them and 9 s.
	callTime = 3 * time.Second

	// The connection is tried again often: with gRPC's own pauses, of up to two minutes, a watch needed 40 s after an
	// outage of 150 s.
	firstPause, longestPause = 200 * time.Millisecond, 2 * time.Second
	// A peer that says nothing is asked, or a connection through a dead router would be trusted until TCP gives up.
	pingEvery, pingTime = 5 * time.Second, 3 * time.Second
)

// A Client speaks to etcd. It has no connection until the first call.
type Client struct {
	c      Config
	prefix string // with a slash at its end

	dialing sync.Mutex
	conn    *clientv3.Client

	mu sync.Mutex
	// meta is the cluster's record as etcd has it; empty until Enter.
	meta string
	// down is since when etcd has not answered, and why; zero while it does.
	down   time.Time
	reason error
	// wire is what went wrong with the last connection, where gRPC does not say it.
	wire error
	// revision is the greatest that etcd has said.
	revision int64
	// connected: there was a connection.
	connected bool
	// doubted are told when etcd may have gone back in time.
	doubted []chan struct{}
	// took is how long the last writes took, in a ring.
	took  [writes]time.Duration
	wrote int
}

// writes is how many of the last writes say how fast etcd is.
const writes = 100

// Open makes a Client of a configuration that Check has passed, and reads its files.
func Open(c Config) (*Client, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	if _, err := c.tls(func(error) {}); err != nil {
		return nil, err
	}
	if _, err := c.password(); err != nil {
		return nil, err
	}
	prefix := c.Prefix
	if prefix == "" {
		prefix = DefaultPrefix
	}
	return &Client{c: c, prefix: prefix + "/"}, nil
}

// Close gives the connection up.
func (c *Client) Close() error {
	c.dialing.Lock()
	defer c.dialing.Unlock()
	if c.conn == nil {
		return nil
	}
	conn := c.conn
	c.conn = nil
	if err := conn.Close(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("close etcd: %w", err)
	}
	return nil
}

// dial makes the connection, or what becomes one. With a user it asks etcd for a token, so it can fail while etcd is
// away.
func (c *Client) dial(ctx context.Context) (*clientv3.Client, error) {
	c.dialing.Lock()
	defer c.dialing.Unlock()
	if c.conn != nil {
		return c.conn, nil
	}
	tls, err := c.c.tls(c.missed)
	if err != nil {
		return nil, err
	}
	password, err := c.c.password()
	if err != nil {
		return nil, err
	}
	c.conn, err = clientv3.New(clientv3.Config{
		Context:   context.WithoutCancel(ctx), // it outlives this call
		Endpoints: c.c.Endpoints, TLS: tls, Username: c.c.User, Password: password,
		DialTimeout: callTime, DialKeepAliveTime: pingEvery, DialKeepAliveTimeout: pingTime,
		Logger: zap.NewNop(), // what goes wrong is an error of some call
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: firstPause, Multiplier: 1.6, Jitter: 0.2, MaxDelay: longestPause},
			MinConnectTimeout: callTime,
		}), grpc.WithContextDialer(c.connect)},
	})
	if err != nil {
		c.conn = nil
	}
	return c.conn, err
}

// hangUp gives up a connection that may hold a token of an etcd from before it started again: with one in hand etcd 3.4
// gives no other, and the client asks on and on. The next call makes a new one, and what watched by this one reads
// everything again.
func (c *Client) hangUp(conn *clientv3.Client) {
	c.dialing.Lock()
	defer c.dialing.Unlock()
	if c.conn == conn {
		c.conn = nil
		_ = conn.Close() // it is of no use in any case
	}
}

// connect is gRPC's way to a member of etcd, and notes why there is none: gRPC itself only says that time was up.
// Behind a connection that is not the first may be an etcd from a backup, whose revisions say nothing once other hosts
// have written to it.
func (c *Client) connect(ctx context.Context, addr string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		c.missed(err)
		return nil, err
	}
	c.mu.Lock()
	again := c.connected
	c.connected = true
	c.mu.Unlock()
	if again {
		c.doubt()
	}
	return conn, nil
}

// doubt has everything read again.
func (c *Client) doubt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, ch := range c.doubted {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// missed notes why a connection did not come about.
func (c *Client) missed(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wire = err
}

// Health is what a Client knows of etcd.
type Health struct {
	// Down is since when etcd has not answered; zero while it does.
	Down time.Time
	// Reason is why, in one line; empty while it does.
	Reason string
	// Revision is the greatest of etcd's that was seen.
	Revision int64
	// Median and Worst are how long the last writes took, half of them and 99 of 100 at most; zero: there were none.
	Median, Worst time.Duration
}

// Health says whether etcd answered the last time it was asked.
func (c *Client) Health() Health {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := Health{Down: c.down, Revision: c.revision}
	if took := slices.Clone(c.took[:min(c.wrote, writes)]); len(took) > 0 {
		slices.Sort(took)
		h.Median, h.Worst = took[len(took)/2], took[len(took)*99/100]
	}
	if c.reason != nil {
		h.Reason = c.reason.Error()
	}
	return h
}

// written notes how long a write took.
func (c *Client) written(took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.took[c.wrote%writes] = took
	c.wrote++
}

// call makes one exchange with etcd, in bounded time, and notes whether it answered.
func (c *Client) call(ctx context.Context, act string, f func(context.Context, *clientv3.Client) error) error {
	bound, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	conn, err := c.dial(bound)
	if err == nil {
		if err = f(bound, conn); err != nil && silent(err) && c.c.User != "" {
			c.hangUp(conn)
		}
	}
	if ctx.Err() != nil && err != nil { // the caller's time was up, which says nothing of etcd
		return fmt.Errorf("%s: %w", act, ctx.Err())
	}
	return c.note(act, err)
}

// note is what an exchange says of etcd.
func (c *Client) note(act string, err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil || !silent(err) {
		c.down, c.reason, c.wire = time.Time{}, nil, nil
		if err != nil {
			return fmt.Errorf("%s: %w", act, err)
		}
		return nil
	}
	if c.down.IsZero() {
		c.down = time.Now()
	}
	if c.wire != nil {
		err = c.wire
	}
	c.reason = err
	return fmt.Errorf("%s: %w since %s: %w", act, ErrUnreachable, c.down.Format(time.RFC3339), err)
}

// silent says whether an error means that etcd did not answer, rather than that it said no.
func silent(err error) bool {
	if errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	code := status.Code(err)
	var said rpctypes.EtcdError
	if errors.As(err, &said) {
		code = said.Code()
	}
	return code == codes.Unavailable || code == codes.DeadlineExceeded
}

// answered notes a revision that etcd said to a question that was asked when it had said another before. A lesser one
// says that etcd went back in time: it was restored from a backup.
func (c *Client) answered(before, revision int64) {
	c.mu.Lock()
	back := revision < before
	if back || revision > c.revision {
		c.revision = revision
	}
	c.mu.Unlock()
	if back {
		c.doubt()
	}
}

// ours is the comparison by which a transaction holds only in the cluster this host belongs to.
func (c *Client) ours() (clientv3.Cmp, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.meta == "" {
		return clientv3.Cmp{}, ErrNotYet
	}
	return clientv3.Compare(clientv3.Value(c.prefix+metaKey), "=", c.meta), nil
}

// txn does ops if the comparisons hold, in this host's cluster; ok says whether they did. In another cluster it is
// ErrOther.
func (c *Client) txn(ctx context.Context, act string, cmps []clientv3.Cmp, ops []clientv3.Op) (resp *clientv3.TxnResponse, ok bool, err error) {
	ours, err := c.ours()
	if err != nil {
		return nil, false, fmt.Errorf("%s: %w", act, err)
	}
	before := c.Health().Revision
	err = c.call(ctx, act, func(ctx context.Context, conn *clientv3.Client) error {
		resp, err = conn.Txn(ctx).If(append(cmps[:len(cmps):len(cmps)], ours)...).Then(ops...).Else(clientv3.OpGet(c.prefix + metaKey)).Commit()
		return err
	})
	if err != nil {
		return nil, false, err
	}
	if resp.Succeeded {
		c.answered(before, resp.Header.Revision)
		return resp, true, nil
	}
	c.mu.Lock()
	meta := c.meta
	c.mu.Unlock()
	switch kvs := resp.Responses[0].GetResponseRange().Kvs; {
	case len(kvs) == 0:
		return nil, false, fmt.Errorf("%s: %w than this host belongs to: none", act, ErrOther)
	case string(kvs[0].Value) != meta:
		return nil, false, fmt.Errorf("%s: %w than this host belongs to", act, ErrOther)
	}
	c.answered(before, resp.Header.Revision)
	return resp, false, nil
}
