package record

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

func id(n int) string { return fmt.Sprintf("%032x", n) }

func keyOf(n byte) PublicKey { return PublicKeyOf([32]byte{n, 31: n}) }

func records() []Record {
	addr, addr6 := netip.MustParseAddr("10.20.0.7"), netip.MustParseAddr("fd20::7")
	return []Record{
		&Meta{Schema: 1, Cluster: id(1), Port: 4789, IPv6: true},
		&Host{ID: id(1), Name: "one.example", VTEP: netip.MustParseAddr("192.0.2.1"), MTU: 1500, Version: "1.0"},
		&Host{ID: id(2), Name: "two", VTEP: netip.MustParseAddr("2001:db8::2"), MTU: 9000},
		&Host{
			ID: id(3), Name: "three", VTEP: netip.MustParseAddr("192.0.2.3"), MTU: 1500, WireGuard: keyOf(3),
			WireGuardPort: 14789,
		},
		&Network{
			ID: id(8), Name: "red", VNI: 0x1235, MTU: 1370, Encrypted: true,
			Subnets: []Subnet{{netip.MustParsePrefix("10.30.0.0/16"), netip.MustParseAddr("10.30.0.1")}},
		},
		&Alive{Host: id(1), Boot: "c0ffee00-0000-4000-8000-000000000000"},
		&Tomb{Host: id(3), By: "one.example"},
		&Network{ID: id(9), Name: "blue", VNI: 0x1234, MTU: 1450, Subnets: []Subnet{
			{netip.MustParsePrefix("10.20.0.0/16"), netip.MustParseAddr("10.20.0.1")},
			{netip.MustParsePrefix("fd20::/64"), netip.MustParseAddr("fd20::1")},
		}},
		&Member{Network: id(9), Host: id(1)},
		&Address{Network: id(9), Addr: addr, Host: id(1), Use: Warm},
		&Address{Network: id(9), Addr: addr, Use: Gateway},
		&Address{Network: id(9), Addr: addr6, Host: id(1), Use: OfHost, MAC: "02:42:0a:14:00:07"},
		&Address{
			Network: id(9), Addr: addr6, Host: id(1), Use: Endpoint, Endpoint: strings.Repeat("e", 64),
			MAC: "02:42:0a:14:00:07", Name: "web_1", Aliases: []string{"web", "www"},
		},
		&Claim{Kind: ClaimHostname, What: "one.example", ID: id(1)},
		&Claim{Kind: ClaimVTEP, What: formatAddr(netip.MustParseAddr("192.0.2.1")), ID: id(1)},
		&Claim{Kind: ClaimNetname, What: "blue", ID: id(9)},
		&Claim{Kind: ClaimVNI, What: "001234", ID: id(9)},
	}
}

func TestEncodeDecode(t *testing.T) {
	t.Parallel()
	for _, r := range records() {
		value, err := Encode(r)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Decode(r.Key(), []byte(value))
		if err != nil || !reflect.DeepEqual(got, r) {
			t.Errorf("%s %s was decoded as %+v, %v", r.Key(), value, got, err)
		}
	}
	newer := `{"id":"` + id(9) + `","colour":"red"}`
	if _, err := Decode("netname/blue", []byte(newer)); err != nil {
		t.Errorf("a field of a newer netyard is rejected: %v", err)
	}
}

