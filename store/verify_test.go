package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestVerifyIn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := open(t, Config{Path: path})
	update(t, s, func(tx Tx) error { return records.Put(tx, "a", record{"a", 1}) })
	wantError(t, s.Close(), nil, "")
	t.Setenv(roleEnv, "verify")
	verify := examiner(os.Args[0])
	wantError(t, verify(t.Context(), path), nil, "")

	gone, cancel := context.WithCancel(t.Context())
	cancel()
	wantError(t, verify(gone, path), context.Canceled, "check "+path+": context canceled")
	t.Setenv(roleEnv, "verify")
	edit(t, path, put("records", "a", func([]byte) []byte { return []byte("x") }))
	wantError(t, verify(t.Context(), path), ErrDamaged, "check "+path+`: damaged: records "a": 1 bytes: damaged`)
}

// examiner does what VerifyIn does, with a pause of only 1 ms.
func examiner(argv ...string) func(context.Context, string) error {
	return func(ctx context.Context, path string) error { return verifyIn(ctx, argv, path, time.Millisecond) }
}

// TestExaminerFails: if the check is killed, cannot run or prints something else, it is run again, and the file stays
// where it is and is not opened. A check that reports a damaged file is believed at once.
func TestExaminerFails(t *testing.T) {
	hangups := make(chan os.Signal, 1) // handled here, hangups are not ignored by the check, as below nohup
	signal.Notify(hangups, unix.SIGHUP)
	defer signal.Stop(hangups)
	dir := t.TempDir()
	path := filepath.Join(dir, "state.db")
	s := open(t, Config{Path: path})
	update(t, s, func(tx Tx) error { return records.Put(tx, "a", record{"a", 1}) })
	wantError(t, s.Close(), nil, "")
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	tries := filepath.Join(dir, "tries")
	sh := func(script string) []string { return []string{"sh", "-c", "echo >>" + tries + "; " + script + " #"} }
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte("no program"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		argv  []string
		says  string
		tries int
	}{
		"killed":                {sh("kill -KILL $$"), "signal: killed", 3},
		"told to stop":          {sh("kill -TERM $$"), "signal: terminated", 3},
		"hung up":               {sh("kill -HUP $$"), "signal: hangup", 3},
		"out of time":           {sh("kill -XCPU $$"), "signal: CPU time limit exceeded", 3},
		"too large a file":      {sh("kill -XFSZ $$"), "signal: file size limit exceeded", 3},
		"a fault":               {sh("kill -SEGV $$"), "signal: segmentation fault", 3},
		"a fault of the map":    {sh("kill -BUS $$"), "signal: bus error", 3},
		"a system call refused": {sh("kill -SYS $$"), "signal: bad system call", 3},
		"aborted":               {sh("kill -ABRT $$"), "signal: aborted", 3},
		"out of memory":         {sh("echo fatal error: runtime: out of memory >&2; exit 2"), "exit status 2: fatal error: runtime: out of memory", 3},
		"no thread":             {sh("echo runtime: failed to create new OS thread >&2; exit 2"), "failed to create new OS thread", 3},
		"a panic":               {sh("echo panic: damaged >&2; exit 2"), "panic: damaged", 3},
		"another program":       {sh("exit 1"), "exit status 1", 3},
		"damaged, by code only": {sh(fmt.Sprint("exit ", ExitDamaged)), fmt.Sprint("exit status ", ExitDamaged), 3},
		"damaged, by word only": {sh("echo '" + damagedPrefix + "x'; exit 1"), "exit status 1", 3},
		"damaged, on stderr":    {sh(fmt.Sprint("echo '", damagedPrefix, "x' >&2; exit ", ExitDamaged)), "exit status", 3},
		"cannot read":           {sh(fmt.Sprint("echo read: input/output error; exit ", ExitUnsure)), "reported: read: input/output error", 3},
		"no memory to start it": {[]string{"sh", "-c", "echo >>" + tries + "; ulimit -v 20000; exec " + os.Args[0] + " #"}, "ended with", 3},
		"no program":            {[]string{filepath.Join(dir, "no-such-program")}, "no such file", 0},
		"no permission":         {[]string{dir}, "permission denied", 0},
		"no format":             {[]string{text}, "exec format error", 0},
		"damaged":               {sh(fmt.Sprint("echo '", damagedPrefix, "x'; exit ", ExitDamaged)), "", 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(roleEnv, "verify")
			if err := os.RemoveAll(tries); err != nil {
				t.Fatal(err)
			}
			err := examiner(c.argv...)(t.Context(), path)
			if err == nil || errors.Is(err, ErrDamaged) != (c.says == "") {
				t.Fatalf("the check says %v", err)
			}
			if n, _ := os.ReadFile(tries); len(n) != c.tries {
				t.Errorf("the check was run %d times, want %d", len(n), c.tries)
			}
			if c.says == "" {
				return
			}
			for _, part := range []string{path, c.says, "left as it is"} {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error reads %q, without %q", err, part)
				}
			}
			_, err = Open(t.Context(), Config{Path: path, Verify: examiner(c.argv...)})
			if !errors.Is(err, ErrUnexamined) {
				t.Errorf("open says %v", err)
			}
			if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, raw) {
				t.Errorf("the file has changed: %v", err)
			}
			if aside, _ := filepath.Glob(path + ".damaged*"); len(aside) > 0 {
				t.Errorf("the file was moved aside: %v", aside)
			}
		})
	}
}

