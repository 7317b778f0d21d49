package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// A rule says what a package must not import, not even by way of others of ours: netyard itself is named by "netyard/", and
// what begins like an entry is meant with it.
type rule struct {
	of, not, but, why string
}

// rules hold the layers of the design: imports point downward only. docs/architecture.md shows them as a picture.
func rules() []rule {
	const kernelOnly = "github.com/vishvananda/ github.com/google/nftables github.com/mdlayher/netlink golang.org/x/sys/unix"
	return []rule{
		{"netyard/store", "netyard/", "", "it knows no networks"},
		{"netyard/kernel", "netyard/", "", "it does what it is told"},
		{"netyard/modes", "netyard/", "netyard/kernel", "it is the contract"},
		{"netyard/modes/*", "netyard/", "netyard/modes netyard/modes/internal/ netyard/kernel", "a mode knows the contract and the kernel, and no other mode"},
		{"netyard/ipam", "netyard/", "netyard/ipam/ netyard/store", "it is addresses, inside a transaction of its caller's"},
		{"netyard/yard", "netyard/", "netyard/modes netyard/ipam netyard/store netyard/kernel", "it knows no door, no engine and no mode by name"},
		{"netyard/driver", "netyard/", "netyard/yard netyard/modes netyard/ipam netyard/store netyard/kernel", "no handler calls an engine's API; cli alone knows all modes"},
		{"netyard/engines", "netyard/", "netyard/driver netyard/yard netyard/modes netyard/ipam netyard/store netyard/kernel", "it hands on to yard; cli alone knows all modes"},
		{"netyard/cli/api", "netyard/", "netyard/yard netyard/modes netyard/ipam netyard/store netyard/kernel", "cni uses it too"},
		{"netyard", "netyard/integration netyard/kernel/kerneltest netyard/modes/modetest testing", "", "the program has no tests in it"},
		// These two are of what a package imports itself.
		{"!netyard/kernel", kernelOnly, "", "the kernel is spoken to in one place"},
		{"!netyard/cli", "netyard/modes/all", "", "all others know modes by name at most"},
	}
}

// A pkg is as much of go list's answer as the rules need.
type pkg struct {
	ImportPath    string
	Imports, Deps []string
}

// broken lists what breaks the rules.
func broken(pkgs []pkg) (all []string) {
	for _, r := range rules() {
		for _, p := range pkgs {
			imports := p.Deps
			if other, isDirect := strings.CutPrefix(r.of, "!"); isDirect {
				if imports = p.Imports; p.ImportPath == other || forTests(p.ImportPath) {
					continue
				}
			} else if !matches(r.of, p.ImportPath) || p.ImportPath == "netyard/modes/all" || forTests(p.ImportPath) {
				continue
			}
			for _, i := range imports {
				if named(r.not, i) && !named(r.but, i) && i != p.ImportPath {
					all = append(all, fmt.Sprintf("%s imports %s: %s", p.ImportPath, i, r.why))
				}
			}
		}
	}
	return all
}

// forTests says whether a package is there for tests.
func forTests(path string) bool {
	return named("netyard/integration netyard/integration/ netyard/kernel/kerneltest netyard/modes/modetest", path)
}

func matches(pattern, path string) bool {
	parent, isAny := strings.CutSuffix(pattern, "*")
	rest, isBelow := strings.CutPrefix(path, parent)
	return path == pattern || isAny && isBelow && !strings.Contains(rest, "/")
}

// named says whether a path is one of the words, or begins with one that ends in a slash.
func named(words, path string) bool {
	return slices.ContainsFunc(strings.Fields(words), func(w string) bool {
		return path == w || strings.HasSuffix(w, "/") && strings.HasPrefix(path, w)
	})
}

func TestImports(t *testing.T) {
	t.Parallel()
	for _, b := range broken(list(t)) {
		t.Error(b)
	}
}

// TestImportsCanFail breaks each rule once.
func TestImportsCanFail(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ of, imports string }{
		{"netyard/store", "netyard/modes"},
		{"netyard/kernel", "netyard/store"},
		{"netyard/modes", "netyard/store"},
		{"netyard/modes/bridge", "netyard/modes/none"},
		{"netyard/modes/bridge", "netyard/store"},
		{"netyard/ipam", "netyard/kernel"},
		{"netyard/yard", "netyard/modes/bridge"},
		{"netyard/yard", "netyard/driver"},
		{"netyard/driver", "netyard/engines"},
		{"netyard/engines", "netyard/cli"},
		{"netyard/cli/api", "netyard/driver"},
		{"netyard", "netyard/integration/lab"},
		{"netyard/yard", "github.com/vishvananda/netlink"},
		{"netyard/modes/bridge", "golang.org/x/sys/unix"},
		{"netyard/engines", "netyard/modes/all"},
	} {
		if len(broken([]pkg{{ImportPath: c.of, Imports: []string{c.imports}, Deps: []string{c.imports}}})) == 0 {
			t.Errorf("%s may import %s", c.of, c.imports)
		}
	}
}

// list asks Go for the packages of the program.
func list(t *testing.T) (pkgs []pkg) {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,Deps", "netyard/...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}
