package cli

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"netyard/cli/api"
	"netyard/modes"
	"netyard/modes/all"
)

func (p Program) clusterNetworks() *cli.Command {
	return list[api.Overlay]{
		fetch: func(c *cli.Context) ([]api.Overlay, error) { return client(c).Overlays(c.Context) },
		order: func(a, b api.Overlay) int { return strings.Compare(a.Name, b.Name) },
		columns: func(shortener) []column[api.Overlay] {
			return []column[api.Overlay]{
				{head: "NAME", cell: func(n api.Overlay) string { return n.Name }},
				{head: "SUBNETS", fit: fit{goes: 4}, cell: func(n api.Overlay) string { return subnets(api.Network{Subnets: n.Subnets}) }},
				{head: "VNI", fit: fit{goes: 1}, cell: func(n api.Overlay) string { return strconv.FormatUint(uint64(n.VNI), 10) }},
				{head: "MTU", fit: fit{goes: 2}, cell: func(n api.Overlay) string { return strconv.Itoa(n.MTU) }},
				{head: "INTERNAL", fit: fit{goes: 3}, cell: func(n api.Overlay) string { return yesNo(n.Internal) }},
				{head: "HOSTS", cell: func(n api.Overlay) string { return strings.Join(n.Hosts, ", ") }},
			}
		},
	}.command(p.Width, &cli.Command{Name: "networks", Usage: "list the networks of the cluster, and the hosts that they are on"})
}

func clusterRemove() *cli.Command {
	return &cli.Command{
		Name: "rm", ArgsUsage: "NETWORK", Usage: "take a network out of the cluster that no host has any more; netyard network rm on the last one does it, too",
		BashComplete: complete(overlayNames),
		Action: func(c *cli.Context) error {
			if c.Args().Len() != 1 {
				return usagef(c, "say one network")
			}
			return client(c).RemoveOverlay(c.Context, c.Args().First())
		},
	}
}

// overlayNames are the networks of the cluster.
func overlayNames(c *cli.Context) (names []string) {
	ns, _ := client(c).Overlays(c.Context) // no cluster, no names
	for _, n := range ns {
		names = append(names, n.Name)
	}
	return names
}

// networkAttach has a network of the cluster on this host as well.
func networkAttach() *cli.Command {
	return &cli.Command{
		Name: "attach", ArgsUsage: "NAME", Usage: "have a network of the cluster on this host, as netyard network create made it on another",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "docker", Usage: "do nothing, and print the docker network create that does it for this host's Docker"},
		},
		BashComplete: complete(overlayNames),
		Action: func(c *cli.Context) error {
			if c.Args().Len() != 1 {
				return usagef(c, "say one network")
			}
			name := c.Args().First()
			if c.Bool("docker") {
				return printDockerCreate(c, name)
			}
			n, err := client(c).MakeNetwork(c.Context, api.NetworkRequest{Name: name, Mode: clusterMode()})
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(c.App.Writer, n.ID)
			return err
		},
	}
}

// clusterMode is the mode of networks that are in a cluster.
func clusterMode() string {
	for name, m := range all.On(modes.Env{}) {
		if m.Traits(modes.Network{}).Cluster != nil {
			return name
		}
	}
	return ""
}

// printDockerCreate prints the command that gives Docker a network of the cluster. With all its subnets: or Docker
// would take no --ip.
func printDockerCreate(c *cli.Context, name string) error {
	all, err := client(c).Overlays(c.Context)
	if err != nil {
		return err
	}
	at := slices.IndexFunc(all, func(n api.Overlay) bool { return n.Name == name })
	if at < 0 {
		return fmt.Errorf("network %s is not in the cluster; netyard cluster networks shows what is", name)
	}
	words := []string{"docker network create -d netyard-overlay --ipam-driver netyard-overlay", "-o overlay=" + name, "--ipam-opt overlay=" + name}
	if all[at].Internal {
		words = append(words, "--internal")
	}
	for _, s := range all[at].Subnets {
		if strings.Contains(s.Pool, ":") && !slices.Contains(words, "--ipv6") {
			words = append(words, "--ipv6")
		}
		words = append(words, "--subnet "+s.Pool)
	}
	_, err = fmt.Fprintln(c.App.Writer, strings.Join(append(words, name), " "))
	return err
}
