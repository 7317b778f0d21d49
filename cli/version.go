package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/urfave/cli/v2"

	"netyard/cli/api"
	"netyard/modes"
)

// versions are who speaks and who answers.
type versions struct {
	Client clientVersion `json:"client"`
	Daemon *api.Version  `json:"daemon"` // nil: it is not running
}

type clientVersion struct {
	Version string `json:"version"`
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
}

func (p Program) versionCommand() *cli.Command {
	return &cli.Command{
		Name: "version", Usage: "show the version of this program and of the daemon",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "json", Usage: "print it as JSON"},
			&cli.StringFlag{Name: formatFlag, Usage: "print it by a Go `TEMPLATE`"},
		},
		Action: func(c *cli.Context) error {
			t, err := parseFormat(c)
			if err != nil {
				return err
			}
			if err := onlyOne(c, "json", formatFlag); err != nil {
				return err
			}
			v := versions{Client: clientVersion{p.Version, runtime.Version(), runtime.GOOS, runtime.GOARCH}}
			daemon, missing := client(c).Version(c.Context)
			if missing == nil {
				v.Daemon = &daemon
			}
			if t != nil || c.Bool("json") {
				err = printOne(c, t, v)
			} else {
				err = printVersions(c, v)
			}
			if err != nil {
				return err
			}
			return missing // after what is known was said
		},
	}
}

func printVersions(c *cli.Context, v versions) error {
	_, err := fmt.Fprintf(c.App.Writer, "client  %s (%s, %s/%s)\n", v.Client.Version, v.Client.Go, v.Client.OS, v.Client.Arch)
	if err == nil && v.Daemon != nil {
		_, err = fmt.Fprintf(c.App.Writer, "daemon  %s (pid %d)\n", v.Daemon.Version, v.Daemon.PID)
	}
	return err
}

// buildVersion is what the linker was told, or else the commit that the program was built from, or else devel.
func buildVersion(told string) string {
	if told != "" {
		return told
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "devel"
	}
	return commit(info.Settings)
}

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
