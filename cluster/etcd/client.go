package etcd

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

	"netyard/wake"
)

var (
	// ErrUnreachable says that etcd did not answer in time.
	ErrUnreachable = errors.New("etcd is unreachable")
	// ErrInUse says that there are keys below a prefix that must be empty.
	ErrInUse = errors.New("is in use")
	// ErrOther says that etcd holds another cluster than the one this host belongs to, or no longer holds any.
	ErrOther = errors.New("etcd does not hold this host's cluster")
	// ErrNotYet says that this process has not entered its cluster yet.
	ErrNotYet = errors.New("etcd was not contacted yet")
	// ErrFull says that etcd's database has reached its quota, so that etcd refuses all writes.
	ErrFull = errors.New("etcd is full and refuses all writes; compact and defragment it, or raise its " +
		"--quota-backend-bytes, and then run etcdctl alarm disarm")
)

const (
	// CompareEvery is how often mirrors read everything again: etcd before 3.4.36 and 3.5.18 may lose watch events.
	CompareEvery = 5 * time.Minute
	// RetryEvery is the pause before etcd is asked again after it did not answer, on top of the connection's own.
	RetryEvery = time.Second

	// callTime bounds one call to etcd. An engine's request makes a few of them and has 9 s.
	callTime = 3 * time.Second

	// These bound the pauses between connection attempts: with gRPC's own, of up to two minutes, a watch needed 40 s to
	// recover from an outage of 150 s.
	firstPause, longestPause = 200 * time.Millisecond, 2 * time.Second
	// A silent connection is probed; otherwise one through a dead router would be trusted until TCP gives up.
	pingEvery, pingTime = 5 * time.Second, 3 * time.Second
)

// A Client talks to etcd. It connects at the first call.
type Client struct {
	c      Config
	prefix string // ends with a slash

	dialing sync.Mutex
	conn    *clientv3.Client

	mu sync.Mutex
	// guard is the value that etcd must have under guardKey; empty until Guard.
	guardKey, guard string
	// down is since when etcd has not answered, and reason why; zero while it does.
	down   time.Time
	reason error
	// dialErr is the error of the last connection attempt, which gRPC does not report.
	dialErr error
	// revision is the last revision that etcd reported.
	revision int64
	// connected says that a connection has been made before.
	connected bool
	// rechecks are signalled when etcd may have been restored from a backup.
	rechecks []wake.Signal
	// writeTimes is a ring of how long the last writes took.
	writeTimes [keptWrites]time.Duration
	writeCount int
}

// keptWrites is how many of the last writes Health considers.
const keptWrites = 100

// Open checks a configuration and the files it names, and makes a Client of it.
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

// Close closes the connection.
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

// dial returns the connection, and opens it if there is none; gRPC connects in the background. With a user it asks
// etcd for a token, so it fails while etcd is away.
func (c *Client) dial(ctx context.Context) (*clientv3.Client, error) {
	c.dialing.Lock()
	defer c.dialing.Unlock()
	if c.conn != nil {
		return c.conn, nil
	}
	tls, err := c.c.tls(c.noteDialError)
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
		Logger: zap.NewNop(), // every failure is also the error of a call
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{
				BaseDelay: firstPause, Multiplier: 1.6, Jitter: 0.2, MaxDelay: longestPause,
			},
			MinConnectTimeout: callTime,
		}), grpc.WithContextDialer(c.connect)},
	})
	if err != nil {
		c.conn = nil
	}
	return c.conn, err
}

// disconnect closes a connection that may hold a token from before etcd was restarted: etcd 3.4 issues no other while
// the client sends that one, and the client retries forever. The next call connects again, and mirrors that watched
// over this connection read everything again.
func (c *Client) disconnect(conn *clientv3.Client) {
	c.dialing.Lock()
	defer c.dialing.Unlock()
	if c.conn == conn {
		c.conn = nil
		_ = conn.Close() // it is useless in any case
	}
}

// connect dials a member of etcd for gRPC and records why that failed, since gRPC only reports a timeout. After every
// connection but the first it has the mirrors compared: etcd may have been restored from a backup, which its revision
// does not show once other hosts have written to it.
func (c *Client) connect(ctx context.Context, addr string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		c.noteDialError(err)
		return nil, err
	}
	c.mu.Lock()
	again := c.connected
	c.connected = true
	c.mu.Unlock()
	if again {
		c.Recheck()
	}
	return conn, nil
}

// Rechecks returns a channel that receives when etcd may have been restored from a backup, so that everything must be
// read again, until stop is called.
func (c *Client) Rechecks() (when <-chan struct{}, stop func()) {
	ch := wake.New()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rechecks = append(c.rechecks, ch)
	return ch, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.rechecks = slices.DeleteFunc(c.rechecks, func(other wake.Signal) bool { return other == ch })
	}
}

// Recheck makes all mirrors read everything again.
func (c *Client) Recheck() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, ch := range c.rechecks {
		ch.Send()
	}
}

// noteDialError records why a connection failed.
func (c *Client) noteDialError(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dialErr = err
}