// TestDecodeRejects: records that another host may have written by mistake or on purpose are rejected.
func TestDecodeRejects(t *testing.T) {
	t.Parallel()
	host := func(vtep string) string { return `{"name":"x","vtep":"` + vtep + `","mtu":1500}` }
	keyed := func(key string, port int) string {
		return fmt.Sprintf(`{"name":"x","vtep":"192.0.2.1","mtu":1500,"wireguard":%q,"wireguard_port":%d}`, key, port)
	}
	mac := func(mac string) string { return `{"host":"` + id(1) + `","use":"host","mac":"` + mac + `"}` }
	net := func(subnet, gateway string, mtu int) string {
		return fmt.Sprintf(`{"name":"n","vni":5000,"mtu":%d,"subnets":[{"pool":%q,"gateway":%q}]}`, mtu, subnet,
			gateway)
	}
	aKey := "addr/" + id(9) + "/" + formatAddr(netip.MustParseAddr("10.20.0.7"))
	for _, c := range []struct{ key, value, want string }{
		{"", "{}", "unknown kind"},
		{"hosts/" + id(1), "{}", "unknown kind"},
		{"host/" + id(1) + "/more", host("192.0.2.1"), "unknown kind"},
		{"host/../" + id(1), host("192.0.2.1"), "unknown kind"},
		{"host/..", host("192.0.2.1"), "32 hexadecimal digits"},
		{"host/" + strings.ToUpper(id(0xabc)), host("192.0.2.1"), "32 hexadecimal digits"},
		{"host/" + id(1), host("127.0.0.1"), "not a routable unicast address"},
		{"host/" + id(1), host("224.0.0.1"), "not a routable unicast address"},
		{"host/" + id(1), host("255.255.255.255"), "not a routable unicast address"},
		{"host/" + id(1), host("0.0.0.0"), "not a routable unicast address"},
		{"host/" + id(1), host("fe80::1"), "not a routable unicast address"},
		{"host/" + id(1), host("fd00::1%eth0"), "not an IP address"},
		{"host/" + id(1), host("::ffff:192.0.2.1"), "not an IP address"},
		{"host/" + id(1), `{"name":"x;reboot","vtep":"192.0.2.1","mtu":1500}`, "letters and digits"},
		{"host/" + id(1), `{"name":"x","vtep":"192.0.2.1","mtu":-1}`, "mtu -1"},
		{"host/" + id(1), `[]`, "cannot unmarshal"},
		{"host/" + id(1), keyed(string(keyOf(1)), 0), "must be set together"},
		{"host/" + id(1), keyed("", 14789), "must be set together"},
		{"host/" + id(1), keyed(string(keyOf(1)), 65536), "cannot unmarshal"},
		{"host/" + id(1), keyed("x", 14789), "is not a WireGuard key"},
		{"host/" + id(1), keyed(string(keyOf(1))[1:], 14789), "is not a WireGuard key"},
		{"host/" + id(1), keyed(string(keyOf(1))+"\n", 14789), "is not a WireGuard key"},
		// the last bits belong to no byte
		{"host/" + id(1), keyed(strings.Repeat("A", 42)+"B=", 14789), "is not a WireGuard key"},
		{"host/" + id(1), keyed(strings.Repeat("A", 43)+"=", 14789), "all zeros"},
		{"host/" + id(1), strings.Repeat(" ", 5000) + host("192.0.2.1"), "bytes under a key"},
		{aKey, mac("01:00:5e:00:00:01"), "is a group address"},
		{aKey, mac("ff:ff:ff:ff:ff:ff"), "is a group address"},
		{aKey, mac("00:00:00:00:00:00"), "all zeros"},
		{aKey, mac("02:42:0A:14:00:07"), "in lower case"},
		{aKey, mac("02:42:0a:14:00:07:08:09"), "not a MAC address"},
		{aKey, mac(""), "not a MAC address"},
		{aKey, `{"host":"` + id(1) + `","use":"root"}`, "is unknown"},
		{aKey, `{"host":"` + id(1) + `","use":"warm","mac":"02:42:0a:14:00:07"}`, "a spare address has no"},
		{aKey, `{"host":"` + id(1) + `","use":"gateway"}`, "a gateway address has no"},
		{"addr/" + id(9) + "/0a140007", mac("02:42:0a:14:00:07"), "belongs under key"},
		{"addr/" + id(9) + "/zz", mac("02:42:0a:14:00:07"), "belongs under key"},
		{"addr/" + id(9) + "/" + formatAddr(netip.MustParseAddr("224.0.0.1")), mac("02:42:0a:14:00:07"), "not a routable unicast address"},
		{"net/" + id(9), net("10.20.0.0/16", "10.21.0.1", 1450), "is not a usable address of subnet"},
		{"net/" + id(9), net("10.20.0.0/16", "10.20.0.0", 1450), "is not a usable address of subnet"},
		{"net/" + id(9), net("10.20.0.0/16", "10.20.255.255", 1450), "is not a usable address of subnet"},
		{"net/" + id(9), net("10.20.0.5/16", "10.20.0.1", 1450), "not a valid prefix"},
		{"net/" + id(9), net("10.20.0.0/31", "10.20.0.1", 1450), "the prefix length must be"},
		{"net/" + id(9), net("0.0.0.0/0", "10.20.0.1", 1450), "the prefix length must be"},
		{"net/" + id(9), net("127.0.0.0/8", "127.0.0.1", 1450), "not a routable unicast address"},
		{"net/" + id(9), net("fd20::/64", "fd20::1", 1200), "IPv6 needs at least"},
		{"vni/1234", `{"id":"` + id(9) + `"}`, "is not a VNI"},
		{"vni/000000", `{"id":"` + id(9) + `"}`, "is not a VNI"},
		{"meta", `{"schema":0,"cluster":"` + id(1) + `","port":4789}`, "schema 0"},
	} {
		r, err := Decode(c.key, []byte(c.value))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %s: %+v, %v; want %q", c.key, c.value, r, err, c.want)
		}
		if err != nil && strings.ContainsAny(err.Error(), "\n") {
			t.Errorf("the error has several lines: %q", err)
		}
	}
}

// FuzzDecode: whatever is in etcd, what Decode accepts can be encoded, and is decoded as the same record.
func FuzzDecode(f *testing.F) {
	for _, r := range records() {
		value, err := Encode(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(r.Key(), []byte(value))
	}
	for _, odd := range []string{
		`{"host":"` + id(1) + `","use":"warm","aliases":[]}`, `{"host":"` + id(1) + `","use":"warm","aliases":null}`,
	} {
		f.Add("addr/"+id(9)+"/"+formatAddr(netip.MustParseAddr("10.20.0.7")), []byte(odd))
	}
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		r, err := Decode(key, value)
		if err != nil {
			return
		}
		again, err := Encode(r)
		if err != nil {
			t.Fatalf("%q %q was accepted, but cannot be encoded: %v", key, value, err)
		}
		same, err := Decode(r.Key(), []byte(again))
		if err != nil || r.Key() != key || !reflect.DeepEqual(same, r) {
			t.Fatalf("%q %q was decoded as %+v, and after encoding as %+v, %v", key, value, r, same, err)
		}
	})
}
