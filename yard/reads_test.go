package yard_test

import (
	"fmt"
	"maps"
	"sync"
	"testing"

	"netyard/modes"
	"netyard/store"
	"netyard/yard/attach"
	"netyard/yard/book"
	"netyard/yard/reconcile"
)

// reads counts how often f reads each record of a network or an endpoint.
func (r *rig) reads(f func()) map[string]int {
	r.t.Helper()
	var mu sync.Mutex
	count := map[string]int{}
	r.read = func(bucket, key string) {
		mu.Lock()
		defer mu.Unlock()
		if bucket == book.Networks.Name || bucket == book.Endpoints.Name {
			count[key]++
		}
	}
	defer func() { r.read = func(string, string) {} }()
	f()
	return count
}

func (r *rig) readOnce(what string, want map[string]int, f func()) {
	r.t.Helper()
	if got := r.reads(f); !maps.Equal(got, want) {
		r.t.Errorf("%s reads %v, want %v", what, got, want)
	}
}

// TestReadOnce shows that a request reads the records of its network and its endpoint once: under their locks.
func TestReadOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	life := r.life()
	for _, call := range life[:5] {
		must(t, call(t.Context()))
	}
	once := map[string]int{netID: 1, book.EndpointKey(netID, epID): 1}
	r.readOnce("Join", once, func() {
		_, _, err := r.Join(t.Context(), netID, epID, "/proc/self/ns/net")
		must(t, err)
	})
	r.readOnce("Leave", once, func() { must(t, r.Leave(t.Context(), netID, epID)) })
	r.readOnce("RemoveEndpoint", once, func() { must(t, r.RemoveEndpoint(t.Context(), netID, epID)) })
}

// TestAttachReadsOnce shows the same for attachments. The door has read the network before, to decode the request.
func TestAttachReadsOnce(t *testing.T) {
	t.Parallel()
	r, p := newRig(t), newPlace(t)
	n := r.made()
	var a book.Attached
	r.readOnce("Attach", map[string]int{n.ID: 1}, func() {
		var err error
		a, err = attach.Attach(t.Context(), r.Yard, p.request(n, "c1"))
		must(t, err)
	})
	former := book.EndpointKey(n.ID, a.Endpoint.ID)
	r.readOnce("Attach, repeated", map[string]int{n.ID: 1, former: 1}, func() {
		var err error
		a, err = attach.Attach(t.Context(), r.Yard, p.request(n, "c1"))
		must(t, err)
	})
	r.Config.Background = func(func()) {} // Detach leaves the link to it, which holds the endpoint anew
	r.readOnce("Detach", map[string]int{n.ID: 1, book.EndpointKey(n.ID, a.Endpoint.ID): 1}, func() {
		must(t, attach.Detach(t.Context(), r.Yard, p.end(n, "c1")))
	})
}

// TestIdentifiedWhileJoining shows that what a census finds out about a container while it joins is not lost.
func TestIdentifiedWhileJoining(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, call := range r.life()[:5] {
		must(t, call(t.Context()))
	}
	done := make(chan error, 1)
	r.step = func(step string) {
		if step != "after endpoint attached" {
			return
		}
		r.step = func(string) {}
		e, err := r.Endpoint(netID, epID)
		must(t, err)
		go func() {
			who := modes.Container{Engine: book.Docker, Name: "web", PID: 1}
			done <- reconcile.Identify(t.Context(), r.Yard, e, who)
		}()
	}
	_, _, err := r.Join(t.Context(), netID, epID, "/proc/self/ns/net")
	must(t, err)
	must(t, <-done)
	e, err := r.Endpoint(netID, epID)
	must(t, err)
	if e.Container.Name != "web" || e.Phase != modes.Ready {
		t.Errorf("on record: container %q, phase %s", e.Container.Name, e.Phase)
	}
}

// TestReadsAlike shows that what requests read does not grow with the number of endpoints elsewhere.
func TestReadsAlike(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	life := r.life()
	for _, call := range life[:5] {
		must(t, call(t.Context()))
	}
	cycle := func() (total int) {
		count := r.reads(func() {
			n, link, err := r.Join(t.Context(), netID, epID, "/proc/self/ns/net")
			must(t, err)
			must(t, r.PublishTentatively(t.Context(), n, link, epID, nil))
			_, err = r.Publish(t.Context(), netID, epID, nil)
			must(t, err)
			must(t, r.Withdraw(t.Context(), netID, epID))
			must(t, r.Leave(t.Context(), netID, epID))
		})
		for _, n := range count {
			total += n
		}
		return total
	}
	alone := cycle()
	must(t, r.Config.Store.Update(func(tx store.Tx) error {
		for i := range 100 {
			e := modes.Endpoint{ID: fmt.Sprintf("other%d", i), NetworkID: "elsewhere", Phase: modes.Ready}
			e.Sandbox = fmt.Sprintf("/run/%d", i)
			if err := book.PutEndpoint(tx, e); err != nil {
				return err
			}
		}
		return book.Networks.Put(tx, "elsewhere", modes.Network{ID: "elsewhere", Mode: "none", Phase: modes.Ready})
	}))
	if among := cycle(); among != alone {
		t.Errorf("records read: %d, and among 100 other endpoints %d", alone, among)
	}
}
