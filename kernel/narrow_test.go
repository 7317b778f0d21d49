package kernel_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/kernel/kerneltest"
	"netyard/kernel/overlay"
)

// TestNarrowReads shows that what is read to check the objects of one network and one endpoint does not grow with the
// number of other links.
func TestNarrowReads(t *testing.T) {
	t.Parallel()
	h := kerneltest.New(t)
	must(t, h.LoadFirewall())
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 0x11}
	objects := []core.Object{
		bridge.Bridge{Name: "nyb-a", Alias: core.Alias("a", ""), MTU: 1500},
		core.Addr{Link: "nyb-a", Alias: core.Alias("a", ""), Prefix: netip.MustParsePrefix("10.9.0.1/24")},
		bridge.Veth{Name: "nyv-a", Peer: "nyp-a", Alias: core.Alias("a", "e"), Master: "nyb-a", MTU: 1500, MAC: mac},
		bridge.StaticPort{Link: "nyv-a", MAC: mac},
		bridge.Limits{Link: "nyv-a", Shaper: "nyi-a", Alias: core.Alias("a", "e"), MTU: 1500},
	}
	must(t, h.Ensure(t.Context(), objects...))
	h.Sh(t, "ip link add others type bridge && ip link set others up")
	made, read := 0, map[int]int{}
	for _, others := range []int{10, 1000} {
		var batch strings.Builder
		for ; made < others/2; made++ {
			fmt.Fprintf(&batch, "link add o%d master others up type veth peer name p%d\n", made, made)
		}
		h.Sh(t, "ip -batch - <<'EOF'\n"+batch.String()+"EOF")
		found, reads, err := h.FaultsOf(objects)
		if err != nil || len(found) > 0 || reads == 0 {
			t.Fatalf("among %d links: %v %v, %d reads", others, found, err, reads)
		}
		read[others] = reads
	}
	if read[10] != read[1000] {
		t.Errorf("things read among 10 links: %d, among 1000: %d", read[10], read[1000])
	}
	alike(t, h, objects)
}

// TestNarrowForeign shows that another program's link under one of netyard's names is a fault of the object, as for a
// view of all links, and no failed read, after which nothing would be repaired.
func TestNarrowForeign(t *testing.T) {
	t.Parallel()
	alias, mac := core.Alias("a", "e"), net.HardwareAddr{2, 0, 0, 0, 0, 0x11}
	objects := []core.Object{
		bridge.Bridge{Name: "nyb-a", Alias: core.Alias("a", ""), MTU: 1500},
		core.Addr{Link: "nyb-a", Alias: core.Alias("a", ""), Prefix: netip.MustParsePrefix("10.9.0.1/24")},
		bridge.Veth{Name: "nyv-a", Peer: "nyp-a", Alias: alias, Master: "nyb-a", MTU: 1500, MAC: mac},
		bridge.StaticPort{Link: "nyv-a", MAC: mac},
		bridge.Limits{Link: "nyv-a", Shaper: "nyi-a", Alias: alias, MTU: 1500, Egress: 1_000_000},
		overlay.VXLAN{
			Name: "nyx-a", Alias: core.Alias("a", ""), Master: "nyb-a", VNI: 1, Port: 4789, MTU: 1450,
			Local: netip.MustParseAddr("192.0.2.1"),
		},
	}
	for _, name := range []string{"nyb-a", "nyv-a", "nyx-a"} {
		for _, kind := range []string{"bridge", "veth peer name other", "ifb"} {
			t.Run(name+" "+kind, func(t *testing.T) {
				t.Parallel()
				h := kerneltest.New(t)
				must(t, h.LoadFirewall())
				h.Sh(t, "ip link add name "+name+" type "+kind+" && ip link set "+name+" up")
				if said := faults(t, h, objects...); !strings.Contains(said, name) { // it also compares both views
					t.Errorf("nothing is wrong with %s: %s", name, said)
				}
			})
		}
	}
}

// TestChangesNamed shows that changes name their links, whatever the message tells.
func TestChangesNamed(t *testing.T) {
	t.Parallel()
	h := kerneltest.New(t)
	h.Sh(t, "ip link add old type bridge && ip link set old alias netyard:n:old up && ip addr add 10.8.0.1/24 dev old")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	changes, err := h.Changes(ctx)
	must(t, err)
	for _, c := range []struct{ cmd, want string }{
		{"ip link add b0 type bridge && ip link set b0 alias netyard:n up", "b0 netyard:n"},
		{"ip link add p type veth peer name inner && ip link set p alias netyard:n:e up", "p netyard:n:e"},
		{"ip link set p master b0", "p netyard:n:e"},
		{"bridge link set dev p learning off", "p netyard:n:e"},
		{"ip addr add 10.9.0.1/24 dev b0", "b0 netyard:n addresses"},
		{"ip route del 10.9.0.0/24 dev b0", "b0 netyard:n"},
		{"ip route del 10.8.0.0/24 dev old", "old netyard:n:old"}, // it was there before
		{"ip addr del 10.8.0.1/24 dev old", "old netyard:n:old addresses"},
		{"ip link set p alias mine", "p netyard:n:e"},
		{"ip link set p down && ip link set p name q", "p mine"},
		{"ip link set q nomaster", "q mine"},
		{"ip link del q", "q mine"},
		{"ip link del b0", "b0 netyard:n"},
	} {
		h.Sh(t, c.cmd)
		var said []string
		for end := time.Now().Add(10 * time.Second); !slices.Contains(said, c.want); {
			if time.Now().After(end) {
				t.Fatalf("%s: named are %q, want %q", c.cmd, said, c.want)
			}
			select {
			case <-changes.Signal:
			case <-time.After(time.Second):
			}
			links, lost := changes.Take()
			if lost {
				t.Errorf("%s: changes were lost", c.cmd)
			}
			for _, l := range links {
				text := strings.TrimSpace(l.Name + " " + l.Alias)
				if l.Addrs {
					text += " addresses"
				}
				said = append(said, text)
			}
		}
	}
}