// TestExaminerFailsOnce: a check that was killed is run again, and the second result counts.
func TestExaminerFailsOnce(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state.db")
	s := open(t, Config{Path: path})
	wantError(t, s.Close(), nil, "")
	for name, c := range map[string]struct {
		end string
		is  error
	}{
		"sound":   {"exit 0", nil},
		"damaged": {fmt.Sprint("echo '", damagedPrefix, "x'; exit ", ExitDamaged), ErrDamaged},
		"locked":  {fmt.Sprint("exit ", ExitLocked), ErrLocked},
	} {
		t.Run(name, func(t *testing.T) {
			first := filepath.Join(t.TempDir(), "first")
			script := "mkdir " + first + " 2>/dev/null && kill -KILL $$; " + c.end + " #"
			err := examiner("sh", "-c", script)(t.Context(), path)
			if !errors.Is(err, c.is) || (err == nil) != (c.is == nil) {
				t.Errorf("the check says %v", err)
			}
		})
	}
}

// TestExaminerStopped: after the context ends, a failed check is not run again.
func TestExaminerStopped(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	path := filepath.Join(t.TempDir(), "state.db")
	started := filepath.Join(t.TempDir(), "started")
	go func() {
		for { // until the first check runs; the pause after it is longer than any test
			if _, err := os.Stat(started); err == nil {
				cancel()
				return
			}
		}
	}()
	err := verifyIn(ctx, []string{"sh", "-c", "mkdir " + started + "; kill -KILL $$ #"}, path, time.Hour)
	wantError(t, err, context.Canceled, "check "+path+": context canceled")
}

