package modetest

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"netyard/modes"
)

// updating is the environment variable that has golden files written anew.
const updating = "NETYARD_UPDATE"

// A Plan is a network, and an endpoint of it, whose plan is kept as text.
type Plan struct {
	Name string
	// Options are the network's, by canonical names.
	Options map[string]string
	// Subnets are its pools; the first address of each is the gateway.
	Subnets  []string
	Internal bool
	// Facts are the host's that it is created on.
	Facts Facts
	// Addrs are the endpoint's. Without any, and without an option, it has the third address of each subnet.
	Addrs []string
	// Said are the options of the endpoint, Ports those that are published on it.
	Said  map[string]string
	Ports []modes.Port
	// Change sets other fields of the endpoint; nil: none.
	Change func(e *modes.Endpoint)
}

// The ids of a plan's network and endpoint.
const (
	PlanNetwork  = "aaaaaaaaaaaa1111"
	PlanEndpoint = "eeeeeeeeeeee0001"
)

// Published returns a port of the host that leads to a container's.
func Published(proto, host string, port, to uint16) modes.Port {
	return modes.Port{Proto: proto, HostIP: netip.MustParseAddr(host), HostPort: port, ContainerPort: to, Count: 1}
}

// Golden compares the plans of a mode with testdata/plans.golden, and has the mode resolve the options it is given. It
// needs no kernel. NETYARD_UPDATE=1 go test writes the file anew.
func Golden(t *testing.T, name string, m modes.Mode, plans ...Plan) {
	t.Helper()
	table := modes.NewTable(map[string]modes.Mode{name: m})
	var out strings.Builder
	unseen := map[string]bool{}
	for _, o := range m.Options() {
		unseen[o.Name] = true
	}
	for _, p := range plans {
		opts, err := table.Resolve(name, p.Options)
		if err != nil {
			t.Fatalf("%s: %v", p.Name, err)
		}
		for said := range opts {
			delete(unseen, said)
		}
		fmt.Fprintf(&out, "-- %s --\n%s\n", p.Name, p.text(t, name, opts, m))
	}
	if len(unseen) > 0 {
		t.Errorf("no plan shows what these options change: %v", slices.Sorted(maps.Keys(unseen)))
	}
	file := filepath.Join("testdata", "plans.golden")
	if os.Getenv(updating) != "" {
		if err := os.MkdirAll("testdata", 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(out.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file) //nolint:gosec // a file of the test's own
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(out.String(), "\n")); d != "" {
		t.Errorf("the plans are others (NETYARD_UPDATE=1 go test writes them):\n%s", d)
	}
}

// text writes a plan as text, or why the network is refused.
func (p Plan) text(t *testing.T, mode string, opts map[string]string, m modes.Mode) string {
	t.Helper()
	n := modes.Network{ID: PlanNetwork, Mode: mode, Options: opts, Internal: p.Internal}
	for _, s := range p.Subnets {
		pool := netip.MustParsePrefix(s)
		gateway := netip.PrefixFrom(pool.Addr().Next(), pool.Bits())
		n.Subnets = append(n.Subnets, modes.Subnet{Pool: pool, Gateway: gateway})
	}
	var err error
	if n.Settled, err = m.Settle(t.Context(), p.Facts, n, nil); err != nil {
		return "refused: " + err.Error() + "\n"
	}
	var out strings.Builder
	section := func(head string, lines []string) {
		if len(lines) > 0 {
			fmt.Fprintf(&out, "%s\n\t%s\n", head, strings.Join(lines, "\n\t"))
		}
	}
	var settled, network, endpoint []string
	for _, key := range slices.Sorted(maps.Keys(n.Settled)) {
		settled = append(settled, key+" "+n.Settled[key])
	}
	e := p.endpoint(n)
	if e.MAC == "" {
		e.MAC = m.Traits(n).MAC.Default(e)
	}
	for _, o := range m.Objects(n) {
		network = append(network, Text(o))
	}
	objects, l := m.Place(n, e)
	for _, o := range objects {
		endpoint = append(endpoint, Text(o))
	}
	section("settled", settled)
	section("traits", traits(m.Traits(n)))
	section("network", network)
	section("endpoint "+addrs(e), endpoint)
	section("sandbox", link(l))
	return out.String()
}

func (p Plan) endpoint(n modes.Network) modes.Endpoint {
	e := modes.Endpoint{ID: PlanEndpoint, NetworkID: n.ID, Options: p.Said, Ports: p.Ports}
	for _, a := range p.Addrs {
		e.Addrs = append(e.Addrs, netip.MustParsePrefix(a))
	}
	for _, s := range n.Subnets {
		if p.Addrs == nil {
			e.Addrs = append(e.Addrs, netip.PrefixFrom(s.Pool.Addr().Next().Next(), s.Pool.Bits()))
		}
	}
	if p.Change != nil {
		p.Change(&e)
	}
	return e
}

func addrs(e modes.Endpoint) string {
	var all []string
	for _, a := range e.Addrs {
		all = append(all, a.String())
	}
	return strings.Join(all, " ")
}
