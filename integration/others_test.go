package integration

import (
	"strings"
	"testing"

	"netyard/integration/lab"
)

// TestForwardingForOthers: where netyard turned forwarding on, Docker's own network is not cut off, whatever its bridge
// is called, netyard's containers reach what it publishes and nothing else, and trace follows Docker's translation.
// Once the admin turns forwarding on, the guard goes. This is an engine that leaves forwarding to the admin.
func TestForwardingForOthers(t *testing.T) {
	t.Parallel()
	h := lab.New(t, lab.Engine298nft)
	h.Sh("sysctl -qw net.ipv4.ip_forward=0")
	h.Netyard.Start()
	guarded := func() bool {
		rules := h.Sh("nft list chain inet netyard forward")
		return strings.Contains(rules, "this host routes IPv4 for containers only")
	}
	h.Docker("network create -d netyard-bridge a")
	h.Run("web", "--network a")
	h.Docker("network create -o com.docker.network.bridge.name=web0 own")
	h.Run("theirs", "--network own -p 8085:80")
	h.In("theirs").Listen("tcp", ":80")
	h.Outside.Listen("tcp", ":7000")
	if !guarded() {
		t.Fatal("netyard has not turned forwarding on for containers only")
	}
	eventually(t, "netyard knows the bridge by the engine's word", func() bool {
		return strings.Contains(h.Sh("nft list set inet netyard foreign"), `"web0"`)
	})
	reach(t, "the outside to Docker's port", h.Outside.Net, "tcp", h.IP+":8085", true)
	reach(t, "Docker's container to the outside", h.In("theirs"), "tcp", h.Outside.IP+":7000", true)
	reach(t, "netyard's container to Docker's port", h.In("web"), "tcp", h.IP+":8085", true)
	reach(t, "netyard's container to Docker's", h.In("web"), "tcp", h.Addr("theirs", "own")+":80", false)
	for _, from := range []string{h.Outside.IP, "web"} {
		said := h.Sh("netyard trace " + from + " 8085")
		if !strings.Contains(said, "translated to "+h.Addr("theirs", "own")+" port 80 by another program") ||
			!strings.HasSuffix(strings.TrimSpace(said), "\nreachable") {
			t.Errorf("trace %s 8085:\n%s", from, said)
		}
	}
	h.Sh("sysctl -qw net.ipv4.ip_forward=1")
	eventually(t, "the guard has gone", func() bool { return !guarded() })
}