// fill writes a database of many pages, the last record in a transaction of its own, and returns the file's content.
func fill(t *testing.T, path string) []byte {
	t.Helper()
	s := open(t, Config{Path: path})
	for from := range 10 {
		update(t, s, func(tx Tx) error {
			for i := from; i < filled; i += 10 {
				if err := records.Put(tx, fmt.Sprintf("%06d", i), record{strings.Repeat("x", i%50), i}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	update(t, s, func(tx Tx) error { return records.Put(tx, "last", record{"last", filled}) })
	wantError(t, s.Close(), nil, "")
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

const filled = 2000

func TestDamagedFile(t *testing.T) {
	const page = 4096
	sound := fill(t, filepath.Join(t.TempDir(), "state.db"))
	rnd := rand.New(rand.NewPCG(1, 2))
	noise := func(b []byte) {
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
	}
	outcomes := map[bool]int{}
	try := func(name string, raw []byte) {
		t.Run(name, func(t *testing.T) {
			t.Setenv(roleEnv, "verify")
			t.Setenv("GORACE", "atexit_sleep_ms=0") // the default is a second per process
			outcomes[checkDamaged(t, raw)]++
		})
	}
	for round := range 20 {
		raw := bytes.Clone(sound)
		for range 1 + rnd.IntN(3) {
			noise(raw[rnd.IntN(len(raw)/page)*page:][:page])
		}
		try(fmt.Sprint("pages, round ", round), raw)
	}
	if outcomes[true] == 0 || outcomes[false] == 0 {
		t.Errorf("sound and damaged files in the rounds: %v, want some of both", outcomes)
	}
	for round := range 20 {
		raw := bytes.Clone(sound)
		noise(raw[rnd.IntN(len(raw)):][:1])
		try(fmt.Sprint("a byte, round ", round), raw)
	}
	for _, n := range []int{0, 1, page, 2 * page, len(sound) / 2, len(sound) - page} {
		try(fmt.Sprint("cut off at ", n), sound[:n])
	}
	try("zeros", make([]byte, len(sound)))
	try("zeros, a page", make([]byte, page))
	try("text", []byte("no database\n"))
	root := mustMeta(t, sound).root
	for name, edit := range map[string]func(branch []byte){
		"a branch that leads to itself":    func(b []byte) { binary.NativeEndian.PutUint64(b[pageHead+8:], binary.NativeEndian.Uint64(b)) },
		"a branch that leads nowhere":      func(b []byte) { binary.NativeEndian.PutUint64(b[pageHead+8:], 1<<60) },
		"a branch that leads to a meta":    func(b []byte) { binary.NativeEndian.PutUint64(b[pageHead+8:], 1) },
		"a branch of many elements":        func(b []byte) { binary.NativeEndian.PutUint16(b[10:], math.MaxUint16) },
		"a branch of none":                 func(b []byte) { binary.NativeEndian.PutUint16(b[10:], 0) },
		"a branch that overflows":          func(b []byte) { binary.NativeEndian.PutUint32(b[12:], math.MaxUint32) },
		"a branch of another kind":         func(b []byte) { binary.NativeEndian.PutUint16(b[8:], isBranch|isLeaf) },
		"a key of four gigabytes":          func(b []byte) { binary.NativeEndian.PutUint32(b[pageHead+4:], math.MaxUint32) },
		"a key that is somewhere else":     func(b []byte) { binary.NativeEndian.PutUint32(b[pageHead:], math.MaxUint32) },
		"two branches that lead to a page": func(b []byte) { copy(b[pageHead+8:][:8], b[pageHead+elementLen+8:][:8]) },
	} {
		raw := bytes.Clone(sound)
		edit(branchOf(t, raw, root))
		try(name, raw)
	}
	// Another key in the same place is noticed only by the checksum.
	raw := bytes.ReplaceAll(sound, []byte("001999"), []byte("00199~"))
	try("a key", raw)
}

// branchOf returns the first branch page of a bucket.
func branchOf(t *testing.T, raw []byte, root uint64) []byte {
	t.Helper()
	size := mustMeta(t, raw).pageSize
	for id := uint64(2); id < uint64(len(raw))/size; id++ {
		f := &pageFile{raw: raw, meta: mustMeta(t, raw), owner: make([]string, mustMeta(t, raw).pages)}
		if f.checkBucket(root, 0) == nil && f.owner[id] == "a bucket" && raw[id*size+8] == isBranch {
			return raw[id*size:]
		}
	}
	t.Fatal("there is no branch page")
	return nil
}

// mustMeta returns the newest meta record of a file.
func mustMeta(t *testing.T, raw []byte) pageMeta {
	t.Helper()
	m, err := newestMeta(raw)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// FuzzCheckPages: no content of a file crashes the process, and bbolt can read what checkPages accepts.
func FuzzCheckPages(f *testing.F) {
	path := filepath.Join(f.TempDir(), "state.db")
	s, err := Open(f.Context(), Config{Path: path})
	if err == nil {
		err = s.Update(func(tx Tx) error { return records.Put(tx, "a", record{"a", 1}) })
	}
	if err := errors.Join(err, s.Close()); err != nil {
		f.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	for at := range len(raw) / 64 {
		f.Add(at*64+at%64, []byte{0xff})
	}
	f.Fuzz(func(t *testing.T, at int, with []byte) {
		damaged := bytes.Clone(raw)
		if at >= 0 && at < len(raw) {
			copy(damaged[at:], with)
		}
		if checkPages(damaged) != nil {
			return
		}
		path := filepath.Join(t.TempDir(), "state.db")
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Verify(path); err != nil && !errors.Is(err, ErrDamaged) {
			t.Errorf("the check says %v", err)
		}
	})
}

// checkDamaged opens a file with this content and returns whether it was sound: then it must have the written records;
// otherwise the new file must be empty, and the former one moved aside.
func checkDamaged(t *testing.T, raw []byte) (sound bool) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "state.db")
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	verify := VerifyIn(os.Args[0])
	if err := verify(ctx, path); err != nil && !errors.Is(err, ErrDamaged) {
		t.Fatalf("the check says %v", err)
	} else {
		t.Log("the check says", err)
	}
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	s := open(t, Config{Path: path, Verify: verify, Now: func() time.Time { return now }})
	n := 0
	update(t, s, func(tx Tx) error {
		err := records.Each(tx, "", func(key string, r record) error {
			if n++; key != fmt.Sprintf("%06d", r.N) && key != "last" {
				t.Errorf("record %s is %+v", key, r)
			}
			return nil
		})
		return errors.Join(err, records.Put(tx, "new", record{"new", 1}))
	})
	if s.Damaged == "" {
		if n < filled { // the last transaction can be lost with its meta page
			t.Errorf("%d of %d records are in a sound file", n, filled)
		}
		return true
	}
	if want := path + ".damaged-20260301T120000.000"; s.Damaged != want {
		t.Errorf("moved to %s, want %s", s.Damaged, want)
	}
	if aside, err := os.ReadFile(s.Damaged); err != nil || !bytes.Equal(aside, raw) {
		t.Errorf("the file that was moved aside differs: %d bytes, %v", len(aside), err)
	}
	if n > 0 {
		t.Errorf("the new file has %d records", n)
	}
	return false
}
