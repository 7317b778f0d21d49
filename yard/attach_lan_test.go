package yard

import (
	"log/slog"
	"net/netip"
	"testing"

	"netyard/ipam"
	"netyard/kernel"
	"netyard/kernel/kerneltest"
	"netyard/modes"
	"netyard/modes/ipvlan"
	"netyard/modes/macvlan"
)

// TestAttachLAN: containers that come by CNI are on the LAN, and what is taken away is gone from the sandbox
// when the runtime is answered.
func TestAttachLAN(t *testing.T) {
	t.Parallel()
	for mode, newMode := range map[string]modes.New{"macvlan": macvlan.New, "ipvlan": ipvlan.New} {
		t.Run(mode, func(t *testing.T) { // one after the other: the guest that has ipvlan is a slow one
			kerneltest.Needs(t, mode)
			r, p, q := newRig(t), newPlace(t), newPlace(t)
			other := r.host.Peer(t, "lan0")
			other.Sh(t, "ip addr add 192.0.2.1/24 dev eth0")
			m, err := newMode(modes.Env{Log: slog.New(slog.DiscardHandler), Kernel: r.host.Kernel})
			if err != nil {
				t.Fatal(err)
			}
			r.c.Modes[mode] = m
			n, err := r.MakeNetwork(t.Context(), NetworkRequest{
				Name: "lan", Mode: mode, Options: map[string]string{"parent": "lan0"}, Subnets: []SubnetRequest{
					{Pool: ipam.PoolRequest{Subnet: netip.MustParsePrefix("192.0.2.0/24")}, Gateway: netip.MustParseAddr("192.0.2.1")},
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			asked := p.request(n, "c1")
			asked.Addrs = []netip.Addr{netip.MustParseAddr("192.0.2.77")}
			for range 2 { // again, it takes the place of the former
				if _, err := r.Attach(t.Context(), asked); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := r.Attach(t.Context(), q.request(n, "c2")); err != nil {
				t.Fatal(err)
			}
			if !p.Pings("192.0.2.1", true) || !q.Pings("192.0.2.77", true) || !other.Pings("192.0.2.77", true) {
				t.Error("the container is not on the LAN")
			}
			r.healthy("attached")
			if faults, err := r.Faults(p.end(n, "c1")); err != nil || len(faults) > 0 {
				t.Errorf("%v %v", faults, err)
			}
			ended := r.Detach(t.Context(), q.end(n, "c2"))
			if out, err := q.TrySh("ip link show eth0"); ended != nil || err == nil {
				t.Errorf("detached: %v, and there is %s", ended, out)
			}
			if !p.Pings("192.0.2.1", true) {
				t.Error("the other container's end took this one along")
			}
			if err := r.Detach(t.Context(), p.end(n, "c1")); err != nil {
				t.Fatal(err)
			}
			r.healthy("detached")
			if _, err := r.RemoveNetwork(t.Context(), "lan"); err != nil {
				t.Fatal(err)
			}
			if left := r.host.Sh(t, "ip -d link | grep '"+kernel.AliasPrefix+"' || true"); left != "" {
				t.Errorf("left: %s", left)
			}
		})
	}
}
