package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"netyard/store"
)

// A poolTest is a request while other pools exist, and its expected result.
type poolTest struct {
	name string
	in   PoolRequest
	want Pool // without Created
	err  error
	text string
}

func runPoolTests(t *testing.T, tests []poolTest) {
	t.Helper()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, Config{})
			r.pool(PoolRequest{Subnet: prefix("10.1.0.0/16")}, "")
			r.pool(PoolRequest{Subnet: prefix("10.2.0.0/24"), Range: prefix("10.2.0.128/25"), Domain: "eth0.10"}, "")
			r.pool(PoolRequest{Subnet: prefix("fd00:1::/64")}, "")
			got, err := r.tryPool(tt.in)
			wantError(t, err, tt.err, tt.text)
			if tt.err == nil {
				tt.want.Created = start
			}
			equal(t, "pool", got, tt.want)
		})
	}
}

func (r *rig) tryPool(req PoolRequest) (p Pool, err error) {
	err = r.store.Update(func(tx store.Tx) error {
		p, err = r.ipam.RequestPool(tx, req)
		return err
	})
	return p, err
}

func TestRequestPool(t *testing.T) {
	runPoolTests(t, []poolTest{
		{name: "subnet", in: PoolRequest{Subnet: prefix("10.9.0.0/24")}, want: Pool{ID: "10.9.0.0/24", Subnet: prefix("10.9.0.0/24")}},
		{name: "host bits", in: PoolRequest{Subnet: prefix("10.9.0.5/24")}, want: Pool{ID: "10.9.0.0/24", Subnet: prefix("10.9.0.0/24")}},
		{
			name: "ip-range", in: PoolRequest{Subnet: prefix("10.9.0.0/24"), Range: prefix("10.9.0.70/26")},
			want: Pool{ID: "10.9.0.0/24", Subnet: prefix("10.9.0.0/24"), Range: prefix("10.9.0.64/26")},
		},
		{
			name: "ip-range outside", in: PoolRequest{Subnet: prefix("10.9.0.0/24"), Range: prefix("10.8.0.0/25")},
			err: ErrInvalid, text: "request pool: ip-range 10.8.0.0/25: not usable: outside subnet 10.9.0.0/24",
		},
		{
			name: "ip-range greater", in: PoolRequest{Subnet: prefix("10.9.0.0/24"), Range: prefix("10.9.0.0/23")},
			err: ErrInvalid, text: "request pool: ip-range 10.9.0.0/23: not usable: outside subnet 10.9.0.0/24",
		},
		{
			name: "ip-range of another family",
			in:   PoolRequest{Subnet: prefix("10.9.0.0/24"), Range: prefix("fd00::/64")},
			err:  ErrInvalid, text: "request pool: ip-range fd00::/64: not usable: outside subnet 10.9.0.0/24",
		},
		{
			name: "ip-range without subnet", in: PoolRequest{Range: prefix("10.9.0.0/25")},
			err: ErrInvalid, text: "request pool: ip-range 10.9.0.0/25: not usable: needs a subnet",
		},
		{
			name: "everything", in: PoolRequest{Subnet: prefix("0.0.0.0/0")},
			err: ErrInvalid, text: "request pool: subnet 0.0.0.0/0: not usable: contains all addresses",
		},
	})
}