// Health is what a Client knows of etcd.
type Health struct {
	// Down is since when etcd has not answered; zero while it does.
	Down time.Time
	// Reason is why it does not answer, in one line; empty while it does.
	Reason string
	// Revision is the last revision of etcd that was seen.
	Revision int64
	// Median and Worst are the 50th and 99th percentile of how long the last writes took; zero: there were none.
	Median, Worst time.Duration
}

// Health returns whether etcd answered the last call, and how fast it writes.
func (c *Client) Health() Health {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := Health{Down: c.down, Revision: c.revision}
	if times := slices.Clone(c.writeTimes[:min(c.writeCount, keptWrites)]); len(times) > 0 {
		slices.Sort(times)
		h.Median, h.Worst = times[len(times)/2], times[len(times)*99/100]
	}
	if c.reason != nil {
		h.Reason = c.reason.Error()
	}
	return h
}

// noteWrite records how long a write took.
func (c *Client) noteWrite(took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writeTimes[c.writeCount%keptWrites] = took
	c.writeCount++
}

// call makes one call to etcd, in bounded time, and records whether etcd answered.
func (c *Client) call(ctx context.Context, act string, f func(context.Context, *clientv3.Client) error) error {
	bound, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	conn, err := c.dial(bound)
	if err == nil {
		if err = f(bound, conn); err != nil && isNoAnswer(err) && c.c.User != "" {
			c.disconnect(conn)
		}
	}
	if ctx.Err() != nil && err != nil { // the caller's deadline passed, which says nothing about etcd
		return fmt.Errorf("%s: %w", act, ctx.Err())
	}
	return c.noteResult(act, err)
}

// noteResult records whether etcd answered a call, and returns the call's error with its context.
func (c *Client) noteResult(act string, err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil || !isNoAnswer(err) {
		c.down, c.reason, c.dialErr = time.Time{}, nil, nil
		if errors.Is(err, rpctypes.ErrNoSpace) {
			err = fmt.Errorf("%w: %w", ErrFull, err)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", act, err)
		}
		return nil
	}
	if c.down.IsZero() {
		c.down = time.Now()
	}
	if c.dialErr != nil {
		err = c.dialErr
	}
	c.reason = err
	return fmt.Errorf("%s: %w since %s: %w", act, ErrUnreachable, c.down.Format(time.RFC3339), err)
}

// isNoAnswer says whether an error means that etcd did not answer, rather than that it refused.
func isNoAnswer(err error) bool {
	if errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	code := status.Code(err)
	var etcdErr rpctypes.EtcdError
	if errors.As(err, &etcdErr) {
		code = etcdErr.Code()
	}
	return code == codes.Unavailable || code == codes.DeadlineExceeded
}

// noteRevision records the revision of an answer. before is the revision that was known when the call was made: a lower
// one means that etcd was restored from a backup.
func (c *Client) noteRevision(before, revision int64) {
	c.mu.Lock()
	back := revision < before
	if back || revision > c.revision {
		c.revision = revision
	}
	c.mu.Unlock()
	if back {
		c.Recheck()
	}
}

// guardCmp returns the comparison that makes a transaction fail in any cluster but this host's, see Guard.
func (c *Client) guardCmp() (clientv3.Cmp, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.guard == "" {
		return clientv3.Cmp{}, ErrNotYet
	}
	return clientv3.Compare(clientv3.Value(c.prefix+c.guardKey), "=", c.guard), nil
}

// Guard makes all further transactions fail with ErrOther unless etcd has this value under this key. Before, they fail
// with ErrNotYet.
func (c *Client) Guard(key, value string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.guardKey, c.guard = key, value
}

// txn performs ops in this host's cluster if the comparisons hold; ok says whether they did. In another cluster it
// fails with ErrOther.
func (c *Client) txn(ctx context.Context, act string, cmps []clientv3.Cmp, ops []clientv3.Op) (
	resp *clientv3.TxnResponse, ok bool, err error,
) {
	guard, err := c.guardCmp()
	if err != nil {
		return nil, false, fmt.Errorf("%s: %w", act, err)
	}
	c.mu.Lock()
	before, key, value := c.revision, c.guardKey, c.guard
	c.mu.Unlock()
	err = c.call(ctx, act, func(ctx context.Context, conn *clientv3.Client) error {
		resp, err = conn.Txn(ctx).If(append(cmps[:len(cmps):len(cmps)], guard)...).
			Then(ops...).Else(clientv3.OpGet(c.prefix + key)).Commit()
		return err
	})
	if err != nil {
		return nil, false, err
	}
	if resp.Succeeded {
		c.noteRevision(before, resp.Header.Revision)
		return resp, true, nil
	}
	switch kvs := resp.Responses[0].GetResponseRange().Kvs; {
	case len(kvs) == 0:
		return nil, false, fmt.Errorf("%s: %w: it holds none", act, ErrOther)
	case string(kvs[0].Value) != value:
		return nil, false, fmt.Errorf("%s: %w: it holds another one", act, ErrOther)
	}
	c.noteRevision(before, resp.Header.Revision)
	return resp, false, nil
}
