package integration

import (
	"strings"
	"testing"

	"netyard/cli/api"
	"netyard/integration/lab"
)

// namesOverHosts tests that containers of an overlay resolve names of other hosts' containers and of the outside, and
// that those of an internal one do not resolve names of the outside.
func namesOverHosts(t *testing.T, hosts []*lab.Host) {
	t.Helper()
	out := hosts[0].Outside
	dns := out.Service("dns", "dnsmasq", "-d", "--no-resolv", "--no-hosts", "--user=root", "--bind-interfaces",
		"--listen-address="+out.IP, "--local=/out.example/", "--address=/out.example/203.0.113.200")
	dns.Launch()
	for i, h := range hosts[:2] {
		c := []string{"c1", "c2"}[i]
		eventually(t, "a name of the outside is resolved", func() bool {
			out, err := h.TryExec(c, "nslookup out.example")
			if err != nil {
				t.Log(out, err)
			}
			return err == nil && strings.Contains(out, "203.0.113.200")
		})
		has(t, h.Exec(c, "nslookup c3.blue 10.20.0.1"), hosts[2].Addr("c3", "blue"))
		has(t, h.Exec(c, "nslookup", hosts[2].Addr("c3", "blue"), "10.20.0.1"), "c3.blue")
	}
	hosts[0].Ping("c1", "front") // the Compose service of p1
	const flags = "network create -d netyard-overlay --ipam-driver netyard-overlay -o overlay=dark --ipam-opt " +
		"overlay=dark --internal"
	hosts[0].Docker(flags, "--subnet 10.40.0.0/24 dark")
	line := hosts[1].Sh("netyard network attach --docker dark")
	has(t, line, "--internal --subnet 10.40.0.0/24 dark")
	hosts[1].Docker(strings.TrimPrefix(line, "docker "))
	for i, h := range hosts[:2] {
		h.Run([]string{"d1", "d2"}[i], "--network dark --dns 10.40.0.1")
	}
	for i, h := range hosts[:2] {
		me, other := []string{"d1", "d2"}[i], []string{"d2", "d1"}[i]
		h.Ping(me, other)
		eventually(t, "on an internal network a query for the outside is refused", func() bool {
			out, err := h.TryExec(me, "nslookup out.example 10.40.0.1 2>&1")
			return err != nil && strings.Contains(out+err.Error(), "REFUSED")
		})
		if out, err := h.TryExec(me, "nslookup out.example"); err == nil {
			t.Errorf("a name of the outside is resolved on an internal network: %s", out)
		}
	}
}

// overlayByCNI tests containerd containers on an overlay that Docker created, and on one that no engine created.
func overlayByCNI(t *testing.T, hosts []*lab.Host) {
	t.Helper()
	one, two := hosts[0], hosts[2]
	for _, h := range []*lab.Host{one, two} {
		h.StartContainerd()
		eventually(t, h.Name+" receives containerd's events",
			func() bool { return strings.Contains(h.Netyard.Log(), "containerd connected") })
	}
	two.Sh("netyard network create red --mode overlay --subnet 10.50.0.0/16 --subnet fd50::/64")
	has(t, one.Sh("netyard cluster networks"), "10.50.0.0/16, fd50::/64")
	one.Sh("netyard network attach red")
	has(t, one.ShErr("netyard network create orange --mode overlay -o overlay=red"),
		"it is on this host already, as network")
	for _, h := range []*lab.Host{one, two} {
		h.Sh("netyard cni install blue && netyard cni install red")
	}
	one.CtrRun("k1", "--label netyard.alias=db") // on blue, whose configuration is the first
	two.CtrRun("k2", "")
	for _, to := range []string{one.Addr("c1", "blue"), two.Addr("c3", "blue"), two.Addr6("c3", "blue")} {
		eventually(t, "a containerd container reaches "+to, func() bool {
			_, err := one.CtrExec("k1", "ping -c 1 -W 1", to)
			return err == nil
		})
	}
	two.Ping("c3", "k1")
	hosts[1].Ping("c2", "db.blue")
	one.Ping("c1", "k2")
	redByCNI(t, one, two)
	for h, name := range map[*lab.Host]string{one: "k1", two: "k2"} {
		h.CtrRemove(name)
		h.Sh("netyard cni uninstall blue")
	}
}

