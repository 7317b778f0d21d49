// Command write prints the tables of what scripts/bench measured, and writes them into a page.
//
//	write RESULTS [PAGE]
package main

import (
	"fmt"
	"io"
	"os"
	"slices"

	"netyard/integration/turns"
)

func main() {
	if err := run(os.Stdout, os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "write: %v\n", err)
		os.Exit(1)
	}
}

func run(out io.Writer, args []string) error {
	if len(args) == 0 || len(args) > 2 {
		return fmt.Errorf("want RESULTS [PAGE], have %q", args)
	}
	raw, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	rows, err := turns.Read(raw)
	if err != nil {
		return err
	}
	var names []string
	for _, row := range rows {
		if !slices.Contains(names, row.Table) {
			names = append(names, row.Table)
			if _, err := fmt.Fprintf(out, "\n%s\n\n%s", row.Table, turns.Table(row.Table, rows)); err != nil {
				return err
			}
		}
	}
	if len(args) == 1 {
		return nil
	}
	page, err := os.ReadFile(args[1])
	if err != nil {
		return err
	}
	text, err := turns.Fill(string(page), rows)
	if err != nil {
		return fmt.Errorf("%s: %w", args[1], err)
	}
	return os.WriteFile(args[1], []byte(text), 0o644)
}
