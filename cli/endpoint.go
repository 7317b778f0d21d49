package cli

import (
	"cmp"
	"time"

	"github.com/urfave/cli/v2"

	"netyard/cli/api"
)

func (p Program) endpointCommand() *cli.Command {
	return &cli.Command{
		Name: "endpoint", Usage: "look at endpoints and change them: a container's places in networks, as netyard has them on record",
		Subcommands: []*cli.Command{
			p.endpointList(),
			inspectCommand(&cli.Command{
				Name: "inspect", ArgsUsage: "ID|CONTAINER", Usage: "show an endpoint",
				Description:  "It is found by id, the beginning of its id, or its container's name.",
				BashComplete: complete(containerNames),
			}, func(c *cli.Context, ref string) (api.Endpoint, error) { return client(c).Endpoint(c.Context, ref) }),
			endpointSet(),
		},
	}
}

// endpointList shows of the records what netyard ps leaves out.
func (p Program) endpointList() *cli.Command {
	return list[api.Endpoint]{
		fetch: func(c *cli.Context) ([]api.Endpoint, error) { return client(c).Endpoints(c.Context) },
		order: byNetwork,
		id:    func(e api.Endpoint) string { return e.ID },
		columns: func(id shortener) []column[api.Endpoint] {
			return []column[api.Endpoint]{
				{head: "ID", cell: func(e api.Endpoint) string { return id(e.ID) }},
				{head: "NETWORK", fit: fit{goes: 5}, cell: func(e api.Endpoint) string { return networkOf(e, id) }},
				{head: "CONTAINER", fit: fit{goes: 6}, cell: func(e api.Endpoint) string { return cmp.Or(e.Container, id(e.ContainerID)) }},
				{head: "SANDBOX", fit: fit{goes: 1}, cell: func(e api.Endpoint) string { return e.Sandbox }},
				{head: "CREATED", fit: fit{goes: 2}, cell: func(e api.Endpoint) string { return moment(e.Created) }},
				{head: "JOINED", fit: fit{goes: 3}, cell: func(e api.Endpoint) string { return moment(e.Joined) }},
				{head: "STATE", fit: fit{goes: 4}, cell: func(e api.Endpoint) string { return e.State }},
			}
		},
	}.command(p.Width, &cli.Command{Name: "ls", Usage: "list endpoints"})
}

// moment is a time as tables show it.
func moment(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format(time.DateTime)
}

func containerNames(c *cli.Context) (names []string) {
	es, _ := client(c).Endpoints(c.Context) // no daemon, no names
	for _, e := range es {
		names = append(names, cmp.Or(e.Container, e.ID))
	}
	return names
}
