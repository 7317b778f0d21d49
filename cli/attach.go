package cli

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"netyard/cli/api"
	"netyard/cli/table"
	"netyard/cli/usage"
	"netyard/modes"
	"netyard/modes/all"
	"netyard/yard/overlay"
)

func (p Program) clusterNetworks() *cli.Command {
	return table.List[api.Overlay]{
		Fetch: func(c *cli.Context) ([]api.Overlay, error) { return client(c).Overlays(c.Context) },
		Order: func(a, b api.Overlay) int { return strings.Compare(a.Name, b.Name) },
		Columns: func(table.Shortener) []table.Column[api.Overlay] {
			return []table.Column[api.Overlay]{
				{Head: "NAME", Cell: func(n api.Overlay) string { return n.Name }},
				{Head: "SUBNETS", Drop: 4, Cell: func(n api.Overlay) string {
					return subnets(api.Network{Subnets: n.Subnets})
				}},
				{Head: "VNI", Drop: 1, Cell: func(n api.Overlay) string {
					return strconv.FormatUint(uint64(n.VNI), 10)
				}},
				{Head: "MTU", Drop: 2, Cell: func(n api.Overlay) string { return strconv.Itoa(n.MTU) }},
				{Head: "INTERNAL", Drop: 3, Cell: func(n api.Overlay) string { return yesNo(n.Internal) }},
				{Head: "HOSTS", Cell: func(n api.Overlay) string { return strings.Join(n.Hosts, ", ") }},
			}
		},
		Examples: []string{
			"netyard cluster networks", `netyard cluster networks --format '{{.Name}}: {{join .Hosts ", "}}'`,
		},
	}.Command(p.Width, &cli.Command{Name: "networks", Usage: "list the networks of the cluster and the hosts of each"})
}

func clusterRemove() *cli.Command {
	return &cli.Command{
		Name: "rm", ArgsUsage: "NETWORK", Usage: "remove an unused network from the cluster",
		Description: usage.Describe(
			"Fails if a host still has the network. When netyard network rm removes the network from\n"+
				"its last host, the cluster's record is removed too.",
			"netyard cluster rm blue", "netyard cluster networks"),
		BashComplete: complete(overlayNames),
		Action: func(c *cli.Context) error {
			return client(c).RemoveOverlay(c.Context, c.Args().First())
		},
	}
}

// overlayNames returns the names of the cluster's networks.
func overlayNames(c *cli.Context) (names []string) {
	ns, _ := client(c).Overlays(c.Context) // without a cluster there is nothing to complete
	for _, n := range ns {
		names = append(names, n.Name)
	}
	return names
}

// networkAttach creates a network of the cluster on this host as well.
func networkAttach() *cli.Command {
	return &cli.Command{
		Name: "attach", ArgsUsage: "NAME", Usage: "attach this host to an overlay network",
		Description: usage.Describe(
			"The network was created on another host, by netyard network create --mode overlay or by\n"+
				"Docker. This host gets it with all its subnets. Prints the network's ID.",
			"netyard network attach blue", "netyard network attach --docker blue"),
		Flags: []cli.Flag{&cli.BoolFlag{
			Name: "docker", Usage: "only print the docker network create command that attaches this host's Docker",
		}},
		BashComplete: complete(overlayNames),
		Action: func(c *cli.Context) error {
			name := c.Args().First()
			if c.Bool("docker") {
				return printDockerCreate(c, name)
			}
			return makeNetwork(c, api.NetworkRequest{Name: name, Mode: clusterMode()})
		},
	}
}

// makeNetwork creates a network without an engine and prints its ID. If the network is one of the cluster, and this
// host is not a member, it says on stderr that the network waits.
func makeNetwork(c *cli.Context, q api.NetworkRequest) error {
	n, err := client(c).MakeNetwork(c.Context, q)
	if err == nil {
		_, err = fmt.Fprintln(c.App.Writer, n.ID)
	}
	if err != nil || q.Mode != clusterMode() {
		return err
	}
	s, err := client(c).ClusterStatus(c.Context)
	if err != nil || s.Reason == "" { // the network is there all the same
		return nil //nolint:nilerr // it is
	}
	_, err = fmt.Fprintf(c.App.ErrWriter, "netyard: network %s has no traffic with other hosts "+
		"until this host is a member of the cluster: %s; netyard cluster status shows when it is\n",
		table.Printable(q.Name), table.Printable(s.Reason))
	return err
}

// clusterMode returns the mode of networks that are in a cluster.
func clusterMode() string {
	for name, m := range all.On(modes.Env{}) {
		if m.Traits(modes.Network{}).Cluster != nil {
			return name
		}
	}
	return ""
}

// printDockerCreate prints the command that creates a network of the cluster in Docker. It names all subnets, since
// Docker accepts --ip only in subnets that it was given.
func printDockerCreate(c *cli.Context, name string) error {
	known, err := client(c).Overlays(c.Context)
	if err != nil {
		return err
	}
	at := slices.IndexFunc(known, func(n api.Overlay) bool { return n.Name == name })
	if at < 0 {
		return fmt.Errorf("network %s is not in the cluster; netyard cluster networks lists its networks", name)
	}
	const plugin, option = overlay.Space, overlay.Option // one plugin is both drivers
	words := []string{
		"docker network create -d", plugin, "--ipam-driver", plugin,
		"-o", option + "=" + name, "--ipam-opt", option + "=" + name,
	}
	if known[at].Internal {
		words = append(words, "--internal")
	}
	for _, s := range known[at].Subnets {
		if strings.Contains(s.Pool, ":") && !slices.Contains(words, "--ipv6") {
			words = append(words, "--ipv6")
		}
		words = append(words, "--subnet "+s.Pool)
	}
	_, err = fmt.Fprintln(c.App.Writer, strings.Join(append(words, name), " "))
	return err
}
