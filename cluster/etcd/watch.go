package etcd

import (
	"context"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// An Event is the change of one key, without the prefix of the cluster.
type Event struct {
	Key string
	// Value is the new value; nil when the key was deleted.
	Value []byte
}

// A Batch is what a watch reports at once: events, or why it cannot go on.
type Batch struct {
	Events   []Event
	Revision int64
	// Compacted says that etcd does not keep the history any more that was asked for.
	Compacted bool
	Err       error
}

// Watch reports the changes of the keys that begin with prefix, from a revision on, until ctx ends. The channel is
// closed when the connection is.
func (c *Client) Watch(ctx context.Context, prefix string, from int64) (<-chan Batch, error) {
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	responses := conn.Watch(clientv3.WithRequireLeader(ctx), c.prefix+prefix, clientv3.WithPrefix(),
		clientv3.WithRev(from))
	batches := make(chan Batch)
	go func() {
		defer close(batches)
		for resp := range responses {
			select {
			case batches <- c.batch(prefix, resp):
			case <-ctx.Done():
			}
		}
	}()
	return batches, nil
}

// batch converts a response of a watch.
func (c *Client) batch(prefix string, resp clientv3.WatchResponse) Batch {
	b := Batch{Revision: resp.Header.Revision, Compacted: resp.CompactRevision != 0}
	if err := resp.Err(); err != nil && !b.Compacted {
		b.Err = fmt.Errorf("watch %s: %w", prefix, err)
	}
	for _, ev := range resp.Events {
		e := Event{Key: string(ev.Kv.Key[len(c.prefix):])}
		if ev.Type == clientv3.EventTypePut {
			e.Value = ev.Kv.Value
			if e.Value == nil {
				e.Value = []byte{} // nil says that the key was deleted
			}
		}
		b.Events = append(b.Events, e)
	}
	return b
}
