package kernel_test

import (
	"net/netip"
	"strings"
	"testing"

	"netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/kernel/explain"
	"netyard/kernel/kerneltest"
	"netyard/kernel/nft"
	"netyard/kernel/ports"
)

// TestJudge shows that a verdict about a packet agrees with what the kernel does with it, or says that netyard cannot
// tell.
func TestJudge(t *testing.T) {
	t.Parallel()
	const passes, drops, unsure = explain.Passes, explain.Dropped, explain.Passes | explain.Dropped
	v4 := explain.Packet{
		In: "eth0", Out: "nyb-a", Proto: "tcp", Port: 80,
		Src: netip.MustParseAddr("192.0.2.7"), Dst: netip.MustParseAddr("10.1.0.2"),
		OrigDst: netip.MustParseAddr("192.0.2.1"), OrigPort: 8080,
	}
	v6 := v4
	v6.Src, v6.Dst, v6.OrigDst = netip.MustParseAddr("2001:db8::7"), netip.MustParseAddr("fd00:1::2"), netip.Addr{}
	for _, c := range []struct {
		rules  string // of chain f at forward, separated by "; "
		v4, v6 explain.Outcome
	}{
		{"accept; drop", passes, passes},
		{"drop", drops, drops},
		{"reject", drops, drops},
		{"ip saddr 192.0.2.0/24 drop", drops, passes},
		{"ip saddr 192.0.2.0/25 ip daddr != 10.1.0.2 drop", passes, passes},
		{"ip saddr { 192.0.2.1-192.0.2.6, 192.0.2.8 } drop", passes, passes},
		{"ip saddr { 192.0.2.1-192.0.2.7 } drop", drops, passes},
		{"ip6 saddr 2001:db8::/32 drop", passes, drops},
		{"tcp dport 80 drop", drops, drops},
		{"tcp dport 81-90 drop", passes, passes},
		{"tcp dport != 81-90 drop", drops, drops},
		{"udp dport 80 drop", passes, passes},
		{"meta l4proto { tcp, udp } th dport { 22, 80 } drop", drops, drops},
		{"iifname eth0 drop", drops, drops},
		{"iifname \"eth*\" oifname \"nyb-*\" drop", drops, drops},
		{"iifname != eth0 drop", passes, passes},
		{"ct state established,related accept; drop", drops, drops},
		{"ct state new drop", drops, drops},
		{"ct status dnat accept; drop", passes, drops},
		{"meta l4proto tcp ct original proto-dst 8080 drop", drops, passes},
		{"iifname . tcp dport { eth0 . 80 } drop", drops, drops},
		{"ip saddr . tcp dport { 192.0.2.0/24 . 79-81 } drop", drops, passes},
		{"tcp dport vmap { 80 : drop, 81 : accept }", drops, drops},
		{"tcp dport vmap { 81 : drop, 80 : accept }; drop", passes, passes},
		{"meta mark 7 drop", unsure, unsure},
		{"meta mark 7 accept; drop", unsure, unsure},
		{"meta mark and 0 == 0 drop", drops, drops},
		{"tcp sport 1234 drop", unsure, unsure},
		{"limit rate 1/hour accept; drop", unsure, unsure},
		{"tcp flags syn drop", drops, drops},
		{"rt classid 7 drop", unsure, unsure},
		{"log counter drop", drops, drops},
		{"jump sub; accept", drops, drops},
		{"tcp dport 81 jump sub; accept", passes, passes},
		{"meta mark 7 jump sub", unsure, unsure},
		{"goto quiet; drop", passes, passes},
		{"jump quiet; drop", drops, drops},
		{"tcp dport 80 return; drop", passes, passes},
	} {
		t.Run(c.rules, func(t *testing.T) {
			t.Parallel()
			h := kerneltest.New(t)
			if err := h.LoadFirewall(); err != nil {
				t.Fatal(err)
			}
			a, toA := nft.InterfaceIn(bridge.Bridges, "nyb-a"), nft.InterfaceIn(bridge.Reachable, "eth0", "nyb-a")
			if err := h.Ensure(t.Context(), a, toA); err != nil {
				t.Fatal(err)
			}
			h.Sh(t, "nft -f - <<'END'\ntable inet mine {\n"+
				"chain sub { tcp dport 80 drop\n}\nchain quiet { tcp dport 79 drop\n}\n"+
				"chain f { type filter hook forward priority 5; "+strings.ReplaceAll(c.rules, "; ", "\n")+"\n}\n}\nEND")
			for p, want := range map[*explain.Packet]explain.Outcome{&v4: c.v4, &v6: c.v6} {
				found, sum, err := explain.Judge(h.Handle, explain.Forward, *p)
				if err != nil || sum != want {
					t.Errorf("from %s: %d, want %d: %v %v", p.Src, sum, want, found, err)
				}
				last := ""
				if len(found) > 0 {
					last = found[len(found)-1].Rule
				}
				if want != passes && !strings.Contains(last, "table") && !strings.Contains(last, "inet mine") {
					t.Errorf("from %s: no rule is named: %v", p.Src, found)
				}
			}
		})
	}
}

