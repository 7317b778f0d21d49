package cli

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"netyard/cli/api"
)

func (p Program) policyCommand() *cli.Command {
	return &cli.Command{
		Name: "policy", Usage: "say who may talk to whom",
		Subcommands: []*cli.Command{
			p.policyList(),
			{
				Name: "apply", ArgsUsage: "FILE", Usage: "put the policies of a file in place, all or none; - is standard input",
				Description: "A policy takes the place of the one of the same name; others stay.",
				Flags:       []cli.Flag{&cli.BoolFlag{Name: dryRunFlag, Usage: "only say what would change"}},
				Action:      applyPolicies,
			},
			{
				Name: "show", ArgsUsage: "NAME", Usage: "print a policy as it can be applied again, and whom it is about",
				Flags:        []cli.Flag{&cli.StringFlag{Name: formatFlag, Usage: "print it by a Go `TEMPLATE` instead"}},
				BashComplete: complete(policyNames), Action: showPolicy,
			},
			{
				Name: "rm", ArgsUsage: "NAME", Usage: "take a policy back", BashComplete: complete(policyNames),
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
	return list[api.Policy]{
		fetch: func(c *cli.Context) ([]api.Policy, error) { return client(c).Policies(c.Context) },
		order: func(a, b api.Policy) int { return cmp.Compare(a.Name, b.Name) },
		columns: func(shortener) []column[api.Policy] {
			return []column[api.Policy]{
				{head: "NAME", cell: func(v api.Policy) string { return v.Name }},
				{head: "SELECTS", fit: fit{goes: 4}, cell: func(v api.Policy) string { return v.Selects }},
				{head: "INGRESS", fit: fit{goes: 2}, cell: func(v api.Policy) string { return v.Ingress }},
				{head: "EGRESS", fit: fit{goes: 3}, cell: func(v api.Policy) string { return v.Egress }},
				{head: "ENDPOINTS", fit: fit{goes: 1}, cell: func(v api.Policy) string { return strings.Join(v.Endpoints, ", ") }},
			}
		},
	}.command(p.Width, &cli.Command{Name: "ls", Usage: "list policies and whom they are about"})
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
		about := "about nobody yet"
		if len(v.Endpoints) > 0 {
			about = "about " + strings.Join(v.Endpoints, ", ")
		}
		if _, err := fmt.Fprintf(c.App.Writer, "%s %s%s: %s\n", v.Name, would, v.Change, printable(about)); err != nil {
			return err
		}
	}
	return nil
}

func readFile(name string) ([]byte, error) {
	if name == "-" {
		return io.ReadAll(os.Stdin)
	}
	return os.ReadFile(name)
}

func showPolicy(c *cli.Context) error {
	t, err := parseFormat(c)
	if err != nil {
		return err
	}
	v, err := client(c).Policy(c.Context, c.Args().First())
	if err != nil {
		return err
	}
	if t != nil {
		return printOne(c, t, v)
	}
	_, err = fmt.Fprintf(c.App.Writer, "%s# about: %s\n", v.Text, printable(cmp.Or(strings.Join(v.Endpoints, ", "), "nobody yet")))
	return err
}

func policyNames(c *cli.Context) (names []string) {
	all, _ := client(c).Policies(c.Context) // no daemon, no names
	for _, v := range all {
		names = append(names, v.Name)
	}
	return names
}
