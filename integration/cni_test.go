package integration

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types/create"

	"netyard/cli/api"
	"netyard/integration/lab"
)

// hostCNI boots a host with the engine, netyard and a containerd.
func hostCNI(t *testing.T, e lab.Engine, opts ...lab.Option) *lab.Host {
	t.Helper()
	h := host6(t, e, opts...)
	h.StartContainerd()
	return h
}

// A call is a call of a CNI plugin, as a runtime makes it.
type call struct {
	id, netns, ifName, args string
	conf                    string // a plugin's configuration
	plugin                  string // the plugin's program; empty: netyard's
}

// run calls the plugin and returns its output.
func (c call) run(h *lab.Host, command string) (string, error) {
	if c.ifName == "" {
		c.ifName = "eth0"
	}
	if c.plugin == "" {
		c.plugin = "/opt/cni/bin/netyard"
	}
	return h.TrySh(fmt.Sprintf("CNI_COMMAND=%s CNI_CONTAINERID='%s' CNI_NETNS='%s' CNI_IFNAME='%s' CNI_ARGS='%s' "+
		"CNI_PATH=/opt/cni/bin %s <<'END'\n%s\nEND",
		command, c.id, c.netns, c.ifName, c.args, c.plugin, c.conf))
}

// do calls the plugin, which must succeed.
func (c call) do(t *testing.T, h *lab.Host, command string) string {
	t.Helper()
	out, err := c.run(h, command)
	if err != nil {
		t.Fatalf("%s %s %s: %v", command, c.id, c.ifName, err)
	}
	return out
}

// refused calls the plugin, which must fail, and returns its error.
func (c call) refused(t *testing.T, h *lab.Host, command string) (code uint, msg string) {
	t.Helper()
	out, err := c.run(h, command)
	if err == nil {
		t.Fatalf("%s %s %s must fail, but succeeded: %s", command, c.id, c.ifName, out)
	}
	refusal := parse[struct {
		Code    uint
		Msg     string
		Details string
	}](t, out)
	return refusal.Code, refusal.Msg + " " + refusal.Details
}

// A cniResult is a result of a plugin, as far as the tests need it.
type cniResult struct {
	CNIVersion string
	Interfaces []struct{ Name, Mac, Sandbox string }
	IPs        []struct {
		Address, Gateway string
		Interface        *int
	}
	Routes []struct{ Dst, GW string }
	DNS    struct{ Nameservers []string }
}

// valid checks that a result has only the keys of a version of the specification, and decodes it.
func valid(t *testing.T, version, out string) cniResult {
	t.Helper()
	r, err := create.Create(version, []byte(out))
	if err != nil {
		t.Fatalf("not a result of %s: %v\n%s", version, err, out)
	}
	again, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	if a, b := parse[any](t, string(again)), parse[any](t, out); fmt.Sprint(a) != fmt.Sprint(b) {
		t.Errorf("the result has keys that %s does not have:\n%s\n%s", version, out, again)
	}
	return parse[cniResult](t, out)
}

// confOf returns the configuration of an installed network for its one plugin, as libcni passes it.
func confOf(t *testing.T, h *lab.Host, network, version string) string {
	t.Helper()
	list := parse[struct{ Plugins []map[string]any }](t, h.Sh("cat /etc/cni/net.d/netyard-"+network+".conflist"))
	return asPlugin(t, list.Plugins[0], network, version)
}

