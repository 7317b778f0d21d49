package ipam

import (
	"fmt"
	"testing"

	"netyard/store"
)

// A step is one call on a pool and its expected result.
type step struct {
	do   string // get, release, reserve, forget or wait
	req  AddressRequest
	want string // the address that is granted
	err  error
	text string
}

func get(req AddressRequest, want string) step { return step{do: "get", req: req, want: want} }
func named(name, want string) step             { return get(AddressRequest{Name: name}, want) }
func static(addr, name string) step {
	return get(AddressRequest{Addr: ip(addr), Name: name}, addr)
}

func release(addr string) step { return step{do: "release", req: AddressRequest{Addr: ip(addr)}} }

func reserve(addr, name string) step {
	return step{do: "reserve", req: AddressRequest{Addr: ip(addr), Name: name}}
}

func forget(addr string) step { return step{do: "forget", req: AddressRequest{Addr: ip(addr)}} }
func wait() step              { return step{do: "wait"} }

func fails(s step, err error, text string) step {
	s.want, s.err, s.text = "", err, text
	return s
}

func (r *rig) run(pool string, steps []step) {
	r.t.Helper()
	for i, s := range steps {
		s.req.Pool = pool
		var got string
		err := r.store.Update(func(tx store.Tx) error {
			switch s.do {
			case "get":
				p, err := r.ipam.RequestAddress(tx, s.req)
				if err == nil {
					got = p.Addr().String()
				}
				return err
			case "release":
				return r.ipam.ReleaseAddress(tx, pool, s.req.Addr)
			case "reserve":
				return r.ipam.Reserve(tx, pool, s.req.Addr, s.req.Name)
			case "forget":
				return r.ipam.Free(tx, pool, s.req.Addr)
			}
			r.now = r.now.Add(DefaultCooldown)
			return nil
		})
		wantError(r.t, err, s.err, s.text)
		equal(r.t, fmt.Sprintf("step %d, %s %+v", i+1, s.do, s.req), got, s.want)
	}
}

// An addressTest has steps on a pool, and the leases that they must lead to.
type addressTest struct {
	name    string
	pool    PoolRequest
	unbound bool
	steps   []step
	leases  []string
}

func runAddressTests(t *testing.T, tests []addressTest) {
	t.Helper()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, Config{})
			network := "n"
			if tt.unbound {
				network = ""
			}
			r.run(r.pool(tt.pool, network).ID, tt.steps)
			equal(t, "leases", r.leases(), tt.leases)
		})
	}
}

var (
	dynamic = AddressRequest{}
	gateway = AddressRequest{Gateway: true}
)

func withMAC(mac, name string) AddressRequest { return AddressRequest{MAC: mac, Name: name} }

func TestGateway(t *testing.T) {
	runAddressTests(t, []addressTest{
		{
			name: "gateway and dynamic", pool: PoolRequest{Subnet: prefix("10.1.0.0/24")},
			steps:  []step{get(gateway, "10.1.0.1"), get(dynamic, "10.1.0.2"), named("web", "10.1.0.3")},
			leases: []string{"10.1.0.1 gateway active", "10.1.0.2 dynamic active", "10.1.0.3 dynamic active web"},
		},
		{
			name: "gateway that is taken", pool: PoolRequest{Subnet: prefix("10.1.0.0/24")}, unbound: true,
			steps:  []step{static("10.1.0.1", ""), static("10.1.0.2", "router"), get(gateway, "10.1.0.3")},
			leases: []string{"10.1.0.1 aux active", "10.1.0.2 aux active router", "10.1.0.3 gateway active"},
		},
		{
			name: "gateway by address, requested again before the network exists", unbound: true,
			pool: PoolRequest{Subnet: prefix("10.1.0.0/24")},
			steps: []step{
				get(AddressRequest{Addr: ip("10.1.0.254"), Gateway: true}, "10.1.0.254"),
				get(AddressRequest{Addr: ip("10.1.0.254"), Gateway: true}, "10.1.0.254"),
				get(gateway, "10.1.0.1"),
				get(gateway, "10.1.0.1"),
				fails(static("10.1.0.254", ""), ErrTaken,
					"request address 10.1.0.254 from pool 10.1.0.0/24: taken as gateway"),
			},
			leases: []string{"10.1.0.1 gateway active", "10.1.0.254 gateway active"},
		},
		{
			name: "gateway of a range's pool is the subnet's first",
			pool: PoolRequest{Subnet: prefix("10.1.0.0/24"), Range: prefix("10.1.0.64/29")},
			steps: []step{
				get(gateway, "10.1.0.1"), get(gateway, "10.1.0.2"),
				get(dynamic, "10.1.0.64"), get(dynamic, "10.1.0.65"),
				get(dynamic, "10.1.0.66"), get(dynamic, "10.1.0.67"),
				get(dynamic, "10.1.0.68"), get(dynamic, "10.1.0.69"),
				get(dynamic, "10.1.0.70"), get(dynamic, "10.1.0.71"),
				fails(get(dynamic, ""), ErrExhausted, "request address from pool 10.1.0.0/24: nothing free"),
				static("10.1.0.72", ""),
			},
			leases: []string{
				"10.1.0.1 gateway active", "10.1.0.2 gateway active",
				"10.1.0.64 dynamic active", "10.1.0.65 dynamic active",
				"10.1.0.66 dynamic active", "10.1.0.67 dynamic active",
				"10.1.0.68 dynamic active", "10.1.0.69 dynamic active",
				"10.1.0.70 dynamic active", "10.1.0.71 dynamic active", "10.1.0.72 static active",
			},
		},
		{
			name: "gateway and aux are free at once", pool: PoolRequest{Subnet: prefix("10.1.0.0/24")}, unbound: true,
			steps: []step{
				get(gateway, "10.1.0.1"), static("10.1.0.9", "printer"), release("10.1.0.1"),
				release("10.1.0.9"),
			},
		},
	})
}

