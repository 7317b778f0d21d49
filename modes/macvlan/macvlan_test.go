package macvlan_test

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"netyard/kernel/kerneltest"
	"netyard/modes"
	"netyard/modes/macvlan"
	"netyard/modes/modetest"
)

const (
	netA = "aaaaaaaaaaaa1111"
	netB = "bbbbbbbbbbbb2222"
	one  = "e1e1e1e1e1e1e1"
	two  = "e2e2e2e2e2e2e2"
)

func options(pairs ...string) map[string]string {
	o := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		o[pairs[i]] = pairs[i+1]
	}
	return o
}

func TestContract(t *testing.T) {
	t.Parallel()
	setup := func(t *testing.T, h *kerneltest.Host) {
		h.Peer(t, "eth0")
		h.Sh(t, "ip addr add 192.168.7.2/24 dev eth0 && ip addr add 2001:db8:7::2/64 dev eth0 nodad")
	}
	for name, opts := range map[string]map[string]string{
		"bridge":       options("parent", "eth0"),
		"private":      options("parent", "eth0", "macvlan_mode", "private"),
		"vepa":         options("parent", "eth0", "macvlan_mode", "vepa", "mtu", "1400"),
		"passthru":     options("parent", "eth0", "macvlan_mode", "passthru"),
		"no parent":    options(),
		"host access":  options("parent", "eth0", "host_access", "true"),
		"on its own":   options("host_access", "true"),
		"VLAN":         options("parent", "eth0.50"),
		"two VLANs":    options("parent", "eth0.10.20", "host_access", "true"),
		"iface_prefix": options("parent", "eth0", "iface_prefix", "lan"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if strings.Contains(opts["parent"], ".") {
				kerneltest.Needs(t, "vlan")
			}
			modetest.Run(t, modetest.Case{
				New: macvlan.New, Setup: setup,
				Network: modes.Network{ID: netA, Mode: "macvlan", Options: opts, Subnets: []modes.Subnet{
					{Pool: netip.MustParsePrefix("192.168.7.0/24"), Gateway: netip.MustParsePrefix("192.168.7.1/24")},
					{Pool: netip.MustParsePrefix("2001:db8:7::/64")},
				}},
				Endpoint: modes.Endpoint{ID: one, NetworkID: netA, Addrs: []netip.Prefix{
					netip.MustParsePrefix("192.168.7.9/24"), netip.MustParsePrefix("2001:db8:7::9/64"),
				}},
			})
		})
	}
}

// TestMatrix checks who reaches whom in each mode (ip-link(8), macvlan).
func TestMatrix(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		mode      string
		reflects  bool // the switch sends back by the port that a frame came in by
		neighbour bool // containers reach each other
		host      bool // containers reach the host
		fromHost  bool // the host reaches containers
	}{
		{"bridge", false, true, false, false},
		{"private", false, false, false, false},
		// What the switch sends back of a container's broadcasts goes to that container alone, so it does not find the
		// host; but it answers the host's.
		{"private", true, false, false, true},
		{"vepa", false, false, false, false},
		{"vepa", true, true, true, true},
	} {
		t.Run(fmt.Sprintf("%s,reflective=%v", c.mode, c.reflects), func(t *testing.T) {
			t.Parallel()
			l := modetest.NewLAN(t, macvlan.New)
			if c.reflects {
				l.Switch.Sh(t, "bridge link set dev host hairpin on")
			}
			n := l.Up(l.Network(netA, "macvlan", options("parent", "eth0", "macvlan_mode", c.mode)))
			c1 := l.Run(n, one, "192.168.7.11/24", "2001:db8:7::11/64")
			c2 := l.Run(n, two, "192.168.7.12/24", "2001:db8:7::12/64")
			for what, to := range map[string]string{
				"LAN": modetest.OneAddr, "LAN, IPv6": modetest.OneAddr6, "router": modetest.RouterAddr,
				"beyond": modetest.FarAddr, "beyond, IPv6": modetest.FarAddr6,
			} {
				l.Reaches("container to "+what, c1.Host, to, true)
			}
			l.Reaches("LAN to container", l.One, "192.168.7.12", true)
			l.Reaches("LAN to container, IPv6", l.One, "2001:db8:7::12", true)
			l.Reaches("router to container", l.Router, "192.168.7.11", true)
			l.Reaches("container to container", c1.Host, "192.168.7.12", c.neighbour)
			l.Reaches("container to container, IPv6", c2.Host, "2001:db8:7::11", c.neighbour)
			l.Reaches("container to host", c1.Host, modetest.HostAddr, c.host)
			l.Reaches("host to container", l.Host, "192.168.7.12", c.fromHost)
			l.Audit([]modes.Network{n}, c1, c2)
		})
	}
}