// asPlugin returns the configuration of a plugin with a name and a version, as libcni passes it.
func asPlugin(t *testing.T, plugin map[string]any, name, version string) string {
	t.Helper()
	plugin["name"], plugin["cniVersion"] = name, version
	raw, err := json.Marshal(plugin)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// sandboxes makes named network namespaces.
func sandboxes(h *lab.Host, names ...string) {
	for _, n := range names {
		h.Sh("ip netns add", n, "&& ip -n", n, "link set lo up")
	}
}

// TestCNI: a network is created, installed, used by containers and removed, as in docs/nerdctl.md.
func TestCNI(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := hostCNI(t, e, lab.NoEngine())
		h.Sh("netyard network create web --subnet 10.77.0.0/24")
		h.Sh("netyard cni install web")
		has(t, h.Sh("netyard cni ls"), "web")
		h.CtrRun("c1", "")
		h.CtrRun("c2", "")
		var out string
		// The ctr of Debian 12 may lose the output of a short command.
		eventually(t, "c1 reaches c2 and prints so", func() bool {
			var err error
			out, err = h.CtrExec("c1", "ip addr show eth0; ip route; ping -c 1 -W 2 10.77.0.3")
			return err == nil && out != ""
		})
		has(t, out, "10.77.0.2/24")
		has(t, out, "default via 10.77.0.1 dev eth0")
		eventually(t, "ps shows containerd's containers", func() bool {
			rows := ps(t, h)
			return len(rows) == 2 && rows[0].Engine == "containerd" && rows[0].PID != 0 &&
				strings.HasPrefix(rows[0].Container, "c")
		})
		healthy(t, h)

		h.CtrStop("c1") // ctr run -d never calls DEL: containerd reports the end
		eventually(t, "an ended container's link is gone", func() bool { return len(ps(t, h)) == 1 })
		has(t, h.Sh("netyard lease ls"), "10.77.0.2")
		healthy(t, h)
		h.CtrRemove("c1")
		eventually(t, "the address is free",
			func() bool { return !strings.Contains(h.Sh("netyard lease ls | grep active"), "10.77.0.2 ") })
		has(t, h.ShErr("netyard network rm web"), "in use by container c2")
		h.CtrRemove("c2")
		eventually(t, "no endpoint is left", func() bool { return len(ps(t, h)) == 0 })
		h.Sh("netyard network rm web")
		if out := h.Sh("ls /etc/cni/net.d"); out != "" {
			t.Errorf("the network is removed, but there is still %s", out)
		}
		healthy(t, h)
	})
}

// TestCNIVersions: the result has the requested version; an unknown version is refused.
func TestCNIVersions(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := hostCNI(t, e, lab.NoEngine())
		h.Sh("netyard network create web --subnet 10.77.0.0/24 --subnet fd77::/64")
		h.Sh("netyard cni install web")
		for i, version := range []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
			ns := fmt.Sprintf("s%d", i)
			sandboxes(h, ns)
			c := call{id: ns, netns: "/run/netns/" + ns, conf: confOf(t, h, "web", version)}
			r := valid(t, version, c.do(t, h, "ADD"))
			if len(r.IPs) != 2 || r.IPs[0].Gateway != "10.77.0.1" || r.IPs[1].Gateway != "fd77::1" ||
				len(r.Routes) != 2 {
				t.Errorf("%s: %+v", version, r)
			}
			at := r.IPs[0].Interface
			if at == nil || r.Interfaces[*at].Name != "eth0" || r.Interfaces[*at].Sandbox != c.netns {
				t.Errorf("%s: the address has the wrong interface: %+v", version, r)
			}
			has(t, h.Sh("ip -n", ns, "addr show eth0"), r.IPs[1].Address)
			if version >= "0.4.0" {
				c.do(t, h, "CHECK")
			}
			if version >= "1.1.0" {
				c.do(t, h, "STATUS")
			}
			c.do(t, h, "DEL")
			eventually(t, "the link is gone", func() bool {
				_, err := h.TrySh("ip -n", ns, "link show eth0")
				return err != nil
			})
			h.Sh("ip netns del", ns)
		}
		old := call{id: "x", netns: "/proc/1/ns/net", conf: confOf(t, h, "web", "0.1.0")}
		if code, msg := old.refused(t, h, "ADD"); code != 1 {
			t.Errorf("version 0.1.0: %d %s", code, msg)
		}
		has(t, h.Sh("CNI_COMMAND=VERSION /opt/cni/bin/netyard </dev/null"), `"1.1.0"`)
		healthy(t, h)
	})
}

