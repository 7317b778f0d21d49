package cli

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"netyard/cli/usage"
	"netyard/yard/trace"
)

// errUnreachable is the error of trace if the packet may not arrive. The reason is printed already.
var errUnreachable = errors.New("not reachable")

func traceCommand() *cli.Command {
	const six, asJSON = "ipv6", "json"
	return &cli.Command{
		Name: "trace", Usage: "trace a packet through the firewall rules and say whether it arrives",
		ArgsUsage: "CLIENT TARGET",
		Description: usage.Describe(
			"CLIENT is an IP address, a container, or the word host. TARGET is PORT, a port of this host,\n"+
				"or CONTAINER:PORT, a port of a container's own address; /udp or /sctp may follow the port.\n"+
				"A rule that netyard cannot interpret is reported as one that may match. The exit code is 0 if\n"+
				"the packet certainly arrives, and 1 if it does not or if netyard cannot tell.",
			"netyard trace 203.0.113.1 8080", "netyard trace web1 db:5432"),
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: six, Aliases: []string{"6"}, Usage: "use IPv6 between containers or from the host"},
			&cli.BoolFlag{Name: asJSON, Usage: "print JSON"},
		},
		BashComplete: complete(containerNames),
		Action: func(c *cli.Context) error {
			t, err := client(c).Trace(c.Context, c.Args().Get(0), c.Args().Get(1), c.Bool(six))
			if err != nil {
				return err
			}
			if err := printTrace(c, t, c.Bool(asJSON)); err != nil {
				return err
			}
			if t.Reachable != "yes" {
				return errUnreachable
			}
			return nil
		},
	}
}

// printTrace prints the steps of a trace and its result.
func printTrace(c *cli.Context, t trace.Trace, asJSON bool) error {
	if asJSON {
		e := json.NewEncoder(c.App.Writer)
		e.SetIndent("", "  ")
		return e.Encode(t)
	}
	result := map[string]string{
		"yes": "reachable", "no": "not reachable", "unsure": "netyard cannot tell whether it is reachable",
	}[t.Reachable]
	for _, s := range append(t.Steps, result) {
		if _, err := fmt.Fprintln(c.App.Writer, s); err != nil {
			return err
		}
	}
	return nil
}
