package receive_test

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

	"netyard/cni"
	"netyard/cni/receive"
)

// TestCall shows that a request arrives as it was sent, with the descriptor, that an error comes back as one, and that
// the error of a call without a daemon has one line.
func TestCall(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), cni.SocketName)
	end := time.Now().Add(cni.Deadline)
	sent := cni.Request{
		Command: "ADD", ContainerID: "c", Netns: "/x", IfName: "eth0", Args: "A=B",
		Config: json.RawMessage(`{"name":"web"}`),
	}
	_, err := cni.Call(end, socket, sent, nil)
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
		for _, a := range []cni.Answer{
			{Result: json.RawMessage(`{"ok":true}`)},
			{Error: &cni.Error{Code: 7, Msg: "no", Details: "because"}},
		} {
			c, err := l.Accept()
			if err != nil {
				return
			}
			got, f, err := receive.Request(c.(*net.UnixConn))
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
	if got, err := cni.Call(end, socket, sent, file); err != nil || string(got) != `{"ok":true}` {
		t.Errorf("%s %v", got, err)
	}
	if _, err := cni.Call(end, socket, sent, file); err == nil || err.Error() != "no; because" {
		t.Errorf("the daemon's error: %v", err)
	}
	big := sent
	big.Config = json.RawMessage(`"` + strings.Repeat("x", 3<<20) + `"`)
	var refused *cni.Error
	if _, err := cni.Call(end, socket, big, nil); !errors.As(err, &refused) || refused.Code != cni.CodeConfig ||
		!strings.Contains(refused.Msg, "1048576") {
		t.Errorf("3 MB of configuration: %v", err)
	}
	// No one accepts this connection, so the call waits, but not beyond the deadline.
	_, err = cni.Call(time.Now().Add(50*time.Millisecond), socket, sent, file)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("without an answer: %v", err)
	}
}

// TestCallWaitsForItsTurn shows that the deadline counts from the daemon's last sign on, and that signs are no part of
// the answer.
func TestCallWaitsForItsTurn(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), cni.SocketName))
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
		for _, part := range []string{cni.Sign, cni.Sign + cni.Sign, `{"result":`, `{"ok":true}}`} {
			if _, err := c.Write([]byte(part)); err != nil {
				t.Error(err)
			}
			<-time.After(100 * time.Millisecond) // all of it takes longer than the deadline
		}
	}()
	if got, err := cni.Call(end, l.Addr().String(), cni.Request{}, nil); err != nil || string(got) != `{"ok":true}` {
		t.Errorf("%s %v", got, err)
	}
	go func() {
		if c, err := received(l); err == nil {
			_, _ = c.Write([]byte(cni.Sign))
			c.Close()
		}
	}()
	_, err = cni.Call(time.Now().Add(cni.Deadline), l.Addr().String(), cni.Request{}, nil)
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a daemon that ends before the answer: %v", err)
	}
}

// received accepts a connection and reads its request.
func received(l net.Listener) (net.Conn, error) {
	c, err := l.Accept()
	if err == nil {
		_, _, err = receive.Request(c.(*net.UnixConn))
	}
	return c, err
}

// TestReceiveTruncated: a request whose descriptor the kernel could not deliver is not one without a descriptor.
func TestReceiveTruncated(t *testing.T) {
	t.Parallel()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), cni.SocketName), Net: "unix"})
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
	const tooMany = 64 // for the room that Request has: the kernel sets the same flag as without a free descriptor
	rights := syscall.UnixRights(slices.Repeat([]int{int(os.Stdin.Fd())}, tooMany)...)
	if _, _, err := from.WriteMsgUnix([]byte(`{"command":"DEL","netns":"/x"}`), rights, nil); err != nil {
		t.Fatal(err)
	}
	if _, _, err := receive.Request(to); !errors.Is(err, receive.ErrDescriptor) {
		t.Errorf("got %v, want %v", err, receive.ErrDescriptor)
	}
}
