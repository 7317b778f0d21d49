package fabric

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"netyard/cluster/clustertest"
	"netyard/cluster/record"
	"netyard/fabric/address"
	"netyard/modes"
)

// TestNames: names of endpoints are known on every host, for the networks that the asker is on; those of the host's own
// endpoints also before etcd has them.
func TestNames(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	all := hosts(t, e, 2)
	var blue, green record.Network
	for i, h := range all {
		h.run()
		h.member()
		if i == 0 {
			blue, green = h.network("Blue", subnets(20)...), h.network("green", subnets(30)...)
		}
		h.up(blue)
		h.up(green)
		h.warm(blue)
		h.warm(green)
	}
	one, two := all[0], all[1]
	publish := func(h *host, n record.Network, id, name, sandbox string, aliases ...string) netip.Addr {
		t.Helper()
		a, err := h.Grant(t.Context(), address.Wish{Network: n.ID, Endpoint: id})
		must(t, err)
		ep := modes.Endpoint{
			ID: id, Addrs: []netip.Prefix{netip.PrefixFrom(a, 16)}, Sandbox: sandbox, Aliases: aliases,
			Container: modes.Container{Name: name},
		}
		must(t, Modes{h.Agent}.Attach(modes.Overlay{ID: n.ID}, ep))
		return a
	}
	is := func(what string, h *host, n record.Network, asker netip.Addr, name string, want ...netip.Addr) {
		t.Helper()
		slices.SortFunc(want, netip.Addr.Compare)
		clustertest.Eventually(t, what, func() bool { return slices.Equal(h.Lookup(n.ID, asker, name), want) })
	}
	nobody := netip.Addr{}
	web1 := publish(one, blue, "e1", "Web", "/run/one", "db")
	is("a name is not known on its own host", one, blue, nobody, "web", web1)
	is("a name is not known on the other host", two, blue, nobody, "web", web1)
	is("an alias is not known", two, blue, nobody, "db", web1)
	is("a name with the network's name is not known", two, blue, nobody, "web.blue", web1)
	web2 := publish(two, blue, "e2", "web", "/run/two")
	for _, h := range all {
		is("two endpoints with one name are not both known", h, blue, nobody, "web", web1, web2)
	}
	if name, ours := two.NameOf(blue.ID, nobody, web1); name != "web.Blue" || !ours {
		t.Errorf("%s is called %q", web1, name)
	}
	if name, ours := two.NameOf(blue.ID, nobody, web1.Next()); name != "" || !ours {
		t.Errorf("a free address is called %q", name)
	}

	// A container on two networks knows the names of both; others know only those of their own network.
	green1 := publish(one, green, "e3", "Web", "/run/one")
	far := publish(two, green, "e4", "far", "/run/four")
	is("a name on the asker's other network", one, blue, web1, "far", far)
	is("the same with the network's name", one, blue, web1, "far.green", far)
	is("a name on both networks is not that of the network that is asked", one, green, green1, "web", green1)
	is("a name on both networks, with the other network's name,", one, green, green1, "web.blue", web1, web2)
	is("a name on a network that the asker is not on", two, blue, web2, "far")
	is("a name for an asker of another host", two, blue, web1, "far")
	if name, ours := one.NameOf(blue.ID, web1, far); name != "far.green" || !ours {
		t.Errorf("%s is called %q", far, name)
	}
	if _, ours := two.NameOf(blue.ID, web2, far); ours {
		t.Error("an address on a network that the asker is not on has a name")
	}

	e.Cut() // known names stay, and new ones of this host are known here
	late := publish(one, blue, "e5", "late", "/run/five")
	is("a name that is new while etcd is away", one, blue, nobody, "late", late)
	is("a name from before the outage", one, blue, nobody, "web", web1, web2)
	must(t, Modes{one.Agent}.Name(modes.Overlay{ID: blue.ID},
		modes.Endpoint{ID: "e5", Container: modes.Container{Name: "later"}}))
	is("a changed name", one, blue, nobody, "later", late)
	is("the name before the change", one, blue, nobody, "late")
	must(t, Modes{one.Agent}.Detach(modes.Overlay{ID: blue.ID}, modes.Endpoint{ID: "e1"}))
	is("an alias that was withdrawn while etcd is away", one, blue, nobody, "db")
	e.Mend()
	is("a name from the outage, on the other host,", two, blue, nobody, "later", late)
	is("a name that was withdrawn, on the other host,", two, blue, nobody, "web", web2)

	two.stop()
	two.boot(2) // with the saved records, without etcd
	is("a name of the other host, after a restart,", two, blue, nobody, "later", late)
	is("a name of its own, after a restart,", two, blue, nobody, "web", web2)
	must(t, two.Unbind(blue.ID))
	is("a name on a network that was removed", two, blue, nobody, "web")
}

// TestAliases: a name that the cluster does not accept costs an endpoint this name, and nothing else.
func TestAliases(t *testing.T) {
	t.Parallel()
	e := modes.Endpoint{
		Aliases:   []string{"db", "", "a b", strings.Repeat("x", 1000), "_x", "db", "store"},
		Container: modes.Container{Labels: map[string]string{modes.LabelAlias: "cache, ,?", labelService: "db"}},
	}
	if got := aliases(e); !slices.Equal(got, []string{"db", "store", "cache"}) {
		t.Errorf("aliases %q", got)
	}
	for i := range 2 * record.MaxNames {
		e.Aliases = append(e.Aliases, fmt.Sprint("n", i))
	}
	if got := aliases(e); len(got) != record.MaxNames {
		t.Errorf("%d aliases; want %d", len(got), record.MaxNames)
	}
}
