package table_test

import (
	"bytes"
	"cmp"
	"errors"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"netyard/cli/table"
)

// A ship is a row.
type ship struct {
	ID   string   `json:"id"`
	Name string   `json:"name"`
	Crew []string `json:"crew"`
}

const shipID = "0123456789abcdef0123456789abcdef"

var errAdrift = errors.New("a ship is adrift")

// run runs a list of ships on a terminal of a width, with arguments, and returns what it prints.
func run(t *testing.T, width int, ships []ship, args ...string) (string, error) {
	t.Helper()
	list := table.List[ship]{
		Fetch: func(*cli.Context) ([]ship, error) { return ships, nil },
		Order: func(a, b ship) int { return cmp.Compare(a.Name, b.Name) },
		ID:    func(s ship) string { return s.ID },
		Columns: func(id table.Shortener) []table.Column[ship] {
			return []table.Column[ship]{
				{Head: "ID", Cell: func(s ship) string { return id(s.ID) }, Drop: 2},
				{Head: "NAME", Cell: func(s ship) string { return s.Name }},
				{Head: "CREW", Cell: func(s ship) string { return strings.Join(s.Crew, ",") }, Drop: 1},
			}
		},
		Verdict: func(rows []ship) error {
			if len(rows) > 0 && rows[0].Name == "adrift" {
				return errAdrift
			}
			return nil
		},
		Examples: []string{"netyard ships"},
	}
	return runCommand(list.Command(width, &cli.Command{Name: "ships"}), args...)
}

// runCommand runs a command. Its tests do not run side by side: the library writes to its help flag, which is global.
func runCommand(cmd *cli.Command, args ...string) (string, error) {
	var out bytes.Buffer
	app := cli.NewApp()
	app.Writer, app.ErrWriter, app.ExitErrHandler = &out, &out, func(*cli.Context, error) {}
	app.Commands = []*cli.Command{cmd}
	err := app.Run(append([]string{"netyard", cmd.Name}, args...))
	return out.String(), err
}

// TestList: a list is a table in its order, with what each flag makes of it.
func TestList(t *testing.T) {
	ships := []ship{
		{ID: "feed" + shipID, Name: "zebra"}, {ID: shipID, Name: "argo", Crew: []string{"jason", "orpheus"}},
	}
	for _, c := range []struct {
		name  string
		width int
		args  []string
		want  string
	}{
		{"a table", 0, nil, "ID            NAME   CREW\n0123456789ab  argo   jason,orpheus\nfeed01234567  zebra  -\n"},
		{"on a narrow terminal", 22, nil, "ID            NAME\n0123456789ab  argo\nfeed01234567  zebra\n"},
		{"on a very narrow one", 6, nil, "NAME\nargo\nzebra\n"},
		{
			"with everything", 6,
			[]string{"--no-trunc"},
			"ID                                    NAME   CREW\n" +
				shipID + "      argo   jason,orpheus\n" + "feed" + shipID + "  zebra  -\n",
		},
		{"IDs", 6, []string{"-q"}, "0123456789ab\nfeed01234567\n"},
		{"full IDs", 6, []string{"-q", "--no-trunc"}, shipID + "\nfeed" + shipID + "\n"},
		{"a template", 6, []string{"--format", `{{.Name}}\t{{join .Crew "+"}}`}, "argo\tjason+orpheus\nzebra\t\n"},
		{"a template's JSON", 6, []string{"--format", "{{json .Crew}}"}, "[\"jason\",\"orpheus\"]\nnull\n"},
		{
			"JSON by line", 6,
			[]string{"--format", "json"},
			`{"id":"` + shipID + `","name":"argo","crew":["jason","orpheus"]}` + "\n" +
				`{"id":"feed` + shipID + `","name":"zebra","crew":null}` + "\n",
		},
	} {
		if got, err := run(t, c.width, ships, c.args...); err != nil || got != c.want {
			t.Errorf("%s: %v; got\n%swant\n%s", c.name, err, got, c.want)
		}
	}
}

// TestEmptyList: without rows a table has its headings, and JSON is an array all the same.
func TestEmptyList(t *testing.T) {
	for arg, want := range map[string]string{"--no-trunc": "ID  NAME  CREW\n", "--json": "[]\n", "--quiet": ""} {
		if got, err := run(t, 0, nil, arg); err != nil || got != want {
			t.Errorf("%s: got %q, %v, want %q", arg, got, err, want)
		}
	}
}

// TestListErrors: what cannot be printed is an error that says why, and a list may have a verdict of its own.
func TestListErrors(t *testing.T) {
	ships := []ship{{ID: shipID, Name: "adrift"}}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--json", "--quiet"}, "--quiet"},
		{[]string{"--format", "table {{.Name}}"}, "table templates are not supported"},
		{[]string{"--format", "{{.Name"}, "--format '{{.Name': "},
		{[]string{"--format", "{{.Mast}}"}, "can't evaluate field Mast"},
		{nil, errAdrift.Error()},
	} {
		_, err := run(t, 0, ships, c.args...)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.args, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "template: format") {
			t.Errorf("%q: the error repeats what text/template says: %v", c.args, err)
		}
	}
}

// TestInspect: one value is JSON, or what a template makes of it.
func TestInspect(t *testing.T) {
	get := func(_ *cli.Context, ref string) (ship, error) {
		if ref != "argo" {
			return ship{}, errAdrift
		}
		return ship{ID: "1", Name: "<argo>"}, nil
	}
	command := func() *cli.Command { return table.Inspect(&cli.Command{Name: "inspect"}, get) }
	want := "{\n  \"id\": \"1\",\n  \"name\": \"<argo>\",\n  \"crew\": null\n}\n"
	if got, err := runCommand(command(), "argo"); err != nil || got != want {
		t.Errorf("got %s, %v, want %s", got, err, want)
	}
	if got, err := runCommand(command(), "--format", "{{.Name}}", "argo"); err != nil || got != "<argo>\n" {
		t.Errorf("with a template: %q, %v", got, err)
	}
	if _, err := runCommand(command(), "dingy"); !errors.Is(err, errAdrift) {
		t.Errorf("of what does not exist: %v", err)
	}
}

// TestPrintable: a name cannot control the terminal.
func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"web":            "web",
		"naïve ☃":        "naïve ☃",
		"\x1b[2J":        "\uFFFD[2J",
		"two\nlines\x7f": "two\uFFFDlines\uFFFD",
	} {
		if got := table.Printable(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}
