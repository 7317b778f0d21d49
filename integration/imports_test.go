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

// A rule says what packages may import, and why no more than that. Patterns are those of path.Match; the first rule
// that fits a package counts.
type rule struct{ of, may, why string }

// layers are about packages of ours, imported by way of others too.
func layers() []rule {
	const (
		kernel  = "kernel kernel/beside kernel/bridge kernel/core kernel/device kernel/dhcp kernel/explain kernel/lan kernel/nft kernel/overlay kernel/policy kernel/ports kernel/rule kernel/sandbox"
		yard    = "yard yard/attach yard/book yard/enforce yard/event yard/lease yard/overlay yard/own yard/pool yard/port yard/reconcile yard/share yard/trace"
		cluster = "cluster cluster/etcd cluster/mirror cluster/peers cluster/record"
		below   = "store ipam ipam/dhcp modes policy " + kernel
		middle  = below + " " + yard
	)
	return []rule{
		{"store", "", "it knows no networks"},
		{"kernel/core", "", "it is the ground: the handle, names, addresses, the view"},
		{"kernel/rule", "", "it is the language of rulesets"},
		{"kernel/nft", "kernel/core kernel/rule", "it is given rules, and knows none of netyard's"},
		{"kernel/device", "kernel/core", "it is cards, and no rules"},
		{"kernel/sandbox", "kernel/core kernel/rule", "it looks into sandboxes, and shows protocols by their names"},
		{"kernel/bridge", "kernel/core kernel/nft kernel/rule", "others stand on it: the sets of bridges are its"},
		{"kernel/beside", "kernel/core kernel/nft kernel/rule", "it is about others' chains"},
		{"kernel/lan", "kernel/bridge kernel/core kernel/nft kernel/rule", "what it lets out is neither a bridge's nor from one"},
		{"kernel/overlay", "kernel/bridge kernel/core kernel/nft kernel/rule", "a VXLAN device is a port of a bridge"},
		{"kernel/policy", "kernel/bridge kernel/core kernel/nft kernel/rule", "it decides about ports of bridges"},
		{"kernel/ports", "kernel/bridge kernel/core kernel/lan kernel/nft kernel/rule kernel/sandbox", "a port leads to a bridge or to the LAN, and somebody may listen at it"},
		{"kernel/dhcp", "kernel/bridge kernel/core kernel/lan kernel/nft kernel/rule", "its wire is on a parent"},
		{"kernel/explain", "kernel/beside kernel/bridge kernel/core kernel/lan kernel/nft kernel/ports kernel/rule kernel/sandbox", "it reads what the others made"},
		{"kernel", "kernel/beside kernel/bridge kernel/core kernel/device kernel/lan kernel/nft kernel/overlay kernel/policy kernel/ports kernel/rule kernel/sandbox", "it puts the ruleset together, and does what it is told"},
		{"modes", kernel, "it is the contract"},
		{"modes/all", kernel + " modes modes/* modes/internal/*", "it is a table"},
		{"modes/modetest", kernel + " kernel/kerneltest modes", "it is the contract as a test"},
		{"modes/internal/*", kernel + " modes", "modes share it"},
		{"modes/*", kernel + " modes modes/internal/*", "a mode knows the contract and the kernel, and no other mode"},
		{"ipam", "store", "it is addresses, inside a transaction of its caller's"},
		{"ipam/dhcp", "", "it is a protocol"},
		{"cluster/record", "", "it is what hosts write, and needs no etcd"},
		{"cluster/peers", "cluster/record", "it computes peers from records, and needs no etcd"},
		{"cluster/etcd", "cluster/record", "it is calls and transactions, and does not know what they are for"},
		{"cluster/mirror", "cluster/etcd cluster/record store", "it copies records, and writes none to etcd"},
		{"cluster", "cluster/etcd cluster/record store", "it is what a host does in its cluster, and touches no kernel"},
		{"cluster/clustertest", "", "it runs etcd"},
		{"cluster/hosttest", "cluster cluster/clustertest cluster/etcd cluster/record store", "it makes hosts for tests"},
		{"fabric/address", cluster + " store", "it is which addresses this host has, and needs no kernel"},
		{"fabric/nametable", cluster + " fabric/address store", "it is told which addresses have which names"},
		{"fabric/dataplane", "cluster/peers cluster/record " + kernel, "it is a network in the kernel, and knows neither etcd nor the database"},
		{"fabric/tunnel", "cluster/record modes store " + kernel, "it is one device and its key, and is told the peers"},
		{"fabric", cluster + " fabric/* modes store " + kernel, "it keeps etcd and the kernel of one mind, and knows no mode by name"},
		{"names", "", "it is told who is called what, and by which sockets he is asked"},
		{"policy", "modes " + kernel, "it works out what follows, and touches nothing"},
		{"yard/event", "", "it is what happened"},
		{"yard/book", "yard/event " + below, "it is the records"},
		{"yard/port", "yard/book yard/event " + below, "it is which ports endpoints get"},
		{"yard/enforce", "yard/book yard/event " + below, "it is what policies ask of the kernel"},
		{"yard/overlay", "yard/book yard/event " + below, "it is this host's part of a cluster's networks"},
		{"yard/lease", "yard/book yard/enforce yard/event yard/overlay yard/port " + below, "an address that changes moves ports and policies with it"},
		{"yard", "yard/book yard/enforce yard/event yard/lease yard/overlay yard/port " + below, "it is the life of networks and endpoints, and knows no door, no engine and no mode by name"},
		{"yard/pool", "yard yard/book yard/enforce yard/event yard/lease yard/overlay yard/port " + below, "a pool's addresses come from one of these"},
		{"yard/own", "yard yard/book yard/enforce yard/event yard/lease yard/overlay yard/pool yard/port " + below, "it makes networks as an engine would"},
		{"yard/*", "yard yard/book yard/enforce yard/event yard/lease yard/overlay yard/pool yard/port " + below, "they have the yard do what they find"},
		{"driver", middle, "no handler calls an engine's API"},
		{"engines", middle, "it hands on to yard, and knows no door"},
		{"firewalld", "", "it is told names of bridges, and nothing else"},
		{"cli/api", middle, "it is a door to yard"},
		{"cni", "", "a plugin starts in a moment"},
		{"cni/netyard-cni", "cni", "it hands on to the daemon, and knows no network"},
		{"cni/door", middle + " cni", "no handler calls an engine's API: it is given a function for the one question it asks"},
		{"cli", middle + " " + cluster + " fabric fabric/* names driver engines firewalld cli/api cni cni/door modes/* modes/internal/*", "it is the program, without its tests"},
		{".", cluster + " fabric fabric/* names cli cli/api driver engines firewalld cni cni/door modes/* modes/internal/* " + middle, "it is the program, without its tests"},
		{"kernel/nft/nfttest", "", "it is bytes"},
		{"kernel/kerneltest", kernel, "every layer's tests use it"},
		{"integration", "* */*", ""},
		{"integration/*", "", "the lab treats netyard as a user would"},
	}
}

