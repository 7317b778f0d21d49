package ipam

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"netyard/store"
)

// A model does what the package does in the simplest way: with maps, and searches through all of them.
type model struct {
	pools map[string]*poolModel
}

type poolModel struct {
	pool   Pool
	leases map[netip.Addr]Lease
	byMAC  map[string]netip.Addr // the latest active lease of each MAC
	byFor  map[string]netip.Addr // the latest reservation for each name
	byName map[string]netip.Addr // the latest release of each name
}

func newPoolModel(p Pool) *poolModel {
	return &poolModel{
		pool: p, leases: map[netip.Addr]Lease{},
		byMAC: map[string]netip.Addr{}, byFor: map[string]netip.Addr{}, byName: map[string]netip.Addr{},
	}
}

func (m *model) clone() *model {
	c := &model{pools: map[string]*poolModel{}}
	for id, p := range m.pools {
		c.pools[id] = &poolModel{
			p.pool, maps.Clone(p.leases), maps.Clone(p.byMAC), maps.Clone(p.byFor), maps.Clone(p.byName),
		}
	}
	return c
}

func (p *poolModel) usable(a netip.Addr) bool {
	n := p.pool.Subnet
	if !n.Contains(a) || hostBits(n) <= 1 {
		return n.Contains(a)
	}
	return a != n.Addr() && (a.Is6() || n.Contains(a.Next()))
}

// put records a lease and updates the indexes.
func (p *poolModel) put(l Lease) {
	p.drop(l.Addr)
	p.leases[l.Addr] = l
	if l.State == StateActive && l.MAC != "" {
		p.byMAC[l.MAC] = l.Addr
	}
	if l.ReservedFor != "" {
		p.byFor[l.ReservedFor] = l.Addr
	}
}

func (p *poolModel) drop(a netip.Addr) {
	delete(p.leases, a)
	maps.DeleteFunc(p.byMAC, func(_ string, b netip.Addr) bool { return a == b })
	maps.DeleteFunc(p.byFor, func(_ string, b netip.Addr) bool { return a == b })
}

// cooling returns the cooling leases, the one released first at the front.
func (p *poolModel) cooling() (ls []Lease) {
	for _, l := range p.leases {
		if l.State == StateCooling {
			ls = append(ls, l)
		}
	}
	slices.SortFunc(ls, func(a, b Lease) int {
		if c := a.Freed.Compare(b.Freed); c != 0 {
			return c
		}
		return a.Addr.Compare(b.Addr)
	})
	return ls
}

// choose returns the address that a dynamic request must get. If it is not valid, any free one of the range will do.
func (p *poolModel) choose(r AddressRequest) netip.Addr {
	if a, ok := p.byMAC[r.MAC]; ok && r.MAC != "" {
		if l := p.leases[a]; r.Name == "" || l.Name == "" || l.Name == r.Name {
			return a
		}
	}
	if a, ok := p.byFor[r.Name]; ok && p.leases[a].State == StateReserved {
		return a
	}
	if a, ok := p.byName[r.Name]; ok && r.Name != "" {
		if s := p.leases[a].State; s == "" || s == StateCooling {
			return a
		}
	}
	return netip.Addr{}
}

// request checks what the package answered to r and records it.
func (p *poolModel) request(r AddressRequest, now time.Time, got netip.Addr, err error) error {
	kind, want := KindDynamic, r.Addr
	if r.Addr.IsValid() {
		kind = KindStatic
		l := p.leases[r.Addr]
		again := l.MAC == r.MAC && r.MAC != "" && (r.Name == "" || l.Name == "" || l.Name == r.Name)
		switch {
		case !p.usable(r.Addr):
			return expect(err, ErrInvalid)
		case l.State == StateActive && !again,
			l.State == StateReserved && l.Name != "" && r.Name != "" && l.Name != r.Name:
			return expect(err, ErrTaken)
		}
	} else if want = p.choose(r); !want.IsValid() {
		if done, err := p.search(now, got, err); done || err != nil {
			return err
		}
		want = got
	}
	if err != nil || got != want {
		return fmt.Errorf("got %s (%w), want %s", got, err, want)
	}
	if l := p.leases[got]; l.State != StateActive {
		p.put(Lease{
			Pool: p.pool.ID, Addr: got, Kind: kind, State: StateActive, Name: r.Name, MAC: r.MAC, Since: now,
			Reserved: l.Reserved, ReservedFor: l.ReservedFor,
		})
	}
	return nil
}

