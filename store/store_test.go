package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"
)

// roleEnv is the environment variable that says what this test binary does when a test runs it as another process.
const roleEnv = "NETYARD_STORE_TEST_ROLE"

func TestMain(m *testing.M) {
	path := os.Args[len(os.Args)-1]
	switch role := os.Getenv(roleEnv); role {
	case "":
		os.Exit(m.Run())
	case "verify":
		line, code := Report(Verify(path))
		fmt.Println(line)
		os.Exit(code)
	case "hold": // hold the file open until the parent closes the pipe
		s, err := Open(context.Background(), Config{Path: path})
		fmt.Println(err)
		_, _ = io.Copy(io.Discard, os.Stdin)
		_ = s.Close()
	default:
		panic("unknown role " + role)
	}
}

type record struct {
	Name string
	N    int
}

var records = Bucket[record]{Name: "records"}

func open(t *testing.T, c Config) *Store {
	t.Helper()
	s, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func newStore(t *testing.T) *Store {
	t.Helper()
	return open(t, Config{Path: filepath.Join(t.TempDir(), "state", "state.db")})
}

func update(t *testing.T, s *Store, fn func(Tx) error) {
	t.Helper()
	if err := s.Update(fn); err != nil {
		t.Fatal(err)
	}
}

func wantError(t *testing.T, err, is error, text string) {
	t.Helper()
	if !errors.Is(err, is) {
		t.Fatalf("error is %v, want a %q", err, is)
	}
	if err != nil && err.Error() != text {
		t.Errorf("error reads\n %q, want\n %q", err, text)
	}
}

func TestBucket(t *testing.T) {
	s := newStore(t)
	other := Bucket[record]{Name: "others"}
	update(t, s, func(tx Tx) error {
		for i, key := range []string{"b/2", "a/1", "b/10", "c", "b/1"} {
			if err := records.Put(tx, key, record{key, i}); err != nil {
				return err
			}
		}
		return errors.Join(records.Put(tx, "c", record{"again", 9}), other.Put(tx, "b/3", record{"other", 0}))
	})
	err := s.View(func(tx Tx) error {
		got, err := records.Get(tx, "c")
		if d := cmp.Diff(record{"again", 9}, got); d != "" {
			t.Errorf("record that was written twice (-want +got):\n%s", d)
		}
		if d := cmp.Diff([]string{"a/1", "b/1", "b/10", "b/2", "c"}, records.Keys(tx, "")); d != "" {
			t.Errorf("keys (-want +got):\n%s", d)
		}
		list, lerr := records.List(tx, "b/")
		if d := cmp.Diff([]record{{"b/1", 4}, {"b/10", 2}, {"b/2", 0}}, list); d != "" {
			t.Errorf("list (-want +got):\n%s", d)
		}
		_, nerr := records.Get(tx, "d")
		wantError(t, nerr, ErrNotFound, "records d: not found")
		_, nerr = Bucket[int]{Name: "none"}.Get(tx, "d")
		wantError(t, nerr, ErrNotFound, "none d: not found")
		return errors.Join(err, lerr)
	})
	wantError(t, err, nil, "")
}

// TestRoom shows that many records at once leave little of their pages free.
func TestRoom(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	size := 0
	update(t, s, func(tx Tx) error {
		for i := range 2000 {
			r := record{Name: fmt.Sprintf("%0150d", i), N: i}
			size += len(r.Name)
			if err := records.Put(tx, fmt.Sprint(i), r); err != nil { // not in the order of keys
				return err
			}
		}
		return nil
	})
	_ = s.View(func(tx Tx) error {
		if n := int(tx.tx.Size()); n > 2*size {
			t.Errorf("%d bytes of records take %d of the file", size, n)
		}
		return nil
	})
}

func TestBucketEach(t *testing.T) {
	s := newStore(t)
	update(t, s, func(tx Tx) error {
		for i, key := range []string{"c", "a", "b"} {
			if err := records.Put(tx, key, record{key, i}); err != nil {
				return err
			}
		}
		return nil
	})
	errMine := errors.New("mine")
	tests := []struct {
		name string
		last string
		end  error
		want error
		seen string
	}{
		{"to the end", "", nil, nil, "abc"},
		{"until stopped", "b", ErrStop, nil, "ab"},
		{"until it fails", "a", errMine, errMine, "a"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			seen := ""
			err := s.View(func(tx Tx) error {
				return records.Each(tx, "", func(key string, _ record) error {
					if seen += key; key == tt.last {
						return tt.end
					}
					return nil
				})
			})
			if !errors.Is(err, tt.want) || seen != tt.seen {
				t.Errorf("saw %q and error %v, want %q and %v", seen, err, tt.seen, tt.want)
			}
		})
	}
}

func TestBucketDelete(t *testing.T) {
	s := newStore(t)
	update(t, s, func(tx Tx) error { return records.Delete(tx, "a") }) // no bucket yet
	update(t, s, func(tx Tx) error { return records.Put(tx, "a", record{"a", 1}) })
	update(t, s, func(tx Tx) error { return records.Delete(tx, "a") })
	update(t, s, func(tx Tx) error { return records.Delete(tx, "a") })
	err := s.View(func(tx Tx) error {
		_, err := records.Get(tx, "a")
		return err
	})
	wantError(t, err, ErrNotFound, "records a: not found")
}