func TestPoolOverlap(t *testing.T) {
	runPoolTests(t, []poolTest{
		{
			name: "in another pool", in: PoolRequest{Subnet: prefix("10.1.0.0/24")},
			err: ErrOverlap, text: "request pool: subnet 10.1.0.0/24 overlaps pool 10.1.0.0/16",
		},
		{
			name: "around another pool", in: PoolRequest{Subnet: prefix("10.0.0.0/8")},
			err: ErrOverlap, text: "request pool: subnet 10.0.0.0/8 overlaps pool 10.1.0.0/16",
		},
		{
			name: "in another domain", in: PoolRequest{Subnet: prefix("10.1.0.0/24"), Domain: "eth1"},
			want: Pool{ID: "10.1.0.0/24@eth1", Subnet: prefix("10.1.0.0/24"), Domain: "eth1"},
		},
		{
			name: "overlap within a domain", in: PoolRequest{Subnet: prefix("10.2.0.0/25"), Domain: "eth0.10"},
			err: ErrOverlap, text: "request pool: subnet 10.2.0.0/25 overlaps pool 10.2.0.0/24@eth0.10",
		},
		{
			name: "same subnet, other ip-range", in: PoolRequest{Subnet: prefix("10.2.0.0/24"), Domain: "eth0.10"},
			err: ErrOverlap, text: "request pool: subnet 10.2.0.0/24 overlaps pool 10.2.0.0/24@eth0.10",
		},
		{
			name: "domain with the separator of keys", in: PoolRequest{Subnet: prefix("10.9.0.0/24"), Domain: "a|b"},
			err: ErrInvalid, text: `request pool: domain "a|b": not usable: contains "|"`,
		},
		{
			name: "ipv6", in: PoolRequest{Subnet: prefix("fd00:2::/64"), V6: true},
			want: Pool{ID: "fd00:2::/64", Subnet: prefix("fd00:2::/64")},
		},
		{name: "none", in: PoolRequest{}, want: Pool{ID: "10.224.0.0/24", Subnet: prefix("10.224.0.0/24"), Chosen: true}},
		{name: "none, in a domain", in: PoolRequest{Domain: "eth1"}, want: Pool{ID: "10.224.0.0/24@eth1", Subnet: prefix("10.224.0.0/24"), Domain: "eth1", Chosen: true}},
		{
			name: "none, ipv6 without a ula", in: PoolRequest{V6: true},
			err: ErrInvalid, text: "request pool: ipv6 pool without a subnet: not usable: the host has no ULA prefix",
		},
	})
}

func TestRequestPoolAgain(t *testing.T) {
	req := PoolRequest{Subnet: prefix("10.1.0.0/24"), Range: prefix("10.1.0.0/25")}
	const id = "10.1.0.0/24"
	tests := []struct {
		name    string
		prepare func(r *rig)
		ok      bool
		leases  []string // afterwards
	}{
		{"unbound", func(*rig) {}, true, nil},
		{"bound", func(r *rig) {
			r.do(func(tx store.Tx) error { return r.ipam.BindPool(tx, req.Subnet, "", "n") })
		}, false, nil},
		{"unbound, with a gateway and an aux address", func(r *rig) {
			r.get(AddressRequest{Pool: id, Gateway: true})
			r.get(AddressRequest{Pool: id, Addr: ip("10.1.0.9")})
		}, true, nil},
		{
			"unbound, with a reservation", func(r *rig) { r.reserve(id, "10.1.0.7", "db") },
			true,
			[]string{"10.1.0.7 reserved reserved db"},
		},
		{
			"unbound, with an endpoint", func(r *rig) { r.get(AddressRequest{Pool: id, MAC: "02:00:00:00:00:01"}) },
			false,
			[]string{"10.1.0.1 dynamic active"},
		},
		{"unbound, with a released address", func(r *rig) {
			r.release(id, r.get(AddressRequest{Pool: id}))
		}, true, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, Config{})
			first := r.pool(req, "")
			tt.prepare(r)
			r.now = start.Add(time.Second)
			again, err := r.tryPool(req)
			if tt.ok {
				wantError(t, err, nil, "")
				first.Created = r.now
				equal(t, "pool", again, first)
			} else {
				wantError(t, err, ErrOverlap, "request pool: subnet 10.1.0.0/24 overlaps pool 10.1.0.0/24")
			}
			equal(t, "leases", r.leases(), tt.leases)
		})
	}
}

func TestPoolsWithoutSubnet(t *testing.T) {
	ula := HostULA("9c1185a5c5e9fc54612808977ee8f548")
	busy := []netip.Prefix{
		prefix("0.0.0.0/0"), prefix("::/0"), // default routes
		prefix("10.224.0.0/22"), prefix("10.225.7.9/32"), prefix("10.224.128.0/17"), prefix("172.17.0.0/16"),
		prefix("::ffff:10.224.4.0/118"), netip.PrefixFrom(add(ula.Addr(), 3, 64), 63),
		{},
	}
	r := newRig(t, Config{ULA: ula})
	r.pool(PoolRequest{Subnet: prefix("10.224.16.0/20"), Domain: "eth0"}, "other")
	seen := map[netip.Prefix]bool{}
	for i := range 360 {
		v6 := i%6 == 5 // 300 of IPv4 and 60 of IPv6
		p := r.pool(PoolRequest{V6: v6, Busy: busy}, fmt.Sprint("n", i))
		within, size := prefix("10.224.0.0/12"), 24
		if v6 {
			within, size = ula, 64
		}
		if !within.Contains(p.Subnet.Addr()) || p.Subnet.Bits() != size ||
			p.Subnet != p.Subnet.Masked() || seen[p.Subnet] {
			t.Errorf("pool %d is %s", i, p.ID)
		}
		seen[p.Subnet] = true
		for _, b := range busy {
			if b.IsValid() && b.Bits() > 0 && masked(b).Overlaps(p.Subnet) {
				t.Errorf("pool %s overlaps busy %s", p.ID, b)
			}
		}
		if prefix("10.224.16.0/20").Overlaps(p.Subnet) {
			t.Errorf("pool %s overlaps a pool of another domain", p.ID)
		}
	}
}

