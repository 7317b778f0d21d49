package integration

import (
	"strings"
	"testing"

	"netyard/integration/lab"
)

// TestTrace: trace predicts what happens to a packet, and names the rule that decides, also if it is not netyard's.
func TestTrace(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := lab.New(t, e)
		h.Sh("sysctl -qw net.ipv6.conf.all.forwarding=1")
		h.Netyard.Start()
		matrixNetworks(h)
		h.Docker("network create -d netyard-bridge -o publish_from=192.0.2.0/24 closed")
		h.Docker("network create -d netyard-bridge -o icc=false apart")
		h.Run("web", "--network a -p 8000:80 -p 8000:80/udp -p 127.0.0.1:8001:80")
		h.Run("limited", "--network closed -p 8002:80")
		h.Run("xx", "--network apart")
		h.Run("yy", "--network apart")
		for _, name := range []string{"web", "limited", "yy"} {
			h.In(name).Listen("tcp", ":80")
		}
		h.In("web").Listen("udp", ":80")
		eventually(t, "all containers have names", func() bool {
			return strings.Count(h.Sh("netyard ps --format '{{.Container}}'"), "\n") == 5
		})
		out, web, at := h.Outside.IP, h.Addr("web", "a"), h.IP
		trace := func(question string, reachable bool, words ...string) {
			t.Helper()
			out, err := h.TrySh("netyard trace " + question)
			if err != nil && out == "" {
				out = err.Error()
			}
			if (err == nil) != reachable {
				t.Errorf("trace %s: reachable %v, want %v:\n%s", question, err == nil, reachable, out)
			}
			for _, w := range words {
				if !strings.Contains(out, w) {
					t.Errorf("trace %s does not print %q:\n%s", question, w, out)
				}
			}
		}
		both := func(question string, from *lab.Net, proto, addr string, want bool, words ...string) {
			t.Helper()
			reach(t, question, from, proto, addr, want)
			trace(question, want, words...)
		}
		both(out+" 8000", h.Outside.Net, "tcp", at+":8000", true, "published by container web on network a", "port 80",
			"reachable")
		both(out+" 8000/udp", h.Outside.Net, "udp", at+":8000", true, "8000/udp")
		both(h.Outside.IP6+" 8000", h.Outside.Net, "tcp", "["+h.IP6+"]:8000", true, "published by container web")
		both(out+" 8001", h.Outside.Net, "tcp", at+":8001", false, "on loopback only")
		both("host 8001", h.Net, "tcp", "127.0.0.1:8001", true)
		both("host web:80", h.Net, "tcp", web+":80", true)
		both("peer web:80", h.In("peer"), "tcp", web+":80", true)
		both("-6 peer web:80", h.In("peer"), "tcp", "["+h.Addr6("web", "a")+"]:80", true)
		both("stranger web:80", h.In("stranger"), "tcp", web+":80", false,
			`netyard's rule "drop traffic between networks"`)
		both("stranger 8000", h.In("stranger"), "tcp", at+":8000", true)
		both(out+" 8002", h.Outside.Net, "tcp", at+":8002", false, `"drop clients not named in publish_from"`)
		both("xx yy:80", h.In("xx"), "tcp", h.Addr("yy", "apart")+":80", false, "icc=false")
		both(out+" 4444", h.Outside.Net, "tcp", at+":4444", false, "no program of the host listens")
		h.Outside.Sh("ip route add 10.70.0.0/24 via " + at)
		both(out+" web:80", h.Outside.Net, "tcp", web+":80", false, `"drop other inbound traffic to containers"`)

		h.Tool("iptables -I FORWARD -j DROP")
		both(out+" 8000", h.Outside.Net, "tcp", at+":8000", false, "another program", "chain ip filter FORWARD: drop",
			"rule 1 ")
		both("peer web:80", h.In("peer"), "tcp", web+":80", false, "another program", "chain ip filter FORWARD")
		trace(h.Outside.IP6+" 8000", true)
		eventually(t, "doctor names the rule", func() bool {
			said, _ := h.TrySh("netyard doctor")
			return strings.Contains(said, "chain ip filter FORWARD") && strings.Contains(said, "drops")
		})
		if said := h.Sh("netyard gc --dry-run"); strings.Contains(said, "FORWARD") {
			t.Errorf("gc would remove a rule that is not netyard's: %s", said)
		}
		h.Tool("iptables -D FORWARD -j DROP")
		healthy(t, h)

		// Rules that trace cannot interpret are reported as such.
		h.Tool("iptables -I FORWARD -m u32 --u32 '0>>22&0x3C@0>>24=1' -j DROP 2>/dev/null || iptables -I FORWARD -m " +
			"limit --limit 1/h -j DROP")
		trace(out+" 8000", false, "may be dropped by", "cannot tell")
		h.Tool("iptables -D FORWARD 1")
		// With the engine's own nft: Debian 12's 1.0.6 crashes with a segmentation fault beside the tables of an engine
		// with nftables.
		h.Sh("nft 'table inet mine { set bad { type ipv4_addr; flags interval; elements = { 203.0.113.0/24 }; }; " +
			"chain f { type filter hook forward priority 5; ip saddr @bad tcp dport vmap { 80 : drop, 81 : accept " +
			"}; }; }'")
		both(out+" 8000", h.Outside.Net, "tcp", at+":8000", false, "chain inet mine f")
		h.Sh("nft delete table inet mine")
		both(out+" 8000", h.Outside.Net, "tcp", at+":8000", true)
		for _, bad := range []string{"nobody 8000", out + " 0", out + " 80/icmp", out + " nobody:80", "x"} {
			if said, err := h.TrySh("netyard trace " + bad); err == nil {
				t.Errorf("trace %s: %s", bad, said)
			}
		}
	})
}
