package cli

import (
	"cmp"
	_ "embed"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"netyard/cli/table"
	"netyard/cli/usage"
	"netyard/modes"
	"netyard/modes/all"
)

// An optionRow is a network option as netyard options shows it.
type optionRow struct {
	Name    string   `json:"name"`
	Docker  []string `json:"docker"`
	Modes   []string `json:"modes"`
	Type    string   `json:"type"`
	Default string   `json:"default"`
	// Endpoint: it can be set for one endpoint. Set: it can be changed while containers run.
	Endpoint bool   `json:"endpoint"`
	Set      bool   `json:"set"`
	Help     string `json:"help"`
}

const markdownFlag = "markdown"

func (p Program) optionsCommand() *cli.Command {
	cmd := table.List[optionRow]{
		Fetch: optionRows,
		Order: func(a, b optionRow) int { return cmp.Compare(a.Name, b.Name) },
		Columns: func(table.Shortener) []table.Column[optionRow] {
			return []table.Column[optionRow]{
				{Head: "NAME", Cell: func(o optionRow) string { return o.Name }},
				{Head: "DOCKER", Drop: 1, Cell: func(o optionRow) string {
					return strings.Join(o.Docker, ", ")
				}},
				{Head: "MODES", Drop: 2, Cell: func(o optionRow) string {
					return strings.Join(o.Modes, ", ")
				}},
				{Head: "TYPE", Drop: 4, Cell: func(o optionRow) string { return o.Type }},
				{Head: "DEFAULT", Drop: 5, Cell: func(o optionRow) string { return o.Default }},
				{Head: "CHANGE", Drop: 3, Cell: optionRow.change},
				{Head: "HELP", Drop: 6, Min: 30, Cell: func(o optionRow) string { return o.Help }},
			}
		},
		Examples: []string{"netyard options bridge", "netyard options --format '{{.Name}}={{.Default}}'"},
	}.Command(p.Width, &cli.Command{
		Name: "options", ArgsUsage: "[MODE]", Usage: "list network options, all or those of one mode",
		Description: "docker network create and netyard network create set them with -o.\n" +
			"DOCKER shows other keys that are accepted.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: markdownFlag, Usage: "print a page of Markdown with a table for each mode"},
		},
		BashComplete: complete(func(*cli.Context) []string { return modeNames() }),
	})
	printTable := cmd.Action
	cmd.Action = func(c *cli.Context) error {
		if !c.Bool(markdownFlag) {
			return printTable(c)
		}
		return printOptionsPage(c)
	}
	return cmd
}

// change says where the value can be changed while containers run; empty: nowhere.
func (o optionRow) change() string {
	switch {
	case o.Set && o.Endpoint:
		return "network, endpoint"
	case o.Set:
		return "network"
	case o.Endpoint:
		return "endpoint"
	}
	return ""
}

// optionRows returns the options of all modes or of one. It does not ask the daemon.
func optionRows(c *cli.Context) (rows []optionRow, err error) {
	mode := c.Args().First()
	if known := modeNames(); mode != "" && !slices.Contains(known, mode) {
		return nil, usage.Unknown(c, "mode", mode, known)
	}
	for _, o := range all.Options().Options() {
		if mode != "" && o.Modes != nil && !slices.Contains(o.Modes, mode) {
			continue
		}
		row := optionRow{
			Name: o.Name, Docker: append([]string{}, o.Docker...), Modes: o.Modes, Type: typeOf(o), Default: o.Default,
			Help: o.Help, Endpoint: o.Endpoint, Set: o.Set,
		}
		if row.Modes == nil {
			row.Modes = modeNames()
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// typeOf describes the values of an option.
func typeOf(o modes.Option) string {
	switch o.Kind {
	case modes.Bool:
		return "true|false"
	case modes.Int:
		return fmt.Sprintf("%d..%d", o.Min, o.Max)
	case modes.Enum:
		return strings.Join(o.Values, "|")
	case modes.IfName:
		return "interface"
	case modes.Ports:
		return "ports"
	case modes.Rate:
		return "rate"
	case modes.Addr4, modes.Addr6:
		return "address"
	case modes.Addrs:
		return "addresses"
	case modes.IfNames:
		return "interfaces"
	case modes.Sources:
		return "subnets|interfaces"
	case modes.Routes:
		return "routes"
	case modes.String:
	}
	return "text"
}

//go:embed options_intro.txt
var optionsPageIntro string

// printOptionsPage prints docs/options.md: first the options that every mode has, then those of each mode. With an
// argument it prints those of one mode.
func printOptionsPage(c *cli.Context) error {
	if err := usage.OnlyOne(c, "json", table.FormatFlag, markdownFlag); err != nil {
		return err
	}
	rows, err := optionRows(c)
	if err != nil {
		return err
	}
	of := modeNames()
	if mode := c.Args().First(); mode != "" {
		of = []string{mode}
	}
	slices.SortStableFunc(rows, func(a, b optionRow) int { return cmp.Compare(a.Name, b.Name) })
	everywhere := func(o optionRow) bool { return len(o.Modes) == len(modeNames()) }
	var b strings.Builder
	b.WriteString(optionsPageIntro)
	b.WriteString("\n## Every mode\n\n" + optionsTable(rows, everywhere))
	for _, mode := range of {
		fmt.Fprintf(&b, "\n## %s\n\nMore: [modes/%[1]s](../modes/%[1]s/README.md)\n\n", mode)
		b.WriteString(optionsTable(rows, func(o optionRow) bool {
			return slices.Contains(o.Modes, mode) && !everywhere(o)
		}))
	}
	_, err = io.WriteString(c.App.Writer, b.String())
	return err
}

// optionsTable returns a Markdown table of the rows for which in is true.
func optionsTable(rows []optionRow, in func(optionRow) bool) string {
	var b strings.Builder
	for _, o := range rows {
		if in(o) {
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s | %s |\n",
				o.Name, quoted(o.Docker), strings.ReplaceAll(o.Type, "|", ", "), quoted([]string{o.Default}),
				cmp.Or(o.change(), "–"), strings.ReplaceAll(o.Help, "|", "\\|"))
		}
	}
	if b.Len() == 0 {
		return "No options of its own.\n"
	}
	return "| Option | Docker's key | Value | Default | Change | Meaning |\n|---|---|---|---|---|---|\n" + b.String()
}

// quoted returns words as Markdown shows code, with commas between them, or a dash if there are none.
func quoted(words []string) string {
	text := strings.Join(words, "`, `")
	if text == "" {
		return "–"
	}
	return "`" + text + "`"
}

// modeNames returns the names of all modes.
func modeNames() []string { return slices.Sorted(maps.Keys(all.Modes())) }
