package rule

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// portSet is a set of (address, protocol, port), portRange one of intervals of these, and links one of link names.
func testSets() []Set {
	key := nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService)
	return []Set{
		{Name: "ports", Type: key, Concat: true, Data: nftables.TypeIPAddr},
		{Name: "ranges", Type: key, Concat: true, Interval: true},
		{Name: "nets", Type: nftables.TypeIPAddr, Interval: true},
		{Name: "links", Type: nftables.TypeIFName, Bridge: true},
		{Name: "vnis", Type: nftables.TypeMark},
		{Name: "cards", Type: nftables.TypeEtherAddr},
	}
}

// TestShow: keys of elements are printed as nft prints them.
func TestShow(t *testing.T) {
	t.Parallel()
	web := "\x0a\x09\x00\x02" + PortKey("tcp", 80)
	for _, c := range []struct {
		set            SetName
		key, end, want string
	}{
		{"ports", web, "", "10.9.0.2 . tcp . 80"},
		{"ports", "\x0a\x09\x00\x02\x2f\x00\x00\x00" + PaddedPort(7), "", "10.9.0.2 . 47 . 7"},
		{"ranges", web, "\x0a\x09\x00\x02" + PortKey("tcp", 90), "10.9.0.2 . tcp . 80-90"},
		{"ranges", web, web, "10.9.0.2 . tcp . 80"},
		{"ranges", web, "\x0a\x09\x00\xff" + PortKey("tcp", 80), "10.9.0.2-10.9.0.255 . tcp . 80"},
		{"nets", "\x0a\x09\x00\x00", "\x0a\x0a\x00\x00", "10.9.0.0"},
		{"links", IfName("nyb-0123"), "", "nyb-0123"},
		{"cards", "\x02\x42\x0a\x09\x00\x02", "", "02:42:0a:09:00:02"},
		{"unknown", "\x01\xff", "", "01ff"},
		{"ports", web[:4], "", "10.9.0.2"},
	} {
		if got := Show(testSets(), c.set, c.key, c.end); got != c.want {
			t.Errorf("%s %x-%x: got %q, want %q", c.set, c.key, c.end, got, c.want)
		}
	}
}

// TestLast: the last address of a subnet, and of a family.
func TestLast(t *testing.T) {
	t.Parallel()
	for subnet, want := range map[string]string{
		"10.9.0.0/16": "10.9.255.255", "10.9.0.77/28": "10.9.0.79", "10.9.0.1/32": "10.9.0.1",
		"0.0.0.0/0": "255.255.255.255", "fd00::/64": "fd00::ffff:ffff:ffff:ffff", "fd00::8/125": "fd00::f",
	} {
		if got := LastIn(netip.MustParsePrefix(subnet)); got.String() != want {
			t.Errorf("last of %s: got %s, want %s", subnet, got, want)
		}
	}
	for addr, want := range map[string]string{
		"10.9.0.1": "255.255.255.255", "fd00::1": "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
	} {
		if got := LastOf(netip.MustParseAddr(addr)); got.String() != want {
			t.Errorf("last of the family of %s: got %s, want %s", addr, got, want)
		}
	}
}

// TestProtocols: a protocol with ports has a number, and back; others have only the number.
func TestProtocols(t *testing.T) {
	t.Parallel()
	for name, number := range map[string]byte{"tcp": 6, "udp": 17, "sctp": 132} {
		if ProtoNumber(name) != number || ProtoName(number) != name {
			t.Errorf("%s is %d, and %d is %s", name, ProtoNumber(name), number, ProtoName(number))
		}
	}
	if ProtoNumber("icmp") != 0 || ProtoName(1) != "1" {
		t.Errorf("icmp is %d, and 1 is %s", ProtoNumber("icmp"), ProtoName(1))
	}
	if key := PortKey("udp", 0x1234); key != "\x11\x00\x00\x00\x12\x34\x00\x00" || PortOf(key[4:6]) != 0x1234 {
		t.Errorf("a port's key is %x", key)
	}
}

// TestLoopbackAlias: the address that replaces ::1 has its sum, so that no checksum changes; an IPv4 one keeps three
// octets, and the families' prefixes end at octets, as match needs.
func TestLoopbackAlias(t *testing.T) {
	t.Parallel()
	sum := func(a netip.Addr) (sum uint32) {
		b := a.As16()
		for i := 0; i < len(b); i += 2 {
			sum += uint32(b[i])<<8 | uint32(b[i+1])
		}
		for sum > 0xffff {
			sum = sum>>16 + sum&0xffff
		}
		return sum
	}
	if got, want := sum(LoopbackAlias6()), sum(netip.IPv6Loopback()); got != want {
		t.Errorf("%s sums up to %#x, want %#x", LoopbackAlias6(), got, want)
	}
	for _, f := range Families() {
		for _, p := range []netip.Prefix{f.Loopback, f.Away} {
			if p.Bits()%8 != 0 || p.Addr().BitLen() != int(f.Size)*8 {
				t.Errorf("%s of a family with addresses of %d octets", p, f.Size)
			}
		}
		if octets := f.Away.Addr().AsSlice()[:len(f.Leave)]; !slices.Equal(octets, f.Leave) {
			t.Errorf("rewritten to %x, want the beginning of %s", f.Leave, f.Away)
		}
		if octets := f.Loopback.Addr().AsSlice()[:len(f.Enter)]; !slices.Equal(octets, f.Enter) {
			t.Errorf("turned back to %x, want the beginning of %s", f.Enter, f.Loopback)
		}
	}
}

