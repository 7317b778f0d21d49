package cni

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestTombstones shows that tombstones are read as they were written, and that other files are removed.
func TestTombstones(t *testing.T) {
	t.Parallel()
	dir := TombstoneDir(filepath.Join(t.TempDir(), "run", SocketName))
	if ts, err := Tombstones(dir); len(ts) != 0 || err != nil {
		t.Errorf("without a directory: %v %v", ts, err)
	}
	want := Tombstone{
		Request: Request{Command: "DEL", ContainerID: "c", IfName: "eth0", Config: json.RawMessage(`{}`)},
		Deleted: time.Now().UTC(), Gone: true,
	}
	for range 2 { // the second Put replaces the first
		if err := want.Put(dir); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "junk"+tombstoneSuffix), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	ts, err := Tombstones(dir)
	if err != nil || len(ts) != 1 || !ts[0].Deleted.Equal(want.Deleted) || !ts[0].Gone || ts[0].ContainerID != "c" {
		t.Fatalf("%+v %v", ts, err)
	}
	for range 2 {
		if err := ts[0].Remove(); err != nil {
			t.Fatal(err)
		}
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// TestInstall shows that nerdctl's own default network is set aside and restored, and that a network of the same name
// but of another plugin is not replaced.
func TestInstall(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "net.d")
	own := filepath.Join(dir, nerdctlDefault)
	conf := func(name string) Conflist {
		return New(name, "web", "id", "bridge", DefaultSocket, []Range{{Subnet: "10.1.0.0/24", Gateway: "10.1.0.1"}})
	}
	if _, err := conf("web").Install(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(own, []byte(`{"name":"bridge","plugins":[{"type":"bridge"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(dir, "other.conflist")
	if err := os.WriteFile(other, []byte(`{"name":"taken","plugins":[{"type":"bridge"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	path, err := conf(DefaultNetwork).Install(dir)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if s := string(raw); err != nil ||
		!strings.Contains(s, `"nerdctl/default-network": "true"`) || strings.Contains(s, "nerdctlID") {
		t.Errorf("%s %v", raw, err)
	}
	if _, err := os.Stat(own); err == nil {
		t.Error("two networks are named bridge")
	}
	if _, err := conf("taken").Install(dir); err == nil || !strings.Contains(err.Error(), "other.conflist") {
		t.Errorf("a name that is taken: %v", err)
	}
	all, err := List(dir)
	if err != nil || len(all) != 2 || all[0].Network != "web" {
		t.Errorf("%+v %v", all, err)
	}
	if err := os.Rename(filepath.Join(dir, "netyard-web.conflist"), filepath.Join(dir, "00-web.conflist")); err != nil {
		t.Fatal(err)
	}
	if lost, err := Deleted(dir); err != nil || len(lost) != 0 {
		t.Errorf("reported as deleted: %v %v", lost, err)
	}
	if err := os.Remove(path); err != nil { // as podman network rm does
		t.Fatal(err)
	}
	lost, err := Deleted(dir)
	if err != nil || len(lost) != 1 || lost[0].Path != path || lost[0].Network != "web" {
		t.Errorf("deleted: %v %v", lost, err)
	}
	gone, err := Uninstall(dir, "web")
	if err != nil || len(gone) != 2 {
		t.Errorf("%v %v", gone, err)
	}
	if _, err := os.Stat(own); err != nil {
		t.Errorf("nerdctl's own network was not restored: %v", err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*netyard*")); err != nil || len(left) > 0 {
		t.Errorf("left: %v %v", left, err)
	}
}
