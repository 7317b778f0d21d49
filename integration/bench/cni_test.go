package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"netyard/integration/lab"
	"netyard/integration/turns"
)

// besides calls netyard's plugin and the chain of Debian's plugins that nerdctl configures for its own networks in
// turn, as a runtime calls them, and prints a line per call: which, command, time in microseconds. Both publish one
// port.
const besides = `
export CNI_PATH=/opt/cni/bin:/usr/lib/cni CNI_IFNAME=eth0
port() { echo '"runtimeConfig":{"portMappings":[{"hostPort":'$1',"containerPort":80,"protocol":"tcp"}]}'; }
ours='{"cniVersion":"1.0.0","name":"web","type":"netyard","network":"web",'$(port 9001)'}'
bridge='"cniVersion":"1.0.0","name":"deb","type":"bridge","bridge":"deb0","isGateway":true,"ipMasq":true,"hairpinMode":true,"ipam":{"type":"host-local","ranges":[[{"subnet":"10.88.0.0/16"}]],"routes":[{"dst":"0.0.0.0/0"}]}'
portmap='"cniVersion":"1.0.0","name":"deb","type":"portmap",'$(port 9002)
firewall='"cniVersion":"1.0.0","name":"deb","type":"firewall","ingressPolicy":"same-bridge"'
plugin() { CNI_COMMAND=$1 CNI_CONTAINERID=$2 CNI_NETNS=/run/netns/$2 "$3" <<<"$4"; }
took() { echo $1 $2 $((${EPOCHREALTIME/./} - ${began/./})); }
for i in $(seq $ROUNDS); do
	ip netns add o$i; ip netns add d$i; sleep 0.1
	began=$EPOCHREALTIME; plugin ADD o$i /opt/cni/bin/netyard "$ours" >/dev/null || exit 1; took netyard ADD; sleep 0.1
	began=$EPOCHREALTIME
	r=$(plugin ADD d$i /usr/lib/cni/bridge "{$bridge}") &&
		r=$(plugin ADD d$i /usr/lib/cni/portmap "{$portmap,\"prevResult\":$r}") &&
		r=$(plugin ADD d$i /usr/lib/cni/firewall "{$firewall,\"prevResult\":$r}") || { echo "$r"; exit 1; }
	took chain ADD; sleep 0.1
	began=$EPOCHREALTIME; plugin DEL o$i /opt/cni/bin/netyard "$ours" || exit 1; took netyard DEL; sleep 0.2
	began=$EPOCHREALTIME
	plugin DEL d$i /usr/lib/cni/firewall "{$firewall,\"prevResult\":$r}" && plugin DEL d$i /usr/lib/cni/portmap "{$portmap,\"prevResult\":$r}" &&
		plugin DEL d$i /usr/lib/cni/bridge "{$bridge,\"prevResult\":$r}" || exit 1
	took chain DEL; ip netns del o$i; ip netns del d$i; sleep 0.1
done
ip link del deb0`

// BenchmarkRowCNI measures how long a runtime waits for plugins when a container with one published port starts and
// stops, with netyard's plugin beside the chain of Debian's plugins.
func BenchmarkRowCNI(b *testing.B) {
	h := lab.New(b, lab.Engine2010)
	h.Netyard.Program = lab.BuildShipped(b)
	h.Netyard.Start()
	h.StartContainerd()
	h.Sh("netyard network create web --subnet 10.77.0.0/16")
	h.Sh(fmt.Sprintf("cat > %s/besides <<'END'\n%s\nEND", h.Dir, besides))
	out := h.Sh(fmt.Sprintf("ROUNDS=%d bash %s/besides", turns.Scaled(25, 3), h.Dir))
	h.Netyard.Stop() // disables the check for leftovers, which Debian's plugins would fail
	r := turns.Rounds{}
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		us, err := strconv.ParseFloat(f[len(f)-1], 64)
		if len(f) != 3 || err != nil {
			b.Fatalf("unexpected output %q", line)
		}
		r[f[1]+"-"+f[0]] = append(r[f[1]+"-"+f[0]], us/1000)
	}
	for _, c := range []struct {
		command string
		goal    float64
	}{{"ADD", 25}, {"DEL", 20}} {
		r.Row(b, turns.Row{
			Table: "cni", What: "CNI " + c.command, Unit: "ms", Beside: "Debian's plugins", Inverse: true,
			AtLeast: c.goal,
		}, c.command+"-netyard", c.command+"-chain")
	}
}

// BenchmarkRowPlugin measures the plugin's process, which says its version, beside a Go program that does nothing.
func BenchmarkRowPlugin(b *testing.B) {
	source := filepath.Join(b.TempDir(), "main.go")
	empty := filepath.Join(b.TempDir(), "empty")
	if err := os.WriteFile(source, []byte("package main\n\nfunc main() {}\n"), 0o600); err != nil {
		b.Fatal(err)
	}
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", empty, source)
	build.Env = append(build.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	start := func(program string) func() {
		return func() {
			c := exec.Command(program)
			c.Env = []string{"CNI_COMMAND=VERSION"}
			c.Stdin = strings.NewReader(`{"cniVersion":"1.0.0"}`)
			if out, err := c.CombinedOutput(); err != nil {
				b.Fatalf("%s: %v: %s", program, err, out)
			}
		}
	}
	turns.Take(b, 60,
		turns.Timed("netyard", start(lab.BuildPlugin(b)), nil), turns.Timed("empty", start(empty), nil),
	).Row(b, turns.Row{
		Table: "cni", What: "the plugin's `VERSION`", Unit: "ms", Beside: "an empty Go program", AtMost: 1.2,
	}, "netyard", "empty")
}
