// Package cli has the commands of netyard. They ask the daemon; serve, which is the daemon, is in package daemon.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"netyard/cli/api"
	"netyard/cli/daemon"
	"netyard/cli/table"
	"netyard/cli/usage"
)

// The exit codes; scripts rely on them.
const (
	exitOK = iota
	exitFailed
	exitUsage
	exitNoDaemon
	exitFindings
)

// exitCodes returns the meaning of each exit code, in order, for --help and the manual page.
func exitCodes() []string {
	return []string{
		exitOK:       "success",
		exitFailed:   "the request failed",
		exitUsage:    "usage error: unknown command, flag or argument",
		exitNoDaemon: "the daemon is not running",
		exitFindings: "doctor reported findings",
	}
}

const runDirFlag = "run-dir"

// errFindings is the error of doctor on a host that is not healthy. The findings are printed already.
var errFindings = errors.New("there are findings")

// A Program is one run of netyard.
type Program struct {
	Version string
	Stdout  io.Writer
	Stderr  io.Writer
	// Width is the width of the terminal, in columns; 0: Stdout is no terminal, and tables are not cut.
	Width int
}

// Main runs netyard on the process's terminal and returns the exit code. An empty version is read from the binary.
func Main(args []string, version string) int {
	width, _, err := term.GetSize(int(os.Stdout.Fd()))
	if err != nil {
		width = 0
	}
	p := Program{Version: buildVersion(version), Stdout: os.Stdout, Stderr: os.Stderr, Width: width}
	return p.Run(context.Background(), args)
}

// Run runs the command in args, which begin with the program's name, and returns the exit code.
func (p Program) Run(ctx context.Context, args []string) int {
	app := p.app()
	err := app.RunContext(ctx, usage.Arrange(app, args))
	if err != nil && !errors.Is(err, errFindings) && !errors.Is(err, errUnreachable) {
		_, _ = fmt.Fprintln(p.Stderr, "netyard: "+explain(err)) // stderr is the last place to report to
	}
	return exitCode(err)
}

func (p Program) app() *cli.App {
	app := &cli.App{
		Name: "netyard", HelpName: "netyard", Version: p.Version,
		Usage:                "container networks for Docker and CNI runtimes",
		UsageText:            "netyard [OPTIONS] COMMAND",
		Description:          description(),
		Writer:               p.Stdout,
		ErrWriter:            p.Stderr,
		EnableBashCompletion: true,
		HideHelpCommand:      true,
		Flags: []cli.Flag{&cli.StringFlag{
			Name: runDirFlag, Usage: "`DIR` of the daemon's admin socket, " + api.SocketName, Value: api.RunDir,
			EnvVars: []string{"NETYARD_RUN_DIR"},
		}},
		Commands: []*cli.Command{
			daemon.ServeCommand(), p.psCommand(), p.networkCommand(), p.endpointCommand(), p.portsCommand(),
			p.eventsCommand(), p.leaseCommand(), p.cniCommand(), p.policyCommand(), p.clusterCommand(),
			p.doctorCommand(), p.gcCommand(), traceCommand(), p.optionsCommand(), p.versionCommand(),
			completionCommand(), manCommand(), daemon.VerifyCommand(),
		},
	}
	usage.Prepare(app)
	return app
}

// description is the program's.
func description() string {
	var b strings.Builder
	b.WriteString("netyard COMMAND --help shows a command's flags and examples.\n\nExit codes:\n")
	for code, meaning := range exitCodes() {
		fmt.Fprintf(&b, "\n%d  %s", code, meaning)
	}
	return b.String()
}

// client returns a client of the daemon in c's run directory.
func client(c *cli.Context) *api.Client {
	return api.NewClient(filepath.Join(c.String(runDirFlag), api.SocketName))
}

func exitCode(err error) int {
	var mistake usage.Error
	var own cli.ExitCoder
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &mistake):
		return exitUsage
	case errors.Is(err, api.ErrNoDaemon):
		return exitNoDaemon
	case errors.Is(err, errFindings):
		return exitFindings
	case errors.As(err, &own):
		return own.ExitCode()
	}
	return exitFailed
}

// explain returns an error as one line.
func explain(err error) string {
	text := strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; ")
	if errors.Is(err, fs.ErrPermission) {
		text += " (are you root?)"
	}
	return table.Printable(text)
}
