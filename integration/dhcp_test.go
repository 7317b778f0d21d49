package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"netyard/cli/api"
	"netyard/integration/lab"
)

// A dhcpLAN is a host with a bridge that connects its containers to the LAN.
type dhcpLAN struct {
	*lab.Host
	t       *testing.T
	servers int
}

// newDHCP makes a host whose own bridge br-lan has eth0 as a port.
func newDHCP(t *testing.T, e lab.Engine) *dhcpLAN {
	t.Helper()
	h := lab.New(t, e)
	// Without learning off, learned forwarding entries would change the snapshots.
	h.Sh("ip link add br-lan type bridge && sysctl -qw net.ipv6.conf.br-lan.disable_ipv6=1 && ip link set br-lan up",
		"&& ip addr flush dev eth0 && ip link set eth0 master br-lan && bridge link set dev eth0 learning off",
		"&& ip addr add", h.IP+"/24 dev br-lan && ip route add default via", h.Outside.IP,
		"&& ping -c 1 -W 5", h.Outside.IP)
	h.Netyard.Start()
	return &dhcpLAN{Host: h, t: t}
}

// dnsmasq runs dnsmasq as DHCP server on the outside; span is its range of addresses.
func (d *dhcpLAN) dnsmasq(span string, more ...string) *lab.Service {
	d.t.Helper()
	d.servers++
	name := fmt.Sprintf("dnsmasq%d", d.servers)
	s := d.Outside.Service(name, append([]string{
		"dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--interface=lan",
		"--log-dhcp", "--log-facility=-", "--user=root", "--pid-file=", "--no-ping",
		"--dhcp-authoritative", "--dhcp-leasefile=" + filepath.Join(d.Outside.Dir, name),
		"--dhcp-range=" + span,
	}, more...)...)
	s.Start()
	return s
}

// udhcpd runs a DHCP server that allows very short leases.
func (d *dhcpLAN) udhcpd(start, end string, seconds int) *lab.Service {
	d.t.Helper()
	d.servers++
	name := fmt.Sprintf("udhcpd%d", d.servers)
	file := filepath.Join(d.Outside.Dir, name)
	conf := fmt.Sprintf("start %s\nend %s\ninterface lan\nlease_file %s.leases\npidfile %s.pid\nmin_lease 1\n"+
		"option lease %d\noption subnet 255.255.255.0\noption router %s\n",
		start, end, file, file, seconds, d.Outside.IP)
	for name, text := range map[string]string{file: conf, file + ".leases": ""} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			d.t.Fatal(err)
		}
	}
	s := d.Outside.Service(name, "busybox", "udhcpd", "-f", file)
	s.Start()
	return s
}

// says waits until the log of a service has these words.
func (d *dhcpLAN) says(s *lab.Service, words ...string) {
	d.t.Helper()
	for _, w := range words {
		eventually(d.t, s.Name+" logs "+w, func() bool { return strings.Contains(s.Log(), w) })
	}
}

// leases returns the leases from DHCP servers.
func (d *dhcpLAN) leases() (out []api.Lease) {
	d.t.Helper()
	for _, l := range parse[[]api.Lease](d.t, d.Sh("netyard lease ls --json")) {
		if l.Kind == "dhcp" {
			out = append(out, l)
		}
	}
	return out
}

const onBridge = "-d netyard-bridge -o com.docker.network.bridge.name=br-lan"

