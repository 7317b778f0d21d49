package integration

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"netyard/cli"
	"netyard/modes/all"
)

// root is the root of the module, relative to this package.
const root = ".."

// read returns a file of the module.
func read(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// netyard runs the program in this process and returns its output.
func netyard(t *testing.T, args ...string) string {
	t.Helper()
	t.Setenv("NETYARD_RUN_DIR", "/run/netyard")
	var out, stderr bytes.Buffer
	p := cli.Program{Version: "test", Stdout: &out, Stderr: &stderr}
	if code := p.Run(t.Context(), append([]string{"netyard"}, args...)); code != 0 {
		t.Fatalf("netyard %s: %d %s", strings.Join(args, " "), code, stderr.String())
	}
	return out.String()
}

// TestDocsOptions: every option, under each of its names, is in docs/options.md and in the README of each mode that
// knows it.
func TestDocsOptions(t *testing.T) {
	t.Parallel()
	for _, o := range all.Options().Options() {
		pages := []string{"docs/options.md"}
		for mode := range all.Modes() {
			if o.Modes == nil || slices.Contains(o.Modes, mode) {
				pages = append(pages, "modes/"+mode+"/README.md")
			}
		}
		for _, page := range pages {
			for _, name := range append([]string{o.Name}, o.Docker...) {
				inTable(t, page, name)
			}
		}
	}
}

// inTable checks that a row of a table on a page has a name.
func inTable(t *testing.T, page, name string) {
	t.Helper()
	for line := range strings.SplitSeq(read(t, page), "\n") {
		if strings.HasPrefix(line, "|") && strings.Contains(line, "`"+name+"`") {
			return
		}
	}
	t.Errorf("no table of %s has `%s`", page, name)
}

// TestDocsConfiguration: the table of docs/operations.md has every flag of serve and every key of its file, and the
// file shown there has the defaults.
func TestDocsConfiguration(t *testing.T) {
	const page = "docs/operations.md"
	flags := regexp.MustCompile(`(?m)^ +--([a-z0-9-]+)`).FindAllStringSubmatch(netyard(t, "serve", "--help"), -1)
	keys := regexp.MustCompile("yaml:\"([a-z0-9_]+)\"").FindAllStringSubmatch(read(t, "cli/daemon/config.go"), -1)
	if len(flags) < 10 || len(keys) < 10 { // there are more, so this test reads them wrongly
		t.Fatalf("found only the flags %v and the keys %v", flags, keys)
	}
	for _, f := range flags {
		if f[1] != "help" {
			inTable(t, page, "--"+f[1])
		}
	}
	for _, k := range keys {
		inTable(t, page, k[1])
	}

	_, shown, _ := strings.Cut(read(t, page), "```yaml\n")
	shown, _, found := strings.Cut(shown, "```")
	if !found {
		t.Fatalf("%s shows no configuration", page)
	}
	file := filepath.Join(t.TempDir(), "netyard.yaml")
	if err := os.WriteFile(file, []byte(shown), 0o600); err != nil {
		t.Fatal(err)
	}
	defaults := decode(t, netyard(t, "serve", "--check", "--config", os.DevNull))
	if d := cmp.Diff(defaults, decode(t, shown)); d != "" {
		t.Errorf("%s does not show the defaults (-want +got):\n%s", page, d)
	}
	if d := cmp.Diff(defaults, decode(t, netyard(t, "serve", "--check", "--config", file))); d != "" {
		t.Errorf("the file shown in %s is read as other values (-want +got):\n%s", page, d)
	}
}

func decode(t *testing.T, text string) (v map[string]any) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// TestDocsRuleset: docs/firewall.md shows the ruleset that is loaded.
func TestDocsRuleset(t *testing.T) {
	t.Parallel()
	if !strings.Contains(read(t, "docs/firewall.md"), read(t, "kernel/testdata/ruleset.nft")) {
		t.Error("docs/firewall.md does not show kernel/testdata/ruleset.nft")
	}
}

// TestDocsLinks: every file and every heading that a Markdown page links to exists.
func TestDocsLinks(t *testing.T) {
	t.Parallel()
	links := 0
	for _, page := range pages(t) {
		for _, link := range linksOf(read(t, page)) {
			u, err := url.Parse(link)
			if err != nil {
				t.Errorf("%s: link %q: %v", page, link, err)
			} else if u.Scheme == "" {
				links++
				follow(t, page, u)
			}
		}
	}
	if links < 20 { // there are more, so this test reads them wrongly
		t.Errorf("found only %d links", links)
	}
}

// TestDocsIndex: docs/README.md links to every page of docs, and docs/adr/README.md to every decision.
func TestDocsIndex(t *testing.T) {
	t.Parallel()
	for _, dir := range []string{"docs", "docs/adr"} {
		index := dir + "/README.md"
		linked := linksOf(read(t, index))
		for _, page := range pages(t) {
			name := filepath.Base(page)
			if filepath.Dir(page) == dir && page != index && !slices.Contains(linked, name) {
				t.Errorf("%s does not link to %s", index, name)
			}
		}
	}
}

// TestDocsBenchmarks: docs/performance.md has a table for each that benchmarks report rows of, and no other.
func TestDocsBenchmarks(t *testing.T) {
	t.Parallel()
	find := func(pattern, text string, into map[string]bool) {
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
			into[m[1]] = true
		}
	}
	reported, there := map[string]bool{}, map[string]bool{}
	for _, name := range tracked(t, "*bench*_test.go") {
		find(`\bTable: "(\w+)"`, read(t, name), reported)
	}
	find(`<!-- bench: (\w+) -->\n\|`, read(t, "docs/performance.md"), there)
	if !maps.Equal(reported, there) || len(there) == 0 {
		t.Errorf("benchmarks report the tables %v; the page has, with rows, %v", reported, there)
	}
}

