package store

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// These are the exit codes of a process that runs Verify for VerifyIn. Any other end says nothing about the file.
const (
	ExitSound  = 0
	ExitLocked = 3
	ExitUnsure = 4 // the file could not be checked
	// ExitDamaged counts only if the line of output begins with damagedPrefix.
	ExitDamaged = 5
)

// damagedPrefix begins the line that reports a damaged file. No other program that fails prints it.
const damagedPrefix = "netyard: examined and damaged: "

const (
	// maxExaminations is how often VerifyIn runs the check if it has no result, with examinePause in between.
	maxExaminations = 3
	examinePause    = time.Second
)

// Verify checks the whole file: the structure of its pages, the free list and the checksum of each value. It fails with
// ErrDamaged only for what it found in the file, not if it could not read it. Memory can run out at any point, which
// ends the process; therefore VerifyIn runs it in a process of its own.
func Verify(path string) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() { // the file was read, so its contents caused the panic
		if p := recover(); p != nil {
			err = fmt.Errorf("check %s: %w: %v", path, ErrDamaged, p)
		}
	}()
	raw, unlock, err := readLocked(path)
	if err != nil {
		return err
	}
	defer unlock()
	if err := checkPages(raw); err != nil {
		return fmt.Errorf("check %s: %w", path, err)
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: lockWait, ReadOnly: true})
	if errors.Is(err, berrors.ErrTimeout) {
		return fmt.Errorf("open %s: %w", path, ErrLocked)
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	defer db.Close() //nolint:errcheck // opened read-only
	return db.View(checkValues)
}

// readLocked reads a whole file, under the lock that keeps bbolt from writing to it until unlock.
func readLocked(path string) (raw []byte, unlock func(), err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	unlock = func() { _ = f.Close() } // opened read-only
	for until := time.Now().Add(lockWait); ; time.Sleep(lockWait / 20) {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EWOULDBLOCK) || time.Now().After(until) {
			break
		}
	}
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = ErrLocked
	}
	if err == nil {
		raw, err = io.ReadAll(f)
	}
	if err != nil {
		unlock()
		return nil, nil, fmt.Errorf("read %s: %w", path, err)
	}
	return raw, unlock, nil
}

// checkValues compares each value with its checksum.
func checkValues(tx *bbolt.Tx) error {
	return tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
		if string(name) == metaBucket {
			_, err := schemaOf(b)
			if err == nil {
				_, err = metaNumber(b, flushedKey)
			}
			if err == nil {
				_, err = metaNumber(b, generationKey)
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
}

// Report returns what a process that ran Verify prints, and its exit code.
func Report(err error) (line string, code int) {
	switch {
	case err == nil:
		return "", ExitSound
	case errors.Is(err, ErrLocked):
		return err.Error(), ExitLocked
	case errors.Is(err, ErrDamaged):
		return damagedPrefix + err.Error(), ExitDamaged
	}
	return err.Error(), ExitUnsure
}

// VerifyIn returns a Config.Verify that runs argv with the path appended; that process calls Verify, prints Report's
// line and exits with its code. A file is damaged only if that process reports it. If it is killed or has no result, it
// is run again, and after the last run the error, ErrUnexamined, says why; that says nothing about the file.
func VerifyIn(argv ...string) func(ctx context.Context, path string) error {
	return func(ctx context.Context, path string) error {
		return verifyIn(ctx, argv, path, examinePause)
	}
}

func verifyIn(ctx context.Context, argv []string, path string, pause time.Duration) error {
	var why string
	for try := range maxExaminations {
		if try > 0 {
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("check %s: %w", path, err)
		}
		done, failed, err := examine(ctx, argv, path)
		if done {
			return err
		}
		why = failed
	}
	return fmt.Errorf("check %s: %w in %d runs; the last run %s; the file was left as it is; "+
		"make sure that memory is free and that the file can be read, and start netyard again",
		path, ErrUnexamined, maxExaminations, why)
}

// examine runs the check once. done says that it had a result, which is err; otherwise failed says what happened.
func examine(ctx context.Context, argv []string, path string) (done bool, failed string, err error) {
	cmd := exec.CommandContext(ctx, argv[0], append(argv[1:len(argv):len(argv)], path)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return true, "", nil
	case ctx.Err() != nil:
		return true, "", fmt.Errorf("check %s: %w", path, ctx.Err())
	case !errors.As(err, &exit):
		return false, "could not be run: " + err.Error(), nil
	}
	line := firstLine(stdout.String())
	finding, isDamaged := strings.CutPrefix(line, damagedPrefix)
	switch code := exit.ExitCode(); {
	case code == ExitLocked:
		return true, "", fmt.Errorf("check %s: %w", path, ErrLocked)
	case code == ExitDamaged && isDamaged:
		return true, "", fmt.Errorf("check %s: %w: %s", path, ErrDamaged, finding)
	case code == ExitUnsure && line != "":
		return false, "reported: " + line, nil
	}
	if line = firstLine(stderr.String()); line == "" {
		return false, "ended with " + exit.String(), nil
	}
	return false, fmt.Sprintf("ended with %s: %s", exit, line), nil
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}

// lockHolder returns the process that holds the file's lock (proc(5), /proc/locks); 0 when it cannot be determined.
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
	defer f.Close() //nolint:errcheck // opened read-only
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