// TestJudgeLetIn shows that the chain which admits clients to published ports does not decide about their packets: with
// publish=host it drops what the host's firewall has let through.
func TestJudgeLetIn(t *testing.T) {
	t.Parallel()
	h := kerneltest.New(t)
	ports.LetHostFirewallDecide(h.Handle)
	if err := h.LoadFirewall(); err != nil {
		t.Fatal(err)
	}
	pub := ports.Publication{
		Proto: "tcp", Host: netip.IPv4Unspecified(), Port: 8080,
		Count: 1, To: netip.MustParseAddr("10.1.0.2"), ToPort: 80,
	}
	var wanted []core.Object
	for _, e := range pub.Elements() {
		wanted = append(wanted, e.For("web"))
	}
	if err := h.Ensure(t.Context(), wanted...); err != nil {
		t.Fatal(err)
	}
	p := explain.Packet{
		In: "eth0", Proto: "tcp", Port: 8080, Src: netip.MustParseAddr("192.0.2.7"),
		Dst: netip.MustParseAddr("192.0.2.1"),
	}
	for rules, want := range map[string]explain.Outcome{
		"accept": explain.Passes, "tcp dport 8080 drop": explain.Dropped,
	} {
		h.Sh(t, "nft -f - <<'END'\ntable inet mine\ndelete table inet mine\ntable inet mine {\n"+
			"chain i { type filter hook input priority 0; "+rules+"\n}\n}\nEND")
		found, sum, err := explain.Judge(h.Handle, explain.Input, p)
		if err != nil || sum != want {
			t.Errorf("%s: %d, want %d: %v %v", rules, sum, want, found, err)
		}
	}
}

// TestJudgeIptables shows the same for rules of iptables-nft with matches of iptables, and that legacy iptables is
// reported as rules that netyard cannot read.
func TestJudgeIptables(t *testing.T) {
	t.Parallel()
	h := kerneltest.New(t)
	if err := h.LoadFirewall(); err != nil {
		t.Fatal(err)
	}
	p := explain.Packet{
		In: "eth0", Out: "nyb-a", Proto: "tcp", Port: 80,
		Src: netip.MustParseAddr("192.0.2.7"), Dst: netip.MustParseAddr("10.1.0.2"),
	}
	for _, c := range []struct {
		cmd  string
		want explain.Outcome
	}{
		{"iptables -A FORWARD -p tcp --dport 81 -j DROP", explain.Passes},
		{"iptables -A FORWARD -p tcp -m tcp --dport 79:81 -j DROP", explain.Dropped},
		{"iptables -A FORWARD -m conntrack --ctstate ESTABLISHED -j DROP", explain.Passes},
		{"iptables -A FORWARD -m conntrack --ctstate NEW -m comment --comment why -j REJECT", explain.Dropped},
		{"iptables -A FORWARD -m conntrack ! --ctstate NEW,RELATED -j DROP", explain.Passes},
		{"iptables -A FORWARD -m addrtype --dst-type LOCAL -j DROP", explain.Passes},
		{"iptables -A FORWARD -m limit --limit 1/h -j DROP", explain.Passes | explain.Dropped},
		{"iptables -P FORWARD DROP", explain.Dropped},
		{"iptables -A FORWARD -j LOG; iptables -P FORWARD DROP; iptables -A FORWARD -i eth0 -j ACCEPT", explain.Passes},
		{"iptables-legacy -w 30 -A FORWARD -j LOG", explain.Passes | explain.Dropped},
	} {
		h.Sh(t, "iptables -F; iptables -P FORWARD ACCEPT; "+c.cmd)
		if found, sum, err := explain.Judge(h.Handle, explain.Forward, p); err != nil || sum != c.want {
			t.Errorf("%s: %d, want %d: %v %v", c.cmd, sum, c.want, found, err)
		}
	}
}