func TestPassthru(t *testing.T) {
	t.Parallel()
	l := modetest.NewLAN(t, macvlan.New)
	n := l.Up(l.Network(netA, "macvlan", options("parent", "eth0", "macvlan_mode", "passthru")))
	c1 := l.Run(n, one, "192.168.7.11/24")
	mac := c1.Sh(t, "cat /sys/class/net/eth0/address 2>/dev/null; ip -o link show eth0")
	if !strings.Contains(mac, "02:00:00:00:07:02") {
		t.Errorf("passing through, the container has another hardware address than the parent: %s", mac)
	}
	l.Reaches("container to LAN", c1.Host, modetest.OneAddr, true)
	l.Reaches("LAN to container", l.One, "192.168.7.11", true)
	_, err := l.Mode.Attach(t.Context(), n, modes.Endpoint{ID: two, NetworkID: netA})
	if err == nil || !strings.Contains(err.Error(), "passthru is for one container at a time, and eth0 has one") {
		t.Errorf("a second container: %v", err)
	}
	l.Stop(c1)
	c2 := l.Run(n, two, "192.168.7.12/24")
	l.Reaches("the next container to LAN", c2.Host, modetest.OneAddr, true)
}

// TestParents: several networks on one parent, one without, and what becomes of them as the parent comes and goes.
func TestParents(t *testing.T) {
	t.Parallel()
	l := modetest.NewLAN(t, macvlan.New)
	a := l.Up(l.Network(netA, "macvlan", options("parent", "eth0")))
	b := l.Up(l.Network(netB, "macvlan", options("parent", "eth0", "macvlan_mode", "private")))
	alone := l.Up(modes.Network{
		ID: "cccccccccccc3333", Mode: "macvlan",
		Subnets: []modes.Subnet{{Pool: netip.MustParsePrefix("10.9.0.0/24")}},
	})
	a1, b1 := l.Run(a, one, "192.168.7.11/24"), l.Run(b, two, "192.168.7.12/24")
	i1, i2 := l.Run(alone, "e3e3e3e3e3e3e3", "10.9.0.2/24"), l.Run(alone, "e4e4e4e4e4e4e4", "10.9.0.3/24")
	l.Reaches("on the first", a1.Host, modetest.OneAddr, true)
	l.Reaches("on the second", b1.Host, modetest.OneAddr, true)
	l.Reaches("without a parent, to a neighbour", i1.Host, "10.9.0.3", true)
	if out, err := i2.TrySh("ping -c 1 -W 1 " + modetest.OneAddr); err == nil || !strings.Contains(out, "nreachable") {
		t.Errorf("without a parent there is a way out: %s", out)
	}

	l.Host.Sh(t, "ip link set eth0 down")
	l.Reaches("parent down", a1.Host, modetest.OneAddr, false)
	l.Host.Sh(t, "ip link set eth0 name lan0 && ip link set lan0 up")
	l.Reaches("parent renamed and up again", a1.Host, modetest.OneAddr, true)
	a2 := l.Run(a, "e6e6e6e6e6e6e6", "192.168.7.13/24")
	l.Reaches("new container on a renamed parent", a2.Host, modetest.OneAddr, true)
	l.Audit([]modes.Network{a, b, alone}, a1, a2, b1, i1, i2)

	l.Switch.Sh(t, "ip link del host") // unplugged: the links on it go with it
	snap, err := l.Host.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	said := fmt.Sprint(snap.Faults(l.Mode.Objects(a, a1.Endpoint)))
	if !strings.Contains(said, "parent eth0 is missing") || !strings.Contains(said, "is missing from its sandbox") {
		t.Errorf("unplugged, and told of: %s", said)
	}
	if _, err := l.Mode.Attach(t.Context(), a, modes.Endpoint{ID: "e5", NetworkID: netA}); err == nil ||
		!strings.Contains(err.Error(), "find parent eth0") {
		t.Errorf("a container on a parent that is gone: %v", err)
	}
	l.Host.Sh(t, "ip link add eth0 type veth peer name p0")
	l.Run(a, "e7e7e7e7e7e7e7", "192.168.7.14/24")
}

