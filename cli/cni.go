package cli

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/urfave/cli/v2"

	"netyard/cli/api"
	"netyard/cni"
	"netyard/yard/book"
	"netyard/yard/overlay"
)

const (
	dirFlag     = "dir"
	defaultFlag = "default"
)

func confDirFlag() cli.Flag {
	return &cli.StringFlag{Name: dirFlag, Usage: "`DIR` where runtimes look for networks", Value: cni.ConfDir, EnvVars: []string{"NETCONFPATH"}}
}

func (p Program) cniCommand() *cli.Command {
	return &cli.Command{
		Name: "cni", Usage: "give networks to nerdctl, and to whatever else speaks CNI",
		Subcommands: []*cli.Command{
			{
				Name: "install", ArgsUsage: "NETWORK", Usage: "let nerdctl have a network: nerdctl run --net NETWORK",
				Flags: []cli.Flag{confDirFlag(), &cli.BoolFlag{
					Name: defaultFlag, Usage: "also make it the network of containers that name none, in place of nerdctl's own",
				}},
				BashComplete: complete(networkNames), Action: cniInstall,
			},
			{
				Name: "uninstall", ArgsUsage: "NETWORK", Usage: "take it away from nerdctl again; the network stays",
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
		return fmt.Errorf("network %s has no name yet: its engine was not asked", n.ID)
	}
	var ranges []cni.Range
	for _, s := range n.Subnets {
		if s.IPAM != book.Space && s.IPAM != overlay.OverlaySpace {
			return fmt.Errorf("network %s: the addresses of %s are given by %s's own IPAM; only a network that was created with --ipam-driver netyard can be shared",
				n.Name, s.Pool, n.Engine)
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
		err = fmt.Errorf("network %s is not installed in %s", c.Args().First(), c.String(dirFlag))
	}
	return err
}

// uninstalled removes a network's configurations and says so.
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
	return list[cni.Installed]{
		fetch: func(c *cli.Context) ([]cni.Installed, error) { return cni.List(c.String(dirFlag)) },
		order: func(a, b cni.Installed) int { return cmp.Compare(a.Name, b.Name) },
		columns: func(shortener) []column[cni.Installed] {
			return []column[cni.Installed]{
				{head: "NAME", cell: func(i cni.Installed) string { return i.Name }},
				{head: "NETWORK", fit: fit{goes: 2}, cell: func(i cni.Installed) string { return i.Network }},
				{head: "FILE", fit: fit{goes: 1}, cell: func(i cni.Installed) string { return i.Path }},
			}
		},
	}.command(p.Width, &cli.Command{Name: "ls", Usage: "list the networks that nerdctl has of netyard's", Flags: []cli.Flag{confDirFlag()}})
}

// networkCreate makes a network without an engine.
func networkCreate() *cli.Command {
	many := func(name, usage string, aliases ...string) cli.Flag {
		return &cli.StringSliceFlag{Name: name, Aliases: aliases, Usage: usage}
	}
	return &cli.Command{
		Name: "create", ArgsUsage: "NAME", Usage: "make a network that belongs to no engine; netyard cni install gives it to nerdctl",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "mode", Usage: "the network's `MODE`", DefaultText: "bridge"},
			many("subnet", "an address range, `CIDR`; without any, netyard chooses"), many("gateway", "the host's `ADDRESS` in a subnet"),
			many("ip-range", "the part of a subnet, `CIDR`, that dynamic addresses are from"),
			many("aux-address", "an address in a subnet that no container gets, `NAME=ADDRESS`"),
			&cli.BoolFlag{Name: "ipv6", Usage: "with an IPv6 subnet"}, &cli.BoolFlag{Name: "internal", Usage: "without a way out"},
			many("opt", "an option, `KEY=VALUE`; netyard options lists them", "o"),
		},
		Action: func(c *cli.Context) error {
			options, err := pairs(c, "opt")
			if err != nil {
				return err
			}
			aux, err := pairs(c, "aux-address")
			if err != nil {
				return err
			}
			n, err := client(c).MakeNetwork(c.Context, api.NetworkRequest{
				Aux:  aux,
				Name: c.Args().First(), Mode: c.String("mode"), Options: options, Subnets: c.StringSlice("subnet"),
				Gateways: c.StringSlice("gateway"), Ranges: c.StringSlice("ip-range"), IPv6: c.Bool("ipv6"), Internal: c.Bool("internal"),
			})
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(c.App.Writer, n.ID)
			return err
		},
	}
}

// networkRemove removes one, and what nerdctl has of it.
func networkRemove() *cli.Command {
	return &cli.Command{
		Name: "rm", ArgsUsage: "NAME", Usage: "remove a network that netyard network create, or a CNI configuration, made",
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

func ownNetworks(c *cli.Context) (names []string) {
	ns, _ := client(c).Networks(c.Context) // no daemon, no names
	for _, n := range slices.DeleteFunc(ns, func(n api.Network) bool { return n.Engine != book.Own }) {
		names = append(names, n.Name)
	}
	return names
}
