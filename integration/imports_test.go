package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

// A rule says what packages may import, and why nothing else. Patterns are those of path.Match; the first rule that
// matches a package applies.
type rule struct{ of, may, why string }

// layers returns the rules about imports within the module, including indirect ones.
func layers() []rule {
	const (
		kernel = "kernel kernel/beside kernel/bridge kernel/core kernel/device kernel/dhcp " +
			"kernel/exchange kernel/explain kernel/gso kernel/lan kernel/ndp kernel/nft kernel/others kernel/overlay " +
			"kernel/policy kernel/ports kernel/rule kernel/sandbox"
		yard = "yard yard/attach yard/book yard/enforce yard/event yard/index yard/lease yard/live yard/lock " +
			"yard/overlay yard/own yard/plan yard/pool yard/port yard/reconcile yard/repair yard/share yard/source " +
			"yard/trace"
		cluster = "cluster cluster/etcd cluster/mirror cluster/peers cluster/record"
		below   = "store ipam ipam/dhcp modes policy " + kernel
		records = "yard/event yard/index yard/lock yard/plan " + below
		parts   = "yard/book yard/enforce yard/lease yard/live yard/overlay yard/port yard/source " + records
		middle  = below + " " + yard
	)
	return []rule{
		{"wake", "", "every package may import it"},
		{"store", "", "it is independent of networks"},
		{"kernel/core", "", "it is the basis: the handle, names, addresses, the view"},
		{"kernel/rule", "", "it is the language of rulesets"},
		{"kernel/exchange", "", "it sends messages, whatever they say"},
		{"kernel/nft", "kernel/core kernel/exchange kernel/rule", "it loads rules that it is given, and defines none"},
		{"kernel/device", "kernel/core", "it handles network cards, without rules"},
		{"kernel/gso", "kernel/core", "it compares links"},
		{"kernel/ndp", "kernel/core", "it answers for others on a link"},
		{"kernel/sandbox", "kernel/core kernel/rule", "it works in sandboxes, and names protocols"},
		{"kernel/bridge", "kernel/core kernel/exchange kernel/gso kernel/nft kernel/rule", "others build on it: it defines the sets of bridges"},
		{"kernel/beside", "kernel/core kernel/exchange kernel/nft kernel/rule", "it handles other programs' chains"},
		{"kernel/lan", "kernel/bridge kernel/core kernel/exchange kernel/gso kernel/ndp kernel/nft kernel/rule", "the traffic that it allows does not involve a bridge"},
		{"kernel/others", "kernel/beside kernel/bridge kernel/core kernel/exchange kernel/gso kernel/nft kernel/rule", "it fills sets of bridges, and guards forwarding"},
		{"kernel/overlay", "kernel/bridge kernel/core kernel/exchange kernel/gso kernel/nft kernel/rule kernel/sandbox", "a VXLAN device is a port of a bridge, and a program may have its UDP port"},
		{"kernel/policy", "kernel/bridge kernel/core kernel/exchange kernel/gso kernel/nft kernel/rule", "policies apply at ports of bridges"},
		{"kernel/ports", "kernel/bridge kernel/core kernel/exchange kernel/gso kernel/lan kernel/ndp kernel/nft kernel/rule kernel/sandbox", "a published port leads to a bridge or to the LAN, and a program may listen on it"},
		{"kernel/dhcp", "kernel/bridge kernel/core kernel/exchange kernel/gso kernel/lan kernel/ndp kernel/nft kernel/rule kernel/sandbox", "its link is on a parent, and then in a sandbox"},
		{"kernel/explain", "kernel/beside kernel/bridge kernel/core kernel/exchange kernel/gso kernel/lan kernel/ndp kernel/nft kernel/ports kernel/rule kernel/sandbox", "it reads what the others create"},
		{"kernel", "kernel/beside kernel/bridge kernel/core kernel/device kernel/exchange kernel/gso kernel/lan kernel/ndp kernel/nft kernel/others kernel/overlay kernel/policy kernel/ports kernel/rule kernel/sandbox", "it composes the ruleset and applies objects"},
		{"modes", kernel, "it is the contract of modes"},
		{"modes/all", kernel + " modes modes/* modes/internal/*", "it is the table of modes"},
		{"modes/modetest", kernel + " kernel/kerneltest modes yard/plan", "it tests the contract of modes"},
		{"modes/internal/*", kernel + " modes modes/internal/*", "modes share its code"},
		{"modes/*", kernel + " modes modes/internal/*", "a mode uses the contract and the kernel, and no other mode"},
		{"ipam", "store", "it manages addresses, within its caller's transaction"},
		{"ipam/dhcp", "", "it implements a protocol"},
		{"cluster/record", "", "it defines what hosts write, without etcd"},
		{"cluster/peers", "cluster/record", "it computes peers from records, without etcd"},
		{"cluster/etcd", "cluster/record", "it makes calls and transactions, whatever they are for"},
		{"cluster/mirror", "cluster/etcd cluster/record store", "it copies records, and writes none to etcd"},
		{"cluster", "cluster/etcd cluster/record store", "it is a host's part in its cluster, without the kernel"},
		{"cluster/clustertest", "", "it runs etcd"},
		{"cluster/hosttest", "cluster cluster/clustertest cluster/etcd cluster/record store", "it makes hosts for tests"},
		{"fabric/address", cluster + " store", "it decides which addresses this host has, without the kernel"},
		{"fabric/nametable", cluster + " fabric/address store", "it is told which addresses have which names"},
		{"fabric/dataplane", "cluster/peers cluster/record " + kernel, "it is a network in the kernel, without etcd and the database"},
		{"fabric/tunnel", "cluster/record modes store " + kernel, "it manages one device and its key, and is told the peers"},
		{"fabric", cluster + " fabric/* modes store " + kernel, "it keeps etcd and the kernel in step, and knows no mode by its name"},
		{"names", "", "it is given names, and the sockets on which it answers"},
		{"policy", "modes " + kernel, "it computes decisions, without side effects"},
		{"yard/event", "", "it defines events"},
		{"yard/lock", "", "its locks know nothing of what they protect"},
		{"yard/plan", "modes " + kernel, "it applies what modes plan to the kernel, without records"},
		{"yard/yardtest", kernel + " kernel/kerneltest modes modes/modetest yard/plan", "it stands in for the kernel, and prints objects as the tests of modes do"},
		{"yard/index", "modes store " + kernel, "it finds keys, and reads no records of endpoints"},
		{"yard/book", records, "it holds the records"},
		{"yard/live", "yard/book " + records, "it compares records with the kernel"},
		{"yard/port", "yard/book yard/live " + records, "it decides which ports endpoints get"},
		{"yard/enforce", "yard/book " + records, "it applies policies to the kernel"},
		{"yard/overlay", "yard/book " + records, "it is this host's part of overlay networks"},
		{"yard/lease", "yard/book yard/enforce yard/live yard/overlay yard/port " + records, "when a lease changes an address, ports and policies follow"},
		{"yard/source", "yard/book yard/enforce yard/lease yard/live yard/overlay yard/port " + records, "the addresses of an endpoint come from one of these"},
		{"yard", parts, "it manages networks and endpoints, and knows no door, no engine and no mode by its name"},
		{"yard/pool", "yard " + parts, "the addresses of a pool come from one of these"},
		{"yard/own", "yard yard/pool " + parts, "it creates networks as an engine would"},
		{"yard/*", "yard yard/pool " + parts, "they call yard for what they find"},
		{"driver", middle, "no handler calls an engine's API"},
		{"engines", middle, "it calls yard, and knows no door"},
		{"firewalld", "", "it needs only the names of bridges"},
		{"cli/api", middle, "it is a door to yard"},
		{"cni", "", "a plugin must start fast"},
		{"cni/netyard-cni", "cni", "it only calls the daemon"},
		{"cni/receive", "cni", "it is the daemon's side of the protocol"},
		{"cni/door", middle + " cni cni/receive", "no handler calls an engine's API: it is given a function for its one query"},
		{"cli/usage", "", "it handles command lines, whatever the commands do"},
		{"cli/table", "cli/usage modes " + kernel, "it prints tables, and knows no command"},
		{"cli/daemon", middle + " " + cluster + " fabric fabric/* names driver engines firewalld cli/api cli/usage cni cni/door cni/receive modes/* modes/internal/*", "it composes the daemon, and knows no other command"},
		{"cli", middle + " " + cluster + " fabric fabric/* names driver engines firewalld cli/* cni cni/door cni/receive modes/* modes/internal/*", "it is the program, without packages for tests"},
		{".", cluster + " fabric fabric/* names cli cli/* driver engines firewalld cni cni/door cni/receive modes/* modes/internal/* " + middle, "it is the program, without packages for tests"},
		{"kernel/exchange/exchangetest", "", "it builds messages of bytes"},
		{"kernel/kerneltest", kernel, "tests of every layer use it"},
		{"integration", "* */*", ""},
		{"integration/*", "", "the lab uses netyard as a user does"},
		{"integration/turns/write", "integration/turns", "it writes the tables of what was measured"},
	}
}