// search checks the answer to a request that can get any free address. done says that the answer must be an error, or
// is wrong.
func (p *poolModel) search(now time.Time, got netip.Addr, err error) (done bool, _ error) {
	for i, l := range p.cooling() {
		if i < cooledPerRequest && now.Sub(l.Freed) >= DefaultCooldown {
			p.drop(l.Addr)
		}
	}
	within := p.pool.Subnet
	if p.pool.Range.IsValid() {
		within = p.pool.Range
	}
	free := hostBits(within) > 10 // more addresses than operations
	for a := within.Addr(); !free && within.Contains(a); a = a.Next() {
		free = p.usable(a) && p.leases[a].State == ""
	}
	cooling := p.cooling()
	switch {
	case !free && len(cooling) == 0:
		return true, expect(err, ErrExhausted)
	case err != nil:
		return true, err
	case !within.Contains(got) || !p.usable(got):
		return true, fmt.Errorf("got %s, which is outside %s", got, within)
	case free && p.leases[got].State != "":
		return true, fmt.Errorf("got %s, which has a lease: %+v", got, p.leases[got])
	case !free && got != cooling[0].Addr:
		return true, fmt.Errorf("got %s, want the longest cooling %s", got, cooling[0].Addr)
	}
	return false, nil
}

func (p *poolModel) release(a netip.Addr, now time.Time) {
	l := p.leases[a]
	if l.State != StateActive {
		return
	}
	if l.Kind == KindDynamic && l.Name != "" {
		p.byName[l.Name] = a
	}
	l.Freed = now
	switch {
	case l.Reserved:
		l.Kind, l.State, l.Name, l.MAC = KindReserved, StateReserved, l.ReservedFor, ""
	case l.Kind == KindStatic:
		l.State = StateHeld
	default:
		l.State = StateCooling
	}
	p.put(l)
}

func (p *poolModel) reserve(a netip.Addr, name string, now time.Time, err error) error {
	if !p.usable(a) {
		return expect(err, ErrInvalid)
	}
	l := p.leases[a]
	l.Pool, l.Addr, l.Reserved, l.ReservedFor = p.pool.ID, a, true, name
	if l.State != StateActive {
		l.Since, l.Kind, l.State, l.Name, l.MAC = now, KindReserved, StateReserved, name, ""
	}
	p.put(l)
	return err
}

func (p *poolModel) forget(a netip.Addr, err error) error {
	switch p.leases[a].State {
	case "":
		return expect(err, ErrNotFound)
	case StateActive:
		return expect(err, ErrInUse)
	default:
		p.drop(a)
		return err
	}
}

func expect(err, want error) error {
	if !errors.Is(err, want) {
		return fmt.Errorf("error is %w, want %w", err, want)
	}
	return nil
}

var modelPools = []PoolRequest{
	{Subnet: prefix("10.1.0.0/29")},
	{Subnet: prefix("10.1.0.0/29"), Domain: "eth0"},
	{Subnet: prefix("10.2.0.0/24"), Range: prefix("10.2.0.128/26")},
	{Subnet: prefix("10.3.0.0/25")},
	{Subnet: prefix("10.4.0.0/31")},
	{Subnet: prefix("10.5.0.0/16")},
	{Subnet: prefix("fd00:1::/64")},
	{Subnet: prefix("fd00:2::/64"), Range: prefix("fd00:2::f:0:0:0/123")},
	{Subnet: prefix("fd00:3::/122")},
}

