package yard_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"netyard/yard/book"
)

// everywhere runs the commands of a file on a host of their own, once for each step between two changes of records and
// kernel: the daemon dies there and is started again, records and kernel agree, and the command is sent again. The end
// is the same as without a crash.
func everywhere(ctx context.Context, w *world, a args) (string, error) {
	return w.trials(ctx, a, crashAt)
}

// refusedVerb does the same with objects that cannot be made: the command fails, records and kernel agree, and it
// succeeds when it is sent again.
func refusedVerb(ctx context.Context, w *world, a args) (string, error) {
	return w.trials(ctx, a, refuseAt)
}

// A trouble runs a command. If the command comes to step at, counted from before, that goes wrong; what follows is
// checked, and the command is run again. steps are those that the command came to.
type trouble func(ctx context.Context, w *world, what string, before, at int, run func() error) (steps int, err error)

// trials runs a script without trouble, and then with trouble at each step.
func (w *world) trials(ctx context.Context, a args, t trouble) (string, error) {
	script := strings.Split(strings.TrimSpace(a.read(a.at(0))), "\n")
	want, steps, err := w.trial(ctx, a.read, script, t, 0)
	if err != nil {
		return "", err
	}
	for at := range steps {
		got, _, err := w.trial(ctx, a.read, script, t, at+1)
		if err != nil {
			return "", fmt.Errorf("step %d: %w", at+1, err)
		}
		if got != want {
			return "", fmt.Errorf("step %d: the end is\n%sand not\n%s", at+1, got, want)
		}
	}
	return fmt.Sprintf("%d steps\n", steps), nil
}

// trial runs a script on a host of its own with trouble at a step; 0: none. It returns what is there at the end.
func (w *world) trial(
	ctx context.Context, read func(string) string, script []string, t trouble, at int,
) (end string, steps int, err error) {
	w.tries++
	one, err := newWorld(ctx, filepath.Join(w.dir, fmt.Sprint("try", w.tries)))
	if err != nil {
		return "", 0, err
	}
	defer func() { err = errors.Join(err, one.st.Close()) }()
	for _, line := range script {
		n, err := t(ctx, one, line, steps, at, func() error {
			_, err := one.do(ctx, read, strings.Fields(line))
			return err
		})
		steps += n
		if err != nil {
			return "", 0, fmt.Errorf("%s: %w", line, err)
		}
	}
	state, err := one.state()
	if err != nil {
		return "", 0, err
	}
	records, err := one.records()
	return state + records, steps, err
}

// crashAt lets the daemon die at a step between two changes of records and kernel.
func crashAt(ctx context.Context, w *world, what string, before, at int, run func() error) (steps int, err error) {
	done, err := pullAt(&w.step, func(n int, _ string) bool { return before+n == at }, run)
	if !errors.Is(err, errPulled) {
		return len(done), err
	}
	when := fmt.Sprintf("%s, %q", what, done[len(done)-1])
	if err := w.recovers(ctx, when); err != nil {
		return 0, err
	}
	return len(done), w.again(ctx, when, run)
}

// refuseAt lets the kernel refuse an object; each one that is made, or found as wanted, is a step.
func refuseAt(ctx context.Context, w *world, what string, before, at int, run func() error) (steps int, err error) {
	refused := ""
	w.kernel.Refuse = func(text string, removal bool) error {
		if removal {
			return nil
		}
		if steps++; before+steps != at {
			return nil
		}
		refused = w.plain(text)
		return errRefused
	}
	err = run()
	w.kernel.Refuse = nil
	if refused == "" {
		return steps, err
	}
	when := fmt.Sprintf("%s, %s refused", what, refused)
	if err != nil && !errors.Is(err, errRefused) {
		return steps, fmt.Errorf("%s: %w", when, err)
	}
	if err := w.healthy(ctx, when); err != nil {
		return steps, err
	}
	return steps, w.again(ctx, when, run)
}

// again sends a command again.
func (w *world) again(ctx context.Context, when string, run func() error) error {
	if err := run(); err != nil && !errors.Is(err, book.ErrNotFound) { // it is removed already
		return fmt.Errorf("%s: sent again: %w", when, err)
	}
	return w.healthy(ctx, when+", sent again")
}

// recovers starts the daemon after a crash.
func (w *world) recovers(ctx context.Context, when string) error {
	if err := w.restart(ctx); err != nil {
		return fmt.Errorf("%s: restart: %w", when, err)
	}
	if l, ok := w.fabric.(*ledger); ok {
		l.reap(w.y.Book)
	}
	return w.healthy(ctx, when)
}

// healthy returns an error if records and kernel differ.
func (w *world) healthy(ctx context.Context, when string) error {
	found, err := w.audit(ctx)
	if err == nil && found != "ok\n" {
		err = errors.New(found)
	}
	if err != nil {
		return fmt.Errorf("%s: audit: %w", when, err)
	}
	return nil
}