// TestCNILife: repeated, early, late and conflicting calls of a plugin, as runtimes make them.
func TestCNILife(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := hostCNI(t, e, lab.NoEngine())
		h.Sh("netyard network create web --subnet 10.77.0.0/24")
		h.Sh("netyard cni install web")
		sandboxes(h, "a", "b")
		conf := confOf(t, h, "web", "1.0.0")
		a := call{id: "a", netns: "/run/netns/a", conf: conf}
		address := func() string { return valid(t, "1.0.0", a.do(t, h, "ADD")).IPs[0].Address }
		a.do(t, h, "DEL") // before any ADD, as nerdctl does
		first := address()
		if again := address(); again != first {
			t.Errorf("a repeated ADD has address %s, want %s", again, first)
		}
		if n := len(ps(t, h)); n != 1 {
			t.Errorf("a repeated ADD makes %d endpoints", n)
		}
		a.do(t, h, "CHECK")
		h.Sh("ip -n a addr del", first, "dev eth0")
		if _, msg := a.refused(t, h, "CHECK"); !strings.Contains(msg, "address "+first+" is missing") {
			t.Errorf("CHECK: %s", msg)
		}
		h.Netyard.Restart()
		if again := address(); again != first {
			t.Errorf("after a restart ADD has address %s, want %s", again, first)
		}
		// Another container in the same sandbox is refused.
		other := call{id: "other", netns: "/run/netns/a", conf: conf}
		if _, msg := other.refused(t, h, "ADD"); !strings.Contains(msg, "already has a link eth0") {
			t.Errorf("two attachments with one interface name: %s", msg)
		}
		if n := len(ps(t, h)); n != 1 {
			t.Errorf("%d endpoints after a refusal", n)
		}
		for range 2 {
			a.do(t, h, "DEL")
		}
		(call{id: "a", conf: conf}).do(t, h, "DEL")
		for _, key := range []string{`"network":"nowhere"`, `"nonsense":true`} {
			never := call{id: "never", conf: `{"cniVersion":"1.0.0","name":"nowhere","type":"netyard",` + key + `}`}
			never.do(t, h, "DEL")
		}
		eventually(t, "nothing is left", func() bool { return len(ps(t, h)) == 0 })

		// Without the daemon, ADD fails and names what to start, and DEL is done later.
		b := call{id: "b", netns: "/run/netns/b", conf: conf}
		b.do(t, h, "ADD")
		h.Netyard.Stop()
		if _, msg := a.refused(t, h, "ADD"); !strings.Contains(msg, "systemctl start netyard") {
			t.Errorf("without a daemon: %s", msg)
		}
		b.do(t, h, "DEL")
		h.Netyard.Start()
		eventually(t, "the attachment of the tombstone is gone", func() bool { return len(ps(t, h)) == 0 })
		if left := h.Sh("ls /run/netyard/tombstones"); left != "" {
			t.Errorf("the tombstone %s is left", left)
		}
		b.do(t, h, "ADD") // the former tombstone does not apply to this attachment
		h.Sh("ip netns del a; ip netns del b")
		healthyBut(t, h, "is gone")
		b.do(t, h, "DEL")
		healthy(t, h)
	})
}

// healthyBut waits until doctor reports why.
func healthyBut(t *testing.T, h *lab.Host, why string) {
	t.Helper()
	eventually(t, "doctor reports "+why, func() bool {
		out, _ := h.TrySh("netyard doctor")
		return strings.Contains(out, why)
	})
}

// TestCNISoft: a DEL without a sandbox does not detach a running container, since nerdctl kill -s HUP sends one, and
// nerdctl stop sends one before the signal. The end of the container does.
func TestCNISoft(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := hostCNI(t, e, lab.NoEngine())
		h.Sh("netyard network create web --subnet 10.77.0.0/24")
		h.Sh("netyard cni install web")
		h.CtrRun("c1", "")
		c := call{id: "default-c1", conf: confOf(t, h, "web", "1.0.0")}
		c.do(t, h, "DEL")
		if out, err := h.CtrExec("c1", "ping -c 1 -W 2 10.77.0.1"); err != nil {
			t.Fatalf("the container lost its network: %s %v", out, err)
		}
		pid := h.CtrPID("c1")
		h.Sh("kill -9", pid) // a crash, which no runtime reports
		eventually(t, "the crash is noticed", func() bool { return len(ps(t, h)) == 0 })
		c.do(t, h, "DEL")
		// A restarted container has its address again, and one that started meanwhile has another.
		h.Ctr("task rm -f c1")
		h.CtrRun("c2", "")
		rows := ps(t, h)
		if len(rows) != 1 || rows[0].Addresses[0] != "10.77.0.3/24" {
			t.Errorf("the other container has %+v", rows)
		}
		sandboxes(h, "again")
		again := call{id: "default-c1", netns: "/run/netns/again", conf: c.conf}
		if r := valid(t, "1.0.0", again.do(t, h, "ADD")); r.IPs[0].Address != "10.77.0.2/24" {
			t.Errorf("after a restart it has %s", r.IPs[0].Address)
		}
		again.do(t, h, "DEL")
		h.Sh("ip netns del again")
		healthy(t, h)
	})
}