// pages returns all Markdown files of the module.
func pages(t *testing.T) (files []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && d.Name() == ".git" {
			return fs.SkipDir
		}
		if filepath.Ext(path) == ".md" {
			files = append(files, strings.TrimPrefix(path, root+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

var (
	fenced = regexp.MustCompile("(?ms)^```.*?^```")
	inline = regexp.MustCompile("`[^`\n]*`")
	linked = regexp.MustCompile(`\]\(([^)\s]+)\)`)
)

// linksOf returns the targets of a page's links, without those in code.
func linksOf(text string) (links []string) {
	for _, m := range linked.FindAllStringSubmatch(inline.ReplaceAllString(fenced.ReplaceAllString(text, ""), ""), -1) {
		links = append(links, m[1])
	}
	return links
}

// follow checks that the target of a link exists.
func follow(t *testing.T, page string, u *url.URL) {
	t.Helper()
	target := page
	if u.Path != "" {
		target = filepath.Join(filepath.Dir(page), u.Path)
	}
	if _, err := os.Stat(filepath.Join(root, target)); err != nil {
		t.Errorf("%s links to %s: %v", page, u, err)
		return
	}
	if u.Fragment != "" && !anchors(read(t, target))[u.Fragment] {
		t.Errorf("%s links to %s, which has no such heading", page, u)
	}
}

// anchors returns the anchors of a page's headings as common renderers make them: lower case, without punctuation, with
// dashes for spaces.
func anchors(text string) map[string]bool {
	names := map[string]bool{}
	for line := range strings.SplitSeq(fenced.ReplaceAllString(text, ""), "\n") {
		heading := strings.TrimLeft(line, "#")
		if heading == line || !strings.HasPrefix(heading, " ") {
			continue
		}
		name := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case unicode.IsLetter(r), unicode.IsDigit(r), r == '-', r == '_':
				return unicode.ToLower(r)
			}
			return -1
		}, strings.TrimSpace(heading))
		for n, base := 1, name; names[name]; n++ {
			name = fmt.Sprintf("%s-%d", base, n)
		}
		names[name] = true
	}
	return names
}
