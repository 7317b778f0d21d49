package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestVerifyIn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := open(t, Config{Path: path})
	update(t, s, func(tx Tx) error { return records.Put(tx, "a", record{"a", 1}) })
	wantError(t, s.Close(), nil, "")
	t.Setenv(roleEnv, "verify")
	verify := VerifyIn(os.Args[0])
	wantError(t, verify(t.Context(), path), nil, "")

	gone, cancel := context.WithCancel(t.Context())
	cancel()
	wantError(t, verify(gone, path), context.Canceled, "verify "+path+": context canceled")
	err := VerifyIn(filepath.Join(t.TempDir(), "no-such-program"))(t.Context(), path)
	if err == nil || errors.Is(err, ErrDamaged) {
		t.Errorf("without a program to verify with, error is %v", err)
	}

	t.Setenv(roleEnv, "stop")
	if err := verify(t.Context(), path); err == nil || errors.Is(err, ErrDamaged) {
		t.Errorf("when the process was told to stop, error is %v", err)
	}
	_, err = Open(t.Context(), Config{Path: path, Verify: verify})
	if _, serr := os.Stat(path); err == nil || serr != nil {
		t.Errorf("open says %v, and of the file: %v", err, serr)
	}

	t.Setenv(roleEnv, "verify")
	edit(t, path, put("records", "a", func([]byte) []byte { return []byte("x") }))
	wantError(t, verify(t.Context(), path), ErrDamaged, "verify "+path+`: damaged: records "a": 1 bytes: damaged`)
}

// fill writes a file of many pages, the last record in a transaction of its own, and returns what it looks like.
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
			t.Setenv("GORACE", "atexit_sleep_ms=0") // a second for each process
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
		t.Errorf("outcomes of the rounds are %v; both were wanted", outcomes)
	}
	for round := range 20 {
		raw := bytes.Clone(sound)
		noise(raw[rnd.IntN(len(raw)):][:1])
		try(fmt.Sprint("a byte, round ", round), raw)
	}
	for _, n := range []int{0, 1, page, 2 * page, len(sound) / 2, len(sound) - page} {
		try(fmt.Sprint("cut off at ", n), sound[:n])
	}
	// Another key in the same place: only the checksum can tell.
	raw := bytes.ReplaceAll(sound, []byte("001999"), []byte("00199~"))
	try("a key", raw)
}

// checkDamaged opens the file and says whether it was sound: then it has what was written, and otherwise it is empty,
// and what it was is beside it.
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
		t.Fatalf("verify says %v", err)
	} else {
		t.Log("verify says", err)
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
		if n < filled { // the last transaction can be lost, with the page that says it was committed
			t.Errorf("%d of %d records are left in a sound file", n, filled)
		}
		return true
	}
	if want := path + ".damaged-20260301T120000.000"; s.Damaged != want {
		t.Errorf("moved to %s, want %s", s.Damaged, want)
	}
	if aside, err := os.ReadFile(s.Damaged); err != nil || !bytes.Equal(aside, raw) {
		t.Errorf("what was moved aside is not the file: %d bytes, %v", len(aside), err)
	}
	if n > 0 {
		t.Errorf("the new file has %d records", n)
	}
	return false
}