func TestSmallPools(t *testing.T) {
	runAddressTests(t, []addressTest{
		{
			name: "range at the subnet's ends",
			pool: PoolRequest{Subnet: prefix("10.1.0.0/30"), Range: prefix("10.1.0.0/30")},
			steps: []step{
				get(dynamic, "10.1.0.1"), get(dynamic, "10.1.0.2"),
				fails(get(dynamic, ""), ErrExhausted, "request address from pool 10.1.0.0/30: nothing free"),
				fails(get(gateway, ""), ErrExhausted, "request address from pool 10.1.0.0/30: nothing free"),
			},
			leases: []string{"10.1.0.1 dynamic active", "10.1.0.2 dynamic active"},
		},
		{
			name: "range of the network's address only",
			pool: PoolRequest{Subnet: prefix("10.1.0.0/24"), Range: prefix("10.1.0.0/32")},
			steps: []step{
				fails(get(dynamic, ""), ErrExhausted, "request address from pool 10.1.0.0/24: nothing free"),
				get(gateway, "10.1.0.1"),
			},
			leases: []string{"10.1.0.1 gateway active"},
		},
		{
			name:  "range of the broadcast only",
			pool:  PoolRequest{Subnet: prefix("10.1.0.0/24"), Range: prefix("10.1.0.255/32")},
			steps: []step{fails(get(dynamic, ""), ErrExhausted, "request address from pool 10.1.0.0/24: nothing free")},
		},
		{
			name: "/31", pool: PoolRequest{Subnet: prefix("10.1.0.0/31")},
			steps: []step{
				get(gateway, "10.1.0.0"), get(dynamic, "10.1.0.1"),
				fails(get(dynamic, ""), ErrExhausted, "request address from pool 10.1.0.0/31: nothing free"),
			},
			leases: []string{"10.1.0.0 gateway active", "10.1.0.1 dynamic active"},
		},
		{
			name: "/32", pool: PoolRequest{Subnet: prefix("10.1.0.9/32")},
			steps: []step{
				get(dynamic, "10.1.0.9"),
				fails(get(gateway, ""), ErrExhausted, "request address from pool 10.1.0.9/32: nothing free"),
			},
			leases: []string{"10.1.0.9 dynamic active"},
		},
		{
			name: "/127", pool: PoolRequest{Subnet: prefix("fd00::/127")},
			steps: []step{
				get(dynamic, "fd00::"), get(dynamic, "fd00::1"),
				fails(get(dynamic, ""), ErrExhausted, "request address from pool fd00::/127: nothing free"),
			},
			leases: []string{"fd00:: dynamic active", "fd00::1 dynamic active"},
		},
	})
}

