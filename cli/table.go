package cli

import (
	"bytes"
	"cmp"
	"encoding/json"
	"io"
	"slices"
	"strings"
	"text/template"
	"unicode/utf8"

	"github.com/urfave/cli/v2"

	"netyard/cli/usage"
	"netyard/modes"
)

const formatFlag = "format"

// A list is a command that prints rows.
type list[R any] struct {
	fetch    func(c *cli.Context) ([]R, error)
	order    func(a, b R) int
	columns  func(id shortener) []column[R]
	id       func(R) string       // for --quiet; nil: rows have no id
	bare     bool                 // without headings; no column is dropped
	verdict  func(rows []R) error // returns the command's error; nil: the command succeeds
	examples []string
}

// A shortener returns an id as tables show it.
type shortener func(id string) string

// A column is a column of a table.
type column[R any] struct {
	head string
	cell func(R) string
	fit
}

// A fit says how a column yields when the terminal is narrower than the table.
type fit struct {
	drop int // columns are dropped in this order, 1 first; 0: never
	min  int // width to which it is cut before any column is dropped; 0: it is not cut
}

// command completes cmd as the command that prints the list.
func (l list[R]) command(width int, cmd *cli.Command) *cli.Command {
	cmd.Flags = append(cmd.Flags,
		&cli.BoolFlag{Name: "json", Usage: "print a JSON array"},
		&cli.StringFlag{
			Name: formatFlag, Usage: "print each row with a Go `TEMPLATE`; json prints one JSON object per line",
		},
	)
	if !l.bare {
		cmd.Flags = append(cmd.Flags, &cli.BoolFlag{Name: "no-trunc", Usage: "print full IDs and all columns"})
		cmd.Description = strings.TrimSpace(cmd.Description + "\n" + dropOrder(l.columns(modes.Short)))
	}
	cmd.Description = usage.Describe(cmd.Description, l.examples...)
	if l.id != nil {
		cmd.Flags = append(cmd.Flags, &cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print only IDs"})
	}
	cmd.Action = func(c *cli.Context) error {
		if err := onlyOne(c, "json", formatFlag, "quiet"); err != nil {
			return err
		}
		tmpl, err := parseFormat(c)
		if err != nil {
			return err
		}
		rows, err := l.fetch(c)
		if err != nil {
			return err
		}
		slices.SortStableFunc(rows, l.order)
		if err := l.print(c, tmpl, rows, width); err != nil || l.verdict == nil {
			return err
		}
		return l.verdict(rows)
	}
	return cmd
}

// onlyOne returns an error if more than one of the flags is set.
func onlyOne(c *cli.Context, flags ...string) error {
	set := slices.DeleteFunc(flags, func(f string) bool { return !c.IsSet(f) })
	if len(set) > 1 {
		return usage.Errorf(c, "--%s and --%s are mutually exclusive", set[0], set[1])
	}
	return nil
}

// dropText begins the sentence about the columns that a narrow terminal does not show.
const dropText = "On a narrow terminal, columns are dropped in this order: "

// dropOrder says in which order columns are dropped on a narrow terminal.
func dropOrder[R any](columns []column[R]) string {
	columns = slices.DeleteFunc(columns, func(c column[R]) bool { return c.drop == 0 })
	slices.SortFunc(columns, func(a, b column[R]) int { return cmp.Compare(a.drop, b.drop) })
	var heads []string
	for _, c := range columns {
		heads = append(heads, c.head)
	}
	return dropText + strings.Join(heads, ", ") + "."
}

func (l list[R]) print(c *cli.Context, tmpl *template.Template, rows []R, width int) error {
	id := shortener(modes.Short)
	if l.bare || c.Bool("no-trunc") {
		id, width = func(id string) string { return id }, 0
	}
	switch {
	case c.Bool("json"):
		return printJSON(c.App.Writer, append([]R{}, rows...)) // no rows are [], not null
	case tmpl != nil:
		return printRows(c, tmpl, rows)
	case c.Bool("quiet"):
		return printLines(c.App.Writer, rows, func(r R) string { return id(l.id(r)) })
	}
	return printTable(c.App.Writer, l.columns(id), rows, !l.bare, width)
}

func printLines[R any](w io.Writer, rows []R, line func(R) string) error {
	var b strings.Builder
	for _, r := range rows {
		b.WriteString(line(r) + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// parseFormat parses --format. It returns nil if the flag is not set.
func parseFormat(c *cli.Context) (*template.Template, error) {
	format := c.String(formatFlag)
	switch {
	case format == "":
		return nil, nil //nolint:nilnil // no template is not an error
	case format == "json": // as with docker
		format = "{{json .}}"
	case strings.HasPrefix(format, "table "):
		return nil, usage.Errorf(c, "--format '%s': table templates are not supported; without --format there is a table",
			format)
	}
	functions := template.FuncMap{"json": compact, "join": strings.Join}
	t, err := template.New(formatFlag).Funcs(functions).Parse(unescape(format))
	if err != nil {
		return nil, formatError(c, err)
	}
	return t, nil
}

// formatError returns an error of the template, without what text/template repeats.
func formatError(c *cli.Context, err error) error {
	text := strings.TrimPrefix(err.Error(), "template: "+formatFlag+":")
	text = strings.Replace(text, `executing "`+formatFlag+`" `, "", 1)
	return usage.Errorf(c, "--format '%s': %s", c.String(formatFlag), text)
}

// compact is the template function json: v as one line.
func compact(v any) (string, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return strings.TrimSuffix(b.String(), "\n"), err
}

// unescape replaces \t and \n outside template actions: shells pass them on literally.
func unescape(format string) string {
	plain := strings.NewReplacer(`\t`, "\t", `\n`, "\n")
	var b strings.Builder
	for format != "" {
		text, rest, found := strings.Cut(format, "{{")
		b.WriteString(plain.Replace(text))
		if !found {
			break
		}
		action, rest, found := strings.Cut(rest, "}}")
		b.WriteString("{{" + action)
		if found {
			b.WriteString("}}")
		}
		format = rest
	}
	return b.String()
}

func printRows[R any](c *cli.Context, t *template.Template, rows []R) error {
	var b bytes.Buffer
	for _, r := range rows {
		if err := t.Execute(&b, r); err != nil {
			return formatError(c, err)
		}
		b.WriteByte('\n')
	}
	_, err := c.App.Writer.Write(b.Bytes())
	return err
}

// printOne prints a value with a template, or as JSON if there is none.
func printOne(c *cli.Context, t *template.Template, v any) error {
	if t == nil {
		return printJSON(c.App.Writer, v)
	}
	return printRows(c, t, []any{v})
}

// inspectCommand completes cmd as the command that prints the value that get returns.
func inspectCommand[R any](cmd *cli.Command, get func(c *cli.Context, ref string) (R, error)) *cli.Command {
	cmd.Flags = []cli.Flag{&cli.StringFlag{Name: formatFlag, Usage: "print it with a Go `TEMPLATE` instead of as JSON"}}
	cmd.Action = func(c *cli.Context) error {
		t, err := parseFormat(c)
		if err != nil {
			return err
		}
		v, err := get(c, c.Args().First())
		if err != nil {
			return err
		}
		return printOne(c, t, v)
	}
	return cmd
}

func printTable[R any](w io.Writer, columns []column[R], rows []R, heads bool, width int) error {
	var lines [][]string
	fits := make([]fit, len(columns))
	for i, col := range columns {
		fits[i] = col.fit
	}
	if heads {
		line := make([]string, len(columns))
		for i, col := range columns {
			line[i] = col.head
		}
		lines = append(lines, line)
	}
	for _, r := range rows {
		line := make([]string, len(columns))
		for i, col := range columns {
			line[i] = printable(cmp.Or(col.cell(r), "-"))
		}
		lines = append(lines, line)
	}
	return printLines(w, lines, layout(lines, fits, width))
}

const gap = 2 // between columns, in characters

// layout returns the function that formats a line of cells. A width of 0 is no limit.
func layout(lines [][]string, fits []fit, width int) func([]string) string {
	widths := make([]int, len(fits))
	for _, line := range lines {
		for i, cell := range line {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	if width > 0 {
		widths = narrow(widths, fits, width)
	}
	return func(line []string) string {
		var b strings.Builder
		for i, cell := range line {
			if widths[i] > 0 {
				cell = cut(cell, widths[i])
				b.WriteString(cell + strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+gap))
			}
		}
		return strings.TrimRight(b.String(), " ")
	}
}

// narrow makes the columns fit a width. It cuts those that may be cut; if that is not enough, it drops one column after
// the other, in the order of fit.drop; at last it cuts the remaining ones. A dropped column has width 0.
func narrow(widths []int, fits []fit, width int) []int {
	widths = slices.Clone(widths)
	for {
		over := lineLength(widths) - width
		spare := 0
		for i, f := range fits {
			if f.min > 0 {
				spare += max(0, widths[i]-f.min)
			}
		}
		if over <= spare {
			return shave(widths, over, func(i int) int { return cmp.Or(fits[i].min, widths[i]) })
		}
		next := -1
		for i, f := range fits {
			if f.drop > 0 && widths[i] > 0 && (next < 0 || f.drop < fits[next].drop) {
				next = i
			}
		}
		if next < 0 {
			return shave(widths, over, func(int) int { return 1 })
		}
		widths[next] = 0
	}
}

// lineLength returns the length of a line with these columns.
func lineLength(widths []int) int {
	n := -gap
	for _, w := range widths {
		if w > 0 {
			n += w + gap
		}
	}
	return n
}

// shave cuts columns by over characters in total, beginning with the last one, and none below its least width.
func shave(widths []int, over int, least func(i int) int) []int {
	for i := len(widths) - 1; i >= 0 && over > 0; i-- {
		n := min(over, max(0, widths[i]-least(i)))
		widths[i] -= n
		over -= n
	}
	return widths
}

// cut shortens s to a width and marks the cut.
func cut(s string, width int) string {
	if utf8.RuneCountInString(s) <= width {
		return s
	}
	return string([]rune(s)[:width-1]) + "…"
}
