package fabric

import (
	"fmt"
	"net/netip"
	"testing"

	"netyard/cluster"
	"netyard/cluster/clustertest"
)

// TestBatch: what etcd has not heard of while it was away it hears in a few transactions, and so do the other hosts.
func TestBatch(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	all := hosts(t, e, 2)
	blue := onBlue(t, all)
	all[1].stop()
	all[1].stop = func() {}
	e.Kill(t)
	clustertest.Eventually(t, "the outage is not noticed", func() bool { return all[0].status().Reason != "" })
	h := all[0]
	var addrs int
	for i := range warmest {
		id := fmt.Sprintf("b%deeeeeeeeee", i)
		for _, v6 := range []bool{false, true} {
			a, err := h.Grant(t.Context(), Wish{Network: blue.ID, Endpoint: id, V6: v6})
			must(t, err)
			must(t, h.Publish(blue.ID, []netip.Addr{a}, id, cluster.MAC(fmt.Sprintf("02:42:00:00:00:%02x", i)), "", nil))
			addrs++
		}
	}
	before := h.status().Health.Revision
	e.Run(t)
	clustertest.Eventually(t, "etcd does not hear of it", func() bool { s := h.status(); return s.Reason == "" && s.Networks[blue.ID].Waiting == 0 })
	recs, err := h.c.Client.List(t.Context(), "addr/"+blue.ID+"/")
	must(t, err)
	told := 0
	for _, r := range recs {
		if r.(*cluster.Address).Use == cluster.Endpoint {
			told++
		}
	}
	if told != addrs {
		t.Errorf("etcd has %d of %d addresses", told, addrs)
	}
	// Each transaction that writes is one revision; among them are that the host is alive, and the store that is filled
	// up.
	if wrote := h.status().Health.Revision - before; wrote >= int64(addrs) {
		t.Errorf("%d transactions for %d addresses", wrote, addrs)
	} else {
		t.Logf("%d transactions for %d addresses", wrote, addrs)
	}
}
