package fabric

import (
	"fmt"
	"net/netip"
	"testing"

	"netyard/cluster/clustertest"
	"netyard/cluster/record"
	"netyard/fabric/address"
)

// TestBatch: addresses that were published while etcd was away are written in few transactions, and thus reach the
// other hosts in few messages.
func TestBatch(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	all := hosts(t, e, 2)
	blue := joinBlue(t, all)
	all[1].stop()
	all[1].stop = func() {}
	e.Kill(t)
	clustertest.Eventually(t, "the outage is not noticed", func() bool { return all[0].status().Reason != "" })
	h := all[0]
	var addrs int
	for i := range address.MaxWarm {
		id := fmt.Sprintf("b%deeeeeeeeee", i)
		for _, v6 := range []bool{false, true} {
			a, err := h.Grant(t.Context(), address.Wish{Network: blue.ID, Endpoint: id, V6: v6})
			must(t, err)
			mac := record.MAC(fmt.Sprintf("02:42:00:00:00:%02x", i))
			must(t, h.Publish(blue.ID, []netip.Addr{a}, id, mac, "", nil))
			addrs++
		}
	}
	before := h.status().Health.Revision
	e.Run(t)
	clustertest.Eventually(t, "etcd lacks addresses", func() bool {
		s := h.status()
		return s.Reason == "" && s.Networks[blue.ID].Waiting == 0
	})
	recs, err := h.c.Client.List(t.Context(), "addr/"+blue.ID+"/")
	must(t, err)
	claimed := 0
	for _, r := range recs {
		if r.(*record.Address).Use == record.Endpoint {
			claimed++
		}
	}
	if claimed != addrs {
		t.Errorf("etcd has %d of %d addresses", claimed, addrs)
	}
	// Each transaction that writes is one revision; among them are those of the Alive record and the spare addresses.
	if wrote := h.status().Health.Revision - before; wrote >= int64(addrs) {
		t.Errorf("%d transactions for %d addresses", wrote, addrs)
	} else {
		t.Logf("%d transactions for %d addresses", wrote, addrs)
	}
}