// owners returns the rules about direct imports that only some packages may have: of are the packages, may the imports.
func owners() []rule {
	return []rule{
		{
			"kernel kernel/* kernel/exchange/exchangetest integration/lab",
			"github.com/vishvananda/* github.com/vishvananda/*/* github.com/google/nftables github.com/google/nftables/* github.com/mdlayher/netlink golang.zx2c4.com/wireguard/wgctrl golang.zx2c4.com/wireguard/wgctrl/*",
			"only one place calls the kernel",
		},
		{
			"kernel kernel/* kernel/exchange/exchangetest integration/lab cni/netyard-cni", "golang.org/x/sys/unix",
			"only one place calls the kernel; the plugin sets up loopback by itself, without the daemon",
		},
		{"cli cli/daemon", "netyard/modes/all", "all others know modes by their names at most"},
		{"cli/daemon", "netyard/cni/door netyard/engines netyard/fabric netyard/firewalld netyard/names", "only one place composes the daemon"},
		{"cli/daemon engines", "netyard/driver", "only one place composes the daemon; engines uses Docker's terms from it"},
		{"cli", "netyard/cli/daemon", "a command asks the daemon, and is none"},
		{"engines", "github.com/containerd/containerd/* github.com/containerd/containerd/*/* github.com/containerd/containerd/*/*/* github.com/moby/moby/*", "only one place calls engines"},
		{"kernel/kerneltest modes/modetest integration/lab integration/turns cluster/clustertest cluster/hosttest", "testing", "tests are not part of the program"},
		{"names", "github.com/miekg/dns", "only one place answers name queries"},
		{"cluster/etcd cluster/hosttest", "go.etcd.io/etcd/* go.etcd.io/etcd/*/* go.etcd.io/etcd/*/*/*", "only one place calls etcd"},
		{"cluster/etcd cluster/hosttest engines integration", "google.golang.org/grpc google.golang.org/grpc/*", "only one place calls etcd, and one the engines"},
	}
}

