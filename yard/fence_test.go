package yard_test

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"netyard/kernel/core"
	"netyard/modes"
	"netyard/yard/book"
	"netyard/yard/event"
	"netyard/yard/overlay"
	"netyard/yard/reconcile"
	"netyard/yard/repair"
)

// alone is a cluster of one host, and what it knows of another one.
type alone struct {
	attached  []string
	elsewhere string // the hardware address of a container on another host
}

func (*alone) Find(_ context.Context, want modes.Overlay) (modes.Overlay, error) {
	want.ID, want.VNI = strings.Repeat("c", 32), 0x1234
	return want, nil
}

func (*alone) Host() modes.OverlayHost {
	return modes.OverlayHost{VTEP: netip.MustParseAddr("192.0.2.1"), Port: 4789, MTU: 1500}
}

func (a *alone) Attach(_ modes.Overlay, e modes.Endpoint) error {
	a.attached = append(a.attached, e.ID)
	return nil
}
func (*alone) Up(modes.Overlay, modes.OverlayLink) error  { return nil }
func (*alone) Down(modes.Overlay) error                   { return nil }
func (*alone) Detach(modes.Overlay, modes.Endpoint) error { return nil }
func (*alone) Objects(modes.Overlay) []core.Object        { return nil }
func (*alone) Name(modes.Overlay, modes.Endpoint) error   { return nil }
func (*alone) CheckRoom(modes.Overlay, bool) error        { return nil }
func (*alone) LeavingObjects() ([]core.Object, error)     { return nil, nil }
func (*alone) Grant(context.Context, modes.Overlay, string, netip.Addr, bool) (a netip.Addr, err error) {
	return a, nil
}
func (*alone) Release(modes.Overlay, netip.Addr) error { return nil }

func (a *alone) HostOf(_ modes.Overlay, mac string) string {
	if mac != "" && mac == a.elsewhere {
		return "h2"
	}
	return ""
}

// TestMACElsewhere: on an overlay, a hardware address that a container on another host has is not given, and refused
// where it is requested.
func TestMACElsewhere(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fabric = &alone{elsewhere: "02:42:0a:14:00:05"}
	r.host.Sh(t, "ip addr add 192.0.2.1/24 dev lo")
	r.start()
	must(t, r.CreateNetwork(t.Context(), modes.Network{
		ID: netID, Mode: "overlay", Name: "blue", Options: map[string]string{"overlay": "blue"},
		Subnets: []modes.Subnet{{
			Pool:    netip.MustParsePrefix("10.20.0.0/16"),
			Gateway: netip.MustParsePrefix("10.20.0.1/16"), Space: overlay.Space,
		}},
	}))
	create := func(id, addr, mac string) (modes.Endpoint, error) {
		return r.CreateEndpoint(t.Context(), modes.Endpoint{
			ID: id, NetworkID: netID, Addrs: []netip.Prefix{netip.MustParsePrefix(addr)}, MAC: mac,
		})
	}
	if e, err := create(epID, "10.20.0.5/16", ""); err != nil || e.MAC == "02:42:0a:14:00:05" || e.MAC == "" {
		t.Errorf("by its address: %s, %v", e.MAC, err)
	}
	if e, err := create("ffffffffffff0002", "10.20.0.6/16", ""); err != nil || e.MAC != "02:42:0a:14:00:06" {
		t.Errorf("by another address: %s, %v", e.MAC, err)
	}
	_, err := create("ffffffffffff0003", "10.20.0.7/16", "02:42:0a:14:00:05")
	if want := "in use by a container on host h2; use another"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("requested: %v", err)
	}
}

// TestFence shows that no traffic passes a fenced link or reaches its container's ports, that doctor and events report
// the fence, that it survives a restart and tampering, and that unfencing restores the former state.
func TestFence(t *testing.T) {
	t.Parallel()
	r, f := newRig(t), &alone{}
	r.fabric = f
	r.host.Sh(t, "ip addr add 192.0.2.1/24 dev lo")
	r.start()
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	n := modes.Network{
		ID: netID, Mode: "overlay", Name: "blue", Options: map[string]string{"overlay": "blue"},
		Subnets: []modes.Subnet{{
			Pool:    netip.MustParsePrefix("10.20.0.0/16"),
			Gateway: netip.MustParsePrefix("10.20.0.1/16"), Space: overlay.Space,
		}},
	}
	must(r.CreateNetwork(ctx, n))
	create := func(id, addr string) {
		t.Helper()
		_, err := r.CreateEndpoint(ctx,
			modes.Endpoint{ID: id, NetworkID: netID, Addrs: []netip.Prefix{netip.MustParsePrefix(addr)}})
		must(err)
	}
	create(epID, "10.20.0.5/16")
	create("ffffffffffff0002", "10.20.0.6/16")
	_, _, err := r.Join(ctx, netID, epID, "/run/x")
	must(err)
	_, err = r.Publish(ctx, netID, epID, []book.PortRequest{{Proto: "tcp", ContainerPort: 80, HostPort: 8080}})
	must(err)
	whole := r.host.Dump(t)
	if !strings.Contains(whole, "8080") {
		t.Fatal("no port is published")
	}
	why := map[string]string{
		epID:               "address 10.20.0.5 is host h2's now",
		"ffffffffffff0002": "address 10.20.0.6 is host h2's now",
	}
	fenced := func(when string) {
		t.Helper()
		out := r.host.Sh(t, "ip -o link show nyv-eeeeeeeeeee")
		if strings.Contains(out, "UP") || strings.Contains(out, "master") {
			t.Errorf("%s: %s", when, out)
		}
		if dump := r.host.Dump(t); strings.Contains(dump, "8080") {
			t.Errorf("%s: its ports are still published:\n%s", when, dump)
		}
		e, err := r.Endpoint(netID, epID)
		must(err)
		if r.State(e) != "fenced" {
			t.Errorf("%s: it is %s", when, r.State(e))
		}
		found, err := reconcile.Audit(ctx, r.Yard, nil)
		must(err)
		if len(found) != 1 || found[0].Text != "endpoint eeeeeeeeeeee is fenced: address 10.20.0.5 is host h2's now" {
			t.Errorf("%s: doctor says %+v", when, found)
		}
	}
	for range 2 {
		must(r.Fence(ctx, strings.Repeat("c", 32), why))
		fenced("fenced")
	}
	must(r.Fence(ctx, strings.Repeat("d", 32), nil)) // of another network
	r.host.Sh(t, "ip link set nyv-eeeeeeeeeee master nyb-aaaaaaaaaaa up")
	must(repair.All(ctx, r.Yard))
	fenced("tampered with")
	f.attached = nil
	r.start()
	fenced("after a restart")
	if slices.Contains(f.attached, epID) {
		t.Error("the others are told of an endpoint that is fenced")
	}
	if _, _, err := r.Join(ctx, netID, "ffffffffffff0002", "/run/y"); err == nil ||
		!strings.Contains(err.Error(), "10.20.0.6 is host h2's now") {
		t.Errorf("joined with an address that is another host's: %v", err)
	}
	must(r.Fence(ctx, strings.Repeat("c", 32), nil))
	if dump := r.host.Dump(t); dump != whole {
		t.Errorf("it is\n%s\nand was\n%s", dump, whole)
	}
	if !slices.Contains(f.attached, epID) {
		t.Error("the others are not told that it is back")
	}
	evs, _ := r.Events(0)
	if !slices.ContainsFunc(evs, func(e event.Event) bool { return e.Type == event.EndpointUnfenced }) {
		t.Errorf("events: %+v", evs)
	}
}
