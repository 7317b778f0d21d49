package cli

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"

	"github.com/urfave/cli/v2"

	"netyard/cli/api"
	"netyard/cli/table"
	"netyard/cli/usage"
)

func (p Program) leaseCommand() *cli.Command {
	pool := func() cli.Flag {
		return &cli.StringFlag{
			Name: "pool", Usage: "`POOL` of the address, as lease ls shows it; required if several pools contain it",
		}
	}
	return &cli.Command{
		Name: "lease", Usage: "list, reserve and release addresses",
		Description: usage.Describe("", "netyard lease ls", "netyard lease reserve 10.224.0.20"),
		Subcommands: []*cli.Command{
			p.leaseList(),
			{
				Name: "reserve", ArgsUsage: "ADDRESS", Usage: "reserve an address",
				Description: usage.Describe(
					"Without --name, a container gets the address only if it asks for it. With --name, the\n"+
						"container of that name gets it. An address in use becomes reserved when it is released.",
					"netyard lease reserve 10.224.0.20", "netyard lease reserve --name db 10.224.0.21"),
				Flags: []cli.Flag{pool(), &cli.StringFlag{Name: "name", Usage: "reserve it for this `CONTAINER` only"}},
				Action: leaseAction((*api.Client).Reserve, func(q api.Request) string {
					if q.Name != "" {
						return fmt.Sprintf("reserved %s of pool %s for %s", q.Address, q.Pool, q.Name)
					}
					return fmt.Sprintf("reserved %s of pool %s", q.Address, q.Pool)
				}),
			},
			{
				Name: "release", ArgsUsage: "ADDRESS", Usage: "release an address that is reserved, held or cooling",
				Description: usage.Describe("Fails if the address is in use.",
					"netyard lease release 10.224.0.20", "netyard lease release --pool 10.224.0.0/24 10.224.0.20"),
				Flags: []cli.Flag{pool()},
				Action: leaseAction((*api.Client).Release, func(q api.Request) string {
					return fmt.Sprintf("released %s of pool %s", q.Address, q.Pool)
				}),
			},
		},
	}
}

// leaseAction returns the action that calls ask with the address on the command line and prints what done returns.
func leaseAction(
	ask func(*api.Client, context.Context, api.Request) (api.Request, error), done func(api.Request) string,
) cli.ActionFunc {
	return func(c *cli.Context) error {
		a, err := netip.ParseAddr(c.Args().First())
		if err != nil {
			return usage.Errorf(c, "%q is not an IP address", c.Args().First())
		}
		q := api.Request{Pool: c.String("pool"), Address: a.String(), Name: c.String("name")}
		q, err = ask(client(c), c.Context, q)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(c.App.Writer, done(q))
		return err
	}
}

func (p Program) leaseList() *cli.Command {
	return table.List[api.Lease]{
		Fetch: func(c *cli.Context) ([]api.Lease, error) { return client(c).Leases(c.Context) },
		Order: byAddress,
		Columns: func(table.Shortener) []table.Column[api.Lease] {
			return []table.Column[api.Lease]{
				{Head: "ADDRESS", Cell: func(l api.Lease) string { return l.Address }},
				{Head: "POOL", Drop: 3, Cell: func(l api.Lease) string { return l.Pool }},
				{Head: "NETWORK", Drop: 7, Cell: func(l api.Lease) string { return l.Network }},
				{Head: "KIND", Drop: 5, Cell: func(l api.Lease) string { return l.Kind }},
				{Head: "STATE", Drop: 6, Cell: func(l api.Lease) string { return l.State }},
				{Head: "HOLDER", Drop: 8, Cell: func(l api.Lease) string { return cmp.Or(l.Name, l.MAC) }},
				{Head: "SERVER", Drop: 1, Cell: func(l api.Lease) string { return l.Server }},
				{Head: "EXPIRES", Drop: 2, Cell: func(l api.Lease) string { return moment(l.Expires) }},
				{Head: "SINCE", Drop: 4, Cell: func(l api.Lease) string { return moment(l.Since) }},
			}
		},
		Examples: []string{"netyard lease ls", "netyard lease ls --format '{{.Address}} {{.State}}'"},
	}.Command(p.Width, &cli.Command{
		Name: "ls", Usage: "list the addresses that are in use, held, cooling or reserved",
		Description: "Includes netyard's IPAM and leases from DHCP servers.",
	})
}

// byAddress orders leases by pool, then numerically by address: 10.0.0.9 comes before 10.0.0.10.
func byAddress(a, b api.Lease) int {
	x, _ := netip.ParseAddr(a.Address)
	y, _ := netip.ParseAddr(b.Address)
	return cmp.Or(cmp.Compare(a.Pool, b.Pool), x.Compare(y))
}