func TestIPv6(t *testing.T) {
	runAddressTests(t, []addressTest{
		{
			name: "/64 has neither ::0 nor a broadcast", pool: PoolRequest{Subnet: prefix("fd00::/64")},
			steps: []step{
				get(dynamic, "fd00::1"), get(gateway, "fd00::2"), get(dynamic, "fd00::3"),
				static("fd00::ffff:ffff:ffff:ffff", ""), static("fd00::ffff:ffff", ""), static("fd00::1:0:0", ""),
				fails(static("fd00::ffff:ffff:ffff:ffff", ""), ErrTaken,
					"request address fd00::ffff:ffff:ffff:ffff from pool fd00::/64: taken as static"),
				fails(static("fd00::", ""), ErrInvalid,
					"request address fd00:: from pool fd00::/64: not usable: the network's own address or its "+
						"broadcast"),
				release("fd00::1:0:0"), forget("fd00::1:0:0"),
			},
			leases: []string{
				"fd00::1 dynamic active", "fd00::2 gateway active",
				"fd00::3 dynamic active", "fd00::ffff:ffff static active",
				"fd00::ffff:ffff:ffff:ffff static active",
			},
		},
		{
			name: "range far up a /64",
			pool: PoolRequest{Subnet: prefix("fd00::/64"), Range: prefix("fd00::aaaa:0:0:0/126")},
			steps: []step{
				get(gateway, "fd00::1"), static("fd00::2", ""),
				get(dynamic, "fd00::aaaa:0:0:0"), get(dynamic, "fd00::aaaa:0:0:1"),
				get(gateway, "fd00::aaaa:0:0:2"), get(dynamic, "fd00::aaaa:0:0:3"),
				fails(get(dynamic, ""), ErrExhausted, "request address from pool fd00::/64: nothing free"),
			},
			leases: []string{
				"fd00::1 gateway active", "fd00::2 static active",
				"fd00::aaaa:0:0:0 dynamic active", "fd00::aaaa:0:0:1 dynamic active",
				"fd00::aaaa:0:0:2 gateway active", "fd00::aaaa:0:0:3 dynamic active",
			},
		},
	})
}

func TestExplicit(t *testing.T) {
	runAddressTests(t, []addressTest{
		{
			name: "addresses that no host can have", pool: PoolRequest{Subnet: prefix("10.1.0.0/24")},
			steps: []step{
				fails(static("10.1.0.0", ""), ErrInvalid,
					"request address 10.1.0.0 from pool 10.1.0.0/24: not usable: the network's own address or its "+
						"broadcast"),
				fails(static("10.1.0.255", ""), ErrInvalid,
					"request address 10.1.0.255 from pool 10.1.0.0/24: not usable: the network's own address or its "+
						"broadcast"),
				fails(static("10.1.1.1", ""), ErrInvalid,
					"request address 10.1.1.1 from pool 10.1.0.0/24: not usable: outside subnet 10.1.0.0/24"),
				fails(static("fd00::1", ""), ErrInvalid,
					"request address fd00::1 from pool 10.1.0.0/24: not usable: outside subnet 10.1.0.0/24"),
				get(AddressRequest{Addr: ip("::ffff:10.1.0.7")}, "10.1.0.7"),
			},
			leases: []string{"10.1.0.7 static active"},
		},
		{
			name: "taken names the owner", pool: PoolRequest{Subnet: prefix("10.1.0.0/24")},
			steps: []step{
				static("10.1.0.5", "db"),
				fails(static("10.1.0.5", "web"), ErrTaken,
					"request address 10.1.0.5 from pool 10.1.0.0/24: taken by db"),
				get(withMAC("02:00:00:00:00:01", ""), "10.1.0.1"),
				fails(static("10.1.0.1", ""), ErrTaken,
					"request address 10.1.0.1 from pool 10.1.0.0/24: taken by 02:00:00:00:00:01"),
			},
			leases: []string{"10.1.0.1 dynamic active", "10.1.0.5 static active db"},
		},
		{
			name: "held", pool: PoolRequest{Subnet: prefix("10.1.0.0/29")},
			steps: []step{
				static("10.1.0.2", "db"), release("10.1.0.2"), wait(), wait(),
				get(dynamic, "10.1.0.1"), get(dynamic, "10.1.0.3"),
				get(dynamic, "10.1.0.4"), get(dynamic, "10.1.0.5"), get(dynamic, "10.1.0.6"),
				fails(get(dynamic, ""), ErrExhausted, "request address from pool 10.1.0.0/29: nothing free"),
				static("10.1.0.2", "db"), release("10.1.0.2"),
				release("10.1.0.2"), forget("10.1.0.2"), get(dynamic, "10.1.0.2"),
			},
			leases: []string{
				"10.1.0.1 dynamic active", "10.1.0.2 dynamic active",
				"10.1.0.3 dynamic active", "10.1.0.4 dynamic active",
				"10.1.0.5 dynamic active", "10.1.0.6 dynamic active",
			},
		},
	})
}

