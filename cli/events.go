package cli

import (
	"cmp"
	"errors"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"netyard/yard/event"
)

func (p Program) eventsCommand() *cli.Command {
	l := list[event.Event]{
		fetch: func(c *cli.Context) ([]event.Event, error) { return client(c).Events(c.Context) },
		order: func(a, b event.Event) int { return cmp.Compare(a.ID, b.ID) },
		columns: func(id shortener) []column[event.Event] {
			return []column[event.Event]{
				{head: "TIME", cell: func(e event.Event) string { return e.Time.Local().Format(time.DateTime) }},
				{head: "TYPE", fit: fit{drop: 2}, cell: func(e event.Event) string { return e.Type }},
				{head: "NETWORK", fit: fit{drop: 1}, cell: func(e event.Event) string {
					return cmp.Or(e.Network, id(e.NetworkID))
				}},
				{head: "EVENT", cell: func(e event.Event) string { return e.Text }},
			}
		},
		examples: []string{"netyard events", "netyard events --follow --json"},
	}
	cmd := l.command(p.Width, &cli.Command{
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
	if err := onlyOne(c, "json", formatFlag); err != nil {
		return err
	}
	if c.Bool("json") {
		if err := c.Set(formatFlag, "json"); err != nil {
			return err
		}
	}
	t, err := parseFormat(c)
	if err != nil {
		return err
	}
	err = client(c).Follow(c.Context, func(e event.Event) error {
		if t != nil {
			return printRows(c, t, []event.Event{e})
		}
		return printLines(c.App.Writer, []event.Event{e}, func(e event.Event) string {
			return e.Time.Local().Format(time.DateTime) + "  " + printable(e.Type+"  "+e.Text)
		})
	})
	if errors.Is(err, syscall.EPIPE) { // the reader has closed the pipe
		return nil
	}
	return err
}
