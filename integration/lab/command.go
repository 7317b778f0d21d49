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

// commandTime is how long a command of a test may take. Docker waits up to 60 s for a plugin that is down; a test that
// runs into that must see it, and not hang.
const commandTime = 2 * time.Minute

// run runs a command and returns its standard output, trimmed. The error has its standard error. start starts it in
// some namespaces: startHere in this machine's own.
func run(path string, args []string, prepare func(*exec.Cmd), start func(*exec.Cmd) error) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), commandTime)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.WaitDelay = time.Second // a grandchild that keeps the output open must not block the test
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
	// Shell commands often print errors to their standard output.
	return out, commandError{strings.TrimSpace(strings.Join([]string{stderr.String(), out}, "\n")), err}
}

// A commandError is the error of a failed command, with its output.
type commandError struct {
	output string
	err    error
}

func (e commandError) Error() string {
	if e.output == "" {
		return e.err.Error()
	}
	return e.output
}

func (e commandError) Unwrap() error { return e.err }

// within calls f until it succeeds; after limit it returns the last error.
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

// nothing is a prepare function for run that does nothing.
func nothing(*exec.Cmd) {}