// TestParentDown shows that networks and containers are made while their parent is down or has no carrier, that this is
// reported, and that the containers are on the LAN as soon as the parent is.
func TestParentDown(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		needs, down, up, faults string
		options                 map[string]string
	}{
		"down":       {down: "ip link set eth0 down", up: "ip link set eth0 up", faults: "parent eth0 is down"},
		"no carrier": {down: "ip link set eth0 up", up: "true"}, // the switch's end is down
		"private": {
			down: "ip link set eth0 down", up: "ip link set eth0 up", faults: "parent eth0 is down",
			options: options("macvlan_mode", "private"),
		},
		"passthru": {
			down: "ip link set eth0 down", up: "ip link set eth0 up", faults: "parent eth0 is down",
			options: options("macvlan_mode", "passthru"),
		},
		"host access": {
			down: "ip link set eth0 down", up: "ip link set eth0 up && ip addr add " + modetest.HostAddr6 +
				"/64 dev eth0 nodad", faults: "parent eth0 is down",
			options: options("host_access", "true", "host_publish", "true"),
		},
		"bridge": {
			down: "ip link add lan0 type bridge && ip link set eth0 master lan0", up: "ip link set lan0 up",
			faults: "parent lan0 is down", options: options("parent", "lan0"),
		},
		"bond": {
			needs: "bond", down: "ip link add lan0 type bond && ip link set lan0 up",
			up: "ip link set eth0 down && ip link set eth0 master lan0", options: options("parent", "lan0"),
		},
		"VLAN": {
			needs: "vlan", down: "ip link set eth0 down", up: "ip link set eth0 up",
			faults: "parent eth0 is down", options: options("parent", "eth0.50"),
		},
		"VLAN in a VLAN": {
			needs: "vlan", down: "ip link set eth0 down", up: "ip link set eth0 up",
			faults: "parent eth0 is down", options: options("parent", "eth0.50.60"),
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := modetest.NewLAN(t, macvlan.New)
			if c.needs != "" {
				kerneltest.Needs(t, c.needs)
			}
			if c.needs == "vlan" {
				l.One.Sh(t, "ip link add link eth0 name v type vlan id 50 && ip link set v up && "+
					"ip link add link v name w type vlan id 60 && ip link set w up; ip addr flush dev eth0")
				l.One.Sh(t, "ip addr add "+modetest.OneAddr+"/24 dev "+
					map[string]string{"eth0.50": "v", "eth0.50.60": "w"}[c.options["parent"]])
			}
			l.Host.Sh(t, c.down)
			l.Switch.Sh(t, "ip link set host down")
			o := options("parent", "eth0")
			maps.Copy(o, c.options)
			n := l.Up(l.Network(netA, "macvlan", o))
			c1 := l.Run(n, one, "192.168.7.11/24", "2001:db8:7::11/64")
			faults := func() (all string) {
				snap, err := l.Host.Snapshot()
				if err != nil {
					t.Fatal(err)
				}
				for _, f := range snap.Faults(l.Mode.Objects(n, c1.Endpoint)) {
					all += f.Text + "\n"
					if !f.Lost {
						t.Errorf("a fault that is repaired in vain: %s", f.Text)
					}
				}
				return all
			}
			if got := faults(); !strings.Contains(got, c.faults) || c.faults == "" && got != "" {
				t.Errorf("the parent is down, and the faults are: %s", got)
			}
			l.Reaches("parent down", c1.Host, modetest.OneAddr, false)

			l.Switch.Sh(t, "ip link set host up")
			l.Host.Sh(t, c.up)
			l.Reaches("parent up", c1.Host, modetest.OneAddr, true)
			l.Reaches("parent up", l.One, "192.168.7.11", true)
			if c.options["host_access"] == "" {
				l.Audit([]modes.Network{n}, c1)
				return
			}
			if err := l.Mode.Up(t.Context(), n); err != nil { // what a repair does
				t.Fatal(err)
			}
			if _, err := l.Mode.Attach(t.Context(), n, c1.Endpoint); err != nil {
				t.Fatal(err)
			}
			l.Audit([]modes.Network{n}, c1)
			l.Reaches("parent up, host", c1.Host, modetest.HostAddr, true)
			l.Reaches("parent up, host, IPv6", c1.Host, modetest.HostAddr6, true)
		})
	}
}

