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

// An optionRow is an option of networks as netyard options shows it.
type optionRow struct {
	Name    string   `json:"name"`
	Docker  []string `json:"docker"`
	Modes   []string `json:"modes"`
	Type    string   `json:"type"`
	Default string   `json:"default"`
	// Endpoint: it can be said for one endpoint. Set: it can be changed in place.
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
				{head: "DOCKER", fit: fit{goes: 1}, cell: func(o optionRow) string { return strings.Join(o.Docker, ", ") }},
				{head: "MODES", fit: fit{goes: 2}, cell: func(o optionRow) string { return strings.Join(o.Modes, ", ") }},
				{head: "TYPE", fit: fit{goes: 3}, cell: func(o optionRow) string { return o.Type }},
				{head: "DEFAULT", fit: fit{goes: 4}, cell: func(o optionRow) string { return o.Default }},
				{head: "HELP", fit: fit{goes: 5, min: 30}, cell: func(o optionRow) string { return o.Help }},
			}
		},
	}.command(p.Width, &cli.Command{
		Name: "options", ArgsUsage: "[MODE]", BashComplete: complete(func(*cli.Context) []string { return modeNames() }),
		Usage: "list the options of networks, what docker network create takes with -o, and Docker's keys for them",
	})
}

// optionRows is the table of options, or what one mode knows of it. It needs no daemon.
func optionRows(c *cli.Context) (rows []optionRow, err error) {
	mode := c.Args().First()
	if known := modeNames(); mode != "" && !slices.Contains(known, mode) {
		return nil, unknown(c, "mode", mode, known)
	}
	for _, o := range all.Options().Options() {
		if mode != "" && o.Modes != nil && !slices.Contains(o.Modes, mode) {
			continue
		}
		row := optionRow{
			Name: o.Name, Docker: append([]string{}, o.Docker...), Modes: o.Modes, Type: typeOf(o), Default: o.Default, Help: o.Help,
			Endpoint: o.Endpoint, Set: o.Set,
		}
		if row.Modes == nil {
			row.Modes = modeNames()
		}
		rows = append(rows, row)
	}
	return rows, nil
}

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

func modeNames() []string { return slices.Sorted(maps.Keys(all.Modes())) }