func TestPoolCursor(t *testing.T) {
	r := newRig(t, Config{Bases: []Base{{prefix("10.0.0.0/30"), 32}, {prefix("10.9.0.0/24"), 24}}})
	var got []string
	next := func() string {
		id := r.pool(PoolRequest{}, "").ID
		got = append(got, id)
		return id
	}
	drop := func(id string) { r.do(func(tx store.Tx) error { return r.ipam.ReleasePool(tx, id) }) }
	drop(next())
	drop(next())
	next()
	drop(next())
	next() // wraps
	next()
	next() // skips the one in use
	next() // the second base
	equal(t, "pools", got, []string{
		"10.0.0.0/32", "10.0.0.1/32", "10.0.0.2/32", "10.0.0.3/32",
		"10.0.0.0/32", "10.0.0.1/32", "10.0.0.3/32", "10.9.0.0/24",
	})
	_, err := r.tryPool(PoolRequest{})
	wantError(t, err, ErrExhausted,
		"request pool: choose a subnet from 10.0.0.0/30 in /32, 10.9.0.0/24 in /24: nothing free; "+
			"give one with --subnet")
}

func TestBaseThatIsAllBusy(t *testing.T) {
	r := newRig(t, Config{Bases: []Base{{prefix("10.224.0.0/12"), 24}, {prefix("172.30.0.0/16"), 24}}})
	for _, busy := range []string{"10.0.0.0/8", "10.224.0.0/12"} {
		p := r.pool(PoolRequest{Busy: []netip.Prefix{prefix(busy), prefix("172.30.0.0/31")}}, "")
		equal(t, "it is of the second base", prefix("172.30.0.0/16").Contains(p.Subnet.Addr()), true)
	}
}

func TestBadBase(t *testing.T) {
	for _, base := range []Base{
		{Size: 24},
		{prefix("10.0.0.0/24"), 16},
		{prefix("10.0.0.0/24"), 33},
		{prefix("fd00::/48"), 96},
	} {
		r := newRig(t, Config{Bases: []Base{base}})
		_, err := r.tryPool(PoolRequest{})
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), base.String()) {
			t.Errorf("error for base %s is %v", base, err)
		}
	}
}

func TestBindPool(t *testing.T) {
	r := newRig(t, Config{})
	subnet := prefix("10.1.0.0/24")
	likely := map[string]string{"n1": "eth2", "n2": "eth7"} // none for the others
	bind := func(network string) error {
		return r.store.Update(func(tx store.Tx) error { return r.ipam.BindPool(tx, subnet, likely[network], network) })
	}
	wantError(t, bind("n1"), ErrNotFound, "bind pool 10.1.0.0/24 to network n1: unbound pool: not found")
	for i, domain := range []string{"eth0", "eth2", "eth1"} {
		r.now = start.Add(time.Duration(i) * time.Second)
		r.pool(PoolRequest{Subnet: subnet, Domain: domain}, "")
	}
	r.pool(PoolRequest{Subnet: prefix("10.1.0.0/25")}, "") // begins with the same address
	for _, network := range []string{"n1", "n2", "n1", "n3"} {
		wantError(t, bind(network), nil, "")
	}
	wantError(t, bind("n4"), ErrNotFound, "bind pool 10.1.0.0/24 to network n4: unbound pool: not found")
	r.do(func(tx store.Tx) error {
		for network, want := range map[string]string{
			"n1": "10.1.0.0/24@eth2", "n2": "10.1.0.0/24@eth1", "n3": "10.1.0.0/24@eth0",
		} {
			p, err := r.ipam.PoolOf(tx, prefix("10.1.0.77/24"), network)
			if err != nil {
				return err
			}
			equal(t, "pool of "+network, p.ID, want)
		}
		_, err := r.ipam.PoolOf(tx, subnet, "n4")
		wantError(t, err, ErrNotFound, "find pool 10.1.0.0/24 of network n4: not found")
		pools, err := r.ipam.Pools(tx)
		var ids []string
		for _, p := range pools {
			ids = append(ids, p.ID)
		}
		equal(t, "pools", ids, []string{"10.1.0.0/24@eth0", "10.1.0.0/24@eth1", "10.1.0.0/24@eth2", "10.1.0.0/25"})
		return err
	})
}

