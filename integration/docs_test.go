package integration

import (
	"bytes"
	"fmt"
	"io/fs"
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

// root is the top of the module, as seen from the folder of this test.
const root = ".."

func read(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// netyard runs the program in this process and returns what it printed.
func netyard(t *testing.T, args ...string) string {
	t.Helper()
	t.Setenv("NETYARD_RUN_DIR", "/run/netyard")
	var out, complaint bytes.Buffer
	p := cli.Program{Version: "test", Stdout: &out, Stderr: &complaint}
	if code := p.Run(t.Context(), append([]string{"netyard"}, args...)); code != 0 {
		t.Fatalf("netyard %s: %d %s", strings.Join(args, " "), code, complaint.String())
	}
	return out.String()
}

// TestDocsOptions: every option of networks, under each of its names, is in the README and in that of each mode that
// knows it.
func TestDocsOptions(t *testing.T) {
	t.Parallel()
	for _, o := range all.Options().Options() {
		pages := []string{"README.md"}
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

// inTable wants a row of a table of the page to name a thing.
func inTable(t *testing.T, page, name string) {
	t.Helper()
	for line := range strings.SplitSeq(read(t, page), "\n") {
		if strings.HasPrefix(line, "|") && strings.Contains(line, "`"+name+"`") {
			return
		}
	}
	t.Errorf("no table of %s names `%s`", page, name)
}

// TestDocsConfiguration: every flag of serve and every key of its file is in the table of docs/operations.md, and the
// file shown there is the defaults.
func TestDocsConfiguration(t *testing.T) {
	const page = "docs/operations.md"
	flags := regexp.MustCompile(`(?m)^ +--([a-z0-9-]+)`).FindAllStringSubmatch(netyard(t, "serve", "--help"), -1)
	keys := regexp.MustCompile("yaml:\"([a-z0-9_]+)\"").FindAllStringSubmatch(read(t, "cli/config.go"), -1)
	if len(flags) < 10 || len(keys) < 10 { // more than half of what there is: this test reads them wrongly
		t.Fatalf("only found the flags %v and the keys %v", flags, keys)
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
		t.Errorf("the file shown in %s means something else (-want +got):\n%s", page, d)
	}
}

func decode(t *testing.T, text string) (v map[string]any) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// TestDocsRuleset: the ruleset that is explained is the one that is loaded.
func TestDocsRuleset(t *testing.T) {
	t.Parallel()
	if !strings.Contains(read(t, "docs/firewall.md"), read(t, "kernel/testdata/ruleset.nft")) {
		t.Error("docs/firewall.md does not show kernel/testdata/ruleset.nft")
	}
}

// TestDocsLinks: every file, and every heading of one, that a Markdown page links to is there.
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
	if links < 20 { // there are more: this test reads them wrongly
		t.Errorf("only found %d links", links)
	}
}

// pages are all Markdown files of the module.
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

// linksOf are the targets of a page's links; what stands in code is none.
func linksOf(text string) (links []string) {
	for _, m := range linked.FindAllStringSubmatch(inline.ReplaceAllString(fenced.ReplaceAllString(text, ""), ""), -1) {
		links = append(links, m[1])
	}
	return links
}

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
		t.Errorf("%s links to %s, and no heading there is called so", page, u)
	}
}

// anchors are the names of a page's headings as the usual renderers make them: small letters, no punctuation, a dash
// for a space.
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
