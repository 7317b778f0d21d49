package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/urfave/cli/v2"

	"netyard/cli/api"
	"netyard/cli/usage"
)

// TestNoWrap prints tables on terminals of every width: no line may be wider than the terminal.
func TestNoWrap(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, api.SocketName))
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: worlds()["busy"].handler(), ReadHeaderTimeout: time.Minute}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	for _, command := range []string{"ps", "network ls", "endpoint ls", "lease ls", "options", "options none"} {
		before := 0
		for width := 1; width < 260; width++ {
			var out, errs bytes.Buffer
			p := Program{Stdout: &out, Stderr: &errs, Width: width}
			args := append([]string{"netyard", "--run-dir", dir}, strings.Fields(command)...)
			if code := p.Run(context.Background(), args); code != exitOK {
				t.Fatalf("%s: exit code %d: %s", command, code, &errs)
			}
			for line := range strings.Lines(out.String()) {
				if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > width {
					t.Errorf("%s on %d columns: %d: %q", command, width, n, line)
				}
			}
			if out.Len() == 0 || out.Len() < before/2 {
				t.Errorf("%s on %d columns: too much is dropped: %s", command, width, &out)
			}
			before = out.Len()
		}
	}
}

// full is a full disk: every write fails.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("no space left on device") }

func TestWriteFails(t *testing.T) {
	for _, command := range []string{
		"options", "options --json", "options --markdown", "options --format json", "options --format x",
		"completion bash", "completion fish", "man", "version",
	} {
		var errs bytes.Buffer
		args := append([]string{"netyard"}, strings.Fields(command)...)
		code := Program{Stdout: full{}, Stderr: &errs}.Run(context.Background(), args)
		if want := "netyard: no space left on device\n"; code != exitFailed || errs.String() != want {
			t.Errorf("%s: exit code %d, %q", command, code, &errs)
		}
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	denied := &net.OpError{Op: "dial", Err: &os.SyscallError{Syscall: "connect", Err: fs.ErrPermission}}
	nowhere := cli.NewContext(cli.NewApp(), nil, nil)
	for _, c := range []struct {
		err  error
		text string
		code int
	}{
		{errors.Join(errors.New("one"), errors.New("two")), "one; two", exitFailed},
		{denied, "dial: connect: permission denied (are you root?)", exitFailed},
		{errors.New("name \x1b[2J"), "name \uFFFD[2J", exitFailed},
		{fmt.Errorf("show: %w", usage.Errorf(nowhere, "typo")), "show: typo", exitUsage},
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
