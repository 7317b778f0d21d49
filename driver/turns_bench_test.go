package driver_test

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/nftables"     // the bare calls that the driver is measured against
	"github.com/vishvananda/netlink" // the same
	"go.etcd.io/bbolt"               // the same

	"netyard/integration/turns"
)

// BenchmarkRowAttach measures CreateEndpoint and Join beside the bare netlink calls that make the same links; and
// beside these, one nftables transaction and one commit, which is the least that a driver with a firewall and a
// database can do.
func BenchmarkRowAttach(b *testing.B) {
	b.Run("bridge", func(b *testing.B) {
		e := newBench(b)
		e.bare(func(nl *netlink.Handle, br netlink.Link) {
			e.attachRows(b, "bridge", nl, func(i int) netlink.Link { return bareVeth(b, nl, br, i) })
		})
	})
	b.Run("macvlan", func(b *testing.B) {
		e := newLANBench(b, "macvlan")
		e.bareOn("eth0", func(nl *netlink.Handle, parent netlink.Link) {
			e.attachRows(b, "macvlan", nl, func(i int) netlink.Link { return bareChild(b, nl, parent, "macvlan", i) })
		})
	})
}

// attachRows reports the rows of a mode, whose links link makes.
func (e bench) attachRows(b *testing.B, mode string, nl *netlink.Handle, link func(i int) netlink.Link) {
	b.Helper()
	least := e.newLeast(b)
	n := 0
	var made netlink.Link
	unlink := func() { bareDelete(b, nl, made); n++ }
	r := turns.Take(b, 20,
		turns.Timed("netyard", func() { e.start(n) }, func() { e.stop(n); e.waitIdle(); n++ }),
		turns.Timed("netlink", func() { made = link(n) }, unlink),
		turns.Timed("least", func() { made = link(n); least.do(n) }, unlink),
	)
	row := turns.Row{Table: "attach", What: "`CreateEndpoint` + `Join`, " + mode, Unit: "ms"}
	row.Beside, row.AtMost = "bare netlink, one nftables transaction, one commit", 1.3
	r.Row(b, row, "netyard", "least")
	row.Beside, row.AtMost = "bare netlink", 2.5
	r.Row(b, row, "netyard", "netlink")
}

// A least is the least that an attach needs beside links: an element in a set of nftables, and a record on the disk.
type least struct {
	tb    testing.TB
	nft   *nftables.Conn
	set   *nftables.Set
	db    *bbolt.DB
	value []byte
}

func (e bench) newLeast(b *testing.B) *least {
	b.Helper()
	l := &least{tb: b, value: []byte(strings.Repeat("x", 300))}
	var err error
	if l.nft, err = nftables.New(nftables.WithNetNSFd(e.host.NS()), nftables.AsLasting()); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = l.nft.CloseLasting() })
	table := l.nft.AddTable(&nftables.Table{Name: "bare", Family: nftables.TableFamilyINet})
	l.set = &nftables.Set{Table: table, Name: "addresses", KeyType: nftables.TypeIPAddr}
	l.check(l.nft.AddSet(l.set, nil))
	l.check(l.nft.Flush())
	l.db, err = bbolt.Open(filepath.Join(b.TempDir(), "bare"), 0o600, nil)
	l.check(err)
	b.Cleanup(func() { _ = l.db.Close() })
	return l
}

func (l *least) check(err error) {
	l.tb.Helper()
	if err != nil {
		l.tb.Fatal(err)
	}
}

func (l *least) do(i int) {
	l.tb.Helper()
	key := net.IPv4(10, byte(i>>16), byte(i>>8), byte(i)).To4()
	l.check(l.nft.SetAddElements(l.set, []nftables.SetElement{{Key: key}}))
	l.check(l.nft.Flush())
	l.check(l.db.Update(func(tx *bbolt.Tx) error {
		bucket, err := tx.CreateBucketIfNotExists([]byte("endpoints"))
		if err != nil {
			return err
		}
		return bucket.Put(fmt.Append(nil, i), l.value)
	}))
}