// redByCNI tests several networks of one container, a requested address, a published port, and the removal of a
// network.
func redByCNI(t *testing.T, one, two *lab.Host) {
	t.Helper()
	sandboxes(one, "a")
	sandboxes(two, "b")
	a := call{id: "a", netns: "/run/netns/a", conf: confOf(t, one, "red", "1.0.0"), args: "IP=10.50.7.7"}
	if r := valid(t, "1.0.0", a.do(t, one, "ADD")); len(r.IPs) != 2 || r.IPs[0].Address != "10.50.7.7/16" ||
		r.IPs[0].Gateway != "10.50.0.1" || strings.Join(r.DNS.Nameservers, " ") != "10.50.0.1 fd50::1" {
		t.Errorf("%+v", r)
	}
	if again := valid(t, "1.0.0", a.do(t, one, "ADD")); again.IPs[0].Address != "10.50.7.7/16" {
		t.Errorf("a repeated ADD: %+v", again)
	}
	second := call{id: "a", netns: "/run/netns/a", ifName: "eth1", conf: confOf(t, one, "blue", "1.0.0")}
	second.do(t, one, "ADD")
	b := call{
		id: "b", netns: "/run/netns/b", conf: with(confOf(t, two, "red", "1.0.0"),
			`"portMappings":[{"hostPort":8050,"containerPort":80,"protocol":"tcp"}]`),
	}
	there := valid(t, "1.0.0", b.do(t, two, "ADD"))
	reaches := func(to string) {
		t.Helper()
		to, _, _ = strings.Cut(to, "/")
		eventually(t, "a container attached by CNI reaches "+to, func() bool {
			_, err := one.TrySh("ip netns exec a ping -c 1 -W 1", to)
			return err == nil
		})
	}
	for _, ip := range there.IPs {
		reaches(ip.Address)
	}
	reaches(two.Addr("c3", "blue"))
	server := two.Named("b").Listen("tcp", ":80")
	one.Dial("tcp", two.IP+":8050")
	server.Close()
	thief := call{
		id: "thief", netns: "/run/netns/b", ifName: "eth5", conf: confOf(t, two, "red", "1.0.0"), args: "IP=10.50.7.7",
	}
	if code, msg := thief.refused(t, two, "ADD"); !strings.Contains(msg, "10.50.7.7 is taken") {
		t.Errorf("an address of another host: %d %s", code, msg)
	}
	a.do(t, one, "CHECK")
	reach := func() []api.Reached { return parse[api.Network](t, two.Sh("netyard network inspect red")).Reach }
	eventually(t, "the addresses of both hosts are shown", func() bool {
		all := reach()
		return len(all) == 4 && (all[0].Host == one.Name || all[1].Host == one.Name)
	})
	a.do(t, one, "DEL")
	a.do(t, one, "DEL")
	second.do(t, one, "DEL")
	eventually(t, "its addresses are not shown any more", func() bool { return len(reach()) == 2 })

	// A configuration written by hand; and the network is deleted when its last host leaves.
	one.Sh("netyard cni uninstall red && netyard network rm red")
	byHand := call{id: "a", netns: "/run/netns/a", conf: `{"cniVersion":"1.0.0","name":"mine","type":"netyard",` +
		`"options":{"mode":"overlay","overlay":"red"}}`}
	if r := valid(t, "1.0.0", byHand.do(t, one, "ADD")); len(r.IPs) != 2 || len(r.Routes) != 2 ||
		len(r.DNS.Nameservers) != 2 {
		t.Errorf("a configuration by hand: %+v", r)
	}
	reaches(there.IPs[0].Address)
	byHand.do(t, one, "DEL")
	b.do(t, two, "DEL")
	eventually(t, "the network is removed from one host", func() bool {
		_, err := one.TrySh("netyard network rm mine")
		return err == nil
	})
	eventually(t, "the network is removed from the other host", func() bool {
		_, err := two.TrySh("netyard network rm red")
		return err == nil
	})
	eventually(t, "the network is deleted from the cluster",
		func() bool { return !strings.Contains(one.Sh("netyard cluster networks"), "red") })
	one.Sh("ip netns del a")
	two.Sh("ip netns del b")
}
