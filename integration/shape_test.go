package integration

import (
	"bufio"
	"bytes"
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
)

// What a reader can take in. Each is a prompt to think, not a law: where a limit makes the code worse, it is raised
// here, and the reason stands beside it.
const (
	maxPackage = 2000 // lines of a package, without tests
	maxMethods = 60   // of a type
	maxColumns = 120
	tabWidth   = 4
	leastTests = 0.9 // lines of tests for each line of code
)

// A source is a Go file of the module.
type source struct {
	name  string // from the module's root
	text  []byte
	file  *ast.File
	fset  *token.FileSet
	tests bool // it is compiled for tests only
}

func (s source) lines() int { return bytes.Count(s.text, []byte("\n")) }

// at is where a node is.
func (s source) at(n ast.Node) string {
	return fmt.Sprintf("%s:%d", s.name, s.fset.Position(n.Pos()).Line)
}

// testSupport are packages that only tests use.
var testSupport = regexp.MustCompile(`^integration/|test$`)

// sources are the Go files that git knows.
func sources(t *testing.T) (all []source) {
	t.Helper()
	for _, name := range tracked(t, "*.go") {
		text, err := os.ReadFile(filepath.Join("..", name))
		if err != nil {
			t.Fatal(err)
		}
		s := source{name: name, text: text, fset: token.NewFileSet()}
		s.tests = strings.HasSuffix(name, "_test.go") || testSupport.MatchString(path.Dir(name))
		if s.file, err = parser.ParseFile(s.fset, name, text, parser.ParseComments); err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	return all
}

func tracked(t *testing.T, pattern string) []string {
	t.Helper()
	cmd := exec.Command("git", "ls-files", "--cached", "--others", "--exclude-standard", pattern)
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("git ls-files: %v", err)
	}
	names := slices.Compact(strings.Fields(string(out))) // in a merge, a file may be listed several times
	return slices.DeleteFunc(names, func(name string) bool {
		_, err := os.Stat(filepath.Join("..", name))
		return err != nil
	})
}

// TestShape holds the limits of size and of line length, and prints the largest. Those of modes are in modes/all.
func TestShape(t *testing.T) {
	t.Parallel()
	all := sources(t)
	packages, methods := map[string]int{}, map[string]int{}
	code, tests := 0, 0
	for _, s := range all {
		if s.tests {
			tests += s.lines()
			continue
		}
		code += s.lines()
		packages[path.Dir(s.name)] += s.lines()
		for _, d := range s.file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv != nil {
				methods[path.Dir(s.name)+"."+receiver(f)]++
			}
		}
	}
	largest(t, "lines of a package", packages, maxPackage)
	largest(t, "methods of a type", methods, maxMethods)
	t.Logf("tests: %d lines for %d of code, %.2f", tests, code, float64(tests)/float64(code))
	if float64(tests) < leastTests*float64(code) {
		t.Errorf("%d lines of tests for %d lines of code", tests, code)
	}
	t.Run("sleeps", func(t *testing.T) { sleeps(t, all) })
	t.Run("columns", func(t *testing.T) { longLines(t, all) })
	t.Run("signatures", func(t *testing.T) { longSignatures(t, all) })
}

// passed are the packages where a value that was loaded is passed on, instead of its parts (ADR 27).
var passed = regexp.MustCompile(`^(yard|driver|cni/door)(/|$)`)

// longSignatures finds functions with more than five parameters, or more than three results.
func longSignatures(t *testing.T, all []source) {
	t.Helper()
	const params, results = 5, 3
	for _, s := range all {
		if s.tests || !passed.MatchString(path.Dir(s.name)) {
			continue
		}
		for _, d := range s.file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			if in, out := f.Type.Params.NumFields(), f.Type.Results.NumFields(); in > params || out > results {
				t.Errorf("%s: %s takes %d values and returns %d", s.at(f), f.Name, in, out)
			}
		}
	}
}

// largest prints the five largest, and fails for those above the limit.
func largest(t *testing.T, what string, sizes map[string]int, limit int) {
	t.Helper()
	names := slices.SortedFunc(maps.Keys(sizes), func(a, b string) int { return cmp.Compare(sizes[b], sizes[a]) })
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	for i, name := range names {
		if i < 5 {
			fmt.Fprintf(w, "%s\t%d\n", name, sizes[name])
		}
		if sizes[name] > limit {
			t.Errorf("%s: %s has %d, more than %d", what, name, sizes[name], limit)
		}
	}
	_ = w.Flush()
	t.Logf("%s, at most %d:\n%s", what, limit, table.String())
}

func receiver(f *ast.FuncDecl) string {
	e := f.Recv.List[0].Type
	for {
		switch t := e.(type) {
		case *ast.StarExpr:
			e = t.X
		case *ast.IndexExpr:
			e = t.X
		case *ast.Ident:
			return t.Name
		default:
			return "?"
		}
	}
}

