package cli

import (
	"cmp"
	"time"

	"github.com/urfave/cli/v2"

	"netyard/cli/api"
	"netyard/cli/table"
	"netyard/cli/usage"
)

func (p Program) endpointCommand() *cli.Command {
	return &cli.Command{
		Name: "endpoint", Usage: "list, inspect and change endpoints",
		Description: usage.Describe("An endpoint is a container's place on one network.",
			"netyard endpoint ls", "netyard endpoint inspect web1"),
		Subcommands: []*cli.Command{
			p.endpointList(),
			table.Inspect(&cli.Command{
				Name: "inspect", ArgsUsage: "ID|CONTAINER", Usage: "show an endpoint",
				Description: usage.Describe(
					"ID is the endpoint's ID, CONTAINER the name or ID of its container, for a pod also\n"+
						"NAMESPACE/NAME. A prefix of an ID is enough.",
					"netyard endpoint inspect web1", "netyard endpoint inspect web1 --format '{{json .Options}}'"),
				BashComplete: complete(containerNames),
			}, func(c *cli.Context, ref string) (api.Endpoint, error) { return client(c).Endpoint(c.Context, ref) }),
			endpointSet(),
		},
	}
}

// endpointList lists what netyard ps leaves out of an endpoint's record.
func (p Program) endpointList() *cli.Command {
	return table.List[api.Endpoint]{
		Fetch: func(c *cli.Context) ([]api.Endpoint, error) { return client(c).Endpoints(c.Context) },
		Order: byNetwork,
		ID:    func(e api.Endpoint) string { return e.ID },
		Columns: func(id table.Shortener) []table.Column[api.Endpoint] {
			return []table.Column[api.Endpoint]{
				{Head: "ID", Cell: func(e api.Endpoint) string { return id(e.ID) }},
				{Head: "NETWORK", Drop: 5, Cell: func(e api.Endpoint) string { return networkOf(e, id) }},
				{Head: "CONTAINER", Drop: 6, Cell: func(e api.Endpoint) string {
					return cmp.Or(e.Container, id(e.ContainerID))
				}},
				{Head: "SANDBOX", Drop: 1, Cell: func(e api.Endpoint) string { return e.Sandbox }},
				{Head: "CREATED", Drop: 2, Cell: func(e api.Endpoint) string { return moment(e.Created) }},
				{Head: "JOINED", Drop: 3, Cell: func(e api.Endpoint) string { return moment(e.Joined) }},
				{Head: "STATE", Drop: 4, Cell: func(e api.Endpoint) string { return e.State }},
			}
		},
		Examples: []string{"netyard endpoint ls", "netyard endpoint ls --format '{{.ID}} {{.State}}'"},
	}.Command(p.Width, &cli.Command{
		Name: "ls", Usage: "list endpoints", Description: "netyard ps shows their addresses, interfaces and ports.",
	})
}

// moment formats a time for tables.
func moment(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format(time.DateTime)
}

// containerNames returns the names of the endpoints' containers, and the ID of an endpoint whose container has none.
func containerNames(c *cli.Context) (names []string) {
	es, _ := client(c).Endpoints(c.Context) // without a daemon there is nothing to complete
	for _, e := range es {
		names = append(names, cmp.Or(e.Container, e.ID))
	}
	return names
}
