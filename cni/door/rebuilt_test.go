package door

import (
	"testing"

	"netyard/modes"
	"netyard/yard/book"
	"netyard/yard/reconcile"
)

// TestDetachedWhileRebuilt shows that lost records are rebuilt for a container that still has its link, and not for one
// that was detached after the engine had been asked.
func TestDetachedWhileRebuilt(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	const conf = `{"cniVersion":"1.0.0","name":"net","type":"netyard","isGateway":true,` +
		`"ipam":{"type":"host-local","subnet":"10.10.0.0/16"}}`
	census := reconcile.Census{Engine: book.Containerd, Endpoints: map[string]reconcile.SeenEndpoint{}}
	for _, id := range []string{"stays", "leaves"} {
		d.attached(request("ADD", id, conf))
		found, err := reconcile.FindIn(d.Yard, "/run/netns/"+id)
		if err != nil || len(found) != 1 {
			t.Fatalf("%s: %v %v", id, found, err)
		}
		for endpoint, s := range found {
			s.Attachment, s.Container = id, modes.Container{Engine: book.CNI, ID: id, Name: id}
			census.Endpoints[endpoint] = s
		}
	}
	if _, err := d.ask(request("DEL", "leaves", conf)); err != nil {
		t.Fatal(err)
	}
	if err := reconcile.RebuildOwn(t.Context(), d.Yard, census); err != nil {
		t.Fatal(err)
	}
	es, err := d.Yard.Endpoints()
	if err != nil || len(es) != 1 || es[0].Attachment != "stays" {
		t.Errorf("%+v %v", es, err)
	}
}
