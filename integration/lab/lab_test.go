package lab_test

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"netyard/integration/lab"
)

// TestMain also lets the test's own program stand in for netyard.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		os.Exit(serve(os.Args[2:]))
	}
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-") {
		os.Exit(0) // netyard network ls, which the lab runs at the end, must not run these tests again
	}
	os.Exit(lab.Main(m))
}

// every returns all engines that the lab knows; ends returns the oldest and the newest, for what those between do
// alike.
func every() []lab.Engine { return append(ends(), lab.Engine261, lab.Engine285, lab.Engine298nft) }
func ends() []lab.Engine  { return []lab.Engine{lab.Engine2010, lab.Engine298} }

// each runs the test on these engines, in parallel as far as there are slots.
func each(t *testing.T, engines []lab.Engine, test func(t *testing.T, e lab.Engine)) {
	t.Helper()
	for _, e := range engines {
		t.Run("engine="+string(e), func(t *testing.T) {
			t.Parallel()
			test(t, e)
		})
	}
}

func TestEngines(t *testing.T) {
	for env, want := range map[string]string{"": "20.10 28.5", "26.1": "26.1", "28.5, 26.1": "28.5 26.1"} {
		t.Run(env, func(t *testing.T) {
			t.Setenv("NETYARD_ENGINES", env)
			var got []string
			lab.Engines(t, []lab.Engine{lab.Engine2010, lab.Engine285}, func(_ *testing.T, e lab.Engine) {
				got = append(got, string(e))
			})
			same(t, strings.Join(got, " "), want)
		})
	}
}

func TestHost(t *testing.T) {
	each(t, every(), func(t *testing.T, e lab.Engine) {
		h := lab.New(t, e)
		has(t, h.Docker("version -f '{{.Server.Version}}'"), e.Version())
		if e.Nftables() {
			has(t, h.Sh("nft list table ip docker-bridges"), "docker0")
		} else {
			has(t, h.Sh("iptables -S FORWARD"), "-P FORWARD DROP")
		}
		same(t, h.Sh("cat /proc/sys/net/bridge/bridge-nf-call-iptables"), "1")
		same(t, h.Sh("hostname"), "host")

		before := h.Snapshot()
		h.Docker("network create a")
		h.Run("c1", "--network a")
		h.Run("c2", "--network a -p 8080:80")
		h.Ping("c1", "c2")
		h.Ping("c1", h.Outside.IP)
		h.Sh("ping -c 1", h.Outside.IP6)
		has(t, h.ExecErr("c1", "echo oops >&2; false"), "oops")
		has(t, h.DockerErr("network create --subnet nosuch b"), "nosuch")

		// Out through NAT, and in through a published port.
		for _, network := range []string{"tcp", "udp"} {
			server := h.Outside.Listen(network, h.Outside.IP+":7")
			has(t, h.In("c1").Dial(network, server.Addr), h.IP+":")
			has(t, strings.Join(server.Seen(), " "), h.IP+":")
		}
		h.In("c2").Listen("tcp", ":80")
		has(t, h.Outside.Dial("tcp", h.IP+":8080"), h.Outside.IP+":")
		h.Outside.DialFail("tcp", h.IP+":8081")
		has(t, h.Tool("conntrack -L -p tcp 2>/dev/null"), "dport=8080")

		// The outside reaches a container only through NAT, and networks are isolated.
		h.Outside.DialFail("tcp", h.Addr("c2", "a")+":80")
		h.Docker("network create b")
		h.Run("c3", "--network b")
		h.PingFail("c3", h.Addr("c1", "a"))
		h.RemoveAll()
		h.SameAs(before)
	})
}

func TestPowerLoss(t *testing.T) {
	each(t, ends(), func(t *testing.T, e lab.Engine) {
		h := lab.New(t, e)
		h.Docker("network create a")
		h.Run("always", "--network a --restart=always")
		h.Run("never", "--network a")
		h.Sh("touch /etc/on-disk /run/in-memory && ip link add in-memory type bridge")
		boot, mac := h.BootID(), h.Sh("cat /sys/class/net/eth0/address")

		h.PowerLoss()
		if _, err := h.TrySh("true"); err == nil {
			t.Error("a host that is off runs commands")
		}
		h.Boot()
		if h.BootID() == boot {
			t.Error("the boot ID is the same after a boot")
		}
		same(t, h.Sh("cat /sys/class/net/eth0/address"), mac)
		h.Sh("test -e /etc/on-disk && ! test -e /run/in-memory && ! ip link show in-memory")
		running(t, h, "always")
		h.Ping("always", h.Outside.IP)
		has(t, h.Docker("ps -a --filter name=never --format '{{.Status}}'"), "Exited")
	})
}

func TestKillDockerd(t *testing.T) {
	each(t, ends(), func(t *testing.T, e lab.Engine) {
		h := lab.New(t, e)
		h.Docker("network create a")
		h.Run("c1", "--network a --restart=always")
		h.Dockerd.Kill()
		if _, err := h.TryDocker("ps"); err == nil || h.Dockerd.Running() {
			t.Error("dockerd is running after it was killed")
		}
		h.Dockerd.Start()
		running(t, h, "c1")
		h.Ping("c1", h.Outside.IP)
		h.Dockerd.Restart()
		running(t, h, "c1")
	})
}

