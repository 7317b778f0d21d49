package store

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// Exit codes of a process that runs Verify for VerifyIn. Any other end, a fault among them, means damaged.
const (
	ExitSound  = 0
	ExitLocked = 3
	ExitUnsure = 4 // it could not be examined
)

// Verify reads the whole file: the structure of its pages, the free list and each value's checksum.
// A damaged file can end the process, which is why VerifyIn runs it in one of its own.
func Verify(path string) error {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: lockWait, ReadOnly: true})
	if errors.Is(err, berrors.ErrTimeout) {
		return fmt.Errorf("open %s: %w", path, ErrLocked)
	}
	if errors.Is(err, syscall.ENOMEM) || errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.EACCES) {
		return fmt.Errorf("open %s: %w", path, err) // which says nothing about the file
	}
	if err != nil {
		return fmt.Errorf("open %s: %w: %w", path, ErrDamaged, err)
	}
	defer db.Close() //nolint:errcheck // read only
	return db.View(func(tx *bbolt.Tx) error {
		var first error
		for err := range tx.Check() {
			if first == nil {
				first = fmt.Errorf("check %s: %w: %w", path, ErrDamaged, err)
			}
		}
		if first != nil {
			return first
		}
		return tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
			if string(name) == metaBucket {
				_, err := schemaOf(b)
				if err == nil {
					_, err = foldedOf(b)
				}
				return err
			}
			return b.ForEach(func(k, raw []byte) error {
				if _, err := unseal(k, raw); err != nil {
					return fmt.Errorf("%s %q: %w", name, k, err)
				}
				return nil
			})
		})
	})
}

// VerifyIn returns a Config.Verify that runs argv with the path appended; that process calls Verify and
// exits with ExitCode's answer.
func VerifyIn(argv ...string) func(ctx context.Context, path string) error {
	return func(ctx context.Context, path string) error {
		cmd := exec.CommandContext(ctx, argv[0], append(argv[1:len(argv):len(argv)], path)...)
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("verify %s: %w", path, ctx.Err())
		case !errors.As(err, &exit):
			return fmt.Errorf("verify %s: %w", path, err)
		case exit.ExitCode() == ExitLocked:
			return fmt.Errorf("verify %s: %w", path, ErrLocked)
		case toldToStop(exit.ProcessState):
			return fmt.Errorf("verify %s: %w", path, exit)
		}
		line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		if exit.ExitCode() == ExitUnsure {
			return fmt.Errorf("verify %s: %s", path, line)
		}
		return fmt.Errorf("verify %s: %w: %s", path, ErrDamaged, line)
	}
}

// toldToStop says whether a process was ended from outside, as a service manager ends all of a service's:
// that says nothing of the file.
func toldToStop(p *os.ProcessState) bool {
	st, ok := p.Sys().(syscall.WaitStatus)
	if !ok || !st.Signaled() {
		return false
	}
	sig := st.Signal()
	return sig == syscall.SIGTERM || sig == syscall.SIGINT || sig == syscall.SIGHUP
}

// ExitCode is what a process that ran Verify ends with.
func ExitCode(err error) int {
	switch {
	case err == nil:
		return ExitSound
	case errors.Is(err, ErrLocked):
		return ExitLocked
	case errors.Is(err, ErrDamaged):
		return 1
	}
	return ExitUnsure
}

// lockHolder finds who holds the file's lock (proc(5), /proc/locks); 0 when it cannot be told.
func lockHolder(path string) int {
	st, err := os.Stat(path)
	if err != nil {
		return 0
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return 0
	}
	f, err := os.Open("/proc/locks")
	if err != nil {
		return 0
	}
	defer f.Close() //nolint:errcheck // read only
	inode := ":" + strconv.FormatUint(sys.Ino, 10)
	for sc := bufio.NewScanner(f); sc.Scan(); {
		// 1: FLOCK  ADVISORY  WRITE 4242 fe:00:1234 0 EOF
		fields := strings.Fields(sc.Text())
		if len(fields) > 5 && fields[1] == "FLOCK" && strings.HasSuffix(fields[5], inode) {
			if pid, err := strconv.Atoi(fields[4]); err == nil {
				return pid
			}
		}
	}
	return 0
}
