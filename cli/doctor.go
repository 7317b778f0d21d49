package cli

import (
	"cmp"
	"errors"
	"slices"

	"github.com/urfave/cli/v2"

	"netyard/cli/table"
	"netyard/yard/book"
)

func (p Program) doctorCommand() *cli.Command {
	return table.List[book.Finding]{
		Fetch: func(c *cli.Context) ([]book.Finding, error) { return client(c).Doctor(c.Context) },
		Order: byKind,
		Bare:  true,
		Columns: func(table.Shortener) []table.Column[book.Finding] {
			return []table.Column[book.Finding]{
				{Cell: func(f book.Finding) string { return f.Kind }},
				{Cell: func(f book.Finding) string { return f.Network }},
				{Cell: func(f book.Finding) string { return f.Text }},
			}
		},
		Verdict: func(found []book.Finding) error {
			if slices.ContainsFunc(found, func(f book.Finding) bool { return f.Kind != book.Note }) {
				return errFindings
			}
			return nil
		},
		Examples: []string{"netyard doctor", "netyard doctor || echo unhealthy"},
	}.Command(0, &cli.Command{ // findings are not cut
		Name: "doctor", Usage: "compare records, kernel and engines and report the differences",
		Description: "Prints a line for each finding (kind, network, what it is) and exits with code 4; prints\n" +
			"nothing on a healthy host. The kinds are fault (missing or wrong), stray (in the kernel without\n" +
			"a record) and orphan (a record without an owner). A note is no fault, and does not count for the\n" +
			"exit code.",
	})
}

// byKind is the order of findings.
func byKind(a, b book.Finding) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Network, b.Network), cmp.Compare(a.Text, b.Text))
}

// A removal is a finding that gc removed, or would remove.
type removal struct {
	book.Finding

	verb string
}

func (p Program) gcCommand() *cli.Command {
	return table.List[removal]{
		Fetch: collect,
		Order: func(a, b removal) int { return byKind(a.Finding, b.Finding) },
		Bare:  true,
		Columns: func(table.Shortener) []table.Column[removal] {
			return []table.Column[removal]{
				{Cell: func(r removal) string { return r.verb }},
				{Cell: func(r removal) string { return r.Kind }},
				{Cell: func(r removal) string { return r.Network }},
				{Cell: func(r removal) string { return r.Text }},
			}
		},
		Verdict: func(rows []removal) error {
			if slices.ContainsFunc(rows, func(r removal) bool { return r.Error != "" }) {
				return errors.New("some findings could not be removed")
			}
			return nil
		},
		Examples: []string{"netyard gc --dry-run", "netyard gc"},
	}.Command(0, &cli.Command{
		Name: "gc", Usage: "remove orphaned state",
		Description: "Removes the strays and orphans that netyard doctor reports, if no running container needs\n" +
			"them, and prints each.",
		Flags: []cli.Flag{&cli.BoolFlag{Name: dryRunFlag, Usage: "show what would be removed"}},
	})
}

const dryRunFlag = "dry-run"

// collect asks the daemon to remove what it can, or with --dry-run what it would remove.
func collect(c *cli.Context) (rows []removal, err error) {
	dry, verb := c.Bool(dryRunFlag), "removed"
	if dry {
		verb = "would remove"
	}
	found, err := client(c).GC(c.Context, dry)
	for _, f := range found {
		r := removal{f, verb}
		if f.Error != "" {
			r.verb, r.Text = "could not remove", f.Text+": "+f.Error
		}
		rows = append(rows, r)
	}
	return rows, err
}