// TestCNIPowerLoss: after a power loss nobody calls DEL; a container that is started again has its address, and one
// that was removed while netyard was down has none.
func TestCNIPowerLoss(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := hostCNI(t, e)
		h.Sh("netyard network create web --subnet 10.77.0.0/24")
		h.Sh("netyard cni install web")
		h.CtrRun("c1", "")
		h.CtrRun("c2", "")
		h.PowerLoss()
		h.Boot()
		healthy(t, h)
		if n := len(ps(t, h)); n != 0 {
			t.Errorf("%d endpoints after a power loss", n)
		}
		sandboxes(h, "a")
		c2 := call{id: "default-c2", netns: "/run/netns/a", conf: confOf(t, h, "web", "1.0.0")}
		if r := valid(t, "1.0.0", c2.do(t, h, "ADD")); r.IPs[0].Address != "10.77.0.3/24" {
			t.Errorf("after a restart it has %s", r.IPs[0].Address)
		}
		h.Netyard.Stop()
		h.Ctr("container rm c1")
		h.Netyard.Start()
		eventually(t, "gc frees the address of a removed container", func() bool {
			h.Sh("netyard gc")
			return !strings.Contains(h.Sh("netyard lease ls"), "10.77.0.2 ") ||
				strings.Contains(h.Sh("netyard lease ls | grep '10.77.0.2 '"), "cooling")
		})
		c2.do(t, h, "DEL")
		h.Sh("ip netns del a")
		healthy(t, h)
	})
}

// TestCNIShared: containers of two engines on one network reach each other, and cannot have the same addresses or
// ports.
func TestCNIShared(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := hostCNI(t, e)
		h.Docker("network create -d netyard --ipam-driver netyard --subnet 10.77.0.0/24 web")
		h.Sh("netyard cni install web")
		h.Run("d1", "--network web -p 8080:80")
		h.CtrRun("c1", "")
		addr := ""
		eventually(t, "ps shows both", func() bool {
			rows := ps(t, h)
			for _, r := range rows {
				if r.Engine == "containerd" && r.Container == "c1" {
					addr, _, _ = strings.Cut(r.Addresses[0], "/")
				}
			}
			return len(rows) == 2 && addr != ""
		})
		h.Ping("d1", addr)
		if _, err := h.CtrExec("c1", "ping -c 1 -W 2", h.Addr("d1", "web")); err != nil {
			t.Errorf("c1 must reach d1: %v", err)
		}
		has(t, h.DockerErr("run --rm --network web --ip", addr, "busybox true"), addr)
		sandboxes(h, "a")
		a := call{id: "a", netns: "/run/netns/a", conf: confOf(t, h, "web", "1.0.0"), args: "IP=" + h.Addr("d1", "web")}
		if _, msg := a.refused(t, h, "ADD"); !strings.Contains(msg, "taken") {
			t.Errorf("an address of a Docker container: %s", msg)
		}
		a.args = ""
		const mapping = `"portMappings":[{"HostPort":8080,"ContainerPort":80,"Protocol":"tcp","HostIP":"0.0.0.0"}]`
		a.conf = with(a.conf, mapping)
		if _, msg := a.refused(t, h, "ADD"); !strings.Contains(msg, "8080") || !strings.Contains(msg, "d1") {
			t.Errorf("a port of a Docker container: %s", msg)
		}
		a.conf = strings.Replace(a.conf, "8080", "8081", 1)
		a.do(t, h, "ADD")
		has(t, h.DockerErr("run --rm --network web -p 8081:80 busybox true"), "8081")
		has(t, h.ShErr("netyard network rm web"), "docker network rm web")
		a.do(t, h, "DEL")
		h.Sh("ip netns del a")

		h.Docker("network create -d netyard --subnet 10.78.0.0/24 dockers")
		has(t, h.ShErr("netyard cni install dockers"), "--ipam-driver netyard")

		// Docker ignores the refusal to delete a network with other endpoints; they keep it, and it is removed after
		// the last of them.
		h.Docker("rm -f d1")
		_, _ = h.TryDocker("network rm web")
		if _, err := h.CtrExec("c1", "ping -c 1 -W 2 10.77.0.1"); err != nil {
			t.Errorf("c1 lost its network: %v", err)
		}
		h.CtrRemove("c1")
		eventually(t, "c1 is gone", func() bool { return len(ps(t, h)) == 0 })
		_, _ = h.TryDocker("network rm web")
		eventually(t, "the network is gone", func() bool {
			h.Sh("netyard gc")
			return !strings.Contains(h.Sh("netyard network ls"), "web")
		})
	})
}

