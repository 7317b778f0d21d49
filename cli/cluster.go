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
	"netyard/cli/table"
	"netyard/cli/usage"
)

func (p Program) clusterCommand() *cli.Command {
	return &cli.Command{
		Name: "cluster", Usage: "show and manage the cluster of hosts that share overlay networks",
		Description: usage.Describe("", "netyard cluster status", "netyard cluster hosts"),
		Subcommands: []*cli.Command{
			{
				Name: "status", Usage: "show whether this host is a member, and the state of its overlay networks",
				Description: usage.Describe("", "netyard cluster status", "netyard cluster status --json"),
				Flags:       []cli.Flag{&cli.BoolFlag{Name: "json", Usage: "print JSON"}}, Action: clusterStatus,
			},
			table.List[api.ClusterHost]{
				Fetch: func(c *cli.Context) ([]api.ClusterHost, error) { return client(c).ClusterHosts(c.Context) },
				Order: func(a, b api.ClusterHost) int { return strings.Compare(a.Name, b.Name) },
				Columns: func(table.Shortener) []table.Column[api.ClusterHost] {
					return []table.Column[api.ClusterHost]{
						{Head: "NAME", Cell: func(h api.ClusterHost) string { return h.Name }},
						{Head: "ADDRESS", Cell: func(h api.ClusterHost) string { return h.Address }},
						{Head: "ALIVE", Cell: func(h api.ClusterHost) string { return strconv.FormatBool(h.Alive) }},
						{Head: "ENCRYPTS", Drop: 3, Cell: func(h api.ClusterHost) string {
							return strconv.FormatBool(h.Encrypts)
						}},
						{Head: "NETWORKS", Drop: 1, Cell: func(h api.ClusterHost) string {
							return strings.Join(h.Networks, ", ")
						}},
						{Head: "VERSION", Drop: 2, Cell: func(h api.ClusterHost) string { return h.Version }},
					}
				},
				Examples: []string{"netyard cluster hosts", "netyard cluster hosts --format '{{.Name}} {{.Address}}'"},
			}.Command(p.Width, &cli.Command{
				Name: "hosts", Usage: "list the hosts of the cluster",
				Description: "ALIVE: netyard runs there and reaches etcd.\n" +
					"ENCRYPTS: the host supports encrypted networks.",
			}),
			p.clusterDoctor(), p.clusterNetworks(), clusterRemove(),
			{
				Name: "forget", ArgsUsage: "HOST", Usage: "remove a host from the cluster",
				Description: usage.Describe(
					"HOST is a name or an ID. The host's addresses are released, and the other hosts exchange no\n"+
						"traffic with it. If it comes back, it has no overlay traffic until netyard cluster rejoin\n"+
						"is run there.",
					"netyard cluster forget host3", "netyard cluster hosts --format '{{.ID}} {{.Name}}'"),
				Action: func(c *cli.Context) error {
					h, err := client(c).ForgetHost(c.Context, c.Args().First())
					if err != nil {
						return err
					}
					name := table.Printable(h.Name)
					_, err = fmt.Fprintf(c.App.Writer, "removed %s (%s) from the cluster\n", name, h.Address)
					return err
				},
			},
			{
				Name: "rotate-key", Usage: "replace this host's key for encrypted networks",
				Description: usage.Describe("Prints the new public key.",
					"netyard cluster rotate-key", "netyard cluster hosts --format '{{.Name}} {{.Encrypts}}'"),
				Action: func(c *cli.Context) error {
					k, err := client(c).RotateKey(c.Context)
					if err != nil {
						return err
					}
					_, err = fmt.Fprintf(c.App.Writer, "new public key of this host: %s\n", table.Printable(k.Public))
					return err
				},
			},
			{
				Name: "rejoin", Usage: "re-admit this host after it was removed from the cluster",
				Description: usage.Describe(
					"Addresses that were reassigned meanwhile stay with their new holders. Endpoints that had\n"+
						"them are fenced until they are restarted.",
					"netyard cluster rejoin", "netyard cluster rejoin && netyard cluster status"),
				Action: func(c *cli.Context) error {
					err := client(c).Rejoin(c.Context)
					if err == nil {
						_, err = fmt.Fprintln(c.App.Writer,
							"this host is joining the cluster; netyard cluster status shows when it is a member")
					}
					return err
				},
			},
		},
	}
}

