package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/urfave/cli/v2"
)

// TestNoWrap prints tables on terminals of every width: no line may be wider than the terminal.
func TestNoWrap(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, socketName))
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: worlds()["busy"].handler(), ReadHeaderTimeout: time.Minute}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	for _, command := range []string{"ps", "network ls", "endpoint ls", "lease ls", "options", "options none"} {
		before := 0
		for width := 1; width < 260; width++ {
			var out, errs bytes.Buffer
			p := Program{Stdout: &out, Stderr: &errs, Width: width}
			args := append([]string{"netyard", "--run-dir", dir}, strings.Fields(command)...)
			if code := p.Run(context.Background(), args); code != exitOK {
				t.Fatalf("%s: exit code %d: %s", command, code, &errs)
			}
			for line := range strings.Lines(out.String()) {
				if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > width {
					t.Errorf("%s on %d columns: %d: %q", command, width, n, line)
				}
			}
			if out.Len() == 0 || out.Len() < before/2 {
				t.Errorf("%s on %d columns: too much is dropped: %s", command, width, &out)
			}
			before = out.Len()
		}
	}
}

func TestNarrow(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		widths []int
		fits   []fit
		width  int
		want   []int
	}{
		{"fits", []int{4, 4}, []fit{{}, {drop: 1}}, 10, []int{4, 4}},
		{"drops the first column", []int{4, 4, 4}, []fit{{}, {drop: 2}, {drop: 1}}, 15, []int{4, 4, 0}},
		{"drops the next one", []int{4, 4, 4}, []fit{{}, {drop: 2}, {drop: 1}}, 9, []int{4, 0, 0}},
		{"cuts before it drops", []int{4, 4, 9}, []fit{{}, {drop: 1}, {min: 3}}, 15, []int{4, 4, 3}},
		{"drops what cutting cannot save", []int{4, 4, 9}, []fit{{}, {drop: 1}, {min: 3}}, 14, []int{4, 0, 8}},
		{"cuts columns that stay", []int{9, 9}, []fit{{}, {}}, 12, []int{9, 1}},
		{"cuts them further", []int{9, 9}, []fit{{}, {}}, 6, []int{3, 1}},
	} {
		if diff := cmp.Diff(c.want, narrow(c.widths, c.fits, c.width)); diff != "" {
			t.Errorf("%s: -want +got:\n%s", c.name, diff)
		}
	}
}

// walk calls visit for all commands but the internal one, with their names.
func walk(app *cli.App, visit func(name string, c *cli.Command)) {
	var each func(path string, cs []*cli.Command)
	each = func(path string, cs []*cli.Command) {
		for _, c := range cs {
			if c.Name == verifyName {
				continue
			}
			name := strings.TrimSpace(path + " " + c.Name)
			visit(name, c)
			each(name, c.Subcommands)
		}
	}
	each("", app.Commands)
}

// TestDocs: docs/cli.md lists every command, and the order in which columns of tables are dropped.
func TestDocs(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	tables := 0
	walk(Program{Stdout: io.Discard, Stderr: io.Discard}.app(), func(name string, c *cli.Command) {
		if len(c.Subcommands) == 0 && !strings.Contains(string(raw), "`"+name) {
			t.Errorf("%s is missing", name)
		}
		_, order, ok := strings.Cut(c.Description, dropText)
		if !ok {
			return
		}
		tables++
		order, _, _ = strings.Cut(order, ".")
		if row := "| `" + name + "` | " + order + " |"; !strings.Contains(string(raw), row) {
			t.Errorf("missing: %s", row)
		}
	})
	if tables < 10 {
		t.Errorf("only found %d tables: this test reads descriptions wrongly", tables)
	}
}