// TestCNIPorts: a published port is reached from outside and from the host itself, and is published once although the
// container is on two networks.
func TestCNIPorts(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := hostCNI(t, e, lab.NoEngine())
		h.Sh("netyard network create web --subnet 10.77.0.0/24")
		h.Sh("netyard network create back --subnet 10.78.0.0/24")
		h.Sh("netyard cni install web; netyard cni install back")
		sandboxes(h, "a")
		const mapping = `"portMappings":[{"HostPort":8080,"ContainerPort":80,"Protocol":"tcp","HostIP":"0.0.0.0"}]`
		published := func(network string) string { return with(confOf(t, h, network, "1.0.0"), mapping) }
		web := call{id: "a", netns: "/run/netns/a", conf: published("web"), args: "IgnoreUnknown=1;IP=10.77.0.9"}
		back := web
		back.ifName, back.conf = "eth1", published("back")
		back.do(t, h, "ADD")
		if r := valid(t, "1.0.0", web.do(t, h, "ADD")); r.IPs[0].Address != "10.77.0.9/24" {
			t.Errorf("requested 10.77.0.9, got %s", r.IPs[0].Address)
		}
		// of eth0, although eth1 was attached first
		has(t, h.Sh("ip -n a route get 192.0.2.1"), "via 10.77.0.1 dev eth0")
		h.Named("a").Listen("tcp", ":80")
		has(t, h.Outside.Dial("tcp", h.IP+":8080"), h.Outside.IP)
		h.Dial("tcp", "127.0.0.1:8080")
		h.Dial("tcp", h.IP+":8080")
		if n := strings.Count(h.Sh("netyard ports"), ":8080"); n != 1 {
			t.Errorf("the port is published %d times:\n%s", n, h.Sh("netyard ports"))
		}
		for _, c := range []call{web, back} {
			c.conf = strings.Replace(c.conf, mapping, `"portMappings":null`, 1)
			c.do(t, h, "DEL")
		}
		h.Outside.DialFail("tcp", h.IP+":8080")
		healthy(t, h)
	})
}

// upstreamBridge is the example of the upstream bridge plugin's documentation, and upstreamRanges an example with
// ranges and routes, both with only the type changed.
const (
	upstreamBridge = `{
    "cniVersion": "0.3.1",
    "name": "mynet",
    "type": "netyard",
    "bridge": "mynet0",
    "isDefaultGateway": true,
    "forceAddress": false,
    "ipMasq": true,
    "hairpinMode": true,
    "ipam": {
        "type": "host-local",
        "subnet": "10.10.0.0/16"
    }
}`
	upstreamRanges = `{
    "cniVersion": "1.0.0",
    "name": "ranges",
    "type": "netyard-bridge",
    "isGateway": true,
    "promiscMode": true,
    "mtu": 1400,
    "args": {"cni": {"ips": ["10.11.1.30"]}},
    "dns": {"nameservers": ["192.0.2.53"]},
    "ipam": {
        "type": "host-local",
        "ranges": [
            [{"subnet": "10.11.0.0/16", "rangeStart": "10.11.1.20", "rangeEnd": "10.11.1.21", "gateway": "10.11.0.254"}, {"subnet": "172.16.5.0/24"}],
            [{"subnet": "3ffe:ffff:0:01ff::/64", "rangeStart": "3ffe:ffff:0:01ff::0010", "rangeEnd": "3ffe:ffff:0:01ff::0020"}]
        ],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "192.168.0.0/16", "gw": "10.11.5.1"}, {"dst": "3ffe:ffff:0:0200::/64"}],
        "dataDir": "/run/my-orchestrator/container-ipam-state"
    }
}`
)

