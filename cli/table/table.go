// Package table prints what commands list: as a table that fits the terminal, as JSON, or with a template.
package table

import (
	"cmp"
	"io"
	"slices"
	"strings"
	"text/template"
	"unicode"

	"github.com/urfave/cli/v2"

	"netyard/cli/usage"
	"netyard/modes"
)

// A List is a command that prints rows.
type List[R any] struct {
	Fetch    func(c *cli.Context) ([]R, error)
	Order    func(a, b R) int
	Columns  func(id Shortener) []Column[R]
	ID       func(R) string       // for --quiet; nil: rows have no ID
	Bare     bool                 // without headings; no column is dropped
	Verdict  func(rows []R) error // returns the command's error; nil: the command succeeds
	Examples []string
}

// A Shortener returns an ID as tables show it.
type Shortener func(id string) string

// A Column is a column of a table. Drop and Min say how it yields when the terminal is narrower than the table.
type Column[R any] struct {
	Head string
	Cell func(R) string
	Drop int // columns are dropped in this order, 1 first; 0: never
	Min  int // width to which it is cut before any column is dropped; 0: it is not cut
}

// Command completes cmd as the command that prints the list.
func (l List[R]) Command(width int, cmd *cli.Command) *cli.Command {
	cmd.Flags = append(cmd.Flags,
		&cli.BoolFlag{Name: "json", Usage: "print a JSON array"},
		&cli.StringFlag{
			Name: FormatFlag, Usage: "print each row with a Go `TEMPLATE`; json prints one JSON object per line",
		},
	)
	if !l.Bare {
		cmd.Flags = append(cmd.Flags, &cli.BoolFlag{Name: "no-trunc", Usage: "print full IDs and all columns"})
		cmd.Description = strings.TrimSpace(cmd.Description + "\n" + dropOrder(l.Columns(modes.Short)))
	}
	cmd.Description = usage.Describe(cmd.Description, l.Examples...)
	if l.ID != nil {
		cmd.Flags = append(cmd.Flags, &cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print only IDs"})
	}
	cmd.Action = func(c *cli.Context) error {
		if err := usage.OnlyOne(c, "json", FormatFlag, "quiet"); err != nil {
			return err
		}
		tmpl, err := ParseFormat(c)
		if err != nil {
			return err
		}
		rows, err := l.Fetch(c)
		if err != nil {
			return err
		}
		slices.SortStableFunc(rows, l.Order)
		if err := l.print(c, tmpl, rows, width); err != nil || l.Verdict == nil {
			return err
		}
		return l.Verdict(rows)
	}
	return cmd
}

// dropText begins the sentence about the columns that a narrow terminal does not show.
const dropText = "On a narrow terminal, columns are dropped in this order: "

// dropOrder says in which order columns are dropped on a narrow terminal.
func dropOrder[R any](columns []Column[R]) string {
	columns = slices.DeleteFunc(columns, func(c Column[R]) bool { return c.Drop == 0 })
	slices.SortFunc(columns, func(a, b Column[R]) int { return cmp.Compare(a.Drop, b.Drop) })
	var heads []string
	for _, c := range columns {
		heads = append(heads, c.Head)
	}
	return dropText + strings.Join(heads, ", ") + "."
}

func (l List[R]) print(c *cli.Context, tmpl *template.Template, rows []R, width int) error {
	id := Shortener(modes.Short)
	if l.Bare || c.Bool("no-trunc") {
		id, width = func(id string) string { return id }, 0
	}
	switch {
	case c.Bool("json"):
		return PrintJSON(c.App.Writer, append([]R{}, rows...)) // no rows are [], not null
	case tmpl != nil:
		return printRows(c, tmpl, rows)
	case c.Bool("quiet"):
		return printLines(c.App.Writer, rows, func(r R) string { return id(l.ID(r)) })
	}
	return printTable(c.App.Writer, l.Columns(id), rows, !l.Bare, width)
}

// printLines prints a line for each row.
func printLines[R any](w io.Writer, rows []R, line func(R) string) error {
	var b strings.Builder
	for _, r := range rows {
		b.WriteString(line(r) + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// Inspect completes cmd as the command that prints the value that get returns.
func Inspect[R any](cmd *cli.Command, get func(c *cli.Context, ref string) (R, error)) *cli.Command {
	cmd.Flags = []cli.Flag{&cli.StringFlag{Name: FormatFlag, Usage: "print with a Go `TEMPLATE` instead of JSON"}}
	cmd.Action = func(c *cli.Context) error {
		t, err := ParseFormat(c)
		if err != nil {
			return err
		}
		v, err := get(c, c.Args().First())
		if err != nil {
			return err
		}
		return PrintOne(c, t, v)
	}
	return cmd
}

func printTable[R any](w io.Writer, columns []Column[R], rows []R, heads bool, width int) error {
	var lines [][]string
	fits := make([]fit, len(columns))
	for i, col := range columns {
		fits[i] = fit{col.Drop, col.Min}
	}
	if heads {
		line := make([]string, len(columns))
		for i, col := range columns {
			line[i] = col.Head
		}
		lines = append(lines, line)
	}
	for _, r := range rows {
		line := make([]string, len(columns))
		for i, col := range columns {
			line[i] = Printable(cmp.Or(col.Cell(r), "-"))
		}
		lines = append(lines, line)
	}
	return printLines(w, lines, layout(lines, fits, width))
}

// Printable replaces control characters: names are chosen by others and could control the terminal.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}