// operate does one random operation in the database and in the model.
func (m *model) operate(r *rig, tx store.Tx, rnd *rand.Rand) error {
	req := modelPools[rnd.IntN(len(modelPools))]
	id := poolID(req.Subnet, req.Domain)
	p := m.pools[id]
	if p == nil || rnd.IntN(700) == 0 {
		if err := r.ipam.ReleasePool(tx, id); err != nil {
			return err
		}
		pool, err := r.ipam.RequestPool(tx, req)
		if err != nil {
			return err
		}
		pool.Network = id
		m.pools[id] = newPoolModel(pool)
		return r.ipam.BindPool(tx, req.Subnet, "", id)
	}
	var name, mac string
	if rnd.IntN(2) == 0 {
		name = fmt.Sprint("c", rnd.IntN(40))
	}
	if rnd.IntN(3) == 0 {
		mac = fmt.Sprintf("02:00:00:00:00:%02x", rnd.IntN(40))
	}
	a := p.somewhere(rnd)
	switch n := rnd.IntN(100); {
	case n < 45:
		req := AddressRequest{Pool: id, Name: name, MAC: mac}
		got, err := r.ipam.RequestAddress(tx, req)
		return p.request(req, r.now, got.Addr(), err)
	case n < 55:
		req := AddressRequest{Pool: id, Addr: a, Name: name, MAC: mac}
		got, err := r.ipam.RequestAddress(tx, req)
		return p.request(req, r.now, got.Addr(), err)
	case n < 90:
		p.release(a, r.now)
		return r.ipam.ReleaseAddress(tx, id, a)
	case n < 92:
		return p.reserve(a, name, r.now, r.ipam.Reserve(tx, id, a, name))
	default:
		return p.forget(a, r.ipam.Free(tx, id, a))
	}
}

// somewhere returns a random address: mostly one that has a lease, and sometimes one outside the subnet.
func (p *poolModel) somewhere(rnd *rand.Rand) netip.Addr {
	if n := len(p.leases); n > 0 && rnd.IntN(10) < 8 {
		return slices.SortedFunc(maps.Keys(p.leases), netip.Addr.Compare)[rnd.IntN(n)]
	}
	a := add(p.pool.Subnet.Addr(), rnd.Uint64N(70), 0)
	if rnd.IntN(20) == 0 && a.Is6() {
		a = add(a, 1<<33, 0)
	}
	return a
}

var errRollBack = errors.New("roll back")

// TestModel does 20000 random operations, some of which are rolled back.
func TestModel(t *testing.T) {
	const operations, batch = 20000, 50
	for _, seed := range []uint64{1, 2} {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 7))
			r := newRig(t, Config{})
			m := &model{pools: map[string]*poolModel{}}
			for done := 0; done < operations/2; done += batch {
				before, back := m.clone(), rnd.IntN(10) == 0
				err := r.store.Update(func(tx store.Tx) error {
					for i := range batch {
						if err := m.operate(r, tx, rnd); err != nil {
							return fmt.Errorf("operation %d: %w", done+i, err)
						}
						r.now = r.now.Add(time.Duration(rnd.IntN(4)) * time.Second)
					}
					if back {
						return errRollBack
					}
					return nil
				})
				if back && errors.Is(err, errRollBack) {
					m, err = before, nil
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			m.compare(t, r)
		})
	}
}

// compare checks that the database has the model's leases and no others.
func (m *model) compare(t *testing.T, r *rig) {
	t.Helper()
	var want []Lease
	for _, id := range slices.Sorted(maps.Keys(m.pools)) {
		p := m.pools[id]
		for _, a := range slices.SortedFunc(maps.Keys(p.leases), netip.Addr.Compare) {
			want = append(want, p.leases[a])
		}
	}
	r.do(func(tx store.Tx) error {
		got, err := r.ipam.Leases(tx)
		equal(t, "leases", got, want)
		return err
	})
	states := map[State]int{}
	for _, l := range want {
		states[l.State]++
	}
	if t.Logf("%d leases: %v", len(want), states); len(states) != 4 {
		t.Errorf("the operations led to states %v only", states)
	}
}
