package cli

import (
	"cmp"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"netyard/cli/api"
	"netyard/cli/table"
	"netyard/cli/usage"
)

func (p Program) networkCommand() *cli.Command {
	return &cli.Command{
		Name: "network", Usage: "list, inspect and change networks, and manage those that belong to no engine",
		Description: usage.Describe("", "netyard network ls", "netyard network inspect web"),
		Subcommands: []*cli.Command{
			p.networkList(), networkCreate(), networkAttach(), networkRemove(),
			table.Inspect(&cli.Command{
				Name: "inspect", ArgsUsage: "NAME", Usage: "show a network and its kernel objects",
				Description: usage.Describe("NAME is the network's name, ID or ID prefix.\n"+
					"For an overlay, the endpoints on all hosts are shown too.",
					"netyard network inspect web", "netyard network inspect web --format '{{json .Objects}}'"),
				BashComplete: complete(networkNames),
			}, func(c *cli.Context, ref string) (api.Network, error) { return client(c).Network(c.Context, ref) }),
			networkSet(),
		},
	}
}

func (p Program) networkList() *cli.Command {
	return table.List[api.Network]{
		Fetch: func(c *cli.Context) ([]api.Network, error) { return client(c).Networks(c.Context) },
		Order: func(a, b api.Network) int { return cmp.Compare(cmp.Or(a.Name, a.ID), cmp.Or(b.Name, b.ID)) },
		ID:    func(n api.Network) string { return n.ID },
		Columns: func(id table.Shortener) []table.Column[api.Network] {
			return []table.Column[api.Network]{
				{Head: "ID", Drop: 1, Cell: func(n api.Network) string { return id(n.ID) }},
				{Head: "NAME", Cell: func(n api.Network) string { return cmp.Or(n.Name, id(n.ID)) }},
				{Head: "MODE", Drop: 5, Cell: func(n api.Network) string { return n.Mode }},
				{Head: "SUBNETS", Drop: 6, Cell: subnets},
				{Head: "INTERNAL", Drop: 2, Cell: func(n api.Network) string { return yesNo(n.Internal) }},
				{Head: "ENDPOINTS", Drop: 3, Cell: func(n api.Network) string {
					return strconv.Itoa(n.Endpoints)
				}},
				{Head: "STATE", Drop: 4, Cell: func(n api.Network) string { return n.State }},
			}
		},
		Examples: []string{"netyard network ls", "netyard network ls --format '{{.Name}} {{.Mode}}'"},
	}.Command(p.Width, &cli.Command{Name: "ls", Usage: "list networks"})
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
