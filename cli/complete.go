package cli

import (
	_ "embed"
	"fmt"
	"io"
	"regexp"
	"strings"

	"github.com/urfave/cli/v2"

	"netyard/cli/api"
	"netyard/cli/usage"
)

//go:embed completion/netyard.bash
var bashCompletion string

//go:embed completion/netyard.zsh
var zshCompletion string

func completionCommand() *cli.Command {
	shells := []string{"bash", "zsh", "fish"}
	return &cli.Command{
		Name: "completion", ArgsUsage: strings.Join(shells, "|"),
		BashComplete: complete(func(*cli.Context) []string { return shells }),
		Usage:        "print the completion script of a shell",
		Description:  usage.Describe("", "source <(netyard completion bash)", "netyard completion fish | source"),
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
				return usage.Unknown(c, "shell", shell, shells)
			}
			_, err = io.WriteString(c.App.Writer, script)
			return err
		},
	}
}

// complete returns the completion of a command: its flags, and words for its first argument. Words with characters that
// a shell could interpret are left out.
func complete(words func(*cli.Context) []string) cli.BashCompleteFunc {
	plain := regexp.MustCompile(`^[\w.-]+$`)
	return func(c *cli.Context) {
		cli.DefaultCompleteWithFlags(c.Command)(c)
		if c.NArg() > 0 {
			return
		}
		for _, w := range words(c) {
			if plain.MatchString(w) {
				_, _ = fmt.Fprintln(c.App.Writer, w) // a shell that has gone needs no completion
			}
		}
	}
}

func manCommand() *cli.Command {
	return &cli.Command{
		Name: "man", Usage: "print the manual page",
		Description: usage.Describe("", "netyard man | man -l -", "netyard man > netyard.8"),
		Action: func(c *cli.Context) error {
			app := *c.App
			app.Description = "" // manTail has the exit codes, in a section of their own
			page, err := app.ToMan()
			if err != nil {
				return fmt.Errorf("make manual page: %w", err)
			}
			_, err = io.WriteString(c.App.Writer, strings.TrimRight(page, "\n")+"\n"+manTail())
			return err
		},
	}
}

// manTail returns the sections of the manual page that urfave/cli does not write.
func manTail() string {
	var b strings.Builder
	b.WriteString(".SH EXIT STATUS\n")
	for code, meaning := range exitCodes() {
		fmt.Fprintf(&b, ".TP\n\\fB%d\\fP\n%s\n", code, meaning)
	}
	b.WriteString(".SH ENVIRONMENT\n.TP\n\\fBNETYARD_RUN_DIR\\fP\n")
	b.WriteString("the value of \\fB--run-dir\\fP if that flag is not given\n")
	fmt.Fprintf(&b, ".SH FILES\n.TP\n\\fI%s/%s\\fP\nthe daemon's admin socket\n", api.RunDir, api.SocketName)
	return b.String()
}