// TestJudgeTranslations shows that a translation by another program's rule is followed, by either interface: the chains
// behind it see the translated packet. If netyard cannot tell where it leads, it says so.
func TestJudgeTranslations(t *testing.T) {
	t.Parallel()
	h := kerneltest.New(t)
	h.Sh(t, "ip link add lan0 type bridge && ip addr add 192.0.2.1/24 dev lan0 && ip link set lan0 up")
	if err := h.LoadFirewall(); err != nil {
		t.Fatal(err)
	}
	p := explain.Packet{
		In: "lan0", Proto: "tcp", Port: 8085, Local: true,
		Src: netip.MustParseAddr("192.0.2.7"), Dst: netip.MustParseAddr("192.0.2.1"),
	}
	const passes, drops, unsure = explain.Passes, explain.Dropped, explain.Passes | explain.Dropped
	const dockers = "iptables-nft -t nat -N DOCKER; iptables-nft -t nat -A PREROUTING -m addrtype --dst-type LOCAL " +
		"-j DOCKER; iptables-nft -t nat -A DOCKER -i docker0 -j RETURN; iptables-nft -t nat -A DOCKER "
	chain := func(rules string) string {
		return "nft 'table ip theirs { chain p { type nat hook prerouting priority dstnat; " + rules + "; }; }'"
	}
	for _, c := range []struct {
		rules string
		to    string
		want  explain.Outcome
	}{
		{dockers + "! -i docker0 -p tcp -m tcp --dport 8085 -j DNAT --to-destination 172.17.0.2:80", "172.17.0.2:80", passes},
		{dockers + "! -i docker0 -p tcp -m tcp --dport 8086 -j DNAT --to-destination 172.17.0.2:80", "", passes},
		{dockers + "-p tcp -m tcp --dport 8085 -j DNAT --to-destination 172.17.0.2", "172.17.0.2:8085", passes},
		{dockers + "-p tcp -m tcp --dport 8085 -j REDIRECT --to-ports 80", "192.0.2.1:80", passes},
		{dockers + "-m limit --limit 1/h -p tcp --dport 8085 -j DNAT --to-destination 172.17.0.2:80", "", unsure},
		{dockers + "-p tcp --dport 8085 -j DNAT --to-destination 172.17.0.2-172.17.0.9", "", unsure},
		{chain("fib daddr type local tcp dport 8085 dnat to 172.17.0.2:80"), "172.17.0.2:80", passes},
		{chain("dnat to tcp dport map { 8085 : 172.17.0.2, 8086 : 172.17.0.3 }"), "172.17.0.2:8085", passes},
		{chain("dnat ip to tcp dport map { 8085 : 172.17.0.2 . 80 }"), "172.17.0.2:80", passes},
		{chain("tcp dport 8085 redirect to :80"), "192.0.2.1:80", passes},
		{chain("tcp dport 8085 dnat to 172.17.0.2-172.17.0.9"), "", unsure},
		{
			chain("tcp dport 8085 dnat to 172.17.0.2:80") + "; nft 'add chain ip theirs second { type nat " +
				"hook prerouting priority -90; }; add rule ip theirs second dnat to 172.17.0.9'",
			"172.17.0.2:80", passes,
		},
		{
			chain("tcp dport 8085 dnat to 172.17.0.2:80") + "; nft 'add chain ip theirs late { type filter " +
				"hook prerouting priority 0; }; add rule ip theirs late ip daddr 172.17.0.2 tcp dport 80 " +
				"ct status dnat drop'",
			"172.17.0.2:80", drops,
		},
	} {
		h.Sh(t, "iptables-nft -t nat -F; iptables-nft -t nat -X; nft delete table ip theirs 2>/dev/null; "+c.rules)
		found, sum, err := explain.Judge(h.Handle, explain.Prerouting, p)
		to := ""
		for _, j := range found {
			if j.To.IsValid() {
				to = j.To.String()
			}
		}
		if err != nil || sum != c.want || to != c.to {
			t.Errorf("%s: %d to %q, want %d to %q: %v %v", c.rules, sum, to, c.want, c.to, found, err)
		}
	}
}