// TestDHCP: containers get addresses, routes and other options from the LAN's DHCP server, and release their leases.
func TestDHCP(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		d := newDHCP(t, e)
		before := d.Snapshot()
		server := d.dnsmasq("203.0.113.100,203.0.113.110,255.255.255.0,120", "--dhcp-option=3,"+d.Outside.IP,
			"--dhcp-option=6,203.0.113.8",
			"--enable-ra", "--dhcp-range=2001:db8:113::1000,2001:db8:113::1fff,64,120", "--dhcp-option=42,203.0.113.9",
			"--dhcp-option=26,1400", "--dhcp-option=121,198.51.100.0/24,"+d.Outside.IP+",0.0.0.0/0,"+d.Outside.IP)
		d.Outside.Sh("ip addr add 198.51.100.1/32 dev lo")
		for _, create := range []string{
			onBridge + " --ipam-driver netyard-dhcp --ipam-opt vendor_class=box",
			"-d netyard -o mode=bridge -o bridge=br-lan --ipam-driver netyard --ipam-opt dhcp=true --ipam-opt vendor_class=box",
			"-d netyard-macvlan -o parent=br-lan --ipam-driver netyard-dhcp --ipam-opt vendor_class=box --ipam-opt ipv6=dhcp",
		} {
			d.Docker("network create", create, "lan")
			d.Run("web", "--network lan --hostname shop")
			d.Run("db", "--network lan")
			addr := d.Addr("web", "lan")
			if !strings.HasPrefix(addr, "203.0.113.1") || addr == d.Addr("db", "lan") {
				t.Errorf("%s: addresses %s and %s", create, addr, d.Addr("db", "lan"))
			}
			has(t, d.Exec("web", "ip -4 addr show dev eth0"), addr+"/24")
			has(t, d.Exec("web", "cat /sys/class/net/eth0/mtu"), "1400")
			d.Ping("web", d.Outside.IP)
			d.Ping("web", "198.51.100.1")
			six := strings.Contains(create, "ipv6=dhcp")
			if six {
				eventually(t, "the container has a DHCPv6 address", func() bool {
					return strings.Contains(d.Exec("web", "ip -6 addr show dev eth0"), "inet6 2001:db8:113::1") &&
						strings.Contains(d.Sh("netyard lease ls"), "dhcpv6")
				})
				d.Ping("web", d.Outside.IP6)
			} else { // on macvlan containers do not reach the host
				d.Ping("web", d.IP)
			}
			d.Ping("web", "db")
			has(t, d.Exec("web", "ip route"), "default via "+d.Outside.IP)
			has(t, d.Exec("web", "ip route"), "198.51.100.0/24 via "+d.Outside.IP)
			d.says(server, "vendor class: box", "client provides name: shop", "client provides name: db")
			list := d.leases()
			if len(list) != 2 || list[0].State != "bound" || list[0].Server != d.Outside.IP ||
				time.Until(list[0].Expires) > 2*time.Minute ||
				list[0].Network != "lan" || strings.Join(list[0].DNS, " ") != "203.0.113.8" ||
				strings.Join(list[0].NTP, " ") != "203.0.113.9" {
				t.Errorf("leases %+v", list)
			}
			has(t, d.Sh("netyard lease ls"), addr)
			healthy(t, d.Host)
			d.Netyard.Restart()
			healthy(t, d.Host)
			d.Docker("stop -t 0 web")
			d.says(server, "DHCPRELEASE(lan) "+addr)
			if six {
				d.says(server, "DHCPRELEASE(lan) 00:0")
			}
			d.Docker("rm -f web db")
			d.Docker("network rm lan")
			eventually(t, "no lease is left", func() bool { return len(d.leases()) == 0 })
			d.SameAs(before)
		}
		server.Stop()
	})
}

// TestDHCPAsked: --ip is honoured with --subnet of the LAN, and invalid requests are refused.
func TestDHCPAsked(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		d := newDHCP(t, e)
		before := d.Snapshot()
		for args, want := range map[string]string{
			"-d netyard-bridge --ipam-driver netyard-dhcp x":                                               "leads to no LAN",
			"-d netyard-none --ipam-driver netyard-dhcp x":                                                 "mode none is on no LAN",
			onBridge + " --ipam-driver netyard-dhcp --ipam-opt hostnam=true x":                             "did you mean hostname?",
			onBridge + " --ipam-driver netyard-dhcp --ipam-opt ipv6=dhcp x":                                "use it on networks whose packets do not pass",
			onBridge + " --ipam-driver netyard-dhcp --ipam-opt on_lost=panic x":                            "want one of readdress, down",
			onBridge + " --ipam-driver netyard-dhcp --subnet 203.0.113.0/24 --gateway 203.0.113.1 x":       "leave --gateway out",
			onBridge + " --ipam-driver netyard-dhcp --subnet 203.0.113.0/24 --ip-range 203.0.113.128/25 x": "ip-range",
		} {
			has(t, d.DockerErr("network create", args), want)
		}
		d.SameAs(before)
		d.Docker("network create", onBridge, "--ipam-driver netyard-dhcp --subnet 203.0.113.0/24 lan")
		began := time.Now()
		out := d.DockerErr("run --rm --network lan busybox true")
		has(t, out, "get an address by DHCP on br-lan: no DHCP server answered within 7s")
		if took := time.Since(began); took > 20*time.Second { // with the engine's own time, on a busy machine
			t.Errorf("the error without a server took %v", took)
		}
		server := d.dnsmasq("203.0.113.100,203.0.113.101,255.255.255.0,120")
		d.Run("c1", "--network lan --ip 203.0.113.101")
		if a := d.Addr("c1", "lan"); a != "203.0.113.101" {
			t.Errorf("requested 203.0.113.101, got %s", a)
		}
		d.Run("c2", "--network lan")
		d.Ping("c1", "c2")
		healthy(t, d.Host)
		d.Docker("rm -f c1 c2")
		d.says(server, "DHCPRELEASE(lan) 203.0.113.100", "DHCPRELEASE(lan) 203.0.113.101")
		d.Docker("network rm lan")
		d.SameAs(before)
		server.Stop()
	})
}

