package cli

import (
	_ "embed"
	"fmt"
	"io"
	"regexp"
	"strings"

	"github.com/urfave/cli/v2"
)

//go:embed completion/netyard.bash
var bashCompletion string

//go:embed completion/netyard.zsh
var zshCompletion string

func completionCommand() *cli.Command {
	shells := []string{"bash", "zsh", "fish"}
	return &cli.Command{
		Name: "completion", ArgsUsage: strings.Join(shells, "|"), BashComplete: complete(func(*cli.Context) []string { return shells }),
		Usage:       "print the script that makes a shell complete netyard's command lines",
		Description: "For bash and zsh: source <(netyard completion bash)\nFor fish: netyard completion fish | source",
		Action: func(c *cli.Context) (err error) {
			var script string
			switch shell := c.Args().First(); shell {
			case "bash":
				script = bashCompletion
			case "zsh":
				script = zshCompletion
			case "fish":
				if script, err = c.App.ToFishCompletion(); err != nil {
					return fmt.Errorf("make fish completion: %w", err)
				}
			default:
				return unknown(c, "shell", shell, shells)
			}
			_, err = io.WriteString(c.App.Writer, script)
			return err
		},
	}
}

// complete offers words for a command's first argument, beside its flags. Words that a shell could take for more than
// words are left out.
func complete(words func(*cli.Context) []string) cli.BashCompleteFunc {
	plain := regexp.MustCompile(`^[\w.-]+$`)
	return func(c *cli.Context) {
		cli.DefaultCompleteWithFlags(c.Command)(c)
		if c.NArg() > 0 {
			return
		}
		for _, w := range words(c) {
			if plain.MatchString(w) {
				_, _ = fmt.Fprintln(c.App.Writer, w) // a shell that went away completes nothing
			}
		}
	}
}

func manCommand() *cli.Command {
	return &cli.Command{
		Name: "man", Hidden: true, Usage: "print the manual page, as in: netyard man | man -l -",
		Action: func(c *cli.Context) error {
			app := *c.App
			app.Description = "" // exit codes have a section of their own here
			page, err := app.ToMan()
			if err != nil {
				return fmt.Errorf("make manual page: %w", err)
			}
			_, err = io.WriteString(c.App.Writer, strings.TrimRight(page, "\n")+"\n"+manTail())
			return err
		},
	}
}

// manTail is the part of the manual page that urfave knows nothing of.
func manTail() string {
	var b strings.Builder
	b.WriteString(".SH EXIT STATUS\n")
	for code, meaning := range exitCodes() {
		fmt.Fprintf(&b, ".TP\n\\fB%d\\fP\n%s\n", code, meaning)
	}
	b.WriteString(".SH ENVIRONMENT\n.TP\n\\fBNETYARD_RUN_DIR\\fP\nwhat \\fB--run-dir\\fP is when it is not said\n")
	fmt.Fprintf(&b, ".SH FILES\n.TP\n\\fI%s/%s\\fP\nthe daemon's admin socket\n", defaultRunDir, socketName)
	return b.String()
}
