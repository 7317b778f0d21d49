package integration

import (
	"slices"
	"strings"
	"testing"

	"netyard/integration/lab"
)

// TestGatewaysApart: each family is published once, on the network that is its gateway, and ports move when an engine
// that was restarted disconnects that network.
func TestGatewaysApart(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := host6(t, e, lab.DockerdArgs("--live-restore"))
		h.Docker("network create -d netyard-bridge --ipv6 --subnet 10.71.0.0/24 --subnet fd00:71::/64 dual")
		h.Docker("network create -d netyard-bridge --subnet 10.72.0.0/24 four")
		h.Docker("network create -d netyard-bridge --ipv6 --ipv4=false --subnet fd00:73::/64 six")
		h.Docker("network create --subnet 10.74.0.0/24 theirs")
		h.Run("ca", "--network dual --network name=four,gw-priority=1 -p 8202:80 -p 82")
		h.Run("cb", "--network name=six,gw-priority=1 --network dual -p 8203:80")
		h.Run("cc", "--network name=theirs,gw-priority=1 --network dual -p 8204:80")
		h.Run("cd", "--network dual -p 8205:80")
		h.Docker("network connect --gw-priority 1 four cd")
		h.Run("ce", "--network four -p 8206:80 -p "+h.IP+":8207:80")
		h.Docker("network connect dual ce")
		published := func(want ...string) {
			t.Helper()
			eventually(t, "published are "+strings.Join(want, " "), func() bool {
				rows := strings.Fields(h.Sh("netyard ports --format '{{.HostIP}}:{{.HostPort}}/{{.Network}}'"))
				rows = slices.DeleteFunc(rows, func(r string) bool { return !strings.Contains(r, ":82") }) // -p 82
				slices.Sort(rows)
				return slices.Equal(rows, want)
			})
		}
		published("0.0.0.0:8202/four", "0.0.0.0:8203/dual", "0.0.0.0:8205/four", "0.0.0.0:8206/dual",
			h.IP+":8207/dual", ":::8202/dual", ":::8203/six", ":::8204/dual", ":::8205/dual", ":::8206/dual")
		for _, name := range []string{"ca", "cb", "cc", "cd", "ce"} {
			h.In(name).Listen("tcp", ":80")
		}
		reached := func(ports ...string) {
			t.Helper()
			for _, port := range ports {
				h.Outside.Dial("tcp", h.IP+":"+port)
				h.Outside.Dial("tcp", "["+h.IP6+"]:"+port)
			}
		}
		reached("8202", "8203", "8205", "8206")
		// 8204 is open for IPv4 on the engine's own network. There engine 29.8 with nftables sometimes removes the rule
		// that accepts it, together with that of the IPv6 address it no longer serves.
		h.Outside.Dial("tcp", "["+h.IP6+"]:8204")
		healthy(t, h)

		h.Dockerd.Restart()
		h.Docker("network disconnect four ca")
		h.Docker("network disconnect dual ce")
		published("0.0.0.0:8202/dual", "0.0.0.0:8203/dual", "0.0.0.0:8205/four", "0.0.0.0:8206/four",
			h.IP+":8207/four", ":::8202/dual", ":::8203/six", ":::8204/dual", ":::8205/dual")
		reached("8202")
		h.Outside.Dial("tcp", h.IP+":8207")
		healthy(t, h)
		h.Docker("rm -f ca cb cc cd ce")
		healthy(t, h)
		published()
	})
}
