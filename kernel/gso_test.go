package kernel_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/kernel/gso"
	"netyard/kernel/kerneltest"
	"netyard/kernel/lan"
)

// at calls f with a netlink handle in the namespace of a host, and the link of that name.
func at(t *testing.T, h *kerneltest.Host, name string, f func(*netlink.Handle, netlink.Link)) {
	t.Helper()
	nl, err := netlink.NewHandleAt(netns.NsHandle(h.NS()), unix.NETLINK_ROUTE)
	must(t, err)
	defer nl.Close()
	link, err := nl.LinkByName(name)
	must(t, err)
	f(nl, link)
}

// takes returns the size of the segments that a link takes, which has to be the same everywhere.
func takes(t *testing.T, h *kerneltest.Host, name string) (size uint32) {
	t.Helper()
	at(t, h, name, func(_ *netlink.Handle, l netlink.Link) {
		a := l.Attrs()
		size = a.GSOMaxSize
		for _, s := range []uint32{a.GSOIPv4MaxSize, a.GROMaxSize, a.GROIPv4MaxSize} {
			if s != size {
				t.Errorf("link %s takes segments of %d and of %d", name, size, s)
			}
		}
	})
	return size
}

// resize lets a link take segments of a size.
func resize(t *testing.T, h *kerneltest.Host, name string, size uint32) {
	t.Helper()
	at(t, h, name, func(nl *netlink.Handle, l netlink.Link) {
		must(t, gso.Ensure(nl, l, gso.Sizes{V4: size, V6: size}))
	})
}

// bigLab is a host with an uplink, two networks, and a container on each: one is routed, the other one internal.
type bigLab struct {
	t       *testing.T
	host    *kerneltest.Host
	box     map[string]*kerneltest.Host
	objects []core.Object
}

func newBigLab(t *testing.T) *bigLab {
	t.Helper()
	l := &bigLab{t: t, host: kerneltest.New(t), box: map[string]*kerneltest.Host{}}
	l.host.Peer(t, "eth0")
	l.host.Sh(t, "ip link set eth0 up && ip addr add 192.0.2.2/24 dev eth0 && ip route add default via 192.0.2.1")
	must(t, l.host.LoadFirewall())
	for net, want := range map[string]gso.Want{"out": {Big: true, Routed: true}, "in": {Big: true}} {
		l.box[net] = kerneltest.New(t)
		br := bridge.Bridge{Name: "nyb-" + net, Alias: core.Alias(net, ""), MTU: 1500, Segments: want}
		veth := bridge.Veth{
			Name: "nyv-" + net, Peer: "nyp-" + net, Alias: core.Alias(net, "e"), Master: br.Name, MTU: 1500,
			Segments: want, Sandbox: l.box[net].Path(),
		}
		l.objects = append(l.objects, br, veth)
	}
	return l
}

// run makes the objects and moves the inner ends into sandboxes.
func (l *bigLab) run() {
	l.t.Helper()
	must(l.t, l.host.Ensure(l.t.Context(), l.objects...))
	for _, net := range []string{"in", "out"} {
		l.host.Give(l.t, l.box[net], "nyp-"+net)
	}
}

// repair puts right what differs, and says what did.
func (l *bigLab) repair() string {
	l.t.Helper()
	said := faults(l.t, l.host, l.objects...)
	must(l.t, l.host.Ensure(l.t.Context(), l.objects...))
	if again := faults(l.t, l.host, l.objects...); again != "" {
		l.t.Errorf("not repaired: %s", again)
	}
	return said
}

// want compares the sizes at the bridge and at both ends.
func (l *bigLab) want(net string, size uint32) {
	l.t.Helper()
	got := [3]uint32{
		takes(l.t, l.host, "nyb-"+net), takes(l.t, l.host, "nyv-"+net), takes(l.t, l.box[net], "nyp-"+net),
	}
	if got != [3]uint32{size, size, size} {
		l.t.Errorf("network %s: bridge, port and the inner end take segments of %d, want %d", net, got, size)
	}
}

// TestBigTCP: segments are as large as every link on the way out takes, at the bridge and at both ends of each pair, as
// the way out changes, and after a restart. Inside a network that nothing leaves they are always large.
func TestBigTCP(t *testing.T) {
	t.Parallel()
	l := newBigLab(t)
	l.run()
	l.want("in", gso.Big)
	l.want("out", gso.Small)
	if said := l.repair(); said != "" {
		t.Errorf("right after they were made: %s", said)
	}
	const some = 131072
	for _, size := range []uint32{some, gso.Big, 2 * gso.Big, gso.Small} {
		resize(t, l.host, "eth0", size)
		if said := l.repair(); !strings.Contains(said, "link nyv-out takes segments of") {
			if size != 2*gso.Big { // no more than Big
				t.Errorf("after eth0 takes %d: %q", size, said)
			}
		}
		l.want("out", min(size, gso.Big))
		l.want("in", gso.Big)
	}
	resize(t, l.host, "eth0", gso.Big)
	l.host.Reopen(t)
	must(t, l.host.LoadFirewall())
	l.repair()
	l.want("out", gso.Big)
	resize(t, l.host, "nyv-in", gso.Small)
	resize(t, l.host, "nyb-out", gso.Small)
	said := l.repair()
	for _, want := range []string{
		"link nyv-in takes segments of 65536 bytes instead of 262144 bytes",
		"bridge nyb-out takes segments of 65536 bytes instead of 262144 bytes",
	} {
		if !strings.Contains(said, want) {
			t.Errorf("%q, want %q", said, want)
		}
	}
	l.want("in", gso.Big)
	l.want("out", gso.Big)
}