// sleeps finds tests that wait for a time instead of for what they need: a sleep outside of any loop.
func sleeps(t *testing.T, all []source) {
	t.Helper()
	for _, s := range all {
		if !s.tests || bytes.Contains(s.text, []byte(`"testing/synctest"`)) { // there, time costs nothing
			continue
		}
		loops := 0
		var stack []ast.Node
		ast.Inspect(s.file, func(n ast.Node) bool {
			if n == nil {
				if isLoop(stack[len(stack)-1]) {
					loops--
				}
				stack = stack[:len(stack)-1]
				return true
			}
			stack = append(stack, n)
			if isLoop(n) {
				loops++
			}
			if call, ok := n.(*ast.CallExpr); ok && loops == 0 && isSleep(call) && !excused(s, call) {
				t.Errorf("%s: sleeps whatever happens", s.at(call))
			}
			return true
		})
	}
}

func isLoop(n ast.Node) bool {
	switch n.(type) {
	case *ast.ForStmt, *ast.RangeStmt:
		return true
	}
	return false
}

func isSleep(c *ast.CallExpr) bool {
	sel, ok := c.Fun.(*ast.SelectorExpr)
	return ok && sel.Sel.Name == "Sleep" && fmt.Sprint(sel.X) == "time"
}

// excused says whether a comment on the line says what the time is for.
func excused(s source, n ast.Node) bool {
	line := s.fset.Position(n.Pos()).Line
	return slices.ContainsFunc(s.file.Comments, func(g *ast.CommentGroup) bool {
		return s.fset.Position(g.Pos()).Line == line
	})
}

// row matches a row of a table of tests, and what cannot be wrapped.
var (
	row   = regexp.MustCompile(`^\s*(\{|"[^"]*":\s*\{|[A-Za-z0-9_.]+:\s+\{)`)
	whole = regexp.MustCompile("https?://|^\\s*[`\"][^`\"]*[`\"],?$")
)

// longLines finds lines that are too long: in code but for tables of tests and raw strings, and in documents but for
// tables, addresses and what is shown literally.
func longLines(t *testing.T, all []source) {
	t.Helper()
	for _, s := range all {
		unbroken := s.unbroken()
		for i, line := range strings.Split(string(s.text), "\n") {
			may := unbroken[i+1] || whole.MatchString(line) || s.tests && row.MatchString(line)
			if !may && width(line) > maxColumns {
				t.Errorf("%s:%d: %d columns", s.name, i+1, width(line))
			}
		}
	}
	for _, name := range tracked(t, "*.md") {
		text, err := os.ReadFile(filepath.Join("..", name))
		if err != nil {
			t.Fatal(err)
		}
		literal := false
		lines := bufio.NewScanner(bytes.NewReader(text))
		for i := 1; lines.Scan(); i++ {
			line := lines.Text()
			if strings.HasPrefix(strings.TrimSpace(line), "```") {
				literal = !literal
			}
			table := strings.HasPrefix(strings.TrimSpace(line), "|")
			if !literal && !table && width(line) > maxColumns && !strings.Contains(line, "://") {
				t.Errorf("%s:%d: %d columns", name, i, width(line))
			}
		}
	}
}

// unbroken are the lines that may be long: those of a raw string of several lines, where a break alters the string, and
// in tests those with one key of a table and its value, which are rows.
func (s source) unbroken() map[int]bool {
	lines := map[int]bool{}
	at := func(p token.Pos) int { return s.fset.Position(p).Line }
	ast.Inspect(s.file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.BasicLit:
			for i := at(n.Pos()); at(n.Pos()) != at(n.End()) && i <= at(n.End()); i++ {
				lines[i] = true
			}
		case *ast.CompositeLit:
			before := at(n.Lbrace)
			for i, e := range n.Elts {
				next := at(n.Rbrace)
				if i+1 < len(n.Elts) {
					next = at(n.Elts[i+1].Pos())
				}
				if s.tests && hasKey(e) && before < at(e.Pos()) && at(e.Pos()) == at(e.End()) && at(e.End()) < next {
					lines[at(e.Pos())] = true
				}
				before = at(e.End())
			}
		}
		return true
	})
	return lines
}

// hasKey says whether an element of a literal has a key that is not a field.
func hasKey(e ast.Expr) bool {
	kv, ok := e.(*ast.KeyValueExpr)
	if !ok {
		return false
	}
	_, field := kv.Key.(*ast.Ident)
	return !field
}

// width is how many columns a line has.
func width(line string) (columns int) {
	for _, r := range line {
		if r == '\t' {
			columns += tabWidth - columns%tabWidth
			continue
		}
		columns++
	}
	return columns
}