func TestRepeated(t *testing.T) {
	runAddressTests(t, []addressTest{
		{
			name: "repeated by MAC", pool: PoolRequest{Subnet: prefix("10.1.0.0/24")},
			steps: []step{
				get(withMAC("02:00:00:00:00:0A", ""), "10.1.0.1"), get(withMAC("02:00:00:00:00:0a", ""), "10.1.0.1"),
				get(withMAC("02:00:00:00:00:0a", "web"), "10.1.0.1"), get(withMAC("02:00:00:00:00:0b", ""), "10.1.0.2"),
				release("10.1.0.1"), get(withMAC("02:00:00:00:00:0a", ""), "10.1.0.3"),
				get(AddressRequest{Addr: ip("10.1.0.9"), MAC: "02:00:00:00:00:0c"}, "10.1.0.9"),
				get(AddressRequest{Addr: ip("10.1.0.9"), MAC: "02:00:00:00:00:0c"}, "10.1.0.9"),
			},
			leases: []string{
				"10.1.0.1 dynamic cooling", "10.1.0.2 dynamic active", "10.1.0.3 dynamic active",
				"10.1.0.9 static active",
			},
		},
		{
			name: "two containers of one MAC", pool: PoolRequest{Subnet: prefix("10.1.0.0/24")},
			steps: []step{
				get(withMAC("02:00:00:00:00:0a", "one"), "10.1.0.1"),
				get(withMAC("02:00:00:00:00:0a", "two"), "10.1.0.2"),
				release("10.1.0.1"), get(withMAC("02:00:00:00:00:0a", "two"), "10.1.0.2"),
				fails(get(AddressRequest{Addr: ip("10.1.0.2"), MAC: "02:00:00:00:00:0a", Name: "one"}, ""), ErrTaken,
					"request address 10.1.0.2 from pool 10.1.0.0/24: taken by two"),
			},
			leases: []string{"10.1.0.1 dynamic cooling one", "10.1.0.2 dynamic active two"},
		},
	})
}

func TestReuse(t *testing.T) {
	runAddressTests(t, []addressTest{
		{
			name: "not reused at once", pool: PoolRequest{Subnet: prefix("10.1.0.0/29")},
			steps: []step{
				get(dynamic, "10.1.0.1"), release("10.1.0.1"), get(dynamic, "10.1.0.2"),
				release("10.1.0.2"), wait(), get(dynamic, "10.1.0.3"),
			},
			leases: []string{"10.1.0.3 dynamic active"},
		},
		{
			name: "cooling addresses are not given until their time is over",
			pool: PoolRequest{Subnet: prefix("10.1.0.0/29")},
			steps: []step{
				get(dynamic, "10.1.0.1"), get(dynamic, "10.1.0.2"),
				get(dynamic, "10.1.0.3"), get(dynamic, "10.1.0.4"), get(dynamic, "10.1.0.5"),
				release("10.1.0.2"), wait(), release("10.1.0.1"), get(dynamic, "10.1.0.6"),
				get(dynamic, "10.1.0.2"), get(dynamic, "10.1.0.1"),
			},
			leases: []string{
				"10.1.0.1 dynamic active", "10.1.0.2 dynamic active",
				"10.1.0.3 dynamic active", "10.1.0.4 dynamic active",
				"10.1.0.5 dynamic active", "10.1.0.6 dynamic active",
			},
		},
		{
			name: "sticky by name", pool: PoolRequest{Subnet: prefix("10.1.0.0/24")},
			steps: []step{
				named("web", "10.1.0.1"), named("db", "10.1.0.2"), release("10.1.0.1"), named("cache", "10.1.0.3"),
				named("web", "10.1.0.1"), release("10.1.0.1"), wait(),
				wait(), named("cron", "10.1.0.4"), named("web", "10.1.0.1"),
				release("10.1.0.1"), static("10.1.0.1", "thief"), named("web", "10.1.0.5"),
			},
			leases: []string{
				"10.1.0.1 static active thief", "10.1.0.2 dynamic active db", "10.1.0.3 dynamic active cache",
				"10.1.0.4 dynamic active cron", "10.1.0.5 dynamic active web",
			},
		},
	})
}

