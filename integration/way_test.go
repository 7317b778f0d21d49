package integration

import (
	"bufio"
	"fmt"
	"go/ast"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// wayPackages are those whose functions TestWay counts: what a request goes through between its decoding and the
// kernel. modes, ipam and kernel are below them.
const wayPackages = "netyard/cni/door,netyard/yard/..."

// mostEntered limits how many functions a CNI ADD enters, so that its way does not grow unnoticed. ADR 27 says what the
// numbers are good for.
var mostEntered = map[string]int{
	"first":  181, // it makes its network
	"second": 153,
}

// TestWay counts the functions that a CNI ADD enters from the decoding of its request to its answer. Those that only
// its test enters before the request are left out.
func TestWay(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("it builds a test that counts")
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "door.test")
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", program, "-covermode=count",
		"-coverpkg="+wayPackages, "./cni/door")
	build.Dir = ".."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	all := sources(t)
	before := entered(t, all, program, "none")
	for i, container := range []string{"first", "second"} {
		after := entered(t, all, program, []string{"first", "(first|second)"}[i])
		functions, files, calls := 0, map[string]int{}, 0
		for f, n := range after {
			if n -= before[f]; n > 0 {
				functions, calls = functions+1, calls+n
				file, _, _ := strings.Cut(f, ":")
				files[file]++
			}
		}
		t.Logf("%s ADD of a network: %d functions in %d files, %d calls", container, functions, len(files), calls)
		if functions > mostEntered[container] {
			t.Errorf("%s ADD of a network enters %d functions, more than %d", container, functions,
				mostEntered[container])
			for _, file := range slices.Sorted(maps.Keys(files)) {
				t.Logf("%3d in %s", files[file], file)
			}
		}
		before = after
	}
}

// block matches a line of a profile of go test: a file, where a block of statements begins, and how often it ran.
var block = regexp.MustCompile(`^netyard/(\S+):(\d+)\.\d+,\d+\.\d+ \d+ (\d+)$`)

// entered runs subtests of the door's TestWay, and returns how often each function was called.
func entered(t *testing.T, all []source, program, subtests string) map[string]int {
	t.Helper()
	profile := filepath.Join(t.TempDir(), "profile")
	run := exec.CommandContext(t.Context(), program, "-test.run=^TestWay$/^"+subtests+"$",
		"-test.coverprofile="+profile)
	run.Dir = filepath.Join("..", "cni", "door")
	if out, err := run.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", subtests, err, out)
	}
	f, err := os.Open(profile)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	first := map[string]map[int]int{} // of a file: by line, how often the first block that begins there ran
	for lines := bufio.NewScanner(f); lines.Scan(); {
		m := block.FindStringSubmatch(lines.Text())
		if m == nil {
			continue
		}
		line, _ := strconv.Atoi(m[2])
		count, _ := strconv.Atoi(m[3])
		if first[m[1]] == nil {
			first[m[1]] = map[int]int{}
		}
		first[m[1]][line] = max(first[m[1]][line], count)
	}
	calls := map[string]int{}
	for _, s := range all {
		for _, d := range s.file.Decls {
			if d, ok := d.(*ast.FuncDecl); ok && !s.tests && d.Body != nil && first[s.name] != nil {
				line := s.fset.Position(d.Body.Lbrace).Line
				calls[fmt.Sprintf("%s:%s:%d", path.Clean(s.name), d.Name.Name, line)] += first[s.name][line]
			}
		}
	}
	return calls
}
