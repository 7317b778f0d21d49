package cli

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"netyard/cli/api"
)

func (p Program) clusterCommand() *cli.Command {
	return &cli.Command{
		Name: "cluster", Usage: "look at the cluster that overlay networks are in",
		Subcommands: []*cli.Command{
			{Name: "status", Usage: "say how this host fares as a member", Flags: []cli.Flag{&cli.BoolFlag{Name: "json", Usage: "print JSON"}}, Action: clusterStatus},
			list[api.ClusterHost]{
				fetch: func(c *cli.Context) ([]api.ClusterHost, error) { return client(c).ClusterHosts(c.Context) },
				order: func(a, b api.ClusterHost) int { return strings.Compare(a.Name, b.Name) },
				columns: func(shortener) []column[api.ClusterHost] {
					return []column[api.ClusterHost]{
						{head: "NAME", cell: func(h api.ClusterHost) string { return h.Name }},
						{head: "ADDRESS", cell: func(h api.ClusterHost) string { return h.Address }},
						{head: "ALIVE", cell: func(h api.ClusterHost) string { return strconv.FormatBool(h.Alive) }},
						{head: "ENCRYPTS", fit: fit{goes: 3}, cell: func(h api.ClusterHost) string { return strconv.FormatBool(h.Encrypts) }},
						{head: "NETWORKS", fit: fit{goes: 1}, cell: func(h api.ClusterHost) string { return strings.Join(h.Networks, ", ") }},
						{head: "VERSION", fit: fit{goes: 2}, cell: func(h api.ClusterHost) string { return h.Version }},
					}
				},
			}.command(p.Width, &cli.Command{Name: "hosts", Usage: "list the hosts of the cluster"}),
			p.clusterDoctor(), p.clusterNetworks(), clusterRemove(),
			{
				Name: "forget", ArgsUsage: "HOST", Usage: "take a host out: its addresses are free, and it is fenced when it comes back",
				Action: func(c *cli.Context) error {
					if c.Args().Len() != 1 {
						return usagef(c, "say one host")
					}
					h, err := client(c).ForgetHost(c.Context, c.Args().First())
					if err != nil {
						return err
					}
					_, err = fmt.Fprintf(c.App.Writer, "forgot %s (%s)\n", printable(h.Name), h.Address)
					return err
				},
			},
			{
				Name: "rotate-key", Usage: "give this host another key for networks that are encrypted",
				Action: func(c *cli.Context) error {
					k, err := client(c).RotateKey(c.Context)
					if err != nil {
						return err
					}
					_, err = fmt.Fprintf(c.App.Writer, "this host's key is now %s\n", printable(k.Public))
					return err
				},
			},
			{
				Name: "rejoin", Usage: "have this host back after it was taken out; what others were given meanwhile is theirs",
				Action: func(c *cli.Context) error {
					err := client(c).Rejoin(c.Context)
					if err == nil {
						_, err = fmt.Fprintln(c.App.Writer, "this host joins the cluster again; netyard cluster status says when it has")
					}
					return err
				},
			},
		},
	}
}

func (p Program) clusterDoctor() *cli.Command {
	return list[api.ClusterSymptom]{
		fetch: func(c *cli.Context) ([]api.ClusterSymptom, error) { return client(c).ClusterDoctor(c.Context) },
		order: func(a, b api.ClusterSymptom) int {
			return cmp.Or(cmp.Compare(a.Of, b.Of), cmp.Compare(a.Network, b.Network), cmp.Compare(a.Text, b.Text))
		},
		bare: true,
		columns: func(shortener) []column[api.ClusterSymptom] {
			return []column[api.ClusterSymptom]{
				{cell: func(s api.ClusterSymptom) string { return s.Of }},
				{cell: func(s api.ClusterSymptom) string { return s.Network }},
				{cell: func(s api.ClusterSymptom) string { return s.Text }},
			}
		},
		verdict: func(found []api.ClusterSymptom) error {
			if len(found) > 0 {
				return errFindings
			}
			return nil
		},
	}.command(0, &cli.Command{ // of what is wrong nothing is cut
		Name: "doctor", Usage: "look for what is wrong with etcd, with this host, and with the way to the others; silent when nothing is",
	})
}

// few addresses in store are worth a word while there are no others, and a write that takes slowWrite, milliseconds,
// is.
const few, slowWrite = 4, 500

func pace(worst float64) string {
	if worst >= slowWrite {
		return "slow"
	}
	return "well"
}

func clusterStatus(c *cli.Context) error {
	s, err := client(c).ClusterStatus(c.Context)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, s)
	}
	say := func(format string, args ...any) {
		if err == nil {
			_, err = fmt.Fprintf(c.App.Writer, format+"\n", args...)
		}
	}
	if s.Reason == "" {
		say("this host is a member, one of %d", s.Hosts)
	} else {
		say("this host is no member: %s", printable(s.Reason))
	}
	if s.Advice != "" {
		say("  %s", s.Advice)
	}
	if !s.Down.IsZero() {
		say("etcd has not answered since %s", s.Down.Format(time.RFC3339))
	} else if s.WriteWorst > 0 {
		say("etcd is %s: of the last writes half took %.0f ms at most, 99 of 100 took %.0f ms", pace(s.WriteWorst), s.WriteMedian, s.WriteWorst)
	}
	if s.Rejected > 0 {
		say("%d records in etcd are not let in; the log names them", s.Rejected)
	}
	if s.Clear != "" {
		say("this host can encrypt nothing: %s", printable(s.Clear))
	}
	for _, n := range s.Networks {
		kind := "network"
		if n.Encrypted {
			kind = "encrypted network"
		}
		say("%s %s: %d peers, %d addresses in store, %d that etcd has not heard of, %d lost, %d refused", kind, n.Name, n.Peers, n.Warm, n.Waiting, n.Lost, len(n.Refused))
		if s.Reason != "" && n.Warm < few {
			say("  its store is nearly empty: containers that start after the next %d are refused until this host is a member again", n.Warm)
		}
		for _, text := range n.Fenced {
			say("  %s; its link is down until it starts again", printable(text))
		}
		for _, a := range slices.Sorted(maps.Keys(n.Refused)) {
			say("  address %s is not believed: %s", a, printable(n.Refused[a]))
		}
		if len(n.Left) > 0 {
			say("  these hosts cannot encrypt, and are not spoken to: %s", printable(strings.Join(n.Left, ", ")))
		}
	}
	return err
}