// TestDHCPRenewal: short leases are renewed without loss of traffic, although netyard and the server are killed
// meanwhile.
func TestDHCPRenewal(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		d := newDHCP(t, e)
		const seconds = 10
		server := d.udhcpd("203.0.113.100", "203.0.113.110", seconds)
		d.Docker("network create", onBridge, "--ipam-driver netyard-dhcp lan")
		d.Run("web", "--network lan")
		addr := d.Addr("web", "lan")
		d.Ping("web", d.Outside.IP)
		pings := make(chan string, 1)
		const count = 5 * seconds * 3 // five a second, for three lease times
		go func() {
			out, _ := d.TryExec("web", fmt.Sprintf("ping -i 0.2 -c %d %s", count, d.Outside.IP))
			pings <- out
		}()
		expires := func() time.Time {
			list := d.leases()
			if len(list) != 1 || list[0].Address != addr {
				t.Fatalf("leases %+v", list)
			}
			return list[0].Expires
		}
		extended := func(than time.Time) {
			t.Helper()
			eventually(t, "the lease is renewed", func() bool { return expires().After(than) })
		}
		extended(expires())
		d.Netyard.Kill()
		d.Netyard.Start()
		extended(expires())
		server.Kill()
		eventually(t, "the time to renew has passed without the server", func() bool {
			return time.Until(expires()) < seconds*time.Second*2/5
		})
		server.Start()
		extended(expires())
		if out := <-pings; !strings.Contains(out, " 0% packet loss") {
			t.Errorf("packets were lost: %s", out[max(0, len(out)-300):])
		}
		if acks := strings.Count(server.Log(), "sending ACK to "+addr); acks < 4 {
			t.Errorf("the server sent %d ACKs in three lease times:\n%s", acks, server.Log())
		}
		healthy(t, d.Host)
		d.Docker("rm -f web")
		eventually(t, "no lease is left", func() bool { return len(d.leases()) == 0 })
	})
}

// TestDHCPCrash: the daemon is killed while it asks for a lease, and right after one was granted; the container's start
// fails, and nothing is left.
func TestDHCPCrash(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		d := newDHCP(t, e)
		d.Docker("network create", onBridge, "--ipam-driver netyard-dhcp lan")
		before := d.Snapshot()
		failed := make(chan error, 1)
		start := func() {
			go func() {
				_, err := d.TryDocker("run --rm --network lan busybox true")
				failed <- err
			}()
		}
		start() // there is no server
		eventually(t, "a server is looked for", func() bool { return strings.Contains(d.Sh("ip -o link"), "nyw-") })
		d.Netyard.Kill()
		d.Netyard.Start()
		if err := <-failed; err == nil {
			t.Error("a container started without an address")
		}
		d.SameAs(before)
		server := d.dnsmasq("203.0.113.100,203.0.113.110,255.255.255.0,120")
		d.Netyard.Stop()
		file := filepath.Join(d.Dir, "failpoint")
		if err := os.WriteFile(file, []byte("after lease granted"), 0o600); err != nil {
			t.Fatal(err)
		}
		d.Netyard.Env = []string{"NETYARD_FAILPOINT=" + file}
		d.Netyard.Start()
		start()
		d.Netyard.Wait(time.Minute)
		d.Netyard.Start()
		<-failed
		d.says(server, "DHCPACK(lan)", "DHCPRELEASE(lan)") // the lease was not recorded
		eventually(t, "no lease is left", func() bool { return len(d.leases()) == 0 })
		d.SameAs(before)
		d.Run("c1", "--network lan")
		d.Ping("c1", d.Outside.IP)
		healthy(t, d.Host)
		d.Docker("rm -f c1")
		server.Stop()
	})
}
