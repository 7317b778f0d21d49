package yard_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"netyard/yard"
)

// TestInTime shows that a hanging request is answered soon after its deadline and reported when it ends, and that one
// which returns its own error in time is not interrupted.
func TestInTime(t *testing.T) {
	t.Parallel()
	const deadline = 9 * time.Second
	refused := errors.New("refused")
	for _, c := range []struct {
		name  string
		takes time.Duration
		err   error
		want  string // of the error
		after time.Duration
		late  bool
	}{
		{"at once", 0, nil, "", 0, false},
		{"at once, refused", 0, refused, "refused", 0, false},
		{"in time", deadline - time.Millisecond, nil, "", deadline - time.Millisecond, false},
		{"a moment after its deadline", deadline + 100*time.Millisecond, refused, "refused", deadline + 100*time.Millisecond, false},
		{"late", 30 * time.Second, nil, "gave up after 9s; the change will be undone; try again", deadline + yard.ReplyTime, true},
		{"late and refused", 30 * time.Second, refused, "gave up after 9s; the change will be undone; try again", deadline + yard.ReplyTime, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), deadline)
				defer cancel()
				ended := make(chan error, 1)
				a, err := yard.InTime(ctx, nil, func() (string, error) {
					time.Sleep(c.takes) // of the bubble's clock, for no deadline
					return "done", c.err
				}, func(_ string, err error) { ended <- err })
				if took := time.Since(start); took != c.after {
					t.Errorf("the answer came after %s, want %s", took, c.after)
				}
				switch {
				case c.want == "" && (err != nil || a != "done"):
					t.Errorf("it ended with %q, %v", a, err)
				case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) ||
					strings.Contains(err.Error(), "\n")):
					t.Errorf("it ended with %v, want %q", err, c.want)
				}
				if c.late {
					if !errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("it is not known for late: %v", err)
					}
					if err := <-ended; !errors.Is(err, c.err) {
						t.Errorf("in the end it came to %v", err)
					}
				}
				synctest.Wait()
				if len(ended) > 0 {
					t.Error("it was heard of twice")
				}
			})
		})
	}
}
