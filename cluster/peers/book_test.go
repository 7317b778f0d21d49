package peers

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"netyard/cluster/hosttest"
	"netyard/cluster/record"
)

func addrOf(addr string, host int, mac record.MAC) *record.Address {
	return &record.Address{
		Network: hosttest.ID(9), Addr: netip.MustParseAddr(addr), Host: hosttest.ID(host), Use: record.Endpoint,
		Endpoint: "e" + addr[len(addr)-1:], MAC: mac,
	}
}

func memberOf(host int) *record.Member {
	return &record.Member{Network: hosttest.ID(9), Host: hosttest.ID(host)}
}

const macA, macB record.MAC = "02:42:0a:14:00:0a", "02:42:0a:14:00:0b"

func TestBook(t *testing.T) {
	t.Parallel()
	b := NewBook(hosttest.ID(1), hosttest.Blue())
	peers := func(want ...string) {
		t.Helper()
		var got []string
		for a, p := range b.Peers() {
			got = append(got, fmt.Sprintf("%s %s %s", a, p.MAC, p.VTEP))
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("peers %q, want %q; refused %v", got, want, b.Rejected())
		}
	}
	put := func(rs ...record.Record) {
		var cs []record.Change
		for _, r := range rs {
			cs = append(cs, record.Change{Key: r.Key(), New: r})
		}
		b.Apply(cs)
	}
	gone := func(r record.Record) { b.Apply([]record.Change{{Key: r.Key(), Old: r}}) }

	put(addrOf("10.20.0.10", 2, macA)) // before its host is known
	peers()
	put(hosttest.Host(1), hosttest.Host(2), memberOf(1))
	peers()
	put(memberOf(2), addrOf("fd20::a", 2, macA))
	peers("10.20.0.10 "+string(macA)+" 192.0.2.2", "fd20::a "+string(macA)+" 192.0.2.2")
	if a, b := b.HostOf(macA), b.HostOf(macB); a != hosttest.Host(2).Name || b != "" {
		t.Errorf("the hosts of %s and %s: %q and %q", macA, macB, a, b)
	}

	warm := record.Address{Addr: netip.MustParseAddr("10.20.0.99"), Use: record.Warm}
	warm.Network, warm.Host = hosttest.ID(9), hosttest.ID(2)
	put(&warm, addrOf("10.20.0.11", 1, macB))
	other := addrOf("10.20.0.12", 2, macB)
	other.Network = hosttest.ID(8)
	put(other, &record.Member{Network: hosttest.ID(8), Host: hosttest.ID(3)})
	peers("10.20.0.10 "+string(macA)+" 192.0.2.2", "fd20::a "+string(macA)+" 192.0.2.2")

	// Claims that a broken or hostile host may make.
	put(hosttest.Host(3), memberOf(3), addrOf("10.20.0.30", 3, macA), addrOf("10.20.0.31", 3, macB),
		addrOf("10.20.0.1", 3, "02:00:00:00:00:01"),
		addrOf("10.99.0.1", 3, "02:00:00:00:00:02"), addrOf("10.20.255.255", 3, "02:00:00:00:00:03"))
	peers("10.20.0.10 "+string(macA)+" 192.0.2.2", "fd20::a "+string(macA)+" 192.0.2.2")
	if len(b.Rejected()) != 5 {
		t.Errorf("refused %v", b.Rejected())
	}
	gone(addrOf("10.20.0.10", 2, macA))
	gone(addrOf("fd20::a", 2, macA))
	peers("10.20.0.30 " + string(macA) + " 192.0.2.3") // the only claim to this MAC now
	twin := hosttest.Host(3)
	twin.VTEP = hosttest.Host(1).VTEP
	put(twin)
	peers()
	moved := hosttest.Host(3)
	moved.VTEP = netip.MustParseAddr("192.0.2.33")
	put(moved)
	peers("10.20.0.30 " + string(macA) + " 192.0.2.33")
	if got := fmt.Sprint(b.VTEPs()); got != "[192.0.2.2 192.0.2.33]" {
		t.Errorf("VTEPs %s", got)
	}
	gone(memberOf(3))
	peers()
	if got := fmt.Sprint(b.VTEPs()); got != "[192.0.2.2]" {
		t.Errorf("VTEPs %s", got)
	}
}

// TestBookInAnyOrder: after any changes in any order a Book has the same peers as a new Book of the final records, and
// the reported changes add up to them.
func TestBookInAnyOrder(t *testing.T) {
	t.Parallel()
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 0))
		b, there, told := NewBook(hosttest.ID(1), hosttest.Blue()), map[string]record.Record{}, map[netip.Addr]Peer{}
		for range 60 {
			var cs []record.Change
			for range 1 + rng.IntN(4) {
				r := randomRecord(rng)
				c := record.Change{Key: r.Key(), Old: there[r.Key()], New: r}
				if there[r.Key()] != nil && rng.IntN(3) == 0 {
					c.New = nil
				}
				if delete(there, c.Key); c.New != nil {
					there[c.Key] = c.New
				}
				cs = append(cs, c)
			}
			for _, d := range b.Apply(cs) {
				if d.Old != (Peer{}) {
					if told[d.Old.Addr] != d.Old {
						t.Fatalf("seed %d: %v was removed, but it was reported as %v", seed, d.Old, told[d.Old.Addr])
					}
					delete(told, d.Old.Addr)
				}
				if d.New != (Peer{}) {
					told[d.New.Addr] = d.New
				}
			}
		}
		fresh := NewBook(hosttest.ID(1), hosttest.Blue())
		for _, r := range there {
			fresh.Apply([]record.Change{{Key: r.Key(), New: r}})
		}
		if !maps.Equal(fresh.Peers(), b.Peers()) || !maps.Equal(told, b.Peers()) ||
			!maps.Equal(fresh.Rejected(), b.Rejected()) {
			t.Fatalf("seed %d: peers %v, reported %v, in a new Book %v; refused %v, in a new Book %v",
				seed, b.Peers(), told, fresh.Peers(), b.Rejected(), fresh.Rejected())
		}
	}
}

func randomRecord(rng *rand.Rand) record.Record {
	host := 1 + rng.IntN(4)
	switch rng.IntN(4) {
	case 0:
		h := hosttest.Host(host)
		if rng.IntN(4) == 0 {
			h.VTEP = hosttest.Host(1 + rng.IntN(4)).VTEP
		}
		return h
	case 1:
		return memberOf(host)
	}
	mac := []record.MAC{macA, macB, "02:00:00:00:00:01"}[rng.IntN(3)]
	return addrOf(fmt.Sprintf("10.20.0.%d", 1+rng.IntN(6)), host, mac)
}

func BenchmarkBook(b *testing.B) {
	book := NewBook(hosttest.ID(1), hosttest.Blue())
	book.Apply([]record.Change{{New: hosttest.Host(1)}, {New: hosttest.Host(2)}, {New: memberOf(2)}})
	mac := func(i int) record.MAC { return record.MAC(fmt.Sprintf("02:42:00:00:%02x:%02x", i>>8, i&255)) }
	for i := range 10000 {
		book.Apply([]record.Change{{New: addrOf(fmt.Sprintf("10.20.%d.%d", 1+i/250, 2+i%250), 2, mac(i))}})
	}
	for b.Loop() {
		r := addrOf("10.20.0.200", 2, mac(20000))
		book.Apply([]record.Change{{New: r}})
		book.Apply([]record.Change{{Old: r}})
	}
}
