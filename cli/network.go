package cli

import (
	"cmp"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"netyard/cli/api"
	"netyard/cli/usage"
)

func (p Program) networkCommand() *cli.Command {
	return &cli.Command{
		Name: "network", Usage: "list, inspect and change networks, and manage those that belong to no engine",
		Description: usage.Describe("", "netyard network ls", "netyard network inspect web"),
		Subcommands: []*cli.Command{
			p.networkList(), networkCreate(), networkAttach(), networkRemove(),
			inspectCommand(&cli.Command{
				Name: "inspect", ArgsUsage: "NAME", Usage: "show a network and its kernel objects",
				Description: usage.Describe("NAME is its name, its ID or the beginning of its ID.\n"+
					"For an overlay, the endpoints on all hosts are shown too.",
					"netyard network inspect web", "netyard network inspect web --format '{{json .Objects}}'"),
				BashComplete: complete(networkNames),
			}, func(c *cli.Context, ref string) (api.Network, error) { return client(c).Network(c.Context, ref) }),
			networkSet(),
		},
	}
}

func (p Program) networkList() *cli.Command {
	return list[api.Network]{
		fetch: func(c *cli.Context) ([]api.Network, error) { return client(c).Networks(c.Context) },
		order: func(a, b api.Network) int { return cmp.Compare(cmp.Or(a.Name, a.ID), cmp.Or(b.Name, b.ID)) },
		id:    func(n api.Network) string { return n.ID },
		columns: func(id shortener) []column[api.Network] {
			return []column[api.Network]{
				{head: "ID", fit: fit{drop: 1}, cell: func(n api.Network) string { return id(n.ID) }},
				{head: "NAME", cell: func(n api.Network) string { return cmp.Or(n.Name, id(n.ID)) }},
				{head: "MODE", fit: fit{drop: 5}, cell: func(n api.Network) string { return n.Mode }},
				{head: "SUBNETS", fit: fit{drop: 6}, cell: subnets},
				{head: "INTERNAL", fit: fit{drop: 2}, cell: func(n api.Network) string { return yesNo(n.Internal) }},
				{head: "ENDPOINTS", fit: fit{drop: 3}, cell: func(n api.Network) string {
					return strconv.Itoa(n.Endpoints)
				}},
				{head: "STATE", fit: fit{drop: 4}, cell: func(n api.Network) string { return n.State }},
			}
		},
		examples: []string{"netyard network ls", "netyard network ls --format '{{.Name}} {{.Mode}}'"},
	}.command(p.Width, &cli.Command{Name: "ls", Usage: "list networks"})
}

func subnets(n api.Network) string {
	var pools []string
	for _, s := range n.Subnets {
		pools = append(pools, s.Pool)
	}
	return strings.Join(pools, ", ")
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func networkNames(c *cli.Context) (names []string) {
	ns, _ := client(c).Networks(c.Context) // without a daemon there is nothing to complete
	for _, n := range ns {
		names = append(names, cmp.Or(n.Name, n.ID))
	}
	return names
}