// TestCNIUpstream: configurations for the upstream plugins work when only the type is changed; an unsupported key is
// refused by its name.
func TestCNIUpstream(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := hostCNI(t, e, lab.NoEngine())
		sandboxes(h, "a", "b", "c", "d")
		a, b := call{id: "a", netns: "/run/netns/a", conf: upstreamBridge},
			call{id: "b", netns: "/run/netns/b", conf: upstreamBridge}
		valid(t, "0.3.1", a.do(t, h, "ADD"))
		b.do(t, h, "ADD")
		h.Sh("ip netns exec a ping -c 1 -W 2 10.10.0.3")
		has(t, h.Sh("ip addr show mynet0"), "10.10.0.1/16")
		has(t, h.Sh("netyard network ls"), "mynet")
		h.Outside.Listen("tcp", ":7000")
		has(t, h.Named("a").Dial("tcp", h.Outside.IP+":7000"), h.IP) // masqueraded
		c := call{id: "c", netns: "/run/netns/c", conf: upstreamRanges}
		r := valid(t, "1.0.0", c.do(t, h, "ADD"))
		if len(r.IPs) != 2 || r.IPs[0].Address != "10.11.1.30/16" || r.IPs[0].Gateway != "10.11.0.254" ||
			r.IPs[1].Address != "3ffe:ffff:0:1ff::10/64" {
			t.Errorf("ranges: %+v", r)
		}
		routes := h.Sh("ip -n c route; ip -n c -6 route; ip -n c link show eth0; ip -d link show type bridge")
		for _, want := range []string{
			"default via 10.11.0.254", "192.168.0.0/16 via 10.11.5.1", "3ffe:ffff:0:200::/64 via 3ffe:ffff:0:1ff::1",
			"mtu 1400", "promiscuity 1",
		} {
			has(t, routes, want)
		}
		withoutArgs := strings.Replace(upstreamRanges, `"args": {"cni": {"ips": ["10.11.1.30"]}},`, "", 1)
		d := call{id: "d", netns: "/run/netns/d", conf: withoutArgs}
		if r := valid(t, "1.0.0", d.do(t, h, "ADD")); r.IPs[0].Address != "10.11.1.20/16" {
			t.Errorf("the first address of the range is %s", r.IPs[0].Address)
		}
		for key, was := range map[string]string{
			"vlan": `"vlan": 5,`, "ipam.type": "", "bridgge": `"bridgge": "x",`, "enabledad": `"enabledad": true,`,
		} {
			conf := strings.Replace(upstreamBridge, `"ipMasq"`, was+`"ipMasq"`, 1)
			if key == "ipam.type" {
				conf = strings.Replace(conf, "host-local", "dhcp", 1)
			}
			x := call{id: "x", netns: "/run/netns/a", ifName: "eth9", conf: conf}
			if code, msg := x.refused(t, h, "ADD"); code != 7 || !strings.Contains(msg, "key "+key) {
				t.Errorf("%s: %d %s", key, code, msg)
			}
		}
		changed := strings.Replace(upstreamBridge, "10.10.0.0", "10.12.0.0", 1)
		x := call{id: "x", netns: "/run/netns/c", ifName: "eth9", conf: changed}
		if _, msg := x.refused(t, h, "ADD"); !strings.Contains(msg, "in use") {
			t.Errorf("another subnet while containers are attached: %s", msg)
		}
		a.do(t, h, "DEL")
		b.do(t, h, "DEL")
		eventually(t, "two endpoints are left", func() bool { return len(ps(t, h)) == 2 })
		b.conf = changed
		if r := valid(t, "0.3.1", b.do(t, h, "ADD")); r.IPs[0].Address != "10.12.0.2/16" {
			t.Errorf("after the change of the subnet it has %s", r.IPs[0].Address)
		}
		b.do(t, h, "DEL")
		eventually(t, "the endpoint is gone", func() bool { return len(ps(t, h)) == 2 })
		// GC without a list does nothing; with one, it removes what is not in it.
		gc := strings.Replace(c.conf, "1.0.0", "1.1.0", 1)
		(call{conf: gc}).do(t, h, "GC")
		if n := len(ps(t, h)); n != 2 {
			t.Errorf("%d endpoints after a GC without a list", n)
		}
		second := fmt.Sprintf(`{"cniVersion":"1.1.0","name":"second","type":"netyard","network":%q,`+
			`"cni.dev/valid-attachments":[]}`, ps(t, h)[0].Network)
		(call{conf: second}).do(t, h, "GC")
		if n := len(ps(t, h)); n != 2 {
			t.Errorf("%d endpoints after a GC of another configuration of the network", n)
		}
		const list = `{"cni.dev/valid-attachments":[{"containerID":"c","ifname":"eth0"}],`
		(call{conf: strings.Replace(gc, `{`, list, 1)}).do(t, h, "GC")
		eventually(t, "GC removes what is not in the list", func() bool { return len(ps(t, h)) == 1 })
		c.do(t, h, "DEL")
		h.Sh("for n in a b c d; do ip netns del $n; done")
		healthy(t, h)
	})
}

