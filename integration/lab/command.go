package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// commandTime is how long any one command of a test may take. Docker waits up to 60 s for a plugin that is down; a
// test that runs into that is to see it, and not to hang.
const commandTime = 2 * time.Minute

// run runs a command and returns what it printed, trimmed. The error is what it complained.
// start says where: (*exec.Cmd).Start for this machine's own namespaces.
func run(path string, args []string, prepare func(*exec.Cmd), start func(*exec.Cmd) error) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), commandTime)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.WaitDelay = time.Second // a grandchild that keeps the output open must not keep the test
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	prepare(cmd)
	err := start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	out := strings.TrimSpace(stdout.String())
	switch {
	case err == nil || errors.Is(err, exec.ErrWaitDelay):
		return out, nil
	case ctx.Err() != nil:
		err = fmt.Errorf("took more than %v", commandTime)
	}
	// A shell command often says on its standard output what went wrong.
	return out, commandError{strings.TrimSpace(strings.Join([]string{stderr.String(), out}, "\n")), err}
}

// A commandError is what a command printed before it failed.
type commandError struct {
	said string
	err  error
}

func (e commandError) Error() string {
	if e.said == "" {
		return e.err.Error()
	}
	return e.said
}

func (e commandError) Unwrap() error { return e.err }

// within calls f until it succeeds, and returns its last error when it has not by then.
func within(limit time.Duration, f func() error) error {
	deadline := time.Now().Add(limit)
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		err := f()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(wait)
	}
}

// startHere starts a command in this machine's own namespaces.
func startHere(cmd *exec.Cmd) error { return cmd.Start() }

// nothing prepares nothing.
func nothing(*exec.Cmd) {}