func TestVLAN(t *testing.T) {
	t.Parallel()
	kerneltest.Needs(t, "vlan")
	l := modetest.NewLAN(t, macvlan.New)
	l.One.Sh(t, "ip link add link eth0 name eth0.50 type vlan id 50 && ip link set eth0.50 up && "+
		"ip addr add 192.168.50.3/24 dev eth0.50")
	l.One.Sh(t, "ip link add link eth0 name q type vlan id 10 && ip link set q up && "+
		"ip link add link q name qq type vlan id 20 && ip link set qq up && ip addr add 192.168.20.3/24 dev qq")
	l.Host.Sh(t, "ip link add link eth0 name eth0.60 type vlan id 60 && ip link set eth0.60 up")
	before := modetest.Settled(t, l.Host)
	vlan := func(id, parent, pool string) modes.Network {
		return l.Up(modes.Network{
			ID: id, Mode: "macvlan", Options: options("parent", parent),
			Subnets: []modes.Subnet{{Pool: netip.MustParsePrefix(pool)}},
		})
	}
	a, b := vlan(netA, "eth0.50", "192.168.50.0/25"), vlan(netB, "eth0.50", "192.168.50.128/25")
	q, theirs := vlan("cc", "eth0.10.20", "192.168.20.0/24"), vlan("dd", "eth0.60", "192.168.60.0/24")
	a1, b1, q1 := l.Run(a, one, "192.168.50.11/24"), l.Run(b, two, "192.168.50.140/24"),
		l.Run(q, "e3e3e3e3e3e3e3", "192.168.20.11/24")
	l.Reaches("on the VLAN", a1.Host, "192.168.50.3", true)
	l.Reaches("on the VLAN, second network", b1.Host, "192.168.50.3", true)
	l.Reaches("on a VLAN in a VLAN", q1.Host, "192.168.20.3", true)
	l.Audit([]modes.Network{a, b, q, theirs}, a1, b1, q1)
	l.Host.Sh(t, "ip link set eth0 down && ip link set eth0 up")
	l.Reaches("on the VLAN after a flap", a1.Host, "192.168.50.3", true)

	l.Stop(a1)
	if err := l.Mode.Down(a); err != nil {
		t.Fatal(err)
	}
	l.Reaches("the other network on the VLAN stays", b1.Host, "192.168.50.3", true)
	l.Stop(b1)
	l.Stop(q1)
	err := errors.Join(l.Mode.Down(b), l.Mode.Down(q), l.Mode.Down(theirs))
	if err != nil {
		t.Fatal(err)
	}
	// Give back what the flap took.
	l.Host.Sh(t, "ip addr add "+modetest.HostAddr6+"/64 dev eth0 nodad; ip route add default via "+modetest.RouterAddr+
		"; ip route add default via "+modetest.RouterAddr6)
	if got := modetest.Settled(t, l.Host); got != before {
		t.Errorf("something is left, or the host's own VLAN is gone:\n%s", cmp.Diff(before, got))
	}
}

