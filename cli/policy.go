package cli

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"netyard/cli/api"
	"netyard/cli/table"
	"netyard/cli/usage"
)

func (p Program) policyCommand() *cli.Command {
	return &cli.Command{
		Name: "policy", Usage: "list, apply and remove traffic policies",
		Description: usage.Describe("A policy says which traffic is allowed to and from the endpoints that it selects.",
			"netyard policy ls", "netyard policy apply app.yaml"),
		Subcommands: []*cli.Command{
			p.policyList(),
			{
				Name: "apply", ArgsUsage: "FILE", Usage: "apply the policies in a file, all or none",
				Description: usage.Describe(
					"A policy replaces the one of the same name; others stay.\nFILE - is standard input.",
					"netyard policy apply --dry-run app.yaml", "netyard policy show app | netyard policy apply -"),
				Flags:  []cli.Flag{&cli.BoolFlag{Name: dryRunFlag, Usage: "show what would change"}},
				Action: applyPolicies,
			},
			{
				Name: "show", ArgsUsage: "NAME", Usage: "print a policy as YAML, and the endpoints that it selects",
				Description: usage.Describe("netyard policy apply accepts the output.",
					"netyard policy show app > app.yaml", "netyard policy show app --format '{{json .Endpoints}}'"),
				Flags: []cli.Flag{
					&cli.StringFlag{Name: table.FormatFlag, Usage: "print with a Go `TEMPLATE` instead of YAML"},
				},
				BashComplete: complete(policyNames), Action: showPolicy,
			},
			{
				Name: "rm", ArgsUsage: "NAME", Usage: "remove a policy", BashComplete: complete(policyNames),
				Description: usage.Describe("", "netyard policy rm app",
					"netyard policy show app > app.yaml && netyard policy rm app"),
				Action: func(c *cli.Context) error {
					v, err := client(c).RemovePolicy(c.Context, c.Args().First())
					if err != nil {
						return err
					}
					_, err = fmt.Fprintf(c.App.Writer, "removed %s\n", v.Name)
					return err
				},
			},
		},
	}
}

func (p Program) policyList() *cli.Command {
	return table.List[api.Policy]{
		Fetch: func(c *cli.Context) ([]api.Policy, error) { return client(c).Policies(c.Context) },
		Order: func(a, b api.Policy) int { return cmp.Compare(a.Name, b.Name) },
		Columns: func(table.Shortener) []table.Column[api.Policy] {
			return []table.Column[api.Policy]{
				{Head: "NAME", Cell: func(v api.Policy) string { return v.Name }},
				{Head: "SELECTS", Drop: 4, Cell: func(v api.Policy) string { return v.Selects }},
				{Head: "INGRESS", Drop: 2, Cell: func(v api.Policy) string { return v.Ingress }},
				{Head: "EGRESS", Drop: 3, Cell: func(v api.Policy) string { return v.Egress }},
				{Head: "ENDPOINTS", Drop: 1, Cell: func(v api.Policy) string {
					return strings.Join(v.Endpoints, ", ")
				}},
			}
		},
		Examples: []string{"netyard policy ls", "netyard policy ls --format '{{.Name}}: {{.Selects}}'"},
	}.Command(p.Width, &cli.Command{Name: "ls", Usage: "list policies and the endpoints that they select"})
}

func applyPolicies(c *cli.Context) error {
	name := c.Args().First()
	text, err := readFile(name)
	if err != nil {
		return fmt.Errorf("read policies: %w", err)
	}
	done, err := client(c).ApplyPolicies(c.Context, api.PolicyRequest{Text: string(text), DryRun: c.Bool(dryRunFlag)})
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	would := ""
	if c.Bool(dryRunFlag) {
		would = "would be "
	}
	for _, v := range done {
		_, err := fmt.Fprintf(c.App.Writer, "%s %s%s: selects %s\n", v.Name, would, v.Change, selected(v))
		if err != nil {
			return err
		}
	}
	return nil
}

// selected names the endpoints that a policy selects now.
func selected(v api.Policy) string {
	return table.Printable(cmp.Or(strings.Join(v.Endpoints, ", "), "no endpoint yet"))
}

func readFile(name string) ([]byte, error) {
	if name == "-" {
		return io.ReadAll(os.Stdin)
	}
	return os.ReadFile(name)
}

func showPolicy(c *cli.Context) error {
	t, err := table.ParseFormat(c)
	if err != nil {
		return err
	}
	v, err := client(c).Policy(c.Context, c.Args().First())
	if err != nil {
		return err
	}
	if t != nil {
		return table.PrintOne(c, t, v)
	}
	_, err = fmt.Fprintf(c.App.Writer, "%s# selects: %s\n", v.Text, selected(v))
	return err
}

func policyNames(c *cli.Context) (names []string) {
	all, _ := client(c).Policies(c.Context) // without a daemon there is nothing to complete
	for _, v := range all {
		names = append(names, v.Name)
	}
	return names
}