// TestRegisters: what is loaded for a key lies side by side as the set has it: each field begins where the former ends,
// in whole registers of 32 bits.
func TestRegisters(t *testing.T) {
	t.Parallel()
	book := NewSetBook(testSets())
	for name, c := range map[string]struct {
		exprs []expr.Any
		sizes []uint32 // of the fields, in octets
	}{
		"flow":          {IPv4().Flow(12, 16, true), []uint32{4, 4, 2, 2}},
		"flow, IPv6":    {IPv6().Flow(8, 24, false), []uint32{16, 16, 2, 2}},
		"from, to":      {book.FromTo(IPv4()), []uint32{4, 1, 2}},
		"from, to IPv6": {book.FromTo(IPv6()), []uint32{16, 1, 2}},
		"port of":       {book.DPortOf("ports", IPv4()), []uint32{4, 1, 2}},
		"port of IPv6":  {book.DPortOf("ports", IPv6()), []uint32{16, 1, 2}},
		"port":          {book.DPort("ports"), []uint32{1, 2}},
		"source port":   {book.SPort("ports"), []uint32{1, 2}},
		"two links":     {book.IfPair("links", false), []uint32{16, 16}},
		"link, address": {book.IIFSAddr("links", IPv4(), false), []uint32{16, 4}},
	} {
		loads := loads(c.exprs)
		at := 0
		for i, size := range c.sizes {
			if i >= len(loads) || octet(loads[i]) != at {
				t.Errorf("%s: field %d is loaded into register %v, want octet %d", name, i, loads, at)
				break
			}
			at += (int(size) + 3) / 4 * 4
		}
	}
}

// loads returns the registers that expressions load, from the last one that is loaded as the first of a key.
func loads(es []expr.Any) (all []uint32) {
	for _, e := range es {
		register := uint32(0)
		switch e := e.(type) {
		case *expr.Payload:
			register = e.DestRegister
		case *expr.Meta:
			register = e.Register
		}
		if register == 0 {
			continue
		}
		if register == Reg1 { // before it, the family was compared
			all = nil
		}
		all = append(all, register)
	}
	return all
}

// octet returns where a register begins (linux/netfilter/nf_tables.h): four of 16 octets, or sixteen of 4 over these.
func octet(register uint32) int {
	if register >= unix.NFT_REG32_00 {
		return int(register-unix.NFT_REG32_00) * 4
	}
	return int(register-unix.NFT_REG_1) * 16
}

// TestDeclare: sets are declared in their table with numbers of their own; those that rules fill have a limit.
func TestDeclare(t *testing.T) {
	t.Parallel()
	sets := append(testSets(), Set{Name: "recent", Type: nftables.TypeIPAddr, Life: 7})
	book, numbers := NewSetBook(sets), map[uint32]bool{}
	for _, s := range sets {
		set := book[s.Name]
		numbers[set.ID] = true
		if set.Name != string(s.Name) || (set.Table.Family == nftables.TableFamilyBridge) != s.Bridge {
			t.Errorf("set %s is declared as %s of family %v", s.Name, set.Name, set.Table.Family)
		}
		fills := s.Name == "recent"
		if set.IsMap != (s.Name == "ports") || set.HasTimeout != fills || fills && set.Size == 0 {
			t.Errorf("set %s: map %v, timeout %v, size %d", s.Name, set.IsMap, set.HasTimeout, set.Size)
		}
	}
	if len(numbers) != len(sets) {
		t.Errorf("%d numbers for %d sets", len(numbers), len(sets))
	}
	if _, ok := SpecOf(sets, "none"); ok {
		t.Error("a set that is not declared has a declaration")
	}
}

// TestSeal: any change of sets, chains or rules changes the seal, by which a ruleset of another version is recognized.
func TestSeal(t *testing.T) {
	t.Parallel()
	hook, earlier := nftables.ChainHookInput, nftables.ChainPriorityRef(-1)
	tables := func(change func(*Chain)) [][]Chain {
		c := Chain{
			Name: "in", Kind: nftables.ChainTypeFilter, Hook: hook, Priority: nftables.ChainPriorityRef(0),
			Rules: []Rule{New("accept answers", Established(), Accept())},
		}
		change(&c)
		return [][]Chain{{c}}
	}
	same := func(*Chain) {}
	seen := map[string]string{}
	for name, chain := range map[string]Chain{
		"itself":            Seal(testSets(), tables(same)),
		"one set less":      Seal(testSets()[1:], tables(same)),
		"another name":      Seal(testSets(), tables(func(c *Chain) { c.Name = "out" })),
		"another priority":  Seal(testSets(), tables(func(c *Chain) { c.Priority = earlier })),
		"no hook":           Seal(testSets(), tables(func(c *Chain) { c.Hook = nil })),
		"another comment":   Seal(testSets(), tables(func(c *Chain) { c.Rules[0].Comment = "accept" })),
		"another verdict":   Seal(testSets(), tables(func(c *Chain) { c.Rules[0] = New("accept answers", Established(), Drop()) })),
		"another condition": Seal(testSets(), tables(func(c *Chain) { c.Rules[0] = New("accept answers", Reply(), Accept()) })),
		"no rule":           Seal(testSets(), tables(func(c *Chain) { c.Rules = nil })),
		"another table":     Seal(testSets(), append([][]Chain{nil}, tables(func(c *Chain) { c.Name = "b" })...)),
	} {
		seal := chain.Rules[0].Comment
		if other := seen[seal]; other != "" {
			t.Errorf("%s has the seal of %s", name, other)
		}
		seen[seal] = name
	}
	if again := Seal(testSets(), tables(same)); seen[again.Rules[0].Comment] != "itself" {
		t.Error("the same ruleset has another seal")
	}
	if !strings.HasSuffix(string(Comment("abc")), "abc\x00") {
		t.Errorf("a comment is encoded as %x", Comment("abc"))
	}
}