// TestHostAccess: the host and the containers reach each other at all their addresses, and nothing of it is left.
func TestHostAccess(t *testing.T) {
	t.Parallel()
	l := modetest.NewLAN(t, macvlan.New)
	before := modetest.Settled(t, l.Host)
	n := l.Up(l.Network(netA, "macvlan", options("parent", "eth0", "host_access", "true")))
	other := l.Up(modes.Network{
		ID: netB, Mode: "macvlan", Options: options("parent", "eth0", "host_access", "true"),
		Subnets: []modes.Subnet{{Pool: netip.MustParsePrefix("10.9.0.0/24")}},
	})
	c1 := l.Run(n, one, "192.168.7.11/24", "2001:db8:7::11/64")
	c2 := l.Run(n, two, "192.168.7.12/24", "2001:db8:7::12/64")
	o1 := l.Run(other, "e3e3e3e3e3e3e3", "10.9.0.2/24") // not of the host's subnet, and without a gateway
	both := func(when string) {
		t.Helper()
		for _, a := range []string{"192.168.7.11", "2001:db8:7::11", "192.168.7.12", "2001:db8:7::12", "10.9.0.2"} {
			l.Reaches(when+"host to container", l.Host, a, true)
		}
		for _, a := range []string{
			modetest.HostAddr, modetest.HostAddr6, modetest.OneAddr,
			modetest.OneAddr6, modetest.FarAddr, "192.168.7.12", "2001:db8:7::12",
		} {
			l.Reaches(when+"container", c1.Host, a, true)
		}
		l.Reaches(when+"container of another subnet to host", o1.Host, modetest.HostAddr, true)
		l.Reaches(when+"LAN to host", l.One, modetest.HostAddr, true)
		l.Reaches(when+"LAN to host, IPv6", l.One, modetest.HostAddr6, true)
	}
	both("")
	l.One.Sh(t, "ip neigh flush all")
	both("asked anew: ")
	// The LAN does not believe what it hears within a second of an answer (locktime).
	l.Host.Sh(t, "sleep 1.2; ip neigh flush all")
	both("asked anew by the host: ")
	if got := l.One.Sh(t, "ip neigh show "+modetest.HostAddr); !strings.Contains(got, "02:00:00:00:07:02") {
		t.Errorf("the LAN takes the host's own link for the host: %s", got)
	}
	l.Host.Sh(t, "ip link set eth0 down && ip link set eth0 up && ip addr add "+modetest.HostAddr6+
		"/64 dev eth0 nodad; ip route add default via "+modetest.RouterAddr+"; ip route add default via "+
		modetest.RouterAddr6)
	both("after a flap: ")
	l.Host.Reopen(t) // a daemon that starts again
	if err := l.Host.LoadFirewall(); err != nil {
		t.Fatal(err)
	}
	l.Mode = modetest.On(l.Host.Kernel, macvlan.New, nil)
	l.Host.AddOwners(append(l.Mode.Objects(n), l.Mode.Objects(other)...)...)
	for _, c := range []modetest.Container{c1, c2, o1} {
		again, err := l.Mode.Attach(t.Context(), c.Network, c.Endpoint)
		if err != nil || again.SrcName != c.Link.SrcName {
			t.Errorf("attached again: %v %v", again, err)
		}
	}
	both("after a restart: ")
	l.Stop(c1)
	l.Stop(c2)
	if err := l.Mode.Down(n); err != nil {
		t.Fatal(err)
	}
	l.Reaches("the other network's container", l.Host, "10.9.0.2", true)
	l.Stop(o1)
	if err := l.Mode.Down(other); err != nil {
		t.Fatal(err)
	}
	if got := modetest.Settled(t, l.Host); got != before {
		t.Errorf("something is left:\n%s", cmp.Diff(before, got))
	}
}

