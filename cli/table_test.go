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
	"runtime/debug"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/urfave/cli/v2"
)

// TestNoWrap asks for every table on terminals of every width: no line may be longer.
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
				t.Errorf("%s on %d columns: too much is gone: %s", command, width, &out)
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
		{"it fits", []int{4, 4}, []fit{{}, {goes: 1}}, 10, []int{4, 4}},
		{"the first to go", []int{4, 4, 4}, []fit{{}, {goes: 2}, {goes: 1}}, 15, []int{4, 4, 0}},
		{"and the next", []int{4, 4, 4}, []fit{{}, {goes: 2}, {goes: 1}}, 9, []int{4, 0, 0}},
		{"cut before others go", []int{4, 4, 9}, []fit{{}, {goes: 1}, {min: 3}}, 15, []int{4, 4, 3}},
		{"not cut but gone", []int{4, 4, 9}, []fit{{}, {goes: 1}, {min: 3}}, 14, []int{4, 0, 8}},
		{"what stays is cut", []int{9, 9}, []fit{{}, {}}, 12, []int{9, 1}},
		{"what stays is cut more", []int{9, 9}, []fit{{}, {}}, 6, []int{3, 1}},
	} {
		if diff := cmp.Diff(c.want, narrow(c.widths, c.fits, c.width)); diff != "" {
			t.Errorf("%s: -want +got:\n%s", c.name, diff)
		}
	}
}

// TestDocs: the page about the commands has each of them, and the order in which their columns leave.
func TestDocs(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	var check func(path string, cs []*cli.Command)
	check = func(path string, cs []*cli.Command) {
		for _, c := range cs {
			name := strings.TrimSpace(path + " " + c.Name)
			if c.Name != verifyName && len(c.Subcommands) == 0 && !strings.Contains(string(raw), "`"+name) {
				t.Errorf("%s is not there", name)
			}
			if order, ok := strings.CutPrefix(c.Description, leaveText); ok {
				if row := "| `" + name + "` | " + strings.TrimSuffix(order, ".") + " |"; !strings.Contains(string(raw), row) {
					t.Errorf("not there: %s", row)
				}
			}
			check(name, c.Subcommands)
		}
	}
	check("", Program{Stdout: io.Discard, Stderr: io.Discard}.app().Commands)
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

// A full disk: nothing can be written.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("no space left on device") }

func TestWriteFails(t *testing.T) {
	for _, command := range []string{
		"options", "options --json", "options --markdown", "options --format json", "options --format x", "completion bash", "completion fish", "man", "version",
	} {
		var errs bytes.Buffer
		code := Program{Stdout: full{}, Stderr: &errs}.Run(context.Background(), append([]string{"netyard"}, strings.Fields(command)...))
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
		t.Errorf("what the linker said became %s", got)
	}
	if got := buildVersion(""); got == "" {
		t.Error("no version")
	}
}
