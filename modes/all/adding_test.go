package all_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// block matches a fenced block of a page that names its file.
var block = regexp.MustCompile("(?ms)^```(\\w+) (\\S+)\n(.*?)^```$")

// TestAddingAMode follows docs/adding-a-mode.md: it takes the files from the page, puts them over the repository's and
// runs their tests, and those of the table of options.
func TestAddingAMode(t *testing.T) {
	t.Parallel()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(root, "docs", "adding-a-mode.md"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	over := map[string]string{}
	for _, b := range block.FindAllStringSubmatch(string(page), -1) {
		kind, name, text := b[1], b[2], b[3]
		if kind == "diff" {
			text = patched(t, filepath.Join(root, name), text)
		}
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if kind != "text" {
			over[filepath.Join(root, name)] = file
		}
	}
	if len(over) != 3 {
		t.Fatalf("the page has %d files instead of 3", len(over))
	}
	raw, err := json.Marshal(map[string]any{"Replace": over})
	if err != nil {
		t.Fatal(err)
	}
	overlay := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlay, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	for pkg, in := range map[string]string{
		"./modes/private": filepath.Join(dir, "modes", "private"), "./modes": filepath.Join(root, "modes"),
	} {
		binary := filepath.Join(dir, filepath.Base(pkg)+".test")
		run(t, root, "go", "test", "-vet=off", "-overlay", overlay, "-c", "-o", binary, pkg)
		run(t, in, binary, "-test.run", "Test(Plans|Contract|Table)$")
	}
}

// patched returns a file with the lines of a diff inserted: each + after the line before it.
func patched(t *testing.T, file, diff string) string {
	t.Helper()
	raw, err := os.ReadFile(file) //nolint:gosec // a file of the repository
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(raw), "\n")
	at := 0
	for line := range strings.Lines(diff) {
		if added, is := strings.CutPrefix(line, "+"); is {
			lines = append(lines[:at], append([]string{added}, lines[at:]...)...)
			at++
			continue
		}
		want := strings.TrimPrefix(line, " ")
		for at < len(lines) && lines[at] != want {
			at++
		}
		if at++; at > len(lines) {
			t.Fatalf("%s has no line %q", file, want)
		}
	}
	return strings.Join(lines, "")
}

func run(t *testing.T, dir, name string, args ...string) {
	t.Helper()
	c := exec.CommandContext(t.Context(), name, args...)
	c.Dir = dir
	if out, err := c.CombinedOutput(); err != nil {
		t.Errorf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}
