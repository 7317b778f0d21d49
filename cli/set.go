package cli

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"netyard/cli/api"
	"netyard/cli/table"
	"netyard/cli/usage"
	"netyard/modes"
	"netyard/modes/all"
)

const setArgs = " OPTION=VALUE" + usage.More

func networkSet() *cli.Command {
	return &cli.Command{
		Name: "set", ArgsUsage: "NAME" + setArgs, Usage: "change options of a network while containers run",
		Description: usage.Describe("OPTION= restores the default. Either all options are changed, or none.\n"+
			"These can be changed: "+settable(func(modes.Option) bool { return true })+".",
			"netyard network set web rate=50mbit icc=false", "netyard network set web icc="),
		BashComplete: complete(networkNames),
		Action: func(c *cli.Context) error {
			change, err := readChange(c)
			if err != nil {
				return err
			}
			n, err := client(c).ChangeNetwork(c.Context, c.Args().First(), change)
			if err != nil {
				return err
			}
			name := table.Printable(cmp.Or(n.Name, modes.Short(n.ID)))
			_, err = fmt.Fprintf(c.App.Writer, "changed network %s: %s\n", name, changes(c))
			return err
		},
	}
}

func endpointSet() *cli.Command {
	return &cli.Command{
		Name: "set", ArgsUsage: "ID|CONTAINER" + setArgs,
		Usage: "change options of one endpoint while its container runs",
		Description: usage.Describe(
			"A change lasts until the container stops. To keep it, use docker network connect\n"+
				"--driver-opt or netyard network set. OPTION= restores the network's value.\n"+
				"These can be changed: "+settable(func(o modes.Option) bool { return o.Endpoint })+".",
			"netyard endpoint set web1 rate=10mbit", "netyard endpoint set --network web web1 rate=unlimited"),
		Flags: []cli.Flag{&cli.StringFlag{
			Name: "network", Usage: "`NETWORK` of the endpoint; required if the container is on several",
		}},
		BashComplete: complete(containerNames),
		Action: func(c *cli.Context) error {
			change, err := readChange(c)
			if err != nil {
				return err
			}
			e, err := client(c).ChangeEndpoint(c.Context, c.String("network"), c.Args().First(), change)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.App.Writer, "changed endpoint %s (%s): %s\n",
				modes.Short(e.ID), table.Printable(cmp.Or(e.Container, modes.Short(e.ContainerID), "-")), changes(c))
			return err
		},
	}
}

// settable lists the options that can be changed while containers run.
func settable(of func(modes.Option) bool) string {
	var names []string
	for _, o := range all.Options().Options() {
		if o.Set && of(o) {
			names = append(names, o.Name)
		}
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// changes returns the arguments OPTION=VALUE as they were typed.
func changes(c *cli.Context) string { return table.Printable(strings.Join(c.Args().Tail(), " ")) }

// readChange parses the arguments OPTION=VALUE.
func readChange(c *cli.Context) (q api.Change, err error) {
	q.Options = map[string]string{}
	for _, arg := range c.Args().Tail() {
		name, value, ok := strings.Cut(arg, "=")
		if !ok || name == "" {
			return q, usage.Errorf(c, "%q is not OPTION=VALUE", arg)
		}
		if old, twice := q.Options[name]; twice && old != value {
			return q, usage.Errorf(c, "%s is given twice: %s and %s", name, old, value)
		}
		q.Options[name] = value
	}
	return q, nil
}
