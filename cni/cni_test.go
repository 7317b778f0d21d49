package cni

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestCall shows that a request arrives as it was sent, with the descriptor, that an error comes back as one, and that
// the error of a call without a daemon has one line.
func TestCall(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), SocketName)
	end := time.Now().Add(Deadline)
	sent := Request{
		Command: "ADD", ContainerID: "c", Netns: "/x", IfName: "eth0", Args: "A=B",
		Config: json.RawMessage(`{"name":"web"}`),
	}
	_, err := Call(end, socket, sent, nil)
	if err == nil || !strings.Contains(err.Error(), "systemctl start netyard") || strings.Contains(err.Error(), "\n") {
		t.Errorf("without a daemon: %v", err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteString("a sandbox"); err != nil {
		t.Fatal(err)
	}
	go func() {
		for _, a := range []Answer{
			{Result: json.RawMessage(`{"ok":true}`)},
			{Error: &Error{Code: 7, Msg: "no", Details: "because"}},
		} {
			c, err := l.Accept()
			if err != nil {
				return
			}
			got, f, err := Receive(c.(*net.UnixConn))
			if err != nil || f == nil ||
				got.ContainerID != sent.ContainerID || string(got.Config) != string(sent.Config) {
				t.Errorf("got %+v, %v, %v", got, f, err)
			} else if raw := make([]byte, 9); true {
				if _, err := f.ReadAt(raw, 0); err != nil || string(raw) != "a sandbox" {
					t.Errorf("the file contains %q: %v", raw, err)
				}
				f.Close()
			}
			if err := json.NewEncoder(c).Encode(a); err != nil {
				t.Error(err)
			}
			c.Close()
		}
	}()
	if got, err := Call(end, socket, sent, file); err != nil || string(got) != `{"ok":true}` {
		t.Errorf("%s %v", got, err)
	}
	if _, err := Call(end, socket, sent, file); err == nil || err.Error() != "no; because" {
		t.Errorf("the daemon's error: %v", err)
	}
	big := sent
	big.Config = json.RawMessage(`"` + strings.Repeat("x", 3<<20) + `"`)
	var refused *Error
	if _, err := Call(end, socket, big, nil); !errors.As(err, &refused) || refused.Code != CodeConfig ||
		!strings.Contains(refused.Msg, "1048576") {
		t.Errorf("3 MB of configuration: %v", err)
	}
	// No one accepts this connection, so the call waits, but not beyond the deadline.
	_, err = Call(time.Now().Add(50*time.Millisecond), socket, sent, file)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("without an answer: %v", err)
	}
}

// TestCallWaitsForItsTurn shows that the deadline counts from the daemon's last sign on, and that signs are no part of
// the answer.
func TestCallWaitsForItsTurn(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), SocketName))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	end := time.Now().Add(200 * time.Millisecond)
	go func() {
		c, err := received(l)
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		for _, part := range []string{Sign, Sign + Sign, `{"result":`, `{"ok":true}}`} {
			if _, err := c.Write([]byte(part)); err != nil {
				t.Error(err)
			}
			<-time.After(100 * time.Millisecond) // all of it takes longer than the deadline
		}
	}()
	if got, err := Call(end, l.Addr().String(), Request{}, nil); err != nil || string(got) != `{"ok":true}` {
		t.Errorf("%s %v", got, err)
	}
	go func() {
		if c, err := received(l); err == nil {
			_, _ = c.Write([]byte(Sign))
			c.Close()
		}
	}()
	_, err = Call(time.Now().Add(Deadline), l.Addr().String(), Request{}, nil)
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a daemon that ends before the answer: %v", err)
	}
}

// received accepts a connection and reads its request.
func received(l net.Listener) (net.Conn, error) {
	c, err := l.Accept()
	if err == nil {
		_, _, err = Receive(c.(*net.UnixConn))
	}
	return c, err
}

// TestReceiveTruncated: a request whose descriptor the kernel could not deliver is not one without a descriptor.
func TestReceiveTruncated(t *testing.T) {
	t.Parallel()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), SocketName), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	from, err := net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	to, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	const tooMany = 64 // for the room that Receive has: the kernel sets the same flag as without a free descriptor
	rights := syscall.UnixRights(slices.Repeat([]int{int(os.Stdin.Fd())}, tooMany)...)
	if _, _, err := from.WriteMsgUnix([]byte(`{"command":"DEL","netns":"/x"}`), rights, nil); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Receive(to); !errors.Is(err, ErrDescriptor) {
		t.Errorf("got %v, want %v", err, ErrDescriptor)
	}
}

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
	gone, err := Uninstall(dir, "web")
	if err != nil || len(gone) != 2 {
		t.Errorf("%v %v", gone, err)
	}
	if _, err := os.Stat(own); err != nil {
		t.Errorf("nerdctl's own network was not restored: %v", err)
	}
}