func TestLiveRestore(t *testing.T) {
	each(t, ends(), func(t *testing.T, e lab.Engine) {
		h := lab.New(t, e, lab.DockerdArgs("--live-restore"))
		h.Docker("network create a")
		h.Run("c1", "--network a")
		h.Run("c2", "--network a")
		started := h.Docker("inspect -f '{{.State.StartedAt}}' c1 c2")
		h.Dockerd.Kill()
		h.Dockerd.Start()
		h.Ping("c1", "c2")
		h.Dockerd.Restart()
		h.Ping("c2", h.Addr("c1", "a"))
		same(t, h.Docker("inspect -f '{{.State.StartedAt}}' c1 c2"), started)
	})
}

func TestHostsOnOneLAN(t *testing.T) {
	const many = 3
	lab.Hosts(t, many)
	lan := lab.NewLAN(t)
	printer := lan.Node("printer")
	var hosts []*lab.Host
	for i := range many {
		hosts = append(hosts, lab.New(t, lab.Engine285, lab.On(lan), lab.Name(fmt.Sprint("h", i+1))))
	}
	for _, h := range hosts {
		h.Run("c1", "")
		t.Run(h.Name, func(t *testing.T) {
			h.Use(t)
			h.Ping("c1", h.Outside.IP)
		})
		for _, other := range append(slices.Clone(hosts), &lab.Host{Node: printer}) {
			h.Ping("c1", other.IP)
			h.Sh("ping -c 1", other.IP6)
		}
	}
	second := lab.NewLAN(t, netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8:51::/64"))
	same(t, second.Plug(hosts[0].Node), "eth1")
	hosts[0].Sh("ping -c 1", second.Outside.IP)
	hosts[0].PowerLoss()
	hosts[0].Boot()
	hosts[0].Sh("ping -c 1", second.Outside.IP, "&& ping -c 1", hosts[1].IP)
	if _, err := hosts[1].TrySh("ping -c 1 -W 1", second.Outside.IP); err == nil {
		t.Error("a host that is not on the second LAN reaches it")
	}
}

// TestNetyard: the lab's handling of the daemon, with the test's own program in its place.
func TestNetyard(t *testing.T) {
	each(t, ends(), func(t *testing.T, e lab.Engine) {
		h := lab.New(t, e)
		h.Netyard.Program = self(t)
		h.Netyard.Start("--extra")
		has(t, h.Netyard.Log(),
			"serve --state-dir "+h.Dir+"/state --run-dir /run/netyard --plugin-dir /run/docker/plugins "+
				"--docker-host unix://"+h.Dir+"/docker.sock --extra")
		h.Sh("test -S /run/docker/plugins/netyard.sock")

		h.Run("c1", "")
		h.Ping("c1", h.Outside.IP) // works whatever happens to the daemon
		h.Netyard.Kill()
		if h.Netyard.Running() || !h.Dockerd.Running() {
			t.Error("netyard is running, or dockerd is not")
		}
		h.Netyard.Start()
		h.Netyard.Restart()

		h.Netyard.Stop()
		h.Netyard.Env = []string{"NETYARD_FAILPOINT=some"}
		h.Netyard.Launch()
		if code := h.Netyard.Wait(10 * time.Second).ExitCode(); code != 3 {
			t.Errorf("exit code at the failpoint is %d, want 3", code)
		}
		h.Netyard.Env = nil
		h.Netyard.Start()
		pid := h.Netyard.PID()
		h.PowerLoss()
		h.Boot()
		if h.Netyard.PID() == pid || !h.Netyard.Running() {
			t.Error("netyard is not running after a boot")
		}
	}) // New checks for leftovers
}

// TestService: a DHCP server runs as a service on the LAN, and the LAN carries the frames of a second MAC address of a
// host.
func TestService(t *testing.T) {
	h := lab.New(t, lab.Engine285)
	dhcp := h.Outside.Service("dhcp", "dnsmasq", "-d", "--port=0", "--no-ping", "--interface=lan", "--leasefile-ro",
		"--user=root", "--dhcp-range=203.0.113.100,203.0.113.110,1h")
	dhcp.Start()
	h.Sh("ip link add m0 link eth0 type macvlan mode bridge && ip link set m0 up")
	has(t, h.Sh("udhcpc -i m0 -f -n -q -s /bin/true 2>&1"), "203.0.113.1")
	has(t, dhcp.Log(), "DHCPACK")
	dhcp.Stop()
}

// serve stands in for netyard, as far as the lab needs it.
func serve(args []string) int {
	fmt.Println("serve", strings.Join(args, " "))
	if os.Getenv("NETYARD_FAILPOINT") != "" {
		return 3
	}
	// Before the sockets exist: whoever sees them may send a signal.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2)
	for _, path := range []string{"/run/netyard/netyard.sock", "/run/docker/plugins/netyard.sock"} {
		os.MkdirAll(filepath.Dir(path), 0o755)
		os.Remove(path)
		l, err := net.Listen("unix", path)
		if err != nil {
			fmt.Println(err)
			return 1
		}
		go http.Serve(l, http.NotFoundHandler())
	}
	var file *os.File
	for {
		switch <-signals {
		case syscall.SIGTERM:
			return 0
		case syscall.SIGUSR1:
			file, _ = os.Open("/proc/version")
		case syscall.SIGUSR2:
			file.Close()
		}
	}
}

func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// running waits until a container runs.
func running(t *testing.T, h *lab.Host, container string) {
	t.Helper()
	for range 100 {
		if h.Docker("inspect -f '{{.State.Running}}'", container) == "true" {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("%s is not running: %s", container, h.Docker("ps -a"))
}

func has(t *testing.T, got, want string) {
	t.Helper()
	if !strings.Contains(got, want) {
		t.Errorf("got %q, want %q in it", got, want)
	}
}

func same(t *testing.T, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
