package cli

import (
	"cmp"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"netyard/cli/table"
	"netyard/cli/usage"
	"netyard/yard/event"
)

func (p Program) eventsCommand() *cli.Command {
	l := table.List[event.Event]{
		Fetch: func(c *cli.Context) ([]event.Event, error) { return client(c).Events(c.Context) },
		Order: func(a, b event.Event) int { return cmp.Compare(a.ID, b.ID) },
		Columns: func(id table.Shortener) []table.Column[event.Event] {
			return []table.Column[event.Event]{
				{Head: "TIME", Cell: func(e event.Event) string { return e.Time.Local().Format(time.DateTime) }},
				{Head: "TYPE", Drop: 2, Cell: func(e event.Event) string { return e.Type }},
				{Head: "NETWORK", Drop: 1, Cell: func(e event.Event) string {
					return cmp.Or(e.Network, id(e.NetworkID))
				}},
				{Head: "EVENT", Cell: func(e event.Event) string { return e.Text }},
			}
		},
		Examples: []string{"netyard events", "netyard events --follow --json"},
	}
	cmd := l.Command(p.Width, &cli.Command{
		Name: "events", Usage: "list recent events",
		Description: "Events are about networks, endpoints, ports, conflicts and DHCP leases.\n" +
			"The daemon keeps the last 1024.",
	})
	cmd.Flags = append(cmd.Flags, &cli.BoolFlag{
		Name: "follow", Aliases: []string{"f"},
		Usage: "continue with new events; with --json, print one JSON object per line",
	})
	once := cmd.Action
	cmd.Action = func(c *cli.Context) error {
		if !c.Bool("follow") {
			return once(c)
		}
		return follow(c)
	}
	return cmd
}

// follow prints the kept events and then new ones as they come, one per line.
func follow(c *cli.Context) error {
	if err := usage.OnlyOne(c, "json", table.FormatFlag); err != nil {
		return err
	}
	if c.Bool("json") {
		if err := c.Set(table.FormatFlag, "json"); err != nil {
			return err
		}
	}
	t, err := table.ParseFormat(c)
	if err != nil {
		return err
	}
	err = client(c).Follow(c.Context, func(e event.Event) error {
		if t != nil {
			return table.PrintOne(c, t, e)
		}
		at := e.Time.Local().Format(time.DateTime)
		_, err := fmt.Fprintln(c.App.Writer, at+"  "+table.Printable(e.Type+"  "+e.Text))
		return err
	})
	if errors.Is(err, syscall.EPIPE) { // the reader has closed the pipe
		return nil
	}
	return err
}