func (p Program) clusterDoctor() *cli.Command {
	return table.List[api.ClusterSymptom]{
		Fetch: func(c *cli.Context) ([]api.ClusterSymptom, error) { return client(c).ClusterDoctor(c.Context) },
		Order: func(a, b api.ClusterSymptom) int {
			return cmp.Or(cmp.Compare(a.Of, b.Of), cmp.Compare(a.Network, b.Network), cmp.Compare(a.Text, b.Text))
		},
		Bare: true,
		Columns: func(table.Shortener) []table.Column[api.ClusterSymptom] {
			return []table.Column[api.ClusterSymptom]{
				{Cell: func(s api.ClusterSymptom) string { return s.Of }},
				{Cell: func(s api.ClusterSymptom) string { return s.Network }},
				{Cell: func(s api.ClusterSymptom) string { return s.Text }},
			}
		},
		Verdict: func(found []api.ClusterSymptom) error {
			if len(found) > 0 {
				return errFindings
			}
			return nil
		},
		Examples: []string{"netyard cluster doctor", "netyard cluster doctor --json"},
	}.Command(0, &cli.Command{ // findings are not cut
		Name: "doctor", Usage: "check etcd, this host's membership and the paths to the other hosts",
		Description: "Prints a line for each finding and exits with code 4; prints nothing if there is none.\n" +
			"Each host of each network is sent a small packet and one of the network's full MTU.",
	})
}

const (
	few       = 4   // fewer spare addresses than this are reported while no more can be claimed
	slowWrite = 500 // milliseconds; a slower write to etcd is reported
)

// pace rates the latency of writes to etcd.
func pace(worst float64) string {
	if worst >= slowWrite {
		return "slow"
	}
	return "healthy"
}

func clusterStatus(c *cli.Context) error {
	s, err := client(c).ClusterStatus(c.Context)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return table.PrintJSON(c.App.Writer, s)
	}
	say := func(format string, args ...any) {
		if err == nil {
			_, err = fmt.Fprintf(c.App.Writer, format+"\n", args...)
		}
	}
	if s.Reason == "" {
		say("this host is a member, one of %d", s.Hosts)
	} else {
		say("this host is not a member: %s", table.Printable(s.Reason))
	}
	if s.Advice != "" {
		say("  %s", s.Advice)
	}
	switch {
	case !s.Down.IsZero():
		say("etcd has not answered since %s", s.Down.Format(time.RFC3339))
	case s.Refused != "":
		say("etcd refuses writes: %s", table.Printable(s.Refused))
		say("  running containers are not affected, new ones get spare addresses while there are any")
	case s.WriteWorst > 0:
		say("etcd is %s: writes take %.0f ms (median), %.0f ms (99th percentile)",
			pace(s.WriteWorst), s.WriteMedian, s.WriteWorst)
	}
	if s.Rejected > 0 {
		say("%d records in etcd rejected; see the log", s.Rejected)
	}
	if s.Clear != "" {
		say("this host cannot encrypt: %s", table.Printable(s.Clear))
	}
	for _, n := range s.Networks {
		kind := "network"
		if n.Encrypted {
			kind = "encrypted network"
		}
		say("%s %s: %d peers, %d spare addresses, %d not yet reported to etcd, %d lost to other hosts, %d rejected",
			kind, n.Name, n.Peers, n.Warm, n.Waiting, n.Lost, len(n.Refused))
		if s.Reason != "" && n.Warm < few {
			say("  few spare addresses: after the next %d containers, new ones are refused "+
				"until this host is a member again", n.Warm)
		}
		for _, text := range n.Fenced {
			say("  fenced: %s; its link is down until it is restarted", table.Printable(text))
		}
		for _, a := range slices.Sorted(maps.Keys(n.Refused)) {
			say("  address %s rejected: %s", a, table.Printable(n.Refused[a]))
		}
		if len(n.Left) > 0 {
			say("  no traffic with hosts that cannot encrypt: %s", table.Printable(strings.Join(n.Left, ", ")))
		}
	}
	return err
}
