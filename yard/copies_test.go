package yard_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"netyard/ipam"
	"netyard/modes"
	"netyard/yard/attach"
	"netyard/yard/book"
	yown "netyard/yard/own"
	"netyard/yard/reconcile"
)

// TestRebuildOwn shows that after the loss of the records a network that no engine has and a container attached by CNI
// are rebuilt as they were, and that a removed network leaves no copy.
func TestRebuildOwn(t *testing.T) {
	t.Parallel()
	r, p, q := newRig(t), newPlace(t), newPlace(t)
	n, err := yown.CreateNetwork(t.Context(), r.Yard, book.NetworkRequest{
		Name: "web", Options: map[string]string{"icc": "false"}, Subnets: []book.SubnetRequest{
			{Pool: ipam.PoolRequest{Subnet: netip.MustParsePrefix("10.9.0.0/24"), Range: netip.MustParsePrefix("10.9.0.64/26")}, Gateway: netip.MustParseAddr("10.9.0.7"), Aux: map[string]netip.Addr{"router": netip.MustParseAddr("10.9.0.65")}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	asked := p.request(n, "default-c1")
	asked.Container = modes.Container{Engine: book.Containerd, ID: "c1", Name: "c1"}
	asked.Options = map[string]string{"ingress_rate": "20mbit"}
	asked.Ports = []book.PortRequest{{Proto: "tcp", ContainerPort: 80, HostPort: 8080, HostPortEnd: 8080}}
	was, err := attach.Attach(t.Context(), r.Yard, asked)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.st.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(r.path); err != nil {
		t.Fatal(err)
	}
	r.begin(true)
	census := reconcile.Census{Engine: book.Containerd, Endpoints: map[string]reconcile.SeenEndpoint{}}
	found, err := reconcile.FindIn(r.Yard, p.path)
	if err != nil || len(found) != 1 {
		t.Fatalf("in the sandbox there is %+v %v", found, err)
	}
	for id, s := range found {
		s.Container, s.Attachment, s.Said = asked.Container, "default-c1", map[string]string{"ingress_rate": "20mbit"}
		census.Endpoints[id] = s
	}
	for range 2 { // both engines' looks do it
		if err := reconcile.RebuildOwn(t.Context(), r.Yard, census); err != nil {
			t.Fatal(err)
		}
	}
	// What is then unknown goes.
	if err := reconcile.Rebuild(t.Context(), r.Yard, reconcile.Census{Engine: book.Docker}, nil); err != nil {
		t.Fatal(err)
	}
	again, err := r.Network(n.ID)
	if err != nil || !again.Equal(n) || again.Name != "web" || again.Engine != book.Own {
		t.Errorf("the network is %+v, %v", again, err)
	}
	e, err := r.Endpoint(n.ID, was.Endpoint.ID)
	if err != nil || e.MAC != was.Endpoint.MAC || len(e.Ports) != len(was.Endpoint.Ports) ||
		e.Options["ingress_rate"] != asked.Options["ingress_rate"] {
		t.Errorf("the endpoint was %+v and is %+v, %v", was.Endpoint, e, err)
	}
	p.Sh(t, "for i in 1 2 3 4 5; do ping -c 1 -W 2 10.9.0.7 && exit; done; exit 1")
	r.healthy("rebuilt")
	if faults, err := attach.Faults(r.Yard, p.end(n, "default-c1")); err != nil || len(faults) > 0 {
		t.Errorf("CHECK says %v %v", faults, err)
	}
	next, err := attach.Attach(t.Context(), r.Yard, q.request(r.again(n), "c2"))
	if err != nil || next.Endpoint.Addrs[0] == was.Endpoint.Addrs[0] ||
		!netip.MustParsePrefix("10.9.0.64/26").Contains(next.Endpoint.Addrs[0].Addr()) {
		t.Errorf("the next container has %v, %v", next.Endpoint.Addrs, err)
	}
	for _, end := range []attach.DetachRequest{p.end(n, "default-c1"), q.end(n, "c2")} {
		if err := attach.Detach(t.Context(), r.Yard, end); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := yown.RemoveNetwork(t.Context(), r.Yard, "web"); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(filepath.Join(filepath.Dir(r.path), "networks")); len(left) > 0 {
		t.Errorf("there is still the copy %v", left)
	}
}
