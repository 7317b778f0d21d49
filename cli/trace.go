package cli

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"netyard/yard/trace"
)

// errUnreachable is how trace ends when the packet does not certainly arrive; why is printed already.
var errUnreachable = errors.New("not reachable")

func traceCommand() *cli.Command {
	const six, asJSON = "ipv6", "json"
	return &cli.Command{
		Name: "trace", Usage: "say what a packet meets on its way, which rules decide about it, and whether it arrives",
		ArgsUsage: "CLIENT TARGET",
		Description: "CLIENT is an IP address, a container, or the word host. TARGET is PORT, one of this host's, or CONTAINER:PORT, one of a container's\n" +
			"own address; either with /udp or /sctp behind it. A rule that netyard cannot read may match, and is named as such. The exit code is 0 if the packet\n" +
			"certainly arrives, and 1 if it does not, or if netyard cannot tell.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: six, Aliases: []string{"6"}, Usage: "between containers, or from the host: by IPv6"},
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

func printTrace(c *cli.Context, t trace.Trace, asJSON bool) error {
	if asJSON {
		e := json.NewEncoder(c.App.Writer)
		e.SetIndent("", "  ")
		return e.Encode(t)
	}
	end := map[string]string{"yes": "reachable", "no": "not reachable", "unsure": "netyard cannot tell whether it is reachable"}[t.Reachable]
	for _, s := range append(t.Steps, end) {
		if _, err := fmt.Fprintln(c.App.Writer, s); err != nil {
			return err
		}
	}
	return nil
}