func TestUpdateThatFails(t *testing.T) {
	s := newStore(t)
	errMine := errors.New("mine")
	err := s.Update(func(tx Tx) error {
		return errors.Join(records.Put(tx, "a", record{"a", 1}), errMine)
	})
	wantError(t, err, errMine, "mine")
	err = s.View(func(tx Tx) error {
		if keys := records.Keys(tx, ""); len(keys) > 0 {
			t.Errorf("the failed transaction wrote %q", keys)
		}
		return nil
	})
	wantError(t, err, nil, "")
}

func TestReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := open(t, Config{Path: path})
	update(t, s, func(tx Tx) error { return records.Put(tx, "a", record{"a", 1}) })
	wantError(t, s.Close(), nil, "")
	wantError(t, Verify(path), nil, "")
	s = open(t, Config{Path: path, Verify: func(_ context.Context, path string) error { return Verify(path) }})
	update(t, s, func(tx Tx) error {
		_, err := records.Get(tx, "a")
		return err
	})
	if s.Damaged != "" {
		t.Errorf("a sound file was moved to %s", s.Damaged)
	}
}

// edit changes the file without the store.
func edit(t *testing.T, path string, fn func(tx *bbolt.Tx) error) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: lockWait})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Update(fn), db.Close()); err != nil {
		t.Fatal(err)
	}
}

func put(bucket, key string, change func(value []byte) []byte) func(tx *bbolt.Tx) error {
	return func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte(bucket))
		return b.Put([]byte(key), change(bytes.Clone(b.Get([]byte(key)))))
	}
}

func TestDamagedValue(t *testing.T) {
	tests := []struct {
		name string
		edit func(tx *bbolt.Tx) error
		text string // the error of reading it
	}{
		{"a bit of the value", put("records", "a", func(v []byte) []byte { v[len(v)-2] ^= 1; return v }), `decode records "a": checksum: damaged`},
		{"a bit of the checksum", put("records", "a", func(v []byte) []byte { v[0] ^= 1; return v }), `decode records "a": checksum: damaged`},
		{"no checksum", put("records", "a", func([]byte) []byte { return []byte("x") }), `decode records "a": 1 bytes: damaged`},
		{"empty", put("records", "a", func([]byte) []byte { return nil }), `decode records "a": 0 bytes: damaged`},
		{"another record's value", func(tx *bbolt.Tx) error {
			b := tx.Bucket([]byte("records"))
			return b.Put([]byte("a"), bytes.Clone(b.Get([]byte("b"))))
		}, `decode records "a": checksum: damaged`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state.db")
			s := open(t, Config{Path: path})
			update(t, s, func(tx Tx) error {
				return errors.Join(records.Put(tx, "a", record{"a", 1}), records.Put(tx, "b", record{"b", 2}))
			})
			wantError(t, s.Close(), nil, "")
			edit(t, path, tt.edit)
			if err := Verify(path); !errors.Is(err, ErrDamaged) {
				t.Errorf("the check says %v", err)
			}
			s = open(t, Config{Path: path})
			err := s.View(func(tx Tx) error {
				if _, err := records.Get(tx, "b"); err != nil {
					t.Errorf("the other record: %v", err)
				}
				_, err := records.Get(tx, "a")
				return err
			})
			wantError(t, err, ErrDamaged, tt.text)
			err = s.View(func(tx Tx) error {
				_, err := records.List(tx, "")
				return err
			})
			wantError(t, err, ErrDamaged, tt.text)
		})
	}
}

func TestSchema(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	set := func(version string) func(tx *bbolt.Tx) error {
		return put("meta", "schema", func([]byte) []byte { return []byte(version) })
	}
	wantError(t, open(t, Config{Path: path}).Close(), nil, "")

	edit(t, path, set("2"))
	_, err := Open(t.Context(), Config{Path: path})
	wantError(t, err, ErrSchema, "open "+path+": schema 2: written by a newer netyard (this one knows 1)")
	wantError(t, Verify(path), nil, "") // a newer file is not damaged
	edit(t, path, func(tx *bbolt.Tx) error {
		if v := tx.Bucket([]byte("meta")).Get([]byte("schema")); string(v) != "2" {
			t.Errorf("the schema of the refused file was changed to %q", v)
		}
		return nil
	})

	edit(t, path, set("q"))
	wantError(t, Verify(path), ErrDamaged, `read schema version "q": damaged`)
}

// asRole runs this test binary as another process, which ends with the test, and returns its first line of output.
func asRole(t *testing.T, role, path string) (cmd *exec.Cmd, firstLine string) {
	t.Helper()
	cmd = exec.Command(os.Args[0], path)
	cmd.Env = append(os.Environ(), roleEnv+"="+role)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	line := make([]byte, 100)
	n, _ := out.Read(line)
	return cmd, strings.TrimSpace(string(line[:n]))
}

func TestLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	holder, line := asRole(t, "hold", path)
	if line != "<nil>" {
		t.Fatalf("the other process says %q", line)
	}
	want := fmt.Sprintf("open %s: in use by process %d", path, holder.Process.Pid)
	_, err := Open(t.Context(), Config{Path: path})
	wantError(t, err, ErrLocked, want)
	t.Setenv(roleEnv, "verify")
	_, err = Open(t.Context(), Config{Path: path, Verify: VerifyIn(os.Args[0])})
	wantError(t, err, ErrLocked, want)
}
