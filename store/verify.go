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

// Exit codes of a process that runs Verify for VerifyIn. Any other end says nothing about the file.
const (
	ExitSound  = 0
	ExitLocked = 3
	ExitUnsure = 4 // it could not be examined
	// ExitDamaged counts only with damagedWord before what was found.
	ExitDamaged = 5
)

// damagedWord begins the line in which an examiner says that a file is damaged. No other program that fails says it.
const damagedWord = "netyard: examined and damaged: "

const (
	// examinations is how often VerifyIn tries when an examiner comes to no result, examinePause how long it waits in
	// between.
	examinations = 3
	examinePause = time.Second
)

// Verify reads the whole file: the structure of its pages, the free list and each value's checksum. Only what it found
// in the file is ErrDamaged; what kept it from reading is not. Memory can run out at any point, which ends the
// process: VerifyIn runs it in one of its own.
func Verify(path string) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() { // the pages were read, so it is what they say
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
	defer db.Close() //nolint:errcheck // read only
	return db.View(checkValues)
}

// readLocked reads a file whole, under the lock that keeps bbolt from writing to it until unlock.
func readLocked(path string) (raw []byte, unlock func(), err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	unlock = func() { _ = f.Close() } // read only
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
				_, err = metaNumber(b, foldedKey)
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

// Report is what a process that ran Verify prints, and the code it ends with.
func Report(err error) (line string, code int) {
	switch {
	case err == nil:
		return "", ExitSound
	case errors.Is(err, ErrLocked):
		return err.Error(), ExitLocked
	case errors.Is(err, ErrDamaged):
		return damagedWord + err.Error(), ExitDamaged
	}
	return err.Error(), ExitUnsure
}

// VerifyIn returns a Config.Verify that runs argv with the path appended; that process calls Verify, prints Report's
// line and ends with its code. A file is damaged only if that process says so. If it is killed, or comes to no result,
// it is run again, and in the end the error says why: that is no word about the file.
func VerifyIn(argv ...string) func(ctx context.Context, path string) error {
	return func(ctx context.Context, path string) error {
		return verifyIn(ctx, argv, path, examinePause)
	}
}

func verifyIn(ctx context.Context, argv []string, path string, pause time.Duration) error {
	var why string
	for try := range examinations {
		if try > 0 {
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("verify %s: %w", path, err)
		}
		done, failed, err := examine(ctx, argv, path)
		if done {
			return err
		}
		why = failed
	}
	return fmt.Errorf("verify %s: %w %d times, the last time it %s; the file was left as it is, and netyard does not start without "+
		"having examined it: see that there is memory, and that the file can be read, and start netyard again",
		path, ErrUnexamined, examinations, why)
}

// examine runs the examiner once. done: it came to a result, which is err; otherwise failed says what became of it.
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
		return true, "", fmt.Errorf("verify %s: %w", path, ctx.Err())
	case !errors.As(err, &exit):
		return false, "could not be run: " + err.Error(), nil
	}
	line := firstLine(stdout.String())
	said, isDamaged := strings.CutPrefix(line, damagedWord)
	switch code := exit.ExitCode(); {
	case code == ExitLocked:
		return true, "", fmt.Errorf("verify %s: %w", path, ErrLocked)
	case code == ExitDamaged && isDamaged:
		return true, "", fmt.Errorf("verify %s: %w: %s", path, ErrDamaged, said)
	case code == ExitUnsure && line != "":
		return false, "said: " + line, nil
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
