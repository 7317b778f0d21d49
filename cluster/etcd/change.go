// Package etcd is the connection to etcd: its configuration, calls in bounded time, transactions of records, and its
// health. It knows keys and records, and not what they are used for.
package etcd

import (
	"context"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"netyard/cluster/record"
)

const (
	// MaxOps is how many keys a transaction reads or writes; etcd accepts 128 by default (--max-txn-ops).
	MaxOps = 100
	// MaxAttempts is how often a change is tried when other writers were faster. Each failed attempt means that another
	// writer succeeded, so it need not be large.
	MaxAttempts = 10
)

// An Entry is what etcd has under a key.
type Entry struct {
	// Record is nil when there is nothing, and when it cannot be decoded.
	record.Record
	There bool
	rev   int64
}

// Found are the entries of keys that were read.
type Found map[string]Entry

// A Decision is what to write, given the entries that were read.
type Decision struct {
	Put    []record.Record
	Delete []string
	// DeleteAll lists prefixes whose keys are all deleted.
	DeleteAll []string
	// Empty lists prefixes below which there must be no key.
	Empty []string
	// Lease is the lease of the records in Put; nil: none.
	Lease *Lease
}

// Change reads keys, calls decide, and writes its decision if the keys are unchanged; otherwise it starts again. It
// fails with ErrInUse if a prefix that must be empty is not.
func (c *Client) Change(
	ctx context.Context, act string, keys []string, decide func(Found) (Decision, error),
) error {
	for range MaxAttempts {
		found, err := c.Read(ctx, act, keys)
		if err != nil {
			return err
		}
		d, err := decide(found)
		if err != nil {
			return fmt.Errorf("%s: %w", act, err)
		}
		cmps, ops, err := c.compile(keys, found, d)
		if err != nil {
			return fmt.Errorf("%s: %w", act, err)
		}
		if len(ops) == 0 {
			return nil
		}
		start := time.Now()
		_, ok, err := c.txn(ctx, act, cmps, ops)
		if err == nil {
			c.noteWrite(time.Since(start))
		}
		if err != nil || ok {
			return err
		}
		for _, p := range d.Empty { // trying again would not help
			if some, err := c.List(ctx, p); err != nil {
				return err
			} else if len(some) > 0 {
				return fmt.Errorf("%s: %s %w", act, p, ErrInUse)
			}
		}
	}
	return fmt.Errorf("%s: gave up after %d conflicting changes; try again", act, MaxAttempts)
}

// compile turns a decision into a transaction.
func (c *Client) compile(keys []string, found Found, d Decision) (
	cmps []clientv3.Cmp, ops []clientv3.Op, err error,
) {
	for _, k := range keys {
		cmps = append(cmps, clientv3.Compare(clientv3.ModRevision(c.prefix+k), "=", found[k].rev))
	}
	for _, p := range d.Empty {
		cmps = append(cmps, clientv3.Compare(clientv3.CreateRevision(c.prefix+p), "=", 0).WithPrefix())
	}
	for _, r := range d.Put {
		value, err := record.Encode(r)
		if err != nil {
			return nil, nil, err
		}
		var opts []clientv3.OpOption
		if d.Lease != nil {
			opts = append(opts, clientv3.WithLease(d.Lease.id))
		}
		ops = append(ops, clientv3.OpPut(c.prefix+r.Key(), value, opts...))
	}
	for _, k := range d.Delete {
		ops = append(ops, clientv3.OpDelete(c.prefix+k))
	}
	for _, p := range d.DeleteAll {
		ops = append(ops, clientv3.OpDelete(c.prefix+p, clientv3.WithPrefix()))
	}
	return cmps, ops, nil
}

// Read returns the entries of keys, all at one revision.
func (c *Client) Read(ctx context.Context, act string, keys []string) (Found, error) {
	var gets []clientv3.Op
	for _, k := range keys {
		gets = append(gets, clientv3.OpGet(c.prefix+k))
	}
	resp, ok, err := c.txn(ctx, act, nil, gets)
	if err != nil {
		return nil, err
	}
	if !ok { // cannot be: the only comparison is that of the cluster, which txn reports itself
		return nil, fmt.Errorf("%s: %w", act, ErrOther)
	}
	found := Found{}
	for i, k := range keys {
		for _, kv := range resp.Responses[i].GetResponseRange().Kvs {
			r, _ := record.Decode(k, kv.Value) // an undecodable value still occupies the key
			found[k] = Entry{Record: r, There: true, rev: kv.ModRevision}
		}
	}
	return found, nil
}

// List returns the records whose keys begin with prefix, without those that cannot be decoded.
func (c *Client) List(ctx context.Context, prefix string) (all []record.Record, err error) {
	_, err = c.Scan(ctx, prefix, func(key string, value []byte) {
		if r, err := record.Decode(key, value); err == nil {
			all = append(all, r)
		}
	})
	return all, err
}

// page is how many keys scan asks for at once.
const page = 5000

// Scan calls f with every key that begins with prefix, all at one revision, and returns that revision.
func (c *Client) Scan(ctx context.Context, prefix string, f func(key string, value []byte)) (
	revision int64, err error,
) {
	from, end := c.prefix+prefix, clientv3.GetPrefixRangeEnd(c.prefix+prefix)
	for {
		opts := []clientv3.OpOption{clientv3.WithRange(end), clientv3.WithLimit(page)}
		if revision > 0 {
			opts = append(opts, clientv3.WithRev(revision))
		}
		resp, ok, err := c.txn(ctx, "list "+prefix, nil, []clientv3.Op{clientv3.OpGet(from, opts...)})
		if err != nil {
			return 0, err
		}
		if !ok {
			return 0, fmt.Errorf("list %s: %w", prefix, ErrOther)
		}
		if revision == 0 {
			revision = resp.Header.Revision
		}
		got := resp.Responses[0].GetResponseRange()
		for _, kv := range got.Kvs {
			f(string(kv.Key[len(c.prefix):]), kv.Value)
		}
		if !got.More {
			return revision, nil
		}
		from = string(got.Kvs[len(got.Kvs)-1].Key) + "\x00"
	}
}