func TestUnbindPool(t *testing.T) {
	r := newRig(t, Config{})
	req := PoolRequest{Subnet: prefix("10.1.0.0/24")}
	r.pool(req, "n")
	unbind := func(network string) {
		t.Helper()
		r.do(func(tx store.Tx) error { return r.ipam.UnbindPool(tx, req.Subnet, network) })
	}
	unbind("another")
	_, err := r.tryPool(req)
	wantError(t, err, ErrOverlap, "request pool: subnet 10.1.0.0/24 overlaps pool 10.1.0.0/24")
	unbind("n")
	unbind("n")
	_, err = r.tryPool(req)
	wantError(t, err, nil, "")
	r.do(func(tx store.Tx) error { return r.ipam.BindPool(tx, req.Subnet, "", "m") })
}

func TestPoolOrder(t *testing.T) {
	r := newRig(t, Config{})
	for _, s := range []string{"10.10.0.0/24", "fd00::/64", "10.9.0.0/24", "10.100.0.0/24"} {
		r.get(AddressRequest{Pool: r.subnet(s, ""), Gateway: true})
	}
	equal(t, "leases", r.leases(), []string{
		"10.9.0.1 gateway active", "10.10.0.1 gateway active", "10.100.0.1 gateway active", "fd00::1 gateway active",
	})
}

func TestReleasePool(t *testing.T) {
	r := newRig(t, Config{})
	const id = "10.1.0.0/24"
	r.subnet(id, "n")
	other := r.pool(PoolRequest{Subnet: prefix(id), Domain: "eth0"}, "m").ID
	for _, pool := range []string{id, other} {
		r.get(AddressRequest{Pool: pool, Gateway: true})
		r.get(AddressRequest{Pool: pool, Addr: ip("10.1.0.9"), Name: "db"})
		r.get(AddressRequest{Pool: pool, MAC: "02:00:00:00:00:01"})
		r.release(pool, r.get(AddressRequest{Pool: pool, Name: "web"}))
		r.reserve(pool, "10.1.0.77", "proxy")
	}
	r.do(func(tx store.Tx) error { return r.ipam.ReleasePool(tx, id) })
	r.do(func(tx store.Tx) error { return r.ipam.ReleasePool(tx, id) })
	r.do(func(tx store.Tx) error { return r.ipam.ReleasePool(tx, "0.0.0.0/0") })
	r.do(func(tx store.Tx) error {
		for _, key := range allKeys(tx) {
			if !strings.HasPrefix(key, other) {
				t.Errorf("record %q is left", key)
			}
		}
		ls, err := r.ipam.Leases(tx)
		equal(t, "leases of the other pool", len(ls), 5)
		return err
	})
	r.subnet(id, "again")
	equal(t, "first address", r.get(AddressRequest{Pool: id, Name: "web"}), "10.1.0.1")
}

func TestNullPool(t *testing.T) {
	r := newRig(t, Config{})
	equal(t, "null pools", []string{NullPool(false).ID, NullPool(true).ID}, []string{"0.0.0.0/0", "::/0"})
	_, err := r.try(AddressRequest{Pool: NullPool(false).ID})
	wantError(t, err, ErrNotFound, "request address from pool 0.0.0.0/0: ipam-pools 0.0.0.0/0: not found")
	r.release("0.0.0.0/0", "10.0.0.1")
}

func TestHostULA(t *testing.T) {
	a, b := HostULA("9c1185a5c5e9fc54612808977ee8f548"), HostULA("another")
	if !prefix("fd00::/8").Contains(a.Addr()) || a.Bits() != 48 || a != a.Masked() {
		t.Errorf("prefix of a host is %s", a)
	}
	if a == b {
		t.Errorf("two hosts have %s", a)
	}
	equal(t, "prefix of the same host", HostULA("9c1185a5c5e9fc54612808977ee8f548"), a)
	equal(t, "prefix of a known host", a, prefix("fd5e:41b1:549e::/48")) // the end of sha256sum's output
}
