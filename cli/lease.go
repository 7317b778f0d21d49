package cli

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"

	"github.com/urfave/cli/v2"

	"netyard/cli/api"
)

func (p Program) leaseCommand() *cli.Command {
	pool := func() cli.Flag {
		return &cli.StringFlag{Name: "pool", Usage: "the `POOL` of the address, as lease ls shows it; needed only when several have it"}
	}
	return &cli.Command{
		Name: "lease", Usage: "look at the addresses of netyard's own IPAM, and set some aside",
		Subcommands: []*cli.Command{
			p.leaseList(),
			{
				Name: "reserve", ArgsUsage: "ADDRESS", Usage: "keep an address for who asks for it by address",
				Flags: []cli.Flag{pool(), &cli.StringFlag{Name: "name", Usage: "keep it for the `CONTAINER` of that name only"}},
				Action: leaseAction((*api.Client).Reserve, func(q api.Request) string {
					if q.Name != "" {
						return fmt.Sprintf("reserved %s of pool %s for %s", q.Address, q.Pool, q.Name)
					}
					return fmt.Sprintf("reserved %s of pool %s", q.Address, q.Pool)
				}),
			},
			{
				Name: "release", ArgsUsage: "ADDRESS", Usage: "end a reservation, or free an address that nobody has any more",
				Flags: []cli.Flag{pool()},
				Action: leaseAction((*api.Client).Release, func(q api.Request) string {
					return fmt.Sprintf("released %s of pool %s", q.Address, q.Pool)
				}),
			},
		},
	}
}

// leaseAction asks the daemon for what ask says, about the address on the command line.
func leaseAction(
	ask func(*api.Client, context.Context, api.Request) (api.Request, error), done func(api.Request) string,
) cli.ActionFunc {
	return func(c *cli.Context) error {
		a, err := netip.ParseAddr(c.Args().First())
		if err != nil {
			return usagef(c, "%q is not an address", c.Args().First())
		}
		q, err := ask(client(c), c.Context, api.Request{Pool: c.String("pool"), Address: a.String(), Name: c.String("name")})
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(c.App.Writer, done(q))
		return err
	}
}

func (p Program) leaseList() *cli.Command {
	return list[api.Lease]{
		fetch: func(c *cli.Context) ([]api.Lease, error) { return client(c).Leases(c.Context) },
		order: byAddress,
		columns: func(shortener) []column[api.Lease] {
			return []column[api.Lease]{
				{head: "ADDRESS", cell: func(l api.Lease) string { return l.Address }},
				{head: "POOL", fit: fit{goes: 3}, cell: func(l api.Lease) string { return l.Pool }},
				{head: "NETWORK", fit: fit{goes: 7}, cell: func(l api.Lease) string { return l.Network }},
				{head: "KIND", fit: fit{goes: 5}, cell: func(l api.Lease) string { return l.Kind }},
				{head: "STATE", fit: fit{goes: 6}, cell: func(l api.Lease) string { return l.State }},
				{head: "HOLDER", fit: fit{goes: 8}, cell: func(l api.Lease) string { return cmp.Or(l.Name, l.MAC) }},
				{head: "SERVER", fit: fit{goes: 1}, cell: func(l api.Lease) string { return l.Server }},
				{head: "EXPIRES", fit: fit{goes: 2}, cell: func(l api.Lease) string { return moment(l.Expires) }},
				{head: "SINCE", fit: fit{goes: 4}, cell: func(l api.Lease) string { return moment(l.Since) }},
			}
		},
	}.command(p.Width, &cli.Command{Name: "ls", Usage: "list the addresses that are not free"})
}

// byAddress puts 10.0.0.9 before 10.0.0.10, and pools that overlap one after the other.
func byAddress(a, b api.Lease) int {
	x, _ := netip.ParseAddr(a.Address)
	y, _ := netip.ParseAddr(b.Address)
	return cmp.Or(cmp.Compare(a.Pool, b.Pool), x.Compare(y))
}