func TestReserve(t *testing.T) {
	runAddressTests(t, []addressTest{
		{
			name: "reserved", pool: PoolRequest{Subnet: prefix("10.1.0.0/29")},
			steps: []step{
				reserve("10.1.0.1", "web"), reserve("10.1.0.2", ""), get(dynamic, "10.1.0.3"),
				fails(static("10.1.0.1", "db"), ErrTaken,
					"request address 10.1.0.1 from pool 10.1.0.0/29: taken by a reservation for web"),
				static("10.1.0.1", "web"), static("10.1.0.2", "db"), release("10.1.0.1"), release("10.1.0.2"),
				static("10.1.0.1", ""), release("10.1.0.1"), named("web", "10.1.0.1"),
				named("web", "10.1.0.4"), release("10.1.0.1"),
				fails(forget("10.1.0.3"), ErrInUse, "free address 10.1.0.3 of pool 10.1.0.0/29: in use as dynamic"),
				fails(forget("10.1.0.6"), ErrNotFound, "free address 10.1.0.6 of pool 10.1.0.0/29: not found"),
				forget("10.1.0.2"), get(dynamic, "10.1.0.5"), get(dynamic, "10.1.0.6"), get(dynamic, "10.1.0.2"),
				fails(get(dynamic, ""), ErrExhausted, "request address from pool 10.1.0.0/29: nothing free"),
			},
			leases: []string{
				"10.1.0.1 reserved reserved web", "10.1.0.2 dynamic active", "10.1.0.3 dynamic active",
				"10.1.0.4 dynamic active web", "10.1.0.5 dynamic active", "10.1.0.6 dynamic active",
			},
		},
		{
			name: "reserved while active", pool: PoolRequest{Subnet: prefix("10.1.0.0/24")},
			steps: []step{
				named("web", "10.1.0.1"), reserve("10.1.0.1", "web"), reserve("10.1.0.1", "shop"), release("10.1.0.1"),
				named("web", "10.1.0.2"), named("shop", "10.1.0.1"), release("10.1.0.1"), reserve("10.1.0.1", "mail"),
				named("shop", "10.1.0.3"), forget("10.1.0.1"), named("mail", "10.1.0.4"),
			},
			leases: []string{
				"10.1.0.2 dynamic active web", "10.1.0.3 dynamic active shop",
				"10.1.0.4 dynamic active mail",
			},
		},
		{
			name: "reservations that are refused", pool: PoolRequest{Subnet: prefix("10.1.0.0/24")},
			steps: []step{
				fails(reserve("10.1.0.255", ""), ErrInvalid,
					"reserve address 10.1.0.255 of pool 10.1.0.0/24: not usable: the network's own address or its "+
						"broadcast"),
				fails(reserve("10.2.0.1", ""), ErrInvalid,
					"reserve address 10.2.0.1 of pool 10.1.0.0/24: not usable: outside subnet 10.1.0.0/24"),
			},
		},
		{
			name: "a cooling and a held one are reserved", pool: PoolRequest{Subnet: prefix("10.1.0.0/29")},
			steps: []step{
				named("web", "10.1.0.1"), static("10.1.0.5", "db"), release("10.1.0.1"), release("10.1.0.5"),
				reserve("10.1.0.1", "db"), reserve("10.1.0.5", ""), wait(),
				get(dynamic, "10.1.0.2"), get(dynamic, "10.1.0.3"), get(dynamic, "10.1.0.4"), get(dynamic, "10.1.0.6"),
				fails(named("web", ""), ErrExhausted, "request address from pool 10.1.0.0/29: nothing free"),
			},
			leases: []string{
				"10.1.0.1 reserved reserved db", "10.1.0.2 dynamic active",
				"10.1.0.3 dynamic active", "10.1.0.4 dynamic active",
				"10.1.0.5 reserved reserved", "10.1.0.6 dynamic active",
			},
		},
	})
}
