package cli

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/urfave/cli/v2"

	"netyard/cli/api"
	"netyard/cli/table"
	"netyard/cli/usage"
	"netyard/cni"
	"netyard/yard/book"
	"netyard/yard/overlay"
)

const (
	dirFlag     = "dir"
	defaultFlag = "default"
)

func confDirFlag() cli.Flag {
	return &cli.StringFlag{
		Name: dirFlag, Usage: "`DIR` of CNI configurations", Value: cni.ConfDir, EnvVars: []string{"NETCONFPATH"},
	}
}

func (p Program) cniCommand() *cli.Command {
	return &cli.Command{
		Name: "cni", Usage: "install networks for nerdctl and other CNI runtimes",
		Description: usage.Describe("", "netyard cni install web", "netyard cni ls"),
		Subcommands: []*cli.Command{
			{
				Name: "install", ArgsUsage: "NETWORK", Usage: "install the CNI configuration of a network",
				Description: usage.Describe("Containers use the network with nerdctl run --net NETWORK.",
					"netyard cni install web", "netyard cni install --default web"),
				Flags: []cli.Flag{confDirFlag(), &cli.BoolFlag{
					Name: defaultFlag, Usage: "also make it the default network, in place of nerdctl's own",
				}},
				BashComplete: complete(networkNames), Action: cniInstall,
			},
			{
				Name: "uninstall", ArgsUsage: "NETWORK", Usage: "uninstall the CNI configuration of a network",
				Description: usage.Describe("The network itself stays.",
					"netyard cni uninstall web", "netyard cni uninstall --dir /etc/cni/net.d web"),
				Flags: []cli.Flag{confDirFlag()}, BashComplete: complete(networkNames), Action: cniUninstall,
			},
			p.cniList(),
		},
	}
}

func cniInstall(c *cli.Context) error {
	n, err := client(c).Network(c.Context, c.Args().First())
	if err != nil {
		return err
	}
	if n.Name == "" {
		return fmt.Errorf("install network %s: its name is not known until its engine answers", n.ID)
	}
	var ranges []cni.Range
	for _, s := range n.Subnets {
		if s.IPAM != book.Space && s.IPAM != overlay.Space {
			return fmt.Errorf("install network %s: the addresses of %s are managed by %s's own IPAM; "+
				"only networks created with --ipam-driver netyard can be shared", n.Name, s.Pool, n.Engine)
		}
		ranges = append(ranges, cni.Range{Subnet: s.Pool, Gateway: s.Gateway})
	}
	names := []string{n.Name}
	if c.Bool(defaultFlag) && n.Name != cni.DefaultNetwork {
		names = append(names, cni.DefaultNetwork)
	}
	for _, name := range names {
		conf := cni.New(name, n.Name, n.ID, n.Mode, filepath.Join(c.String(runDirFlag), cni.SocketName), ranges)
		path, err := conf.Install(c.String(dirFlag))
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(c.App.Writer, "installed %s as %s: %s\n", n.Name, name, path); err != nil {
			return err
		}
	}
	return nil
}

func cniUninstall(c *cli.Context) error {
	paths, err := uninstalled(c, c.Args().First())
	if err == nil && len(paths) == 0 {
		err = fmt.Errorf("uninstall network %s: it has no configuration in %s", c.Args().First(), c.String(dirFlag))
	}
	return err
}

// uninstalled removes the CNI configurations of a network and prints which.
func uninstalled(c *cli.Context, network string) ([]string, error) {
	paths, err := cni.Uninstall(c.String(dirFlag), network)
	for _, path := range paths {
		if _, err := fmt.Fprintf(c.App.Writer, "removed %s\n", path); err != nil {
			return paths, err
		}
	}
	return paths, err
}

