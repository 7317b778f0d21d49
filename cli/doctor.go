package cli

import (
	"cmp"
	"errors"
	"slices"

	"github.com/urfave/cli/v2"

	"netyard/yard/book"
)

func (p Program) doctorCommand() *cli.Command {
	return list[book.Finding]{
		fetch: func(c *cli.Context) ([]book.Finding, error) { return client(c).Doctor(c.Context) },
		order: byKind,
		bare:  true,
		columns: func(shortener) []column[book.Finding] {
			return []column[book.Finding]{
				{cell: func(f book.Finding) string { return f.Kind }},
				{cell: func(f book.Finding) string { return f.Network }},
				{cell: func(f book.Finding) string { return f.Text }},
			}
		},
		verdict: func(found []book.Finding) error {
			if len(found) > 0 {
				return errFindings
			}
			return nil
		},
	}.command(0, &cli.Command{ // of what is wrong nothing is cut
		Name: "doctor", Usage: "compare records, kernel and engine and say where they differ; silent on a healthy host",
	})
}

func byKind(a, b book.Finding) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Network, b.Network), cmp.Compare(a.Text, b.Text))
}

// A removal is a finding that gc took away, or would have.
type removal struct {
	book.Finding

	verb string
}

func (p Program) gcCommand() *cli.Command {
	return list[removal]{
		fetch: collect,
		order: func(a, b removal) int { return byKind(a.Finding, b.Finding) },
		bare:  true,
		columns: func(shortener) []column[removal] {
			return []column[removal]{
				{cell: func(r removal) string { return r.verb }},
				{cell: func(r removal) string { return r.Kind }},
				{cell: func(r removal) string { return r.Network }},
				{cell: func(r removal) string { return r.Text }},
			}
		},
		verdict: func(rows []removal) error {
			if slices.ContainsFunc(rows, func(r removal) bool { return r.Error != "" }) {
				return errors.New("not everything could be removed")
			}
			return nil
		},
	}.command(0, &cli.Command{
		Name: "gc", Usage: "remove what nobody wants and say what it was",
		Flags: []cli.Flag{&cli.BoolFlag{Name: dryRunFlag, Usage: "only say what it would be"}},
	})
}

const dryRunFlag = "dry-run"

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
