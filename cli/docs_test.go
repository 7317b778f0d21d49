package cli

import (
	"bytes"
	"context"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/urfave/cli/v2"

	"netyard/cli/daemon"
	"netyard/cli/usage"
)

// walk calls visit for all commands but the internal one, with their names.
func walk(app *cli.App, visit func(name string, c *cli.Command)) {
	var each func(path string, cs []*cli.Command)
	each = func(path string, cs []*cli.Command) {
		for _, c := range cs {
			if c.Name == daemon.VerifyCommand().Name {
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
	const dropped = "columns are dropped in this order: "
	tables := 0
	walk(Program{Stdout: io.Discard, Stderr: io.Discard}.app(), func(name string, c *cli.Command) {
		if len(c.Subcommands) == 0 && !strings.Contains(string(raw), "`"+name) {
			t.Errorf("%s is missing", name)
		}
		_, order, ok := strings.Cut(c.Description, dropped)
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
func TestExamples(t *testing.T) { // not parallel: the help flag of urfave/cli is a global
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
			c.Action = func(*cli.Context) error { ran = true; return nil }
		}
	})
	usage.Prepare(app)
	var args []string
	for i, part := range strings.Split(line, "'") {
		if i%2 == 1 {
			args = append(args, part)
		} else {
			args = append(args, strings.Fields(part)...)
		}
	}
	if err := app.Run(usage.Arrange(app, args)); err != nil || !ran {
		t.Errorf("%s: %v, a command ran: %v", line, err, ran)
	}
}

// TestOptionsPage: docs/options.md is what the program prints.
func TestOptionsPage(t *testing.T) { // not parallel: the help flag of urfave/cli is a global
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