// TestCNICrowd: many first attachments at once, with two ports each, to a network that does not exist yet, beside
// programs that take all processors, and many ADDs and DELs with late duplicates: all succeed, nothing is left, no
// address is given twice. NETYARD_AT_ONCE and NETYARD_LOAD set how many attachments and programs; with 200 and 20, half
// of the attachments would be too late if all were worked on at once.
func TestCNICrowd(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		lab.Alone(t)
		h := hostCNI(t, e, lab.NoEngine())
		first, load := number(t, "NETYARD_AT_ONCE", 50), number(t, "NETYARD_LOAD", 4)
		const many, places = 160, 8
		h.Sh(fmt.Sprintf("for i in $(seq 0 %d); do ip netns add n$i; done", first-1))
		ported := with(upstreamBridge, `"portMappings":[{"hostPort":1NUM,"containerPort":80,"protocol":"tcp"},`+
			`{"hostPort":2NUM,"containerPort":80,"protocol":"udp"}]`)
		out := h.Sh(crowd(ported, fmt.Sprintf(`
			all=$conf load= calls=
			for i in $(seq %d); do (while :; do :; done) & load="$load $!"; done
			for i in $(seq 0 %d); do
				conf=$(echo "$all" | sed s/NUM/$(printf %%04d $i)/g)
				(call ADD c$i /run/netns/n$i > %s/add$i 2>&1 || echo ADD $i failed) & calls="$calls $!"
			done
			wait $calls; [ -z "$load" ] || kill $load`, load, first-1, h.Dir)))
		if out != "" {
			t.Fatalf("%s\n%s", out, h.Sh("cat "+h.Dir+"/add*"))
		}
		if n := strings.Count(h.Sh("netyard ports --format '{{.HostPort}}.'"), "."); n < 2*first {
			t.Errorf("%d ports are published", n)
		}
		seen := map[string]bool{}
		for _, r := range ps(t, h) {
			if seen[r.Addresses[0]] {
				t.Errorf("two endpoints have %s", r.Addresses[0])
			}
			seen[r.Addresses[0]] = true
		}
		if len(seen) != first {
			t.Errorf("%d addresses", len(seen))
		}
		out = h.Sh(crowd(upstreamBridge,
			fmt.Sprintf("for i in $(seq 0 %d); do call DEL c$i /run/netns/n$i || echo DEL $i failed; done", first-1)))
		if out != "" {
			t.Fatal(out)
		}
		out = h.Sh(crowd(upstreamBridge, fmt.Sprintf(`
			one() {
				call ADD m$1 /run/netns/n$2 >/dev/null 2>&1
				call DEL m$1 "" || echo DEL $1 failed
				call DEL m$1 /run/netns/n$2 || echo DEL $1 failed
				call DEL m$(($1 - %d)) "" || echo late DEL $1 failed
			}
			for place in $(seq 0 %d); do (for i in $(seq $place %d %d); do one $i $place; done) & done; wait`, places, places-1, places, many-1)))
		if out != "" {
			t.Fatal(out)
		}
		eventually(t, "no endpoint is left", func() bool { return len(ps(t, h)) == 0 })
		left := h.Sh("netyard lease ls --format '{{.State}} {{.Kind}}' | grep active | grep -v gateway || true")
		if left != "" {
			t.Errorf("leases are left: %s", left)
		}
		h.Sh(fmt.Sprintf("for i in $(seq 0 %d); do ip netns del n$i; done", first-1))
		healthy(t, h)
	})
}

// crowd returns a shell script with a function that calls the plugin: call COMMAND ID NETNS.
func crowd(conf, script string) string {
	return "conf='" + conf + "'\n" + `call() {
	echo "$conf" | CNI_COMMAND=$1 CNI_CONTAINERID=$2 CNI_NETNS=$3 CNI_IFNAME=eth0 CNI_PATH=/opt/cni/bin \
		/opt/cni/bin/netyard
}` + "\n" + script
}

// TestCNIChain: netyard's plugin works in a chain before and after other plugins, called as libcni calls them.
func TestCNIChain(t *testing.T) {
	t.Parallel()
	h := hostCNI(t, lab.Engine2010, lab.NoEngine())
	h.Sh("mkdir -p /etc/cni/net.d")
	h.Sh(`cat > /etc/cni/net.d/chain.conflist <<'END'
{"cniVersion":"1.0.0","name":"chain","plugins":[
 {"type":"netyard","bridge":"chain0","isDefaultGateway":true,"ipMasq":true,"ipam":{"type":"host-local","subnet":"10.13.0.0/24"}},
 {"type":"tuning","sysctl":{"net.ipv4.conf.eth0.log_martians":"1"},"mtu":1300},
 {"type":"bandwidth","ingressRate":800000,"ingressBurst":80000,"egressRate":800000,"egressBurst":80000}]}
END`)
	h.Sh(`cat > /etc/cni/net.d/behind.conflist <<'END'
{"cniVersion":"0.4.0","name":"behind","plugins":[
 {"type":"ptp","ipam":{"type":"host-local","subnet":"10.14.0.0/24","dataDir":"/run/behind"}},
 {"type":"netyard","name":"behind","bridge":"behind0","isGateway":true,"ipam":{"type":"host-local","subnet":"10.15.0.0/24"}}]}
END`)
	sandboxes(h, "a")
	const tool = "CNI_PATH=/opt/cni/bin:/usr/lib/cni cnitool"
	valid(t, "1.0.0", h.Sh(tool, "add chain /run/netns/a"))
	has(t, h.Sh("ip -n a link show eth0"), "mtu 1300")
	has(t, h.Sh("tc qdisc show"), "tbf")
	has(t, h.Sh("ip netns exec a cat /proc/sys/net/ipv4/conf/eth0/log_martians"), "1")
	h.Sh(tool, "check chain /run/netns/a")
	h.Sh(tool, "del chain /run/netns/a")
	eventually(t, "the endpoint is gone", func() bool { return len(ps(t, h)) == 0 })
	if _, err := h.TrySh(tool, "add behind /run/netns/a"); err == nil {
		t.Error("two plugins of a chain made an eth0")
	}
	h.Sh(tool, "del behind /run/netns/a")
	h.Sh("ip netns del a; rm -rf /run/behind /var/lib/cni")
	healthy(t, h)
}

