package nametable

import (
	"net/netip"
	"slices"
	"testing"

	"netyard/cluster/hosttest"
	"netyard/cluster/record"
	"netyard/fabric/address"
)

// TestTables: names of this host's endpoints are those of the database, names of others those of etcd; who asks knows
// the names of the networks that its sandbox is on.
func TestTables(t *testing.T) {
	t.Parallel()
	own := map[string][]address.Own{}
	tables := New(hosttest.ID(1), func(network string) ([]address.Own, error) { return own[network], nil })
	blue, green := hosttest.Blue(), hosttest.Blue()
	green.ID, green.Name = hosttest.ID(8), "Green"
	tables.Add(blue)
	tables.Add(green)
	local := netip.MustParseAddr("10.20.0.5")
	far, both := netip.MustParseAddr("10.20.0.6"), netip.MustParseAddr("10.20.0.7")
	endpoint := func(network string, a netip.Addr, host int, name string, aliases ...string) *record.Address {
		return &record.Address{
			Network: network, Addr: a, Host: hosttest.ID(host), Use: record.Endpoint, Endpoint: "e" + a.String(),
			Name: name, Aliases: aliases,
		}
	}
	is := func(what, network string, asker netip.Addr, name string, want ...netip.Addr) {
		t.Helper()
		if got := tables.Lookup(network, asker, name); !slices.Equal(got, want) {
			t.Errorf("%s: %s is at %v, want %v", what, name, got, want)
		}
	}

	own[blue.ID] = []address.Own{{Network: blue.ID, Addr: local, Use: record.Endpoint, Endpoint: "one", Name: "Web"}}
	is("before Stale", blue.ID, netip.Addr{}, "web", local)
	own[blue.ID][0].Name = "db"
	is("without Stale", blue.ID, netip.Addr{}, "web", local)
	tables.Stale(blue.ID)
	is("a former name", blue.ID, netip.Addr{}, "web")
	is("a new name", blue.ID, netip.Addr{}, "db", local)
	own[blue.ID][0].Lost = true
	tables.Stale(blue.ID)
	is("a lost address", blue.ID, netip.Addr{}, "db")
	own[blue.ID][0].Lost = false
	tables.Stale(blue.ID)

	tables.Apply(blue.ID, []record.Change{
		{New: endpoint(blue.ID, far, 2, "Far", "db")},
		{New: endpoint(blue.ID, both, 1, "mine")}, // the database would have it
	})
	is("two endpoints with one name", blue.ID, netip.Addr{}, "db", local, far)
	is("a name with the network's name", blue.ID, netip.Addr{}, "far.blue", far)
	is("an endpoint of this host that is only in etcd", blue.ID, netip.Addr{}, "mine")
	if name, ours := tables.NameOf(blue.ID, netip.Addr{}, far); name != "far.blue" || !ours {
		t.Errorf("%s is called %q", far, name)
	}

	tables.Apply(green.ID, []record.Change{{New: endpoint(green.ID, both, 2, "other")}})
	is("a network that the asker is not on", blue.ID, local, "other")
	tables.SetPlace("one", Place{Network: blue.ID, Sandbox: "/run/one"})
	tables.SetPlace("two", Place{Network: green.ID, Sandbox: "/run/one"})
	is("the asker's other network", blue.ID, local, "other.green", both)
	tables.RemovePlace("two")
	is("after the asker left its other network", blue.ID, local, "other")

	tables.Apply(blue.ID, []record.Change{{Old: endpoint(blue.ID, far, 2, "Far", "db")}})
	is("a name that was withdrawn", blue.ID, netip.Addr{}, "far")
	tables.Remove(blue.ID)
	is("a network that was removed", blue.ID, netip.Addr{}, "db")
}
