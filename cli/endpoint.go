package cli

import (
	"cmp"
	"time"

	"github.com/urfave/cli/v2"

	"netyard/cli/api"
	"netyard/cli/usage"
)

func (p Program) endpointCommand() *cli.Command {
	return &cli.Command{
		Name: "endpoint", Usage: "list, inspect and change endpoints",
		Description: usage.Describe("An endpoint is a container's place on one network.",
			"netyard endpoint ls", "netyard endpoint inspect web1"),
		Subcommands: []*cli.Command{
			p.endpointList(),
			inspectCommand(&cli.Command{
				Name: "inspect", ArgsUsage: "ID|CONTAINER", Usage: "show an endpoint",
				Description: usage.Describe("ID is its ID or the beginning of it, CONTAINER its container's name.",
					"netyard endpoint inspect web1", "netyard endpoint inspect web1 --format '{{json .Options}}'"),
				BashComplete: complete(containerNames),
			}, func(c *cli.Context, ref string) (api.Endpoint, error) { return client(c).Endpoint(c.Context, ref) }),
			endpointSet(),
		},
	}
}

// endpointList lists what netyard ps leaves out of an endpoint's record.
func (p Program) endpointList() *cli.Command {
	return list[api.Endpoint]{
		fetch: func(c *cli.Context) ([]api.Endpoint, error) { return client(c).Endpoints(c.Context) },
		order: byNetwork,
		id:    func(e api.Endpoint) string { return e.ID },
		columns: func(id shortener) []column[api.Endpoint] {
			return []column[api.Endpoint]{
				{head: "ID", cell: func(e api.Endpoint) string { return id(e.ID) }},
				{head: "NETWORK", fit: fit{drop: 5}, cell: func(e api.Endpoint) string { return networkOf(e, id) }},
				{head: "CONTAINER", fit: fit{drop: 6}, cell: func(e api.Endpoint) string {
					return cmp.Or(e.Container, id(e.ContainerID))
				}},
				{head: "SANDBOX", fit: fit{drop: 1}, cell: func(e api.Endpoint) string { return e.Sandbox }},
				{head: "CREATED", fit: fit{drop: 2}, cell: func(e api.Endpoint) string { return moment(e.Created) }},
				{head: "JOINED", fit: fit{drop: 3}, cell: func(e api.Endpoint) string { return moment(e.Joined) }},
				{head: "STATE", fit: fit{drop: 4}, cell: func(e api.Endpoint) string { return e.State }},
			}
		},
		examples: []string{"netyard endpoint ls", "netyard endpoint ls --format '{{.ID}} {{.State}}'"},
	}.command(p.Width, &cli.Command{
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