// TestBigTCPAtOnce: a pair that is made while the way out takes large segments has them from the beginning, also in
// the sandbox that its inner end is made in; and one that is not to have them does not get them.
func TestBigTCPAtOnce(t *testing.T) {
	t.Parallel()
	l := newBigLab(t)
	resize(t, l.host, "eth0", gso.Big)
	l.run()
	l.want("out", gso.Big)
	box := kerneltest.New(t)
	veth := bridge.Veth{
		Name: "nyv-new", Peer: "eth0", Alias: core.Alias("out", "n"), Master: "nyb-out", MTU: 1400,
		Segments: gso.Want{Big: true, Routed: true}, PeerNS: box.NS(), Sandbox: box.Path(),
	}
	must(t, l.host.Ensure(t.Context(), veth))
	if got := takes(t, box, "eth0"); got != gso.Big {
		t.Errorf("in the sandbox: %d", got)
	}
	at(t, box, "eth0", func(_ *netlink.Handle, link netlink.Link) {
		if a := link.Attrs(); a.MTU != 1400 || a.TxQLen != 1000 {
			t.Errorf("MTU %d, queue of %d", a.MTU, a.TxQLen)
		}
	})
	veth.Segments = gso.Want{}
	must(t, l.host.Ensure(t.Context(), veth))
	if inner, outer := takes(t, box, "eth0"), takes(t, l.host, "nyv-new"); inner != gso.Small || outer != gso.Small {
		t.Errorf("not wanted, and they take %d and %d", inner, outer)
	}
}

// TestBigTCPRoute: when the default route moves to another link, that link decides, and Repair is told.
func TestBigTCPRoute(t *testing.T) {
	t.Parallel()
	l := newBigLab(t)
	l.host.Peer(t, "eth1")
	l.host.Sh(t, "ip link set eth1 up && ip addr add 198.51.100.2/32 dev eth1")
	resize(t, l.host, "eth0", gso.Big)
	l.run()
	l.want("out", gso.Big)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	changes, err := l.host.Changes(ctx)
	must(t, err)
	for _, c := range []struct {
		cmd  string
		size uint32
	}{
		{"ip route add default via 198.51.100.1 dev eth1 onlink metric 9", gso.Small},
		{"ip route del default via 198.51.100.1 dev eth1 metric 9", gso.Big},
	} {
		l.host.Sh(t, c.cmd)
		for all := false; !all; _, all = changes.Take() {
			select {
			case <-changes.Signal:
			case <-ctx.Done():
				t.Fatalf("nobody is told that %s may have affected all links", c.cmd)
			}
		}
		l.repair()
		l.want("out", c.size)
	}
}

// TestBigTCPOnParent: links on a parent take what the parent takes, also when they are made and in their sandboxes;
// those of a network without one large segments.
func TestBigTCPOnParent(t *testing.T) {
	t.Parallel()
	kerneltest.Needs(t, "macvlan")
	host := kerneltest.New(t)
	host.Peer(t, "eth0")
	host.Sh(t, "ip link set eth0 up")
	resize(t, host, "eth0", gso.Big)
	must(t, host.LoadFirewall())
	island := lan.IsolatedParent{Name: "nyi-a", Alias: core.Alias("b", "")}
	boxes := map[string]*kerneltest.Host{}
	objects := []core.Object{island}
	for _, parent := range []string{"eth0", "nyi-a"} {
		box := kerneltest.New(t)
		boxes[parent] = box
		c := lan.Child{
			Name: "nyp-" + parent, Alias: core.Alias("a", parent), Parent: lan.Parent{Name: parent}, Kind: "macvlan",
			Mode: "bridge", Segments: gso.Want{Big: true, Link: parent}, Sandbox: box.Path(),
		}
		if parent == island.Name {
			c.Segments.Link = ""
		}
		must(t, host.Ensure(t.Context(), island, c))
		if got := takes(t, host, c.Name); got != gso.Big {
			t.Errorf("a new link on %s takes %d", parent, got)
		}
		host.Give(t, box, c.Name)
		objects = append(objects, c)
	}
	for _, size := range []uint32{gso.Small, gso.Big, gso.Small} {
		resize(t, host, "eth0", size)
		snap, err := host.LinkSnapshot()
		must(t, err)
		for _, f := range snap.Faults(objects) {
			if f.Lost {
				t.Errorf("this is not to be repaired: %s", f.Text)
			}
		}
		must(t, host.Ensure(t.Context(), objects...))
		if said := faults(t, host, objects...); said != "" {
			t.Errorf("not repaired: %s", said)
		}
		for parent, want := range map[string]uint32{"eth0": size, "nyi-a": gso.Big} {
			if got := takes(t, boxes[parent], "nyp-"+parent); got != want {
				t.Errorf("parents take %d, and the link on %s %d, want %d", size, parent, got, want)
			}
		}
	}
}
