package etcd

import (
	"context"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// A Lease is a lease of etcd: the records on it are deleted when it ends.
type Lease struct {
	conn *clientv3.Client
	id   clientv3.LeaseID
}

// Grant makes a lease that ends after ttl unless it is renewed.
func (c *Client) Grant(ctx context.Context, ttl time.Duration) (*Lease, error) {
	l := &Lease{}
	err := c.call(ctx, "grant a lease", func(ctx context.Context, conn *clientv3.Client) error {
		granted, err := conn.Grant(ctx, int64(ttl/time.Second))
		if err == nil {
			l.conn, l.id = conn, granted.ID
		}
		return err
	})
	return l, err
}

// Renew renews the lease until ctx ends. The channel is closed when it cannot be renewed any more.
func (l *Lease) Renew(ctx context.Context) (ended <-chan struct{}, err error) {
	renewals, err := l.conn.KeepAlive(ctx, l.id)
	if err != nil {
		return nil, fmt.Errorf("keep lease alive: %w", err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range renewals { // until ctx or the lease ends
		}
	}()
	return done, nil
}

// Revoke ends the lease, if etcd answers within a second; otherwise it expires. It works after ctx has ended, too.
func (l *Lease) Revoke(ctx context.Context) {
	bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_, _ = l.conn.Revoke(bound, l.id)
}
