package all_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"

	"netyard/modes/all"
)

const (
	// mostInterfaces is how many the contract may have.
	mostInterfaces = 4
	// mostLines is how many lines a mode may have, outside its tests.
	mostLines = 250
)

// more returns the modes that may have more lines than others.
func more() map[string]int { return map[string]int{"bridge": 400, "overlay": 400} }

// TestLimits: a mode is small, what it is is data, and nobody knows it by name.
func TestLimits(t *testing.T) {
	t.Parallel()
	interfaces, lines := 0, map[string]int{}
	sources(t, "../..", func(path string, files *token.FileSet, f *ast.File) {
		dir := filepath.ToSlash(filepath.Dir(path))
		if mode, ok := strings.CutPrefix(dir, "modes/"); ok {
			lines[mode] += files.Position(f.FileEnd).Line
		}
		inside := dir == "modes" || strings.HasPrefix(dir, "modes/") || dir == "cli"
		ast.Inspect(f, func(n ast.Node) bool {
			if _, ok := n.(*ast.InterfaceType); ok && dir == "modes" {
				interfaces++
			}
			if asserts(n) {
				t.Errorf("%s: an assertion to a type of modes", files.Position(n.Pos()))
			}
			if names(n) && !inside {
				t.Errorf("%s: it knows a mode by name", files.Position(n.Pos()))
			}
			return true
		})
	})
	if interfaces > mostInterfaces {
		t.Errorf("the contract has %d interfaces", interfaces)
	}
	for mode := range all.Modes() {
		most := mostLines
		if m, ok := more()[mode]; ok {
			most = m
		}
		if lines[mode] == 0 || lines[mode] > most {
			t.Errorf("mode %s has %d lines, at most %d are wanted", mode, lines[mode], most)
		}
	}
}

// sources parses all files of the repository but tests.
func sources(t *testing.T, root string, visit func(path string, files *token.FileSet, f *ast.File)) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		files := token.NewFileSet()
		f, err := parser.ParseFile(files, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		visit(rel, files, f)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// asserts says whether a node is an assertion to a type of package modes.
func asserts(n ast.Node) bool {
	a, ok := n.(*ast.TypeAssertExpr)
	if !ok {
		return false
	}
	to, ok := a.Type.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	pkg, ok := to.X.(*ast.Ident)
	return ok && pkg.Name == "modes"
}

// names says whether a node compares a network's mode with a name, or sets it to one.
func names(n ast.Node) bool {
	isMode := func(e ast.Expr) bool {
		switch e := e.(type) {
		case *ast.SelectorExpr:
			return e.Sel.Name == "Mode"
		case *ast.Ident:
			return e.Name == "Mode" || e.Name == "mode"
		}
		return false
	}
	isName := func(e ast.Expr) bool {
		l, ok := e.(*ast.BasicLit)
		return ok && l.Kind == token.STRING && all.Modes()[strings.Trim(l.Value, `"`)] != nil
	}
	switch n := n.(type) {
	case *ast.BinaryExpr:
		return isMode(n.X) && isName(n.Y) || isName(n.X) && isMode(n.Y)
	case *ast.KeyValueExpr:
		return isMode(n.Key) && isName(n.Value)
	}
	return false
}
