package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/urfave/cli/v2"

	"netyard/cli/api"
	"netyard/cli/table"
	"netyard/cli/usage"
	"netyard/modes"
)

// versions are those of this program and of the daemon that answers.
type versions struct {
	Client clientVersion `json:"client"`
	Daemon *api.Version  `json:"daemon"` // nil: the daemon is not running
}

type clientVersion struct {
	Version string `json:"version"`
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
}

func (p Program) versionCommand() *cli.Command {
	return &cli.Command{
		Name: "version", Usage: "show the versions of this program and of the daemon",
		Description: usage.Describe("", "netyard version", "netyard version --format '{{.Client.Version}}'"),
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "json", Usage: "print JSON"},
			&cli.StringFlag{Name: table.FormatFlag, Usage: "print with a Go `TEMPLATE`"},
		},
		Action: func(c *cli.Context) error {
			t, err := table.ParseFormat(c)
			if err != nil {
				return err
			}
			if err := usage.OnlyOne(c, "json", table.FormatFlag); err != nil {
				return err
			}
			v := versions{Client: clientVersion{p.Version, runtime.Version(), runtime.GOOS, runtime.GOARCH}}
			daemon, missing := client(c).Version(c.Context)
			if missing == nil {
				v.Daemon = &daemon
			}
			if t != nil || c.Bool("json") {
				err = table.PrintOne(c, t, v)
			} else {
				err = printVersions(c, v)
			}
			if err != nil {
				return err
			}
			return missing // the client's version is printed already
		},
	}
}

func printVersions(c *cli.Context, v versions) error {
	w := c.App.Writer
	_, err := fmt.Fprintf(w, "client  %s (%s, %s/%s)\n", v.Client.Version, v.Client.Go, v.Client.OS, v.Client.Arch)
	if err == nil && v.Daemon != nil {
		_, err = fmt.Fprintf(w, "daemon  %s (pid %d)\n", v.Daemon.Version, v.Daemon.PID)
	}
	return err
}

// buildVersion returns the version that the linker set, or the commit that the program was built from, or "devel".
func buildVersion(linked string) string {
	if linked != "" {
		return linked
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "devel"
	}
	return commit(info.Settings)
}

// commit returns the shortened commit in the build settings, marked if the tree had changes.
func commit(settings []debug.BuildSetting) string {
	version, changed := "devel", ""
	for _, s := range settings {
		switch {
		case s.Key == "vcs.revision" && s.Value != "":
			version = modes.Short(s.Value)
		case s.Key == "vcs.modified" && s.Value == "true":
			changed = "-dirty"
		}
	}
	return version + changed
}
