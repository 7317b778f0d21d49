package fabric

import (
	"net/netip"
	"slices"
	"testing"

	"netyard/cluster"
	"netyard/cluster/clustertest"
	"netyard/modes"
)

// TestNames: who is called what is known on every host, also what etcd has not heard yet, for those networks that the
// asker is on.
func TestNames(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	all := hosts(t, e, 2)
	var blue, green cluster.Network
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
	publish := func(h *host, n cluster.Network, id, name, sandbox string, aliases ...string) netip.Addr {
		t.Helper()
		a, err := h.Grant(t.Context(), Wish{Network: n.ID, Endpoint: id})
		must(t, err)
		ep := modes.Endpoint{ID: id, Addrs: []netip.Prefix{netip.PrefixFrom(a, 16)}, Sandbox: sandbox, Aliases: aliases, Container: modes.Container{Name: name}}
		must(t, Modes{h.Agent}.Attach(modes.Overlay{ID: n.ID}, ep))
		return a
	}
	is := func(what string, h *host, n cluster.Network, asker netip.Addr, name string, want ...netip.Addr) {
		t.Helper()
		slices.SortFunc(want, netip.Addr.Compare)
		clustertest.Eventually(t, what, func() bool { return slices.Equal(h.Lookup(n.ID, asker, name), want) })
	}
	nobody := netip.Addr{}
	web1 := publish(one, blue, "e1", "Web", "/run/one", "db")
	is("it is not known at once on its own host", one, blue, nobody, "web", web1)
	is("it is not known on the other host", two, blue, nobody, "web", web1)
	is("its alias is not known", two, blue, nobody, "db", web1)
	is("it is not known by the network's name", two, blue, nobody, "web.blue", web1)
	web2 := publish(two, blue, "e2", "web", "/run/two")
	for _, h := range all {
		is("two of a name are not both known", h, blue, nobody, "web", web1, web2)
	}
	if name, ours := two.NameOf(blue.ID, nobody, web1); name != "web.Blue" || !ours {
		t.Errorf("%s is called %q", web1, name)
	}
	if name, ours := two.NameOf(blue.ID, nobody, web1.Next()); name != "" || !ours {
		t.Errorf("nobody is called %q", name)
	}

	// Who is on two networks knows the names of both, and nobody else does.
	green1 := publish(one, green, "e3", "Web", "/run/one")
	far := publish(two, green, "e4", "far", "/run/four")
	is("a name of the asker's other network", one, blue, web1, "far", far)
	is("the same by the network's name", one, blue, web1, "far.green", far)
	is("a name on both is that of the network which is asked", one, green, green1, "web", green1)
	is("unless it says which", one, green, green1, "web.blue", web1, web2)
	is("a name of a network that the asker is not on", two, blue, web2, "far")
	is("or who is on another host", two, blue, web1, "far")
	if name, ours := one.NameOf(blue.ID, web1, far); name != "far.green" || !ours {
		t.Errorf("%s is called %q", far, name)
	}
	if _, ours := two.NameOf(blue.ID, web2, far); ours {
		t.Error("an address of a network that the asker is not on")
	}

	e.Cut() // what is known stays known, and what comes here is known here
	late := publish(one, blue, "e5", "late", "/run/five")
	is("what comes while etcd is away", one, blue, nobody, "late", late)
	is("what was there", one, blue, nobody, "web", web1, web2)
	must(t, Modes{one.Agent}.Name(modes.Overlay{ID: blue.ID}, modes.Endpoint{ID: "e5", Container: modes.Container{Name: "later"}}))
	is("its new name", one, blue, nobody, "later", late)
	is("its old name", one, blue, nobody, "late")
	must(t, Modes{one.Agent}.Detach(modes.Overlay{ID: blue.ID}, modes.Endpoint{ID: "e1"}))
	is("what left while etcd is away", one, blue, nobody, "db")
	e.Mend()
	is("it is not known on the other host", two, blue, nobody, "later", late)
	is("what left is", two, blue, nobody, "web", web2)

	two.stop()
	two.boot(2) // with what its file has, and without etcd
	is("after a restart", two, blue, nobody, "later", late)
	is("its own after a restart", two, blue, nobody, "web", web2)
	must(t, two.Unbind(blue.ID))
	is("of a network that went", two, blue, nobody, "web")
}
