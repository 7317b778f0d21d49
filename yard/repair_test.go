package yard_test

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"netyard/kernel/core"
	"netyard/kernel/kerneltest"
	"netyard/modes"
	"netyard/yard/reconcile"
	"netyard/yard/repair"
)

// TestRepair shows that drift is repaired, and that what is not netyard's is left alone.
func TestRepair(t *testing.T) {
	t.Parallel()
	br, veth := core.Name(core.BridgePrefix, netID), core.Name(core.VethPrefix, epID)
	r := r6(t)
	r.host.Sh(t, "ip link add mine type bridge && ip link set mine up && ip addr add 10.99.0.1/24 dev mine")
	const mine = "ip -o -4 addr show dev mine"
	before := kerneltest.Normal(r.host.Sh(t, mine))
	repairing(t, r)
	for _, cmd := range []string{
		"ip link set " + br + " down", "ip link set " + veth + " down", "ip link set " + veth + " nomaster",
		"ip link set " + br + " mtu 1300", "ip link set " + veth + " mtu 1300", "ip addr del 10.9.0.1/24 dev " + br,
		"ip addr flush dev " + br, "ip route del 10.9.0.0/24 dev " + br, "ip link set " + veth + " master mine",
		"bridge link set dev " + veth + " isolated on",
		"sysctl -qw net.ipv4.ip_forward=0; ip link set " + br + " down", "ip link del " + br,
	} {
		r.host.Sh(t, cmd)
		repaired(t, r, cmd)
	}
	if got := kerneltest.Normal(r.host.Sh(t, mine)); got != before {
		t.Errorf("somebody else's link is not as it was:\n%s\n%s", before, got)
	}
	r.host.Sh(t, "ip link del "+veth+" && ip link set "+br+" down") // the inner end went with it
	up := func() bool { return strings.Contains(r.host.Sh(t, "ip -o link show "+br), ",UP") }
	for end := time.Now().Add(10 * time.Second); !up(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a lost link prevents the repair of the rest")
		}
	}
	if _, err := r.host.TrySh("ip link show " + veth); err == nil {
		t.Error("a link was made that no container has")
	}
}

// repairing repairs what changes until the test ends.
func repairing(t *testing.T, r *rig) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	w, err := repair.Watch(ctx, r.Yard)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// repaired waits until doctor has no findings.
func repaired(t *testing.T, r *rig, cmd string) {
	t.Helper()
	start := time.Now()
	for {
		found, err := reconcile.Audit(t.Context(), r.Yard, nil)
		if err == nil && len(found) == 0 {
			t.Logf("%s: repaired after %s", cmd, time.Since(start).Round(time.Millisecond))
			return
		}
		if time.Since(start) > 10*time.Second {
			t.Fatalf("after %s: %v %v", cmd, found, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestRepairLeavesAlone shows that no kind of object is repaired without drift.
func TestRepairLeavesAlone(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	n := r.network()
	n.Subnets[0].Space, n.Options = "", map[string]string{"rate": "10mbit"}
	if err := r.CreateNetwork(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	e := modes.Endpoint{ID: epID, NetworkID: netID, Addrs: []netip.Prefix{netip.MustParsePrefix("10.9.0.2/24")}}
	if _, err := r.CreateEndpoint(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.Join(t.Context(), netID, epID, "/proc/self/ns/net"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Publish(t.Context(), netID, epID, run("tcp", 8080, 80, 2)); err != nil {
		t.Fatal(err)
	}
	objects, err := repair.PlanOf(r.Yard, n)
	if err != nil {
		t.Fatal(err)
	}
	if some, err := repair.Objects(t.Context(), r.Yard, n, objects); some || err != nil {
		t.Errorf("something was repaired on a healthy host: %v", err)
	}
}

// TestRepairSegments: the size of segments follows the host's way out while the daemon runs, and the option.
func TestRepairSegments(t *testing.T) {
	t.Parallel()
	r := r6(t)
	repairing(t, r)
	sizes := func(want, after string) {
		t.Helper()
		for _, link := range []string{core.Name(core.BridgePrefix, netID), core.Name(core.VethPrefix, epID)} {
			if got := r.host.Sh(t, "ip -d link show "+link); !strings.Contains(got, "gso_max_size "+want) {
				t.Errorf("after %s, want %s: %s", after, want, got)
			}
		}
	}
	sizes("262144", "the start, without a way out")
	for _, c := range []struct{ cmd, want string }{
		{"ip link add up0 type veth peer name up1 && ip link set up1 up && ip link set up0 up && ip addr add 198.51.100.2/32 dev up0 && ip route add default via 198.51.100.1 dev up0 onlink", "65536"},
		{"ip route del default", "262144"},
		{"ip route add default via 198.51.100.1 dev up0 onlink", "65536"},
		{"ip link del up0", "262144"},
	} {
		r.host.Sh(t, c.cmd)
		repaired(t, r, c.cmd)
		sizes(c.want, c.cmd)
	}
	r.change(said{"big_tcp": "false"})
	sizes("65536", "big_tcp=false")
	r.healthy("after big_tcp=false")
	r.change(said{"big_tcp": "true"})
	sizes("262144", "big_tcp=true")
}