func (p Program) cniList() *cli.Command {
	return table.List[cni.Installed]{
		Fetch: func(c *cli.Context) ([]cni.Installed, error) { return cni.List(c.String(dirFlag)) },
		Order: func(a, b cni.Installed) int { return cmp.Compare(a.Name, b.Name) },
		Columns: func(table.Shortener) []table.Column[cni.Installed] {
			return []table.Column[cni.Installed]{
				{Head: "NAME", Cell: func(i cni.Installed) string { return i.Name }},
				{Head: "NETWORK", Drop: 2, Cell: func(i cni.Installed) string { return i.Network }},
				{Head: "FILE", Drop: 1, Cell: func(i cni.Installed) string { return i.Path }},
			}
		},
		Examples: []string{"netyard cni ls", "netyard cni ls --format '{{.Path}}'"},
	}.Command(p.Width, &cli.Command{
		Name: "ls", Usage: "list the installed CNI configurations of netyard's networks",
		Flags: []cli.Flag{confDirFlag()},
	})
}

// networkCreate creates a network that belongs to no engine.
func networkCreate() *cli.Command {
	many := func(name, usage string, aliases ...string) cli.Flag {
		return &cli.StringSliceFlag{Name: name, Aliases: aliases, Usage: usage}
	}
	return &cli.Command{
		Name: "create", ArgsUsage: "NAME", Usage: "create a network that belongs to no engine",
		Description: usage.Describe(
			"Addresses come from netyard's IPAM. netyard cni install makes the network available to\n"+
				"nerdctl. Prints the network's ID.", "netyard network create web",
			"netyard network create --mode macvlan -o parent=eth0 --subnet 192.0.2.0/24 --gateway 192.0.2.1 lan"),
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "mode", Usage: "the network's `MODE`", DefaultText: "bridge"},
			many("subnet", "`CIDR` of a subnet; without this flag, netyard chooses one"),
			many("gateway", "`ADDRESS` of the gateway in a subnet"),
			many("ip-range", "`CIDR` in a subnet that dynamic addresses are taken from"),
			many("aux-address", "`NAME=ADDRESS` in a subnet that no container gets"),
			&cli.BoolFlag{Name: "ipv6", Usage: "add an IPv6 subnet"},
			&cli.BoolFlag{Name: "internal", Usage: "isolate the network from everything outside it"},
			many("opt", "option `KEY=VALUE`; netyard options lists them", "o"),
		},
		Action: func(c *cli.Context) error {
			options, err := usage.Pairs(c, "opt")
			if err != nil {
				return err
			}
			aux, err := usage.Pairs(c, "aux-address")
			if err != nil {
				return err
			}
			return makeNetwork(c, api.NetworkRequest{
				Name: c.Args().First(), Mode: c.String("mode"), Options: options, Subnets: c.StringSlice("subnet"),
				Gateways: c.StringSlice("gateway"), Ranges: c.StringSlice("ip-range"), Aux: aux,
				IPv6: c.Bool("ipv6"), Internal: c.Bool("internal"),
			})
		},
	}
}

// networkRemove removes a network that belongs to no engine, and its CNI configurations.
func networkRemove() *cli.Command {
	return &cli.Command{
		Name: "rm", ArgsUsage: "NAME", Usage: "remove a network that belongs to no engine",
		Description: usage.Describe(
			"Such a network was created by netyard network create or by a CNI configuration. Its CNI\n"+
				"configurations are removed too. Fails while containers are attached.\n"+
				"Docker's networks are removed by docker network rm.",
			"netyard network rm web", "netyard network rm 9e76b970fe2e"),
		Flags: []cli.Flag{confDirFlag()}, BashComplete: complete(ownNetworks),
		Action: func(c *cli.Context) error {
			n, err := client(c).RemoveNetwork(c.Context, c.Args().First())
			if err != nil {
				return err
			}
			_, err = uninstalled(c, n.Name)
			return err
		},
	}
}

// ownNetworks returns the names of the networks that belong to no engine.
func ownNetworks(c *cli.Context) (names []string) {
	ns, _ := client(c).Networks(c.Context) // without a daemon there is nothing to complete
	for _, n := range slices.DeleteFunc(ns, func(n api.Network) bool { return n.Engine != book.Own }) {
		names = append(names, n.Name)
	}
	return names
}
