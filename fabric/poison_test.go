package fabric

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"slices"
	"testing"

	"netyard/cluster/clustertest"
	"netyard/cluster/etcd"
	"netyard/cluster/record"
)

// put writes records that no Client would, through etcd's JSON gateway, many keys at a time.
func put(t *testing.T, e *clustertest.Etcd, records [][2]string) {
	t.Helper()
	type one struct {
		Key   []byte `json:"key"`
		Value []byte `json:"value"`
	}
	const most = 100
	seen := map[string]bool{}
	records = slices.DeleteFunc(records, func(r [2]string) bool { // a transaction must not write a key twice
		was := seen[r[0]]
		seen[r[0]] = true
		return was
	})
	for from := 0; from < len(records); from += most {
		var ops []map[string]one
		for _, r := range records[from:min(from+most, len(records))] {
			ops = append(ops, map[string]one{"requestPut": {[]byte(etcd.DefaultPrefix + "/" + r[0]), []byte(r[1])}})
		}
		raw, err := json.Marshal(map[string]any{"success": ops})
		must(t, err)
		resp, err := http.Post(e.Direct()+"/v3/kv/txn", "application/json", bytes.NewReader(raw))
		must(t, err)
		if resp.StatusCode != http.StatusOK {
			var body bytes.Buffer
			_, _ = body.ReadFrom(resp.Body)
			t.Fatalf("write to etcd: %s %.300s", resp.Status, body.String())
		}
		must(t, resp.Body.Close())
	}
}

// TestPoisoned: whatever is written into etcd, only valid records of members get into a kernel; rejected ones are
// counted, and the hosts keep working.
func TestPoisoned(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	all := hosts(t, e, 2)
	blue := joinBlue(t, all)
	one, two := all[0].start(blue, "b1eeeeeeeeee"), all[1].start(blue, "b2eeeeeeeeee")
	all[0].knows(blue, two.v4, two.v6)
	all[1].knows(blue, one.v4, one.v6)
	_, x := all[0].links(blue)
	dump := func() string {
		return all[0].Sh(t, "bridge fdb show dev "+x+" | sort; ip neigh show dev "+x+" | sort; ip -6 neigh show dev "+x+
			" | sort; nft list set inet netyard vteps4; nft list set inet netyard vnis")
	}
	before := dump()

	const nobody = "dddddddddddddddddddddddddddddddd"
	member := all[1].self
	addr := func(a string) string { return record.Address{Network: blue.ID, Addr: netip.MustParseAddr(a)}.Key() }
	claim := func(host, mac string) string {
		return fmt.Sprintf(`{"host":%q,"use":"endpoint","endpoint":"evil","mac":%q}`, host, mac)
	}
	host := func(vtep string) string { return fmt.Sprintf(`{"name":"evil","vtep":%q,"mtu":1500}`, vtep) }
	poison := [][2]string{
		// a host that does not exist
		{addr("10.20.3.1"), claim(nobody, "02:42:0a:14:03:01")},
		// a group address
		{addr("10.20.3.2"), claim(member, "01:00:5e:00:00:01")},
		// all zeros
		{addr("10.20.3.3"), claim(member, "00:00:00:00:00:00")},
		// broadcast
		{addr("10.20.3.4"), claim(member, "ff:ff:ff:ff:ff:ff")},
		// the MAC of this host's container
		{addr("10.20.3.5"), claim(member, "02:42:0a:14:"+fmt.Sprintf("%02x:%02x", one.v4.As4()[2], one.v4.As4()[3]))},
		// in no subnet
		{addr("10.99.0.1"), claim(member, "02:42:0a:63:00:01")},
		// the gateway
		{addr("10.20.0.1"), claim(member, "02:42:0a:14:00:01")},
		// broadcast
		{addr("10.20.255.255"), claim(member, "02:42:0a:14:ff:ff")},
		{"addr/" + blue.ID + "/../../evil", claim(member, "02:42:0a:14:03:06")},
		{addr("10.20.3.7"), claim("$(reboot)", "02:42:0a:14:03:07")},
		{addr("10.20.3.8"), string(bytes.Repeat([]byte("x"), 1<<20))},
		{"host/" + nobody, host("127.0.0.1")},
		{"host/" + nobody[:31] + "e", host("224.0.0.1")},
		{"host/" + nobody[:31] + "f", host("192.0.2.1")}, // this host's own address
		{"member/" + blue.ID + "/" + nobody, "{}"},
		{"member/" + blue.ID + "/" + nobody[:31] + "f", "{}"},
		{addr("10.20.3.9"), claim(nobody[:31]+"f", "02:42:0a:14:03:09")},
		{"tomb/" + nobody, `{"by":"evil"}`},
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	valid := append([][2]string(nil), poison...)
	for range 3000 {
		p := valid[rnd.IntN(len(valid))]
		key, value := []byte(p[0]), []byte(p[1])
		if len(value) > 4096 {
			value = value[:100]
		}
		for range 1 + rnd.IntN(4) {
			key[5+rnd.IntN(len(key)-5)] = byte(rnd.IntN(256)) // the kind stays one that hosts watch
			value[rnd.IntN(len(value))] = byte(rnd.IntN(256))
		}
		poison = append(poison, [2]string{string(key), string(value)})
	}
	put(t, e, poison)
	clustertest.Eventually(t, "rejected records are not counted", func() bool {
		s := all[0].status()
		n := s.Networks[blue.ID]
		// The other host releases the claims that were written in its name.
		return s.Hosts.Rejected > 100 && n.Addresses.Rejected > 100 && len(n.Refused) >= 2
	})
	third := all[1].start(blue, "b3eeeeeeeeee") // the watch reports it after all of these records
	all[0].knows(blue, third.v4, third.v6)
	must(t, all[1].Withdraw(blue.ID, "b3eeeeeeeeee"))
	now := ""
	defer func() {
		if t.Failed() {
			t.Logf("before:\n%s\nnow:\n%s", before, now)
		}
	}()
	clustertest.Eventually(t, "an invalid record is in the kernel", func() bool { now = dump(); return now == before })
	reach(t, one.Host, two.v4, true)
	reach(t, two.Host, one.v6, true)
	for _, h := range all {
		if s := h.status(); s.Reason != "" {
			t.Errorf("host %d: %s", h.n, s.Reason)
		}
		h.wantNoDrift(blue)
	}
	all[0].warm(blue) // it can still claim addresses
}
