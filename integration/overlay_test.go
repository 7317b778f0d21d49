package integration

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"netyard/integration/lab"
)

// etcds are the members of an etcd cluster.
type etcds []*lab.Service

func (all etcds) Kill() {
	for _, e := range all {
		e.Kill()
	}
}

func (all etcds) Launch() {
	for _, e := range all {
		e.Launch()
	}
}

// guide returns the code blocks of docs/overlay.md, by language.
func guide(t *testing.T) map[string][]string {
	t.Helper()
	blocks := map[string][]string{}
	for _, m := range regexp.MustCompile("(?s)```([a-z]+)\n(.*?)```").FindAllStringSubmatch(read(t, "docs/overlay.md"),
		-1) {
		blocks[m[1]] = append(blocks[m[1]], m[2])
	}
	if len(blocks["bash"]) != 4 || len(blocks["ini"]) != 1 || len(blocks["yaml"]) != 1 {
		t.Fatalf("docs/overlay.md has other blocks than this test expects: %v", blocks)
	}
	return blocks
}

// asOn returns a block of the guide as an admin would type it on a host: with the hosts' addresses, and this host's
// name and address in place of h1's.
func asOn(text string, at int, hosts []*lab.Host) string {
	h, lines := hosts[at], strings.SplitAfter(text, "\n")
	for i, l := range lines {
		if !strings.Contains(l, "192.0.2.2") { // the line is not about all hosts
			lines[i] = strings.NewReplacer("192.0.2.1", h.IP, "h1", h.Name).Replace(l)
		}
	}
	text = strings.ReplaceAll(strings.Join(lines, ""), "/etc/", h.Dir+"/etc/")
	for i, o := range hosts {
		text = strings.ReplaceAll(text, fmt.Sprint("192.0.2.", i+1), o.IP)
	}
	return text
}

