package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/urfave/cli/v2"

	"netyard/cli/api"
)

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
		app := Program{Stdout: io.Discard, Stderr: io.Discard}.app()
		got := strings.Join(arrange(app, append([]string{"netyard"}, strings.Fields(in)...)), " ")
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

func TestErrors(t *testing.T) {
	t.Parallel()
	denied := &net.OpError{Op: "dial", Err: &os.SyscallError{Syscall: "connect", Err: fs.ErrPermission}}
	for _, c := range []struct {
		err  error
		text string
		code int
	}{
		{errors.Join(errors.New("one"), errors.New("two")), "one; two", exitFailed},
		{denied, "dial: connect: permission denied (are you root?)", exitFailed},
		{errors.New("name \x1b[2J"), "name \uFFFD[2J", exitFailed},
		{fmt.Errorf("show: %w", usageError{"typo"}), "show: typo", exitUsage},
		{fmt.Errorf("show: %w", api.ErrNoDaemon), "show: the netyard daemon is not running", exitNoDaemon},
		{&api.StatusError{Status: 404, Message: "gone"}, "gone", exitFailed},
		{cli.Exit("damaged", 65), "damaged", 65},
	} {
		if got := explain(c.err); got != c.text {
			t.Errorf("got %q, want %q", got, c.text)
		}
		if got := exitCode(c.err); got != c.code {
			t.Errorf("%v: got exit code %d, want %d", c.err, got, c.code)
		}
	}
}