// The program that a runtime starts for each call, and what it must not link: each initializes itself at each start.
const (
	plugin = "cni/netyard-cni"
	slow   = "net net/* crypto crypto/* regexp log/slog os/exec text/template context"
)

// A pkg is a package as go list reports it, as far as the rules need it.
type pkg struct {
	ImportPath    string
	Imports, Deps []string
}

// name returns the path of the package within the module.
func (p pkg) name() string {
	return strings.TrimPrefix(strings.Replace(p.ImportPath, "netyard", ".", 1), "./")
}

// broken returns how a package breaks the rules.
func broken(p pkg) (complaints []string) {
	at := slices.IndexFunc(layers(), func(r rule) bool { return fits(r.of, p.name()) })
	if at < 0 {
		return []string{fmt.Sprintf("%s is not in the table of layers", p.ImportPath)}
	}
	for _, dep := range p.Deps {
		if name, ours := strings.CutPrefix(dep, "netyard/"); ours && !fits(layers()[at].may+" wake", name) {
			complaints = append(complaints, fmt.Sprintf("%s imports %s: %s", p.ImportPath, dep, layers()[at].why))
		}
	}
	if p.name() == plugin {
		for _, dep := range p.Deps {
			if fits(slow, dep) {
				complaints = append(complaints, fmt.Sprintf("%s links %s: a plugin must start fast", p.ImportPath, dep))
			}
		}
	}
	for _, r := range owners() {
		for _, i := range p.Imports {
			if fits(r.may, i) && !fits(r.of, p.name()) {
				complaints = append(complaints, fmt.Sprintf("%s imports %s: %s", p.ImportPath, i, r.why))
			}
		}
	}
	return complaints
}

// fits says whether one of several patterns matches a name.
func fits(patterns, name string) bool {
	return slices.ContainsFunc(strings.Fields(patterns), func(p string) bool {
		ok, err := path.Match(p, name)
		return ok && err == nil
	})
}

// TestImports: imports follow the layers of docs/architecture.md and point downward only.
func TestImports(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports,Deps", "netyard/...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	seen := 0
	for d := json.NewDecoder(strings.NewReader(string(out))); ; seen++ {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		for _, b := range broken(p) {
			t.Error(b)
		}
	}
	if seen < 15 {
		t.Errorf("go list reports only %d packages", seen)
	}
	for of, imports := range map[string]string{ // imports that must be reported
		"netyard/store": "netyard/modes", "netyard/kernel": "netyard/store",
		"netyard/kernel/core": "netyard/kernel/nft", "netyard/kernel/nft": "netyard/kernel/bridge",
		"netyard/kernel/bridge": "netyard/kernel/overlay",
		"netyard/yard/book":     "netyard/yard", "netyard/yard/port": "netyard/yard/share",
		"netyard/modes":        "netyard/store",
		"netyard/modes/bridge": "netyard/modes/none",
		"netyard/modes/none":   "golang.org/x/sys/unix", "netyard/ipam": "netyard/kernel",
		"netyard/yard": "netyard/driver", "netyard/driver": "netyard/engines", "netyard/engines": "netyard/modes/all",
		"netyard/cli/api": "github.com/vishvananda/netlink/nl", "netyard/cli": "netyard/fabric",
		"netyard/cli/usage": "netyard/modes",
		"netyard/cli/table": "netyard/cli/api", "netyard/cli/daemon": "netyard/cli",
		"netyard":                 "netyard/kernel/kerneltest",
		"netyard/integration/lab": "netyard/yard", "netyard/new": "fmt", "netyard/cni": "netyard/kernel",
		"netyard/cluster": "netyard/kernel", "netyard/cluster/record": "netyard/cluster/etcd",
		"netyard/cluster/mirror": "netyard/cluster", "netyard/fabric/address": "netyard/kernel",
		"netyard/fabric/dataplane": "netyard/store", "netyard/firewalld": "go.etcd.io/etcd/client/v3",
		"netyard/cni/netyard-cni": "netyard/cli/api", "netyard/cni/door": "netyard/engines",
	} {
		if len(broken(pkg{of, []string{imports}, []string{imports}})) == 0 {
			t.Errorf("%s may import %s", of, imports)
		}
	}
}
