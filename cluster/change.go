package cluster

import (
	"context"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// maxOps is how many keys a transaction reads or writes; etcd accepts 128 by default (--max-txn-ops).
	maxOps = 100
	// maxAttempts is how often a change is tried when other writers were faster. Each failed attempt means that another
	// writer succeeded, so it need not be large.
	maxAttempts = 10
)

// An entry is what etcd has under a key.
type entry struct {
	// Record is nil when there is nothing, and when it cannot be decoded.
	Record
	there bool
	rev   int64
}

// A decision is what to write, given the entries that were read.
type decision struct {
	put    []Record
	delete []string
	// deleteAll lists prefixes whose keys are all deleted.
	deleteAll []string
	// empty lists prefixes below which there must be no key.
	empty []string
	// lease is the lease of the records in put; 0: none.
	lease clientv3.LeaseID
}

// change reads keys, calls decide, and writes its decision if the keys are unchanged; otherwise it starts again. It
// fails with ErrInUse if a prefix that must be empty is not.
func (c *Client) change(
	ctx context.Context, act string, keys []string, decide func(map[string]entry) (decision, error),
) error {
	for range maxAttempts {
		found, err := c.read(ctx, act, keys)
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
		for _, p := range d.empty { // trying again would not help
			if some, err := c.List(ctx, p); err != nil {
				return err
			} else if len(some) > 0 {
				return fmt.Errorf("%s: %s %w", act, p, ErrInUse)
			}
		}
	}
	return fmt.Errorf("%s: gave up after %d conflicting changes; try again", act, maxAttempts)
}

// compile turns a decision into a transaction.
func (c *Client) compile(keys []string, found map[string]entry, d decision) (
	cmps []clientv3.Cmp, ops []clientv3.Op, err error,
) {
	for _, k := range keys {
		cmps = append(cmps, clientv3.Compare(clientv3.ModRevision(c.prefix+k), "=", found[k].rev))
	}
	for _, p := range d.empty {
		cmps = append(cmps, clientv3.Compare(clientv3.CreateRevision(c.prefix+p), "=", 0).WithPrefix())
	}
	for _, r := range d.put {
		value, err := Encode(r)
		if err != nil {
			return nil, nil, err
		}
		var opts []clientv3.OpOption
		if d.lease != 0 {
			opts = append(opts, clientv3.WithLease(d.lease))
		}
		ops = append(ops, clientv3.OpPut(c.prefix+r.Key(), value, opts...))
	}
	for _, k := range d.delete {
		ops = append(ops, clientv3.OpDelete(c.prefix+k))
	}
	for _, p := range d.deleteAll {
		ops = append(ops, clientv3.OpDelete(c.prefix+p, clientv3.WithPrefix()))
	}
	return cmps, ops, nil
}

// read returns the entries of keys, all at one revision.
func (c *Client) read(ctx context.Context, act string, keys []string) (map[string]entry, error) {
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
	found := map[string]entry{}
	for i, k := range keys {
		for _, kv := range resp.Responses[i].GetResponseRange().Kvs {
			r, _ := Decode(k, kv.Value) // an undecodable value still occupies the key
			found[k] = entry{Record: r, there: true, rev: kv.ModRevision}
		}
	}
	return found, nil
}

// List returns the records whose keys begin with prefix, without those that cannot be decoded.
func (c *Client) List(ctx context.Context, prefix string) (all []Record, err error) {
	_, err = c.scan(ctx, prefix, func(key string, value []byte) {
		if r, err := Decode(key, value); err == nil {
			all = append(all, r)
		}
	})
	return all, err
}

// page is how many keys scan asks for at once.
const page = 5000

// scan calls f with every key that begins with prefix, all at one revision, and returns that revision.
func (c *Client) scan(ctx context.Context, prefix string, f func(key string, value []byte)) (
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
