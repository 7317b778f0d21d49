package cluster

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

func blue() Network {
	return Network{ID: id(9), Name: "blue", VNI: 0x1234, MTU: 1450, Subnets: []Subnet{
		{netip.MustParsePrefix("10.20.0.0/16"), netip.MustParseAddr("10.20.0.1")},
		{netip.MustParsePrefix("fd20::/64"), netip.MustParseAddr("fd20::1")},
	}}
}

func hostOf(n int) *Host {
	return &Host{ID: id(n), Name: fmt.Sprint("h", n), VTEP: netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), MTU: 1500}
}

func addrOf(addr string, host int, mac MAC) *Address {
	return &Address{Network: id(9), Addr: netip.MustParseAddr(addr), Host: id(host), Use: Endpoint, Endpoint: "e" +
		addr[len(addr)-1:], MAC: mac}
}

const macA, macB MAC = "02:42:0a:14:00:0a", "02:42:0a:14:00:0b"

func TestBook(t *testing.T) {
	t.Parallel()
	b := NewBook(id(1), blue())
	peers := func(want ...string) {
		t.Helper()
		var got []string
		for a, p := range b.Peers() {
			got = append(got, fmt.Sprintf("%s %s %s", a, p.MAC, p.VTEP))
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("peers %q, want %q; refused %v", got, want, b.Refused())
		}
	}
	put := func(rs ...Record) {
		var cs []Change
		for _, r := range rs {
			cs = append(cs, Change{Key: r.Key(), New: r})
		}
		b.Apply(cs)
	}
	gone := func(r Record) { b.Apply([]Change{{Key: r.Key(), Old: r}}) }

	put(addrOf("10.20.0.10", 2, macA)) // before its host is known
	peers()
	put(hostOf(1), hostOf(2), &Member{id(9), id(1)})
	peers()
	put(&Member{id(9), id(2)}, addrOf("fd20::a", 2, macA))
	peers("10.20.0.10 "+string(macA)+" 192.0.2.2", "fd20::a "+string(macA)+" 192.0.2.2")

	put(&Address{Network: id(9), Addr: netip.MustParseAddr("10.20.0.99"), Host: id(2), Use: Warm},
		addrOf("10.20.0.11", 1, macB))
	other := addrOf("10.20.0.12", 2, macB)
	other.Network = id(8)
	put(other, &Member{id(8), id(3)})
	peers("10.20.0.10 "+string(macA)+" 192.0.2.2", "fd20::a "+string(macA)+" 192.0.2.2")

	// Claims that a broken or hostile host may make.
	put(hostOf(3), &Member{id(9), id(3)}, addrOf("10.20.0.30", 3, macA), addrOf("10.20.0.31", 3, macB),
		addrOf("10.20.0.1", 3, "02:00:00:00:00:01"),
		addrOf("10.99.0.1", 3, "02:00:00:00:00:02"), addrOf("10.20.255.255", 3, "02:00:00:00:00:03"))
	peers("10.20.0.10 "+string(macA)+" 192.0.2.2", "fd20::a "+string(macA)+" 192.0.2.2")
	if len(b.Refused()) != 5 {
		t.Errorf("refused %v", b.Refused())
	}
	gone(addrOf("10.20.0.10", 2, macA))
	gone(addrOf("fd20::a", 2, macA))
	peers("10.20.0.30 " + string(macA) + " 192.0.2.3") // the only claim to this MAC now
	twin := hostOf(3)
	twin.VTEP = hostOf(1).VTEP
	put(twin)
	peers()
	moved := hostOf(3)
	moved.VTEP = netip.MustParseAddr("192.0.2.33")
	put(moved)
	peers("10.20.0.30 " + string(macA) + " 192.0.2.33")
	if got := fmt.Sprint(b.VTEPs()); got != "[192.0.2.2 192.0.2.33]" {
		t.Errorf("VTEPs %s", got)
	}
	gone(&Member{id(9), id(3)})
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
		b, there, told := NewBook(id(1), blue()), map[string]Record{}, map[netip.Addr]Peer{}
		for range 60 {
			var cs []Change
			for range 1 + rng.IntN(4) {
				r := randomRecord(rng)
				c := Change{Key: r.Key(), Old: there[r.Key()], New: r}
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
		fresh := NewBook(id(1), blue())
		for _, r := range there {
			fresh.Apply([]Change{{Key: r.Key(), New: r}})
		}
		if !maps.Equal(fresh.Peers(), b.Peers()) || !maps.Equal(told, b.Peers()) ||
			!maps.Equal(fresh.Refused(), b.Refused()) {
			t.Fatalf("seed %d: peers %v, reported %v, in a new Book %v; refused %v, in a new Book %v",
				seed, b.Peers(), told, fresh.Peers(), b.Refused(), fresh.Refused())
		}
	}
}

func randomRecord(rng *rand.Rand) Record {
	host := 1 + rng.IntN(4)
	switch rng.IntN(4) {
	case 0:
		h := hostOf(host)
		if rng.IntN(4) == 0 {
			h.VTEP = hostOf(1 + rng.IntN(4)).VTEP
		}
		return h
	case 1:
		return &Member{id(9), id(host)}
	}
	return addrOf(fmt.Sprintf("10.20.0.%d", 1+rng.IntN(6)), host, []MAC{macA, macB, "02:00:00:00:00:01"}[rng.IntN(3)])
}

func BenchmarkBook(b *testing.B) {
	book := NewBook(id(1), blue())
	book.Apply([]Change{{New: hostOf(1)}, {New: hostOf(2)}, {New: &Member{id(9), id(2)}}})
	mac := func(i int) MAC { return MAC(fmt.Sprintf("02:42:00:00:%02x:%02x", i>>8, i&255)) }
	for i := range 10000 {
		book.Apply([]Change{{New: addrOf(fmt.Sprintf("10.20.%d.%d", 1+i/250, 2+i%250), 2, mac(i))}})
	}
	for b.Loop() {
		r := addrOf("10.20.0.200", 2, mac(20000))
		book.Apply([]Change{{New: r}})
		book.Apply([]Change{{Old: r}})
	}
}
