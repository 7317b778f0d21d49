package cli

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

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

func (p Program) optionsCommand() *cli.Command {
	return list[optionRow]{
		fetch: optionRows,
		order: func(a, b optionRow) int { return cmp.Compare(a.Name, b.Name) },
		columns: func(shortener) []column[optionRow] {
			return []column[optionRow]{
				{head: "NAME", cell: func(o optionRow) string { return o.Name }},
				{head: "DOCKER", fit: fit{drop: 1}, cell: func(o optionRow) string {
					return strings.Join(o.Docker, ", ")
				}},
				{head: "MODES", fit: fit{drop: 2}, cell: func(o optionRow) string {
					return strings.Join(o.Modes, ", ")
				}},
				{head: "TYPE", fit: fit{drop: 3}, cell: func(o optionRow) string { return o.Type }},
				{head: "DEFAULT", fit: fit{drop: 4}, cell: func(o optionRow) string { return o.Default }},
				{head: "HELP", fit: fit{drop: 5, min: 30}, cell: func(o optionRow) string { return o.Help }},
			}
		},
		examples: []string{"netyard options bridge", "netyard options --format '{{.Name}}={{.Default}}'"},
	}.command(p.Width, &cli.Command{
		Name: "options", ArgsUsage: "[MODE]", Usage: "list the options of networks, or those of one mode",
		Description: "docker network create and netyard network create set them with -o.\n" +
			"DOCKER shows other keys that are accepted.",
		BashComplete: complete(func(*cli.Context) []string { return modeNames() }),
	})
}

// optionRows returns the options of all modes or of one. It does not ask the daemon.
func optionRows(c *cli.Context) (rows []optionRow, err error) {
	mode := c.Args().First()
	if known := modeNames(); mode != "" && !slices.Contains(known, mode) {
		return nil, unknown(c, "mode", mode, known)
	}
	for _, o := range modes.Options() {
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
	case modes.Sources:
		return "subnets|interfaces"
	case modes.Routes:
		return "routes"
	case modes.String:
	}
	return "text"
}

// modeNames returns the names of all modes.
func modeNames() []string { return slices.Sorted(maps.Keys(all.Modes())) }
