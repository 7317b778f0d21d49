package cluster

import (
	"context"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// maxOps is how many keys a transaction reads or writes; etcd takes 128 unless told otherwise (--max-txn-ops).
	maxOps = 100
	// races is how often a change is decided anew because somebody was faster. It ends: each time somebody got on.
	races = 10
)

// A held is what is under a key.
type held struct {
	// Record is nil when nothing is there, and when it cannot be read.
	Record
	there bool
	rev   int64
}

// A decision is what is written, by what was there.
type decision struct {
	put    []Record
	delete []string
	// deleteAll are the prefixes of keys that go.
	deleteAll []string
	// empty are prefixes that must have no key.
	empty []string
	// lease is what the records put are on; 0: none.
	lease clientv3.LeaseID
}

// change reads keys, has a decision made, and writes it if the keys are still as they were; if not, it starts again.
// inUse is the error if a prefix that must be empty is not.
func (c *Client) change(ctx context.Context, act string, keys []string, decide func(map[string]held) (decision, error)) error {
	for range races {
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
			c.written(time.Since(start))
		}
		if err != nil || ok {
			return err
		}
		for _, p := range d.empty { // it may be this, and that does not pass by itself
			if some, err := c.List(ctx, p); err != nil {
				return err
			} else if len(some) > 0 {
				return fmt.Errorf("%s: %s %w", act, p, ErrInUse)
			}
		}
	}
	return fmt.Errorf("%s: others changed it %d times in a row", act, races)
}

// compile turns a decision into a transaction.
func (c *Client) compile(keys []string, found map[string]held, d decision) (cmps []clientv3.Cmp, ops []clientv3.Op, err error) {
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

// read is what is under some keys, at one moment.
func (c *Client) read(ctx context.Context, act string, keys []string) (map[string]held, error) {
	var gets []clientv3.Op
	for _, k := range keys {
		gets = append(gets, clientv3.OpGet(c.prefix+k))
	}
	resp, ok, err := c.txn(ctx, act, nil, gets)
	if err != nil {
		return nil, err
	}
	if !ok { // with no comparison but the one of the cluster, which says so itself
		return nil, fmt.Errorf("%s: %w", act, ErrOther)
	}
	found := map[string]held{}
	for i, k := range keys {
		for _, kv := range resp.Responses[i].GetResponseRange().Kvs {
			r, _ := Decode(k, kv.Value) // what cannot be read is there all the same
			found[k] = held{Record: r, there: true, rev: kv.ModRevision}
		}
	}
	return found, nil
}

// List is the records whose keys begin with a prefix, without those that cannot be read.
func (c *Client) List(ctx context.Context, prefix string) (all []Record, err error) {
	_, err = c.scan(ctx, prefix, func(key string, value []byte) {
		if r, err := Decode(key, value); err == nil {
			all = append(all, r)
		}
	})
	return all, err
}

// page is how many keys one answer of a scan has.
const page = 5000

// scan calls f with every key that begins with a prefix, all as they were at one revision.
func (c *Client) scan(ctx context.Context, prefix string, f func(key string, value []byte)) (revision int64, err error) {
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