// TestHostAccessAtOnce: as many containers as come at the same time, each is reached.
func TestHostAccessAtOnce(t *testing.T) {
	t.Parallel()
	l := modetest.NewLAN(t, macvlan.New)
	n := l.Up(l.Network(netA, "macvlan", options("parent", "eth0", "host_access", "true")))
	endpoint := func(i int) modes.Endpoint {
		return modes.Endpoint{ID: fmt.Sprintf("%011x000", i), NetworkID: netA, Addrs: []netip.Prefix{
			netip.MustParsePrefix(fmt.Sprintf("192.168.7.%d/24", 100+i)),
			netip.MustParsePrefix(fmt.Sprintf("2001:db8:7::%d/64", 100+i)),
		}}
	}
	const many = 50
	var g errgroup.Group
	for i := range many {
		g.Go(func() error {
			_, err := l.Mode.Attach(t.Context(), n, endpoint(i))
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	c := kerneltest.New(t)
	var give, script strings.Builder
	for i := range many { // all in one namespace: what counts is that each link and each route is there
		name := "nyp-" + endpoint(i).ID[:11]
		fmt.Fprintf(&give, "ip link set %s netns /proc/%d/fd/%s\n", name, os.Getpid(), path.Base(c.Path()))
		fmt.Fprintf(&script, "ip link set %s up; ip addr add 192.168.7.%d/32 dev %[1]s; "+
			"ip addr add 2001:db8:7::%[2]d/128 dev %[1]s nodad\n", name, 100+i)
	}
	l.Host.Sh(t, give.String())
	c.Sh(t, script.String()+"ip route add "+modetest.HostAddr+" dev nyp-00000000000; ip route add "+modetest.HostAddr6+
		" dev nyp-00000000000")
	for i := range many {
		l.Reaches("host to container", l.Host, fmt.Sprintf("192.168.7.%d", 100+i), true)
		l.Reaches("host to container, IPv6", l.Host, fmt.Sprintf("2001:db8:7::%d", 100+i), true)
	}
	for i := range many {
		g.Go(func() error {
			e := endpoint(i)
			e.Sandbox = c.Path()
			return l.Mode.Detach(n, e)
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if left := c.Sh(t, "ip -o link | grep -c nyp- || true"); left != "0" {
		t.Errorf("%s links are left in the sandbox", left)
	}
	l.Audit([]modes.Network{n})
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	l := modetest.NewLAN(t, macvlan.New)
	l.Host.Sh(t, "ip link add br0 type bridge && ip link add p0 type veth peer name p1 && "+
		"ip link set p0 master br0 && ip link add mv0 link eth0 type macvlan mode bridge && "+
		"ip link add tun0 type vxlan id 7 dstport 4789 dev eth0 && ip tuntap add l3 mode tun")
	up := l.Up(l.Network(netA, "macvlan", options("parent", "eth0", "host_access", "true")))
	dump := modetest.Settled(t, l.Host)
	of := func(pairs ...string) modes.Network { return l.Network(netB, "macvlan", options(pairs...)) }
	chosen := of("parent", "eth0")
	chosen.Subnets[0] = modes.Subnet{
		Pool:    netip.MustParsePrefix("172.18.0.0/16"),
		Gateway: netip.MustParsePrefix("172.18.0.1/16"), Chosen: true,
	}
	strange := of("parent", "eth0")
	strange.Subnets[0].Gateway = netip.MustParsePrefix("10.1.1.1/24")
	ipvlan := modes.Network{ID: "cc", Name: "theirs", Mode: "ipvlan", Options: options("parent", "p1")}
	pass := modes.Network{
		ID: "dd", Name: "alone", Mode: "macvlan",
		Options: options("parent", "br0", "macvlan_mode", "passthru"),
	}
	for name, c := range map[string]struct {
		n    modes.Network
		want string
	}{
		"missing":           {of("parent", "eth9"), "parent=eth9: the host has no link eth9; it has br0, eth0,"},
		"missing below":     {of("parent", "eth9.50"), "parent=eth9.50: the host has no link eth9; it has"},
		"no VLAN":           {of("parent", "eth0.4095"), "parent=eth0.4095: the host has no link eth0.4095"},
		"bridge port":       {of("parent", "p0"), "p0 is a port of br0, which receives all its frames; use parent=br0, or -d netyard-bridge -o bridge=br0"},
		"macvlan":           {of("parent", "mv0"), "mv0 is a macvlan link itself"},
		"loopback":          {of("parent", "lo"), "lo is no Ethernet link"},
		"tunnel":            {of("parent", "l3"), "l3 is no Ethernet link"},
		"netyard's own":     {of("parent", shimName(t, l)), "is a link of netyard's own"},
		"MTU":               {of("parent", "eth0", "mtu", "9000"), "mtu=9000: parent eth0 has 1500"},
		"MTU and IPv6":      {of("parent", "eth0", "mtu", "1000"), "mtu=1000: IPv6 needs at least 1280"},
		"gateway elsewhere": {strange, "gateway 10.1.1.1 is not in subnet 192.168.7.0/24"},
		"no subnet":         {chosen, "the IPAM chose 172.18.0.0/16, but the LAN of parent eth0 is 192.168.7.0/24; give it with --subnet"},
		"ipvlan's parent":   {of("parent", "p1"), "parent=p1: network theirs uses it in mode ipvlan, and a link cannot be the parent of both macvlan and ipvlan"},
		"beside passthru":   {of("parent", "br0"), "network alone is on parent br0, and macvlan_mode=passthru requires exclusive use of the parent"},
		"passthru, second":  {of("parent", "br0", "macvlan_mode", "passthru"), "network alone is on parent br0"},
		"access, private":   {of("parent", "eth0", "macvlan_mode", "private", "host_access", "true"), "host_access=true: with private, links on the parent do not reach each other"},
		"access, passthru":  {of("parent", "br0", "macvlan_mode", "passthru", "host_access", "true"), "with passthru, links on the parent do not reach each other"},
		"access, by switch": {of("parent", "eth0", "macvlan_mode", "vepa", "host_access", "true"), "with vepa, links on the parent do not reach each other"},
	} {
		_, err := l.Mode.Settle(t.Context(), c.n, up, c.n, ipvlan, pass)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	if got := modetest.Settled(t, l.Host); got != dump {
		t.Errorf("a refusal changed something:\n%s", cmp.Diff(dump, got))
	}
	if _, err := l.Mode.Settle(t.Context(), of("parent", "eth0"), up, ipvlan, pass); err != nil {
		t.Errorf("a second network on the same parent: %v", err)
	}
}

// shimName returns the name of the host's own link.
func shimName(t *testing.T, l *modetest.LAN) string {
	t.Helper()
	return l.Host.Sh(t, "ip -o link | grep -o 'nys-[0-9a-f]*' | head -n 1")
}
