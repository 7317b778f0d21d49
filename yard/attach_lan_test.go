package yard_test

import (
	"net/netip"
	"testing"

	"netyard/ipam"
	"netyard/kernel/core"
	"netyard/kernel/kerneltest"
	"netyard/modes"
	"netyard/modes/ipvlan"
	"netyard/modes/macvlan"
	"netyard/yard/attach"
	"netyard/yard/book"
	yown "netyard/yard/own"
)

// TestAttachLAN shows that containers attached by CNI are on the LAN, and that a detached link has left the sandbox
// when the runtime gets its answer.
func TestAttachLAN(t *testing.T) {
	t.Parallel()
	for mode, newMode := range map[string]modes.New{"macvlan": macvlan.New, "ipvlan": ipvlan.New} {
		t.Run(mode, func(t *testing.T) { // one after the other: the guest that has ipvlan is a slow one
			kerneltest.Needs(t, mode)
			r, p, q := newRig(t), newPlace(t), newPlace(t)
			other := r.host.Peer(t, "lan0")
			other.Sh(t, "ip addr add 192.0.2.1/24 dev eth0")
			r.with(mode, newMode)
			n, err := yown.CreateNetwork(t.Context(), r.Yard, book.NetworkRequest{
				Name: "lan", Mode: mode, Options: map[string]string{"parent": "lan0"}, Subnets: []book.SubnetRequest{
					{Pool: ipam.PoolRequest{Subnet: netip.MustParsePrefix("192.0.2.0/24")}, Gateway: netip.MustParseAddr("192.0.2.1")},
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			asked := p.request(n, "c1")
			asked.Addrs = []netip.Addr{netip.MustParseAddr("192.0.2.77")}
			for range 2 { // again, it takes the place of the former
				if _, err := attach.Attach(t.Context(), r.Yard, asked); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := attach.Attach(t.Context(), r.Yard, q.request(n, "c2")); err != nil {
				t.Fatal(err)
			}
			if !p.Pings("192.0.2.1", true) || !q.Pings("192.0.2.77", true) || !other.Pings("192.0.2.77", true) {
				t.Error("the container is not on the LAN")
			}
			r.healthy("attached")
			if faults, err := attach.Faults(r.Yard, p.end(n, "c1")); err != nil || len(faults) > 0 {
				t.Errorf("%v %v", faults, err)
			}
			ended := attach.Detach(t.Context(), r.Yard, q.end(n, "c2"))
			if out, err := q.TrySh("ip link show eth0"); ended != nil || err == nil {
				t.Errorf("detached: %v, and there is %s", ended, out)
			}
			if !p.Pings("192.0.2.1", true) {
				t.Error("the removal of another container removed this one")
			}
			if err := attach.Detach(t.Context(), r.Yard, p.end(n, "c1")); err != nil {
				t.Fatal(err)
			}
			r.healthy("detached")
			if _, err := yown.RemoveNetwork(t.Context(), r.Yard, "lan"); err != nil {
				t.Fatal(err)
			}
			if left := r.host.Sh(t, "ip -d link | grep '"+core.AliasPrefix+"' || true"); left != "" {
				t.Errorf("left: %s", left)
			}
		})
	}
}
