package daemon

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"testing"
)

// TestAwaitChange: a hangup has the configuration read again; one that is not valid or the same changes nothing.
func TestAwaitChange(t *testing.T) {
	t.Parallel()
	changed := defaults()
	changed.LogLevel = "debug"
	type answer struct {
		cfg config
		err error
	}
	answers := make(chan answer, 3)
	answers <- answer{err: errors.New("log_level: \"loud\" is not debug, info, warn or error")}
	answers <- answer{cfg: defaults()}
	answers <- answer{cfg: changed}
	hangups := make(chan os.Signal, cap(answers))
	for range cap(answers) {
		hangups <- syscall.SIGHUP
	}
	r := reloader{hangups: hangups, load: func() (config, error) { a := <-answers; return a.cfg, a.err }}
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, nil))
	if next := r.awaitChange(t.Context(), defaults(), log); next == nil || next.LogLevel != "debug" {
		t.Errorf("got %+v, want the changed configuration", next)
	}
	for _, want := range []string{"not reloaded; the former one is in force", "loud", "nothing has changed"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the log has no %q:\n%s", want, &out)
		}
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if next := r.awaitChange(ended, defaults(), log); next != nil {
		t.Errorf("got %+v of a daemon that ends", next)
	}
}
