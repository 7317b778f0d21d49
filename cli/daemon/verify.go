package daemon

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"netyard/store"
)

const verifyName = "verify-state"

// VerifyCommand returns the command that checks a database. serve runs it in a process of its own before it opens the
// file: a process that runs out of memory is killed.
func VerifyCommand() *cli.Command {
	return &cli.Command{
		Name: verifyName, Hidden: true, ArgsUsage: "FILE", Usage: "check a database file",
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
