// Package hosttest makes hosts of a cluster, and their records, for tests.
package hosttest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"netyard/cluster"
	"netyard/cluster/clustertest"
	"netyard/cluster/etcd"
	"netyard/cluster/record"
)

// ID returns an ID made of a number.
func ID(n int) string { return fmt.Sprintf("%032x", n) }

// Host returns the record of host n.
func Host(n int) *record.Host {
	return &record.Host{
		ID: ID(n), Name: fmt.Sprint("h", n), VTEP: netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), MTU: 1500,
	}
}

// Blue returns a network of both families.
func Blue() record.Network {
	return record.Network{ID: ID(9), Name: "blue", VNI: 0x1234, MTU: 1450, Subnets: []record.Subnet{
		{Pool: netip.MustParsePrefix("10.20.0.0/16"), Gateway: netip.MustParseAddr("10.20.0.1")},
		{Pool: netip.MustParsePrefix("fd20::/64"), Gateway: netip.MustParseAddr("fd20::1")},
	}}
}

// Client opens a Client of an etcd without TLS.
func Client(t testing.TB, e *clustertest.Etcd) *cluster.Client {
	t.Helper()
	c, err := cluster.Open(etcd.Config{Endpoints: []string{e.URL}, Insecure: true})
	must(t, err)
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// Enter has a Client enter the cluster.
func Enter(t testing.TB, c *cluster.Client) {
	t.Helper()
	must(t, Retry(func() error { _, err := c.Enter(t.Context(), record.Meta{Port: 4789}); return err }))
}

// Member opens a Client that has entered the cluster and joined it as host n.
func Member(t testing.TB, e *clustertest.Etcd, n int) *cluster.Client {
	t.Helper()
	c := Client(t, e)
	Enter(t, c)
	must(t, Retry(func() error { return c.Join(t.Context(), *Host(n)) }))
	return c
}

// Retry repeats a call that a busy etcd may not answer in time.
func Retry(f func() error) (err error) {
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if err = f(); !errors.Is(err, etcd.ErrUnreachable) || time.Now().After(end) {
			return err
		}
	}
}

// JoinBlue creates the network of Blue, unless it exists, and has host n join it.
func JoinBlue(t testing.TB, c *cluster.Client, n int) (record.Network, record.Member) {
	t.Helper()
	var net record.Network
	must(t, Retry(func() (err error) {
		net, err = c.CreateNetwork(t.Context(), record.Network{Name: "blue", MTU: 1450, Subnets: Blue().Subnets})
		return err
	}))
	m := record.Member{Network: net.ID, Host: ID(n)}
	must(t, Retry(func() error { return c.JoinNetwork(t.Context(), m) }))
	return net, m
}

// Claim claims n addresses of the network of Blue, from 10.20.1.2 + from on.
func Claim(t testing.TB, c *cluster.Client, m record.Member, from, n int) {
	t.Helper()
	var some []record.Address
	for i := from; i < from+n; i++ {
		addr := netip.AddrFrom4([4]byte{10, 20, byte(1 + i/250), byte(2 + i%250)})
		some = append(some, record.Address{Addr: addr, Use: record.Warm})
	}
	for part := range slices.Chunk(some, cluster.MaxClaims) {
		must(t, Retry(func() error { return c.ClaimAddresses(t.Context(), m, part...) }))
	}
}

// Follow runs a mirror until the test ends or stop is called.
func Follow(t testing.TB, m interface {
	Run(ctx context.Context) error
},
) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = m.Run(ctx)
	}()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return stop
}

// Raw connects to an etcd directly, to do what no Client would.
func Raw(t testing.TB, url string) *clientv3.Client {
	t.Helper()
	conn, err := clientv3.New(clientv3.Config{Endpoints: []string{url}, DialTimeout: time.Minute})
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// Put writes a value under a key of the cluster that no Client would.
func Put(t testing.TB, e *clustertest.Etcd, key, value string) {
	t.Helper()
	_, err := Raw(t, e.URL).Put(t.Context(), etcd.DefaultPrefix+"/"+key, value)
	must(t, err)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