// TestCNILabels: labels set options that CNI has no keys for; an unknown netyard label is refused.
func TestCNILabels(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := hostCNI(t, e, lab.NoEngine())
		h.Sh("netyard network create web --subnet 10.77.0.0/24")
		h.Sh("netyard cni install web")
		h.CtrRun("c1", "--label netyard.mac=02:00:00:00:00:07 --label netyard.rate=20mbit --label "+
			"netyard.alias=db,store --label nerdctl/name=shop")
		eventually(t, "ps shows the name", func() bool { return strings.Contains(h.Sh("netyard ps"), "shop") })
		r := ps(t, h)[0]
		if r.MAC != "02:00:00:00:00:07" || fmt.Sprint(r.Aliases) != "[db store]" || r.ContainerID != "c1" ||
			r.Options["rate"] == "" {
			t.Errorf("%+v", r)
		}
		eventually(t, "the link has the MAC address", func() bool { // ctr loses output of what ends at once
			out, err := h.CtrExec("c1", "ip link show eth0")
			return err == nil && strings.Contains(out, "02:00:00:00:00:07")
		})
		if _, err := h.TryCtrRun("c2", "--label netyard.mca=x"); err == nil {
			t.Error("an unknown netyard label was accepted")
		}
		// Labels of the image are ignored.
		image := h.CtrImport("labelled", map[string]string{
			"netyard.antispoof": "false", "netyard.mac": "02:00:00:00:00:08", "netyard.alias": "db",
			"netyard.rate": "1gbit", "tier": "web",
		})
		h.CtrRunImage(image, "c3", "--label netyard.rate=30mbit")
		i := slices.IndexFunc(ps(t, h), func(r api.Endpoint) bool { return r.ContainerID == "c3" })
		if r = ps(t, h)[i]; r.MAC == "02:00:00:00:00:08" || len(r.Aliases) > 0 || len(r.Options) != 1 ||
			r.Options["rate"] == "" {
			t.Errorf("with labels of the image: %+v", r)
		}
		healthy(t, h)
	})
}

// TestCNINames: after an engine has made a second network with the same name, ADD by that name is refused, while DEL of
// an attachment from before works.
func TestCNINames(t *testing.T) {
	t.Parallel()
	h := hostCNI(t, lab.Engine2010)
	h.Sh("netyard network create web --subnet 10.77.0.0/24")
	h.Sh("netyard cni install web")
	sandboxes(h, "a", "b")
	conf := confOf(t, h, "web", "1.0.0")
	a, b := call{id: "a", netns: "/run/netns/a", conf: conf}, call{id: "b", netns: "/run/netns/b", conf: conf}
	a.do(t, h, "ADD")
	h.Docker("network create -d netyard --ipam-driver netyard --subnet 10.78.0.0/24 web")
	eventually(t, "there are two networks",
		func() bool { return strings.Count(h.Sh("netyard network ls --format '{{.Name}}.'"), "web.") == 2 })
	for _, command := range []string{"ADD", "STATUS"} {
		b.conf = strings.Replace(conf, `"1.0.0"`, `"1.1.0"`, 1)
		if _, msg := b.refused(t, h, command); !strings.Contains(msg, "2 networks have this name") {
			t.Errorf("%s with an ambiguous name: %s", command, msg)
		}
	}
	a.do(t, h, "CHECK")
	a.do(t, h, "DEL")
	eventually(t, "the endpoint is gone", func() bool { return len(ps(t, h)) == 0 })
	h.Docker("network rm web")
	eventually(t, "there is one network",
		func() bool { return strings.Count(h.Sh("netyard network ls --format '{{.Name}}.'"), "web.") == 1 })
	b.do(t, h, "ADD")
	b.do(t, h, "DEL")
	h.Sh("ip netns del a; ip netns del b")
	healthy(t, h)
}