// inCluster makes a host for each engine on one LAN, each with a member of etcd, following docs/overlay.md.
func inCluster(t *testing.T, engines ...lab.Engine) (members etcds, hosts []*lab.Host) {
	t.Helper()
	lab.Hosts(t, len(engines))
	lan, steps := lab.NewLAN(t), guide(t)
	for i, e := range engines {
		hosts = append(hosts, lab.New(t, e, lab.On(lan), lab.Name(fmt.Sprint("h", i+1))))
	}
	write := func(file, text string) string {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	pki := t.TempDir()
	issue := exec.Command("bash", "-e", write(filepath.Join(pki, "issue"), asOn(steps["bash"][0], 0, hosts)))
	issue.Dir = pki
	if out, err := issue.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for i, h := range hosts {
		for _, f := range []string{"ca.crt", h.Name + ".crt", h.Name + ".key"} {
			raw, err := os.ReadFile(filepath.Join(pki, f))
			if err != nil {
				t.Fatal(err)
			}
			write(filepath.Join(h.Dir, f), string(raw))
		}
		h.Sh("cd", h.Dir, "&& bash -e", write(filepath.Join(h.Dir, "install"), asOn(steps["bash"][1], i, hosts)))
		etcd := h.Service("etcd", lab.Etcd(t, h.Dir), "--data-dir", filepath.Join(h.Dir, "etcd"), "--log-level",
			"error")
		etcd.Env = strings.Fields(asOn(steps["ini"][0], i, hosts))
		members = append(members, etcd)
	}
	members.Launch()
	for i, h := range hosts {
		h.Sh("sysctl -qw net.ipv6.conf.all.forwarding=1") // see host6
		h.Netyard.Start("--config", write(filepath.Join(h.Dir, "netyard.yaml"), asOn(steps["yaml"][0], i, hosts)))
	}
	for _, h := range hosts {
		eventually(t, h.Name+" joins the cluster", func() bool {
			return strings.Contains(h.Netyard.Log(), "joined the cluster")
		})
	}
	t.Cleanup(func() { leaveAll(t, hosts) })
	return members, hosts
}

// leaveAll removes everything from the hosts while etcd still runs: a network that was removed from a host stays closed
// until the host has left it in etcd.
func leaveAll(t *testing.T, hosts []*lab.Host) {
	t.Helper()
	if t.Failed() {
		return
	}
	for _, h := range hosts {
		h.RemoveAll()
	}
	for _, h := range hosts {
		eventually(t, h.Name+" has left its networks in etcd", func() bool {
			return !strings.Contains(h.Sh("nft list set inet netyard vnis"), "elements")
		})
	}
}

// TestOverlay: containers on three hosts reach each other by address and name, also while etcd is down.
func TestOverlay(t *testing.T) {
	t.Parallel()
	etcd, hosts := inCluster(t, lab.Engine285, lab.Engine2010, lab.Engine285)
	const flags = "network create -d netyard-overlay --ipam-driver netyard-overlay -o overlay=%s --ipam-opt " +
		"overlay=%[1]s --ipv6 %s %[1]s"
	subnets := "--subnet 10.20.0.0/16 --subnet fd20::/64"
	hosts[0].Docker(fmt.Sprintf(flags, "blue", subnets))
	has(t, hosts[1].DockerErr(fmt.Sprintf(flags, "blue", "--subnet 10.21.0.0/16 --subnet fd20::/64")),
		"subnet 10.21.0.0/16 differs from the cluster's 10.20.0.0/16")
	has(t, hosts[1].DockerErr(fmt.Sprintf(flags, "green", "")), "give its --subnet on the first host")
	// with WireGuard, other tests cover this
	if _, err := hosts[1].TrySh("ip link add nosuch type wireguard"); err != nil {
		has(t, hosts[1].DockerErr(fmt.Sprintf(flags, "green", "-o encrypted --subnet 10.30.0.0/16 --subnet fd30::/64")),
			"encrypted=true: this kernel has no WireGuard")
		// still
		has(t, hosts[1].DockerErr(fmt.Sprintf(flags, "green", "")), "give its --subnet on the first host")
	}
	for i, h := range hosts {
		if i > 0 {
			h.Docker(fmt.Sprintf(flags, "blue", "--subnet fd20::/64"))
		}
		h.Run(fmt.Sprint("c", i+1), "--network blue --dns 10.20.0.1")
	}
	hosts[2].Docker(fmt.Sprintf(flags, "green", "--subnet 10.30.0.0/16 --subnet fd30::/64"))
	hosts[2].Run("other", "--network green")
	pairs := func() {
		t.Helper()
		for i, h := range hosts {
			for j, to := range hosts {
				name := fmt.Sprint("c", j+1)
				h.Ping(fmt.Sprint("c", i+1), to.Addr(name, "blue"))
				h.Ping(fmt.Sprint("c", i+1), to.Addr6(name, "blue"))
				h.Ping(fmt.Sprint("c", i+1), name)
				h.Ping(fmt.Sprint("c", i+1), "-6 "+name)
			}
			h.Ping(fmt.Sprint("c", i+1), h.Outside.IP)
		}
	}
	pairs()
	hosts[2].PingFail("other", hosts[2].Addr("c3", "blue"))
	hosts[2].PingFail("other", hosts[0].Addr("c1", "blue"))
	for _, network := range []string{"tcp", "udp"} {
		server := hosts[0].In("c1").Listen(network, ":80")
		for i, h := range hosts[1:] {
			c := fmt.Sprint("c", i+2)
			has(t, h.In(c).Dial(network, hosts[0].Addr("c1", "blue")+":80"), h.Addr(c, "blue")+":")
			has(t, h.In(c).Dial(network, "["+hosts[0].Addr6("c1", "blue")+"]:80"), "["+h.Addr6(c, "blue")+"]:")
		}
		server.Close()
	}
	hosts[1].Run("p1", "--network blue -p 8080:80 --label com.docker.compose.service=front")
	server := hosts[1].In("p1").Listen("tcp", ":80")
	hosts[0].Dial("tcp", hosts[1].IP+":8080")
	server.Close()

	namesOverHosts(t, hosts)
	overlayByCNI(t, hosts)
	forgedFrames(t, hosts)

	eventually(t, "cluster doctor finds nothing", func() bool {
		_, err := hosts[1].TrySh("netyard cluster doctor")
		return err == nil
	})
	has(t, hosts[0].Sh("netyard cluster status"), "this host is a member, one of 3")
	out := hosts[1].Sh("netyard cluster hosts --format '{{.Alive}} {{.Address}} {{join .Networks \", \"}}'")
	if strings.Count(out, "true") != 3 || !strings.Contains(out, hosts[2].IP) || !strings.Contains(out, "blue, green") {
		t.Errorf("cluster hosts: %s", out)
	}
	has(t, hosts[0].ShErr("netyard cluster forget nobody"), "host nobody is not in the cluster")

	etcd.Kill()
	hosts[0].Netyard.Restart()
	hosts[1].Netyard.Kill()
	hosts[1].Netyard.Start()
	pairs()
	hosts[0].Run("late", "--network blue")             // with a spare address
	hosts[0].Ping("late", hosts[0].Addr("c1", "blue")) // the other hosts learn of it later
	etcd.Launch()
	hosts[2].Ping("c3", hosts[0].Addr("late", "blue"))
	hosts[2].Ping("c3", "late")

	// A container moves with its address. An engine accepts --ip only for a network that was created with --subnet.
	addr := hosts[1].Addr("c2", "blue")
	hosts[1].Docker("rm -f c2")
	eventually(t, "the address is free", func() bool {
		_, err := hosts[0].TryDocker("run -d --name moved --network blue --ip", addr, "busybox sleep 1000")
		if err != nil {
			_, _ = hosts[0].TryDocker("rm -f moved")
		}
		return err == nil
	})
	hosts[2].Ping("c3", addr)
	hosts[2].Ping("c3", "moved")
	for _, h := range hosts {
		healthy(t, h)
	}
}

// forgedFrames tests that containers cannot forge frames of the overlay by sending VXLAN packets to another host, on
// any kind of network; VXLAN packets with other VNIs arrive.
func forgedFrames(t *testing.T, hosts []*lab.Host) {
	t.Helper()
	from, to := hosts[0], hosts[1]
	from.Docker("network create -d netyard-bridge web")
	senders := map[string]string{"stock": "--network bridge", "ours": "--network web", "hostly": "--network host"}
	for name, flags := range senders {
		from.Run(name, flags)
	}
	m := regexp.MustCompile(`vxlan id (\d+)`).FindStringSubmatch(from.Sh("ip -d -o link show type vxlan"))
	vni, err := strconv.ParseUint(m[1], 10, 24)
	if err != nil {
		t.Fatal(err)
	}
	to.Tool(fmt.Sprintf(`nft -f - <<'END'
table inet probe {
	counter forged { }
	counter others { }
	chain in {
		type filter hook input priority 300
		udp dport 4789 @th,96,24 %d @th,128,64 0x6d61726b6d61726b counter name forged
		udp dport 4789 @th,96,24 11259375 @th,128,64 0x6d61726b6d61726b counter name others
	}
}
END`, vni))
	count := func(name string) bool {
		return !strings.Contains(to.Tool("nft list counter inet probe "+name), "packets 0 ")
	}
	send := func(name string, vni uint32) {
		err := from.In(name).Do(func() error {
			conn, err := net.Dial("udp", to.IP+":4789")
			if err != nil {
				return err
			}
			defer conn.Close()
			header := binary.BigEndian.AppendUint32([]byte{8, 0, 0, 0}, vni<<8)
			_, err = conn.Write(append(header, "markmark, a forged frame"...))
			if errors.Is(err, unix.EPERM) {
				err = nil
			}
			return err
		})
		if err != nil {
			t.Fatalf("send from %s: %v", name, err)
		}
	}
	for name := range senders {
		to.Tool("nft reset counters table inet probe")
		send(name, uint32(vni))
		eventually(t, "other VXLAN arrives", func() bool { send(name, 11259375); return count("others") })
		if count("forged") {
			t.Errorf("container %s sent a frame into the overlay", name)
		}
	}
	to.Tool("nft delete table inet probe")
	for name := range senders {
		from.Docker("rm -f", name)
	}
	from.Docker("network rm web")
}
