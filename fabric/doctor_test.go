package fabric

import (
	"fmt"
	"strings"
	"testing"

	"netyard/cluster/clustertest"
)

// TestDoctor: healthy hosts have no symptoms; a smaller MTU and a firewall on the path are reported.
func TestDoctor(t *testing.T) {
	t.Parallel()
	all := hosts(t, clustertest.Start(t, ""), 2)
	joinBlue(t, all)
	h := all[0]
	// found returns the symptoms without those of etcd, which depend on its version.
	found := func() (texts []string) {
		t.Helper()
		symptoms, err := h.Doctor(t.Context())
		must(t, err)
		for _, s := range symptoms {
			if s.Of != "etcd" {
				texts = append(texts, s.Network+" "+s.Text)
			}
		}
		return texts
	}
	clustertest.Eventually(t, "healthy hosts have symptoms", func() bool { return len(found()) == 0 })
	for _, c := range []struct{ spoil, mend, want string }{
		{"ip link set eth0 mtu 1400", "ip link set eth0 mtu 1500", "blue packets of 1450 bytes do not get to host h2"},
		{
			"nft add table ip t && nft add chain ip t in '{ type filter hook input priority 0; }' && " +
				"nft add rule ip t in udp dport 4789 drop", "nft delete table ip t", "blue host h2 does not answer",
		},
	} {
		all[1].Sh(t, c.spoil)
		clustertest.Eventually(t, c.want, func() bool {
			texts := found()
			isWanted := func(text string) bool { return strings.HasPrefix(text, c.want) }
			return len(texts) == 2 && isWanted(texts[0]) && isWanted(texts[1]) // IPv4 and IPv6
		})
		all[1].Sh(t, c.mend)
	}
	// A host that is known to be down is no symptom.
	all[1].Sh(t, "ip link set eth0 down")
	all[1].stop()
	clustertest.Eventually(t, "a host that is down is a symptom", func() bool { return len(found()) == 0 })
	must(t, h.c.Client.Forget(t.Context(), h.self, "h2"))
	clustertest.Eventually(t, "a removed host has no symptom", func() bool {
		return strings.Contains(fmt.Sprint(found()), "this host is not a member")
	})
}
