package integration

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"netyard/integration/lab"
)

// usual is the engine of tests that show what netyard does in the kernel, with records and in its CLI. There the engine
// only makes requests, and all engines make the same.
const usual = lab.Engine285

// A column has the engines of tests to which the engine matters, and why it does.
type column struct {
	why     string
	engines []lab.Engine
	tests   []string
}

// columns returns the matrix of tests and engines. A test that calls engines and is not in it runs on the usual engine.
func columns() []column {
	const oldest, debian, newest, nft = lab.Engine2010, lab.Engine285, lab.Engine298, lab.Engine298nft
	return []column{
		{
			why:     "the main function, with every engine",
			engines: []lab.Engine{oldest, lab.Engine261, debian, newest, nft},
			tests:   []string{"TestBridge"},
		}, {
			why: "what an engine sends to create networks and start containers, " +
				"how it uses the answers, and how it shows errors",
			engines: []lab.Engine{oldest, debian, newest},
			tests:   []string{"TestIPv6", "TestCompose", "TestOptions", "TestNone", "TestRefusals", "TestPorts"},
		}, {
			why:     "kinds of networks, each with the oldest and the newest API",
			engines: []lab.Engine{oldest, newest},
			tests:   []string{"TestRouted", "TestIsolated", "TestStaticRoutes", "TestMacvlan", "TestHost", "TestDHCP"},
		}, {
			why:     "IPv6-only networks, which older engines do not have",
			engines: []lab.Engine{debian, newest},
			tests:   []string{"TestIPv6Alone"},
		}, {
			why:     "what an engine forgets, repeats or removes when it, netyard or the host ends",
			engines: []lab.Engine{oldest, debian, newest},
			tests:   []string{"TestEngineRestarts", "TestLiveRestore", "TestHostDevice"},
		}, {
			why:     "the same, in long tests; TestKilled has the newest",
			engines: []lab.Engine{oldest, debian},
			tests:   []string{"TestKillAnywhere", "TestDHCPCrash"},
		}, {
			why:     "gateways for each family, which engines choose from 29 on, and forget when they are restarted",
			engines: []lab.Engine{newest, nft},
			tests:   []string{"TestGatewaysApart"},
		}, {
			why:     "what an engine's API returns about networks and containers",
			engines: []lab.Engine{oldest, debian, newest},
			tests:   []string{"TestAgree", "TestDamagedState"},
		}, {
			why:     "an engine's own rules beside netyard's, by iptables and by nftables",
			engines: []lab.Engine{debian, nft},
			tests:   []string{"TestHeals", "TestReachability", "TestPublishedSafely"},
		}, {
			why:     "the containerd beside the engine: 1.6 of Debian 12, and Debian's newest",
			engines: []lab.Engine{oldest, debian},
			tests:   []string{"TestCNI", "TestCNILife", "TestCNILabels"},
		},
	}
}

// enginesOf returns the engines that a test runs on.
func enginesOf(test string) []lab.Engine {
	for _, c := range columns() {
		if slices.Contains(c.tests, test) {
			return c.engines
		}
	}
	return []lab.Engine{usual}
}

// TestColumns: each test of the matrix calls engines and is in it once, and each engine has a test.
func TestColumns(t *testing.T) {
	t.Parallel()
	there := callers(t, "engines")
	seen := map[string]bool{}
	ran := map[lab.Engine]bool{}
	for _, c := range columns() {
		for _, e := range c.engines {
			ran[e] = true
		}
		if len(c.engines) < 2 {
			t.Errorf("%s: %v have only one engine", c.why, c.tests)
		}
		for _, name := range c.tests {
			if !there[name] {
				t.Errorf("%s: no test %s calls engines", c.why, name)
			}
			if seen[name] {
				t.Errorf("%s is in the matrix twice", name)
			}
			seen[name] = true
		}
	}
	for _, e := range []lab.Engine{lab.Engine2010, lab.Engine261, lab.Engine285, lab.Engine298, lab.Engine298nft} {
		if !ran[e] {
			t.Errorf("nothing runs on engine %s", e)
		}
	}
	if len(there) <= len(seen) {
		t.Errorf("%d tests call engines, and %d are in the matrix", len(there), len(seen))
	}
}

// callers returns the tests of this package that call a function.
func callers(t *testing.T, function string) map[string]bool {
	t.Helper()
	names, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, name := range names {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			test, ok := d.(*ast.FuncDecl)
			if !ok || !strings.HasPrefix(test.Name.Name, "Test") {
				continue
			}
			ast.Inspect(test, func(n ast.Node) bool {
				if call, ok := n.(*ast.CallExpr); ok {
					if name, ok := call.Fun.(*ast.Ident); ok && name.Name == function {
						found[test.Name.Name] = true
					}
				}
				return true
			})
		}
	}
	return found
}
