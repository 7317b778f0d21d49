package etcd

import (
	"context"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// PutOnce writes a value under a key that etcd does not have yet, if create is set. It returns what etcd has under the
// key then, nil for nothing, and whether this call wrote it. Unlike all others it works before Guard.
func (c *Client) PutOnce(ctx context.Context, act, key, value string, create bool) (
	have []byte, created bool, err error,
) {
	key = c.prefix + key
	then := clientv3.OpGet(key)
	if create {
		then = clientv3.OpPut(key, value)
	}
	err = c.call(ctx, act, func(ctx context.Context, conn *clientv3.Client) error {
		isFree := clientv3.Compare(clientv3.CreateRevision(key), "=", 0)
		resp, err := conn.Txn(ctx).If(isFree).Then(then).Else(clientv3.OpGet(key)).Commit()
		switch {
		case err != nil:
			return err
		case !resp.Succeeded:
			have = resp.Responses[0].GetResponseRange().Kvs[0].Value
		case create:
			have, created = []byte(value), true
		}
		return nil
	})
	return have, created, err
}
