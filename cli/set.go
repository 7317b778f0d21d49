package cli

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"netyard/cli/api"
	"netyard/modes"
	"netyard/modes/all"
)

const setArgs = " OPTION=VALUE" + more

func networkSet() *cli.Command {
	return &cli.Command{
		Name: "set", ArgsUsage: "NAME" + setArgs, Usage: "change options of a network while containers run",
		Description: "OPTION= goes back to the default. All is checked before anything is changed; what cannot be changed is refused by name.\n" +
			"These can be changed: " + settable(func(modes.Option) bool { return true }) + ".",
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
			_, err = fmt.Fprintf(c.App.Writer, "changed network %s: %s\n", printable(cmp.Or(n.Name, modes.Short(n.ID))), said(c))
			return err
		},
	}
}

func endpointSet() *cli.Command {
	return &cli.Command{
		Name: "set", ArgsUsage: "ID|CONTAINER" + setArgs, Usage: "change options of one endpoint while its container runs",
		Description: "It lasts until the container stops; for good say it with docker network connect --driver-opt, or for the network.\n" +
			"OPTION= goes back to what the network says.\n" +
			"These can be changed: " + settable(func(o modes.Option) bool { return o.Endpoint }) + ".",
		Flags:        []cli.Flag{&cli.StringFlag{Name: "network", Usage: "the `NETWORK` of the endpoint; needed when the container is in several"}},
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
				modes.Short(e.ID), printable(cmp.Or(e.Container, modes.Short(e.ContainerID), "-")), said(c))
			return err
		},
	}
}

// settable names the options that can be changed in place.
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

// said is what was asked for, as it was typed.
func said(c *cli.Context) string { return printable(strings.Join(c.Args().Tail(), " ")) }

// readChange reads the arguments OPTION=VALUE behind the first.
func readChange(c *cli.Context) (q api.Change, err error) {
	q.Options = map[string]string{}
	for _, arg := range c.Args().Tail() {
		name, value, ok := strings.Cut(arg, "=")
		if !ok || name == "" {
			return q, usagef(c, "%q is not OPTION=VALUE", arg)
		}
		if old, twice := q.Options[name]; twice && old != value {
			return q, usagef(c, "%s is said twice: %s and %s", name, old, value)
		}
		q.Options[name] = value
	}
	return q, nil
}
