package usage

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/urfave/cli/v2"
)

// program returns a program with a few commands, which do nothing.
func program() *cli.App {
	text := func(name string) cli.Flag { return &cli.StringFlag{Name: name} }
	nothing := func(*cli.Context) error { return nil }
	return &cli.App{
		Name: "netyard", HelpName: "netyard", Flags: []cli.Flag{text("run-dir")},
		Commands: []*cli.Command{
			{Name: "ps", Flags: []cli.Flag{
				text("format"), &cli.BoolFlag{Name: "no-trunc"}, &cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}},
			}, Action: nothing},
			{Name: "network", Subcommands: []*cli.Command{
				{Name: "inspect", ArgsUsage: "NAME", Flags: []cli.Flag{text("format")}, Action: nothing},
			}},
			{Name: "lease", Subcommands: []*cli.Command{
				{Name: "reserve", ArgsUsage: "ADDRESS", Flags: []cli.Flag{text("pool"), text("name")}, Action: nothing},
			}},
			{Name: "set", ArgsUsage: "NAME OPTION=VALUE" + More, Action: nothing},
			{Name: "options", ArgsUsage: "[MODE]", Action: nothing},
		},
	}
}

func TestArrange(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"":                        "",
		"ps":                      "ps",
		"ps -q --no-trunc":        "ps -q --no-trunc",
		"--run-dir /x ps":         "--run-dir /x ps",
		"ps --run-dir /x -q":      "--run-dir /x ps -q",
		"ps --run-dir=/x -q":      "--run-dir=/x ps -q",
		"ps -run-dir /x":          "-run-dir /x ps",
		"network inspect web":     "network inspect web",
		"network inspect help":    "network inspect help",
		"network inspect network": "network inspect network",
		// Flags after arguments.
		"network inspect web --format F":    "network inspect --format F web",
		"network inspect web --format=F":    "network inspect --format=F web",
		"lease reserve A --pool P --name N": "lease reserve --pool P --name N A",
		// No flags after --.
		"network inspect -- --format":            "network inspect -- --format",
		"network inspect web --format F -- -x":   "network inspect --format F -- web -x",
		"network inspect web --unknown --json":   "network inspect --unknown --json web",
		"network inspect web --format":           "network inspect --format",
		"network inspect web --run-dir":          "--run-dir",
		"ps --format --json":                     "ps --format --json",
		"network lss --json":                     "network lss --json",
		"pss -q --run-dir /x":                    "pss -q --run-dir /x",
		"help":                                   "--help",
		"help ps":                                "ps --help",
		"help network inspect":                   "network inspect --help",
		"network help inspect":                   "network inspect --help",
		"help pss":                               "pss",
		"network inspect - -":                    "network inspect - -",
		"network inspect " + completionFlag:      "network inspect " + completionFlag,
		"network inspect web -" + completionFlag: "network inspect -" + completionFlag + " web",
	} {
		got := strings.Join(Arrange(program(), append([]string{"netyard"}, strings.Fields(in)...)), " ")
		if diff := cmp.Diff(strings.TrimSpace("netyard "+want), got); diff != "" {
			t.Errorf("%s: -want +got:\n%s", in, diff)
		}
	}
}

func TestNear(t *testing.T) {
	t.Parallel()
	known := []string{"ps", "ls", "network", "endpoint", "lease", "doctor", "gc", "version", "completion", "options"}
	for word, want := range map[string]string{
		"nework": "network", "pss": "ps", "docter": "doctor", "leases": "lease", "lsit": "ls", "optoins": "options",
		"xyzzy": "", "": "",
	} {
		if got := near(word, known); got != want {
			t.Errorf("%s: got %q, want %q", word, got, want)
		}
	}
}

// TestPrepare: a command gets the arguments that its usage line names, and mistakes are errors of one line.
func TestPrepare(t *testing.T) { // not parallel: the help flag of urfave/cli is a global
	for in, want := range map[string]string{
		"ps":                     "",
		"ps web":                 `ps: unexpected argument "web"`,
		"ps --quit":              `ps: unknown flag "--quit"; did you mean --quiet?`,
		"ps --xyzzy":             `ps: unknown flag "--xyzzy"; see netyard ps --help`,
		"network inspect":        "network inspect: NAME is missing",
		"network inspct web":     `network: unknown command "inspct"; did you mean inspect?`,
		"network inspect web db": `network inspect: unexpected argument "db"`,
		"lease reserve --pool":   "lease reserve: flag needs an argument: -pool",
		"pss":                    `unknown command "pss"; did you mean ps?`,
		"set web":                "set: OPTION=VALUE... is missing",
		"set web icc=true mtu=1": "",
		"options":                "",
		"options bridge":         "",
		"options bridge macvlan": `options: unexpected argument "macvlan"`,
	} {
		app, got := program(), ""
		Prepare(app)
		if err := app.Run(Arrange(app, append([]string{"netyard"}, strings.Fields(in)...))); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
}

func TestPairs(t *testing.T) { // not parallel: the help flag of urfave/cli is a global
	for in, want := range map[string]string{
		"-o a=1 -o b=":  "",
		"-o a=1 -o a=1": "",
		"-o a=1 -o a=2": `make: --opt a=2: a already has the value "1"`,
		"-o a":          "make: --opt a: not KEY=VALUE",
		"-o =a":         "make: --opt =a: not KEY=VALUE",
	} {
		app, got := &cli.App{Name: "netyard", HelpName: "netyard", Commands: []*cli.Command{{
			Name: "make", Flags: []cli.Flag{&cli.StringSliceFlag{Name: "opt", Aliases: []string{"o"}}},
			Action: func(c *cli.Context) error { _, err := Pairs(c, "opt"); return err },
		}}}, ""
		Prepare(app)
		if err := app.Run(append([]string{"netyard", "make"}, strings.Fields(in)...)); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
}

func TestDescribe(t *testing.T) {
	t.Parallel()
	if got, want := Describe("It lists.", "netyard ps", "netyard ls"),
		"It lists.\n\nExamples:\n\n  netyard ps\n  netyard ls"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := Describe("", "netyard ps"), "Examples:\n\n  netyard ps"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
