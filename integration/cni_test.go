package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types/create"

	"netyard/cli/api"
	"netyard/integration/lab"
)

// hostCNI boots a host with the engine, netyard and a containerd.
func hostCNI(t *testing.T, e lab.Engine, opts ...lab.Option) *lab.Host {
	t.Helper()
	h := host(t, e, opts...)
	h.StartContainerd()
	return h
}

// A call is one of a CNI plugin, as a runtime makes it.
type call struct {
	id, netns, ifName, args string
	conf                    string // a plugin's configuration
	plugin                  string // its program; netyard's unless it is said
}

// run calls the plugin and returns what it printed.
func (c call) run(h *lab.Host, command string) (string, error) {
	if c.ifName == "" {
		c.ifName = "eth0"
	}
	if c.plugin == "" {
		c.plugin = "/opt/cni/bin/netyard"
	}
	return h.TrySh(fmt.Sprintf("CNI_COMMAND=%s CNI_CONTAINERID='%s' CNI_NETNS='%s' CNI_IFNAME='%s' CNI_ARGS='%s' CNI_PATH=/opt/cni/bin %s <<'END'\n%s\nEND",
		command, c.id, c.netns, c.ifName, c.args, c.plugin, c.conf))
}

// do is run for a call that must succeed.
func (c call) do(t *testing.T, h *lab.Host, command string) string {
	t.Helper()
	out, err := c.run(h, command)
	if err != nil {
		t.Fatalf("%s %s %s: %v", command, c.id, c.ifName, err)
	}
	return out
}

// refused is run for a call that must fail, and returns what the plugin said.
func (c call) refused(t *testing.T, h *lab.Host, command string) (code uint, msg string) {
	t.Helper()
	out, err := c.run(h, command)
	if err == nil {
		t.Fatalf("%s %s %s succeeded and must not: %s", command, c.id, c.ifName, out)
	}
	said := parse[struct {
		Code    uint
		Msg     string
		Details string
	}](t, out)
	return said.Code, said.Msg + " " + said.Details
}

// A cniResult is what the tests read of a result.
type cniResult struct {
	CNIVersion string
	Interfaces []struct{ Name, Mac, Sandbox string }
	IPs        []struct {
		Address, Gateway string
		Interface        *int
	}
	Routes []struct{ Dst, GW string }
}

// valid wants a result to be one of that version of the specification, to the last key.
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
		t.Errorf("a result of %s has no such keys:\n%s\n%s", version, out, again)
	}
	return parse[cniResult](t, out)
}

// confOf is the configuration of an installed network for its one plugin, as libcni makes it.
func confOf(t *testing.T, h *lab.Host, network, version string) string {
	t.Helper()
	list := parse[struct{ Plugins []map[string]any }](t, h.Sh("cat /etc/cni/net.d/netyard-"+network+".conflist"))
	return asPlugin(t, list.Plugins[0], network, version)
}

func asPlugin(t *testing.T, plugin map[string]any, name, version string) string {
	t.Helper()
	plugin["name"], plugin["cniVersion"] = name, version
	raw, err := json.Marshal(plugin)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// sandboxes makes network namespaces, by name.
func sandboxes(h *lab.Host, names ...string) {
	for _, n := range names {
		h.Sh("ip netns add", n, "&& ip -n", n, "link set lo up")
	}
}

// TestCNI: from nothing to containers on a network, as docs/nerdctl.md has it, and back.
func TestCNI(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := hostCNI(t, e)
		h.Sh("netyard network create web --subnet 10.77.0.0/24")
		h.Sh("netyard cni install web")
		has(t, h.Sh("netyard cni ls"), "web")
		h.CtrRun("c1", "")
		h.CtrRun("c2", "")
		out, err := h.CtrExec("c1", "ip addr show eth0; ip route; ping -c 1 -W 2 10.77.0.3")
		if err != nil {
			t.Fatalf("c1 must reach c2: %v", err)
		}
		has(t, out, "10.77.0.2/24")
		has(t, out, "default via 10.77.0.1 dev eth0")
		eventually(t, "ps shows containers of containerd's", func() bool {
			rows := ps(t, h)
			return len(rows) == 2 && rows[0].Engine == "containerd" && rows[0].PID != 0 && strings.HasPrefix(rows[0].Container, "c")
		})
		healthy(t, h)

		h.CtrStop("c1") // ctr run -d never deletes: containerd tells of the end
		eventually(t, "a dead container's link is gone", func() bool { return len(ps(t, h)) == 1 })
		has(t, h.Sh("netyard lease ls"), "10.77.0.2")
		healthy(t, h)
		h.CtrRemove("c1")
		eventually(t, "the address is free", func() bool { return !strings.Contains(h.Sh("netyard lease ls | grep active"), "10.77.0.2 ") })
		has(t, h.ShErr("netyard network rm web"), "in use by container c2")
		h.CtrRemove("c2")
		eventually(t, "nobody is left", func() bool { return len(ps(t, h)) == 0 })
		h.Sh("netyard network rm web")
		if out := h.Sh("ls /etc/cni/net.d"); out != "" {
			t.Errorf("the network is gone, and there is still %s", out)
		}
		healthy(t, h)
	})
}

var _ = api.Endpoint{}
var _ = os.DevNull
var _ = filepath.Join
