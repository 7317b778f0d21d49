package yard_test

import (
	"testing"
	"testing/synctest"

	"netyard/modes"
	"netyard/yard/book"
)

// TestRemovalWaits shows that a removal in the background does not wait without end for an endpoint that is held: other
// removals wait for it. What was not removed is removed by Retry.
func TestRemovalWaits(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w, err := newWorld(t.Context(), dir)
		must(t, err)
		defer w.st.Close()
		n := modes.Network{ID: netID, Name: "blue", Mode: "none", Engine: book.Docker}
		must(t, w.y.CreateNetwork(t.Context(), n))
		e := modes.Endpoint{ID: epID, NetworkID: netID, Container: modes.Container{Engine: book.Docker}}
		must(t, w.createEndpoint(t.Context(), e))
		h, err := w.y.Hold(t.Context(), netID, epID)
		must(t, err)
		e = h.Endpoint
		e.Phase, e.Turned = modes.Deleting, w.now
		must(t, h.Put("endpoint deleting", e))
		w.y.FinishLater(netID, epID) // it returns although the endpoint is held
		h.Release()
		must(t, second(w.y.Endpoint(netID, epID)))
		w.now = w.now.Add(2 * w.y.Config.Grace)
		w.y.Retry(t.Context())
		if es, err := w.y.Endpoints(); err != nil || len(es) > 0 {
			t.Errorf("after Retry: %v %v", es, err)
		}
	})
}