// owners are about what a package imports itself: of is who may, and may is what.
func owners() []rule {
	return []rule{
		{
			"kernel kernel/* kernel/nft/nfttest integration/lab",
			"github.com/vishvananda/* github.com/vishvananda/*/* github.com/google/nftables github.com/google/nftables/* github.com/mdlayher/netlink golang.org/x/sys/unix golang.zx2c4.com/wireguard/wgctrl golang.zx2c4.com/wireguard/wgctrl/*",
			"the kernel is spoken to in one place",
		},
		{"cli", "netyard/modes/all", "all others know modes by name at most"},
		{"engines", "github.com/containerd/containerd/* github.com/containerd/containerd/*/* github.com/containerd/containerd/*/*/* github.com/moby/moby/*", "engines are asked in one place"},
		{"kernel/kerneltest modes/modetest integration/lab cluster/clustertest cluster/hosttest", "testing", "tests are not part of the program"},
		{"names", "github.com/miekg/dns", "names are answered in one place"},
		{"cluster/etcd cluster/hosttest", "go.etcd.io/etcd/* go.etcd.io/etcd/*/* go.etcd.io/etcd/*/*/* google.golang.org/grpc google.golang.org/grpc/*", "etcd is spoken to in one place"},
	}
}

// A pkg is as much of go list's answer as the rules need.
type pkg struct {
	ImportPath    string
	Imports, Deps []string
}

func (p pkg) name() string {
	return strings.TrimPrefix(strings.Replace(p.ImportPath, "netyard", ".", 1), "./")
}

// broken says how a package breaks the rules.
func broken(p pkg) (complaints []string) {
	at := slices.IndexFunc(layers(), func(r rule) bool { return fits(r.of, p.name()) })
	if at < 0 {
		return []string{fmt.Sprintf("%s has no place in the table of layers", p.ImportPath)}
	}
	for _, dep := range p.Deps {
		if name, ours := strings.CutPrefix(dep, "netyard/"); ours && !fits(layers()[at].may, name) {
			complaints = append(complaints, fmt.Sprintf("%s imports %s: %s", p.ImportPath, dep, layers()[at].why))
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

func fits(patterns, name string) bool {
	return slices.ContainsFunc(strings.Fields(patterns), func(p string) bool {
		ok, err := path.Match(p, name)
		return ok && err == nil
	})
}

// TestImports holds the layers of docs/architecture.md: imports point downward only.
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
		t.Errorf("go list knows %d packages only", seen)
	}
	for of, imports := range map[string]string{ // it can fail
		"netyard/store": "netyard/modes", "netyard/kernel": "netyard/store", "netyard/kernel/core": "netyard/kernel/nft", "netyard/kernel/nft": "netyard/kernel/bridge",
		"netyard/kernel/bridge": "netyard/kernel/overlay", "netyard/yard/book": "netyard/yard", "netyard/yard/port": "netyard/yard/share",
		"netyard/modes":        "netyard/store",
		"netyard/modes/bridge": "netyard/modes/none", "netyard/modes/none": "golang.org/x/sys/unix", "netyard/ipam": "netyard/kernel",
		"netyard/yard": "netyard/driver", "netyard/driver": "netyard/engines", "netyard/engines": "netyard/modes/all",
		"netyard/cli/api": "github.com/vishvananda/netlink/nl", "netyard/cli": "netyard/integration/lab", "netyard": "netyard/kernel/kerneltest",
		"netyard/integration/lab": "netyard/yard", "netyard/new": "fmt", "netyard/cni": "netyard/kernel", "netyard/cluster": "netyard/kernel", "netyard/cluster/record": "netyard/cluster/etcd", "netyard/cluster/mirror": "netyard/cluster", "netyard/fabric/address": "netyard/kernel", "netyard/fabric/dataplane": "netyard/store", "netyard/firewalld": "go.etcd.io/etcd/client/v3",
		"netyard/cni/netyard-cni": "netyard/cli/api", "netyard/cni/door": "netyard/engines",
	} {
		if len(broken(pkg{of, []string{imports}, []string{imports}})) == 0 {
			t.Errorf("%s may import %s", of, imports)
		}
	}
}