// TestExamples: the help of every command has at least two examples, and the command line accepts each.
func TestExamples(t *testing.T) {
	t.Parallel()
	walk(Program{Stdout: io.Discard, Stderr: io.Discard}.app(), func(name string, c *cli.Command) {
		_, examples, _ := strings.Cut(c.Description, "Examples:\n\n")
		lines := strings.Split(examples, "\n")
		if len(lines) < 2 {
			t.Errorf("%s has the examples %q", name, lines)
		}
		for _, line := range lines {
			for _, call := range netyardCall.FindAllStringSubmatch(line, -1) {
				accepts(t, call[1])
			}
		}
	})
}

// netyardCall matches a call of netyard in a line of shell.
var netyardCall = regexp.MustCompile(`(?:^|[ (])(netyard(?: '[^']*'| [\w/.:=+,-]+)+)`)

// accepts runs a command line whose actions do nothing: flags and arguments have to be known.
func accepts(t *testing.T, line string) {
	t.Helper()
	app := Program{Stdout: io.Discard, Stderr: io.Discard}.app()
	ran := false
	walk(app, func(_ string, c *cli.Command) {
		if len(c.Subcommands) == 0 {
			c.Action = func(ctx *cli.Context) error { ran = true; return checkArgs(ctx) }
		}
	})
	var args []string
	for i, part := range strings.Split(line, "'") {
		if i%2 == 1 {
			args = append(args, part)
		} else {
			args = append(args, strings.Fields(part)...)
		}
	}
	if err := app.Run(arrange(app, args)); err != nil || !ran {
		t.Errorf("%s: %v, a command ran: %v", line, err, ran)
	}
}

// TestOptionsPage: docs/options.md is what the program prints.
func TestOptionsPage(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../docs/options.md")
	if err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	p := Program{Stdout: &out, Stderr: &errs}
	if code := p.Run(context.Background(), []string{"netyard", "options", "--markdown"}); code != exitOK {
		t.Fatalf("exit code %d: %s", code, &errs)
	}
	if diff := cmp.Diff(string(page), out.String()); diff != "" {
		t.Errorf("docs/options.md is stale; run: go run . options --markdown >docs/options.md\n%s", diff)
	}
}

func TestUnescape(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		`{{.A}}\t{{.B}}\n`:      "{{.A}}\t{{.B}}\n",
		`{{join .A "\n"}}\t`:    `{{join .A "\n"}}` + "\t",
		`a\tb`:                  "a\tb",
		`a{{`:                   `a{{`,
		`a{{b\t`:                `a{{b\t`,
		`{{if .A}}\t{{end}}x}}`: "{{if .A}}\t{{end}}x}}",
	} {
		if got := unescape(in); got != want {
			t.Errorf("%s: got %q, want %q", in, got, want)
		}
	}
}

// full is a full disk: every write fails.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("no space left on device") }

func TestWriteFails(t *testing.T) {
	for _, command := range []string{
		"options", "options --json", "options --markdown", "options --format json", "options --format x",
		"completion bash", "completion fish", "man", "version",
	} {
		var errs bytes.Buffer
		args := append([]string{"netyard"}, strings.Fields(command)...)
		code := Program{Stdout: full{}, Stderr: &errs}.Run(context.Background(), args)
		if want := "netyard: no space left on device\n"; code != exitFailed || errs.String() != want {
			t.Errorf("%s: exit code %d, %q", command, code, &errs)
		}
	}
}

func TestCommit(t *testing.T) {
	t.Parallel()
	for want, settings := range map[string][]debug.BuildSetting{
		"devel":              nil,
		"0123456789ab":       {{Key: "vcs.revision", Value: "0123456789abcdef"}, {Key: "vcs.modified", Value: "false"}},
		"0123456789ab-dirty": {{Key: "vcs.revision", Value: "0123456789abcdef"}, {Key: "vcs.modified", Value: "true"}},
	} {
		if got := commit(settings); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	if got := buildVersion("v1"); got != "v1" {
		t.Errorf("the linker's version became %s", got)
	}
	if got := buildVersion(""); got == "" {
		t.Error("no version")
	}
}
