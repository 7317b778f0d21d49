// Package cli is what people type: the commands of the admin, which ask the daemon, and serve, which is the daemon.
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
	"unicode"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"netyard/cli/api"
)

// The exit codes; scripts rely on them.
const (
	exitOK = iota
	exitFailed
	exitUsage
	exitNoDaemon
	exitFindings
)

// exitCodes says what they mean, in their order, for --help and the man page.
func exitCodes() []string {
	return []string{
		exitOK:       "it worked",
		exitFailed:   "the request failed",
		exitUsage:    "wrong usage: an unknown command, flag or argument",
		exitNoDaemon: "the daemon is not running",
		exitFindings: "doctor found something",
	}
}

const runDirFlag = "run-dir"

// errFindings is how doctor ends on a host that is not healthy; what it found is printed already.
var errFindings = errors.New("there are findings")

// A Program is netyard as somebody called it.
type Program struct {
	Version string
	Stdout  io.Writer
	Stderr  io.Writer
	// Width is that of the terminal that Stdout is; 0: it is none, and tables are as wide as they are.
	Width int
}

// Main does what the process's arguments say and returns its exit code. An empty version is looked up in the binary.
func Main(args []string, version string) int {
	width, _, err := term.GetSize(int(os.Stdout.Fd()))
	if err != nil {
		width = 0
	}
	p := Program{Version: buildVersion(version), Stdout: os.Stdout, Stderr: os.Stderr, Width: width}
	return p.Run(context.Background(), args)
}

// Run does what args say, the program's name first, and returns the exit code.
func (p Program) Run(ctx context.Context, args []string) int {
	app := p.app()
	err := app.RunContext(ctx, arrange(app, args))
	if err != nil && !errors.Is(err, errFindings) && !errors.Is(err, errUnreachable) {
		_, _ = fmt.Fprintln(p.Stderr, "netyard: "+explain(err)) // nobody is left to be told
	}
	return exitCode(err)
}

func (p Program) app() *cli.App {
	app := &cli.App{
		Name: "netyard", HelpName: "netyard", Version: p.Version, Usage: "networks for the containers of one host",
		Description:          description(),
		Writer:               p.Stdout,
		ErrWriter:            p.Stderr,
		EnableBashCompletion: true,
		HideHelpCommand:      true,
		Flags: []cli.Flag{&cli.StringFlag{
			Name: runDirFlag, Usage: "`DIR` of the daemon's admin socket, " + socketName, Value: defaultRunDir, EnvVars: []string{"NETYARD_RUN_DIR"},
		}},
		Commands: []*cli.Command{
			serveCommand(), p.psCommand(), p.networkCommand(), p.endpointCommand(), p.portsCommand(), p.eventsCommand(), p.leaseCommand(),
			p.cniCommand(), p.policyCommand(), p.clusterCommand(), p.doctorCommand(), p.gcCommand(), traceCommand(),
			p.optionsCommand(), p.versionCommand(), completionCommand(), manCommand(), verifyCommand(),
		},
		Action:         wantCommand,
		OnUsageError:   flagError,
		ExitErrHandler: func(*cli.Context, error) {}, // or urfave prints errors and exits by itself
	}
	prepare(app.Name, app.Commands)
	return app
}

func description() string {
	var b strings.Builder
	b.WriteString("Exit codes:\n")
	for code, meaning := range exitCodes() {
		fmt.Fprintf(&b, "\n%d  %s", code, meaning)
	}
	return b.String()
}

// client speaks to the daemon of the run directory that c says.
func client(c *cli.Context) *api.Client {
	return api.NewClient(filepath.Join(c.String(runDirFlag), socketName))
}

func exitCode(err error) int {
	var usage usageError
	var own cli.ExitCoder
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage):
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

// explain says an error in one line.
func explain(err error) string {
	text := strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; ")
	if errors.Is(err, fs.ErrPermission) {
		text += " (are you root?)"
	}
	return printable(text)
}

// printable keeps what others named from steering the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}
