package cli

import (
	"github.com/urfave/cli/v2"

	"netyard/store"
)

const verifyName = "verify-state"

// verifyCommand examines a database in a process of its own: what a damaged page does to a process that maps it cannot always
// be recovered from. serve runs it before it opens the file.
func verifyCommand() *cli.Command {
	return &cli.Command{
		Name: verifyName, Hidden: true, ArgsUsage: "FILE", Usage: "examine a database",
		Action: func(c *cli.Context) error {
			err := store.Verify(c.Args().First())
			if err == nil {
				return nil
			}
			return cli.Exit(err.Error(), store.ExitCode(err))
		},
	}
}
