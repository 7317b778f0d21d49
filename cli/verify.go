package cli

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"netyard/store"
)

const verifyName = "verify-state"

// verifyCommand examines a database in a process of its own: memory that runs out ends a process. serve runs it before
// it opens the file.
func verifyCommand() *cli.Command {
	return &cli.Command{
		Name: verifyName, Hidden: true, ArgsUsage: "FILE", Usage: "examine a database",
		Action: func(c *cli.Context) error {
			err := store.Verify(c.Args().First())
			if err == nil {
				return nil
			}
			line, code := store.Report(err)
			if _, err := fmt.Fprintln(c.App.Writer, line); err != nil {
				return err
			}
			return cli.Exit(line, code)
		},
	}
}
