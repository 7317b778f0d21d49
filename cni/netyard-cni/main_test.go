package main

import (
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"netyard/cni"
)

// TestRead shows that a call is read as the runtime made it, and that a call that is invalid by the specification is
// refused with the code that the specification gives.
func TestRead(t *testing.T) {
	long := strings.Repeat("x", 100_000)
	const web = `{"cniVersion":"1.0.0","name":"web"}`
	for name, test := range map[string]struct {
		command, conf string
		without       string
		set           map[string]string
		code          uint
	}{
		"ADD":                        {command: "ADD", conf: web},
		"DEL without a sandbox":      {command: "DEL", conf: web, without: "CNI_NETNS"},
		"GC without a container":     {command: "GC", conf: `{"cniVersion":"1.1.0","name":"web"}`, without: "CNI_CONTAINERID"},
		"the oldest version":         {command: "ADD", conf: `{"cniVersion":"0.3.0","name":"web"}`},
		"ADD without a sandbox":      {command: "ADD", conf: web, without: "CNI_NETNS", code: cni.CodeEnvironment},
		"CHECK without an interface": {command: "CHECK", conf: web, without: "CNI_IFNAME", code: cni.CodeEnvironment},
		"DEL without a container":    {command: "DEL", conf: web, without: "CNI_CONTAINERID", code: cni.CodeEnvironment},
		"STATUS without a path":      {command: "STATUS", conf: web, without: "CNI_PATH", code: cni.CodeEnvironment},
		"a path for a container":     {command: "ADD", conf: web, set: map[string]string{"CNI_CONTAINERID": "../a"}, code: cni.CodeEnvironment},
		"a long container":           {command: "ADD", conf: web, set: map[string]string{"CNI_CONTAINERID": long}, code: cni.CodeEnvironment},
		"a long name":                {command: "ADD", conf: `{"cniVersion":"1.0.0","name":"` + long + `"}`, code: cni.CodeConfig},
		"a long command":             {command: long, conf: web, code: cni.CodeEnvironment},
		"a long version":             {command: "ADD", conf: `{"cniVersion":"` + long + `"}`, code: cni.CodeVersion},
		"an unknown command":         {command: "MOVE", conf: web, code: cni.CodeEnvironment},
		"no configuration":           {command: "ADD", code: cni.CodeDecoding},
		"no name":                    {command: "ADD", conf: `{"cniVersion":"1.0.0"}`, code: cni.CodeConfig},
		"a name with a space":        {command: "ADD", conf: `{"cniVersion":"1.0.0","name":"w b"}`, code: cni.CodeConfig},
		"no version":                 {command: "ADD", conf: `{"name":"web"}`, code: cni.CodeVersion},
		"a future version":           {command: "ADD", conf: `{"cniVersion":"1.2.0","name":"web"}`, code: cni.CodeVersion},
		"CHECK in an older version":  {command: "CHECK", conf: `{"cniVersion":"0.3.1","name":"web"}`, code: cni.CodeVersion},
		"GC in an older version":     {command: "GC", conf: web, code: cni.CodeVersion},
	} {
		t.Run(name, func(t *testing.T) {
			env := map[string]string{
				"CNI_CONTAINERID": "c_1.x-", "CNI_NETNS": "/run/netns/c", "CNI_IFNAME": "eth0",
				"CNI_PATH": "/p", "CNI_ARGS": "A=B",
			}
			for k, v := range test.set {
				env[k] = v
			}
			env[test.without] = ""
			for k, v := range env {
				if k != "" {
					t.Setenv(k, v)
				}
			}
			r, c, err := read(test.command, strings.NewReader(test.conf))
			var refused *cni.Error
			switch {
			case test.code == 0 && err != nil:
				t.Error(err)
			case test.code == 0:
				if r.Command != test.command || r.Args != "A=B" || string(r.Config) != test.conf ||
					c.Socket != cni.DefaultSocket || c.Name != "web" {
					t.Errorf("%+v %+v", r, c)
				}
			case !errors.As(err, &refused) || refused.Code != test.code || strings.Contains(refused.Msg, "\n") ||
				len(refused.Msg) > 400:
				t.Errorf("%v, want code %d", err, test.code)
			}
		})
	}
}

// TestOpenNetns shows that only a namespace is opened, and that the plugin does not wait for a FIFO's writer.
func TestOpenNetns(t *testing.T) {
	t.Parallel()
	fifo, file := filepath.Join(t.TempDir(), "fifo"), filepath.Join(t.TempDir(), "file")
	if err := errors.Join(syscall.Mkfifo(fifo, 0o600), os.WriteFile(file, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{fifo, file, filepath.Dir(file), "/dev/zero", file + "-missing"} {
		if f, err := openNetns(path); err == nil || f != nil {
			t.Errorf("%s was opened", path)
		}
	}
	f, err := openNetns("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}

// TestLoopback shows that the plugin type loopback sets up a sandbox's loopback interface, answers in each version of
// the specification, passes on the result of the plugins before it, and sets it down again.
func TestLoopback(t *testing.T) {
	t.Parallel()
	netns := newNetns(t)
	r := cni.Request{Netns: "/run/netns/c"}
	call := func(command string, c conf) (result any, err error) {
		done := make(chan struct{})
		go func() { // its thread is in the sandbox from then on, and ends with it
			defer close(done)
			r := r
			r.Command = command
			result, err = loopback(r, c, netns)
		}()
		<-done
		return result, err
	}
	if _, err := call("CHECK", conf{CNIVersion: "1.0.0"}); err == nil {
		t.Error("CHECK finds nothing wrong with an interface that is down")
	}
	for version, wantVersion := range map[string]string{"0.3.1": "4", "0.4.0": "4", "1.0.0": "", "1.1.0": ""} {
		result, err := call("ADD", conf{CNIVersion: version})
		if err != nil {
			t.Fatal(err)
		}
		raw, err := json.Marshal(result)
		var got struct {
			CNIVersion string
			Interfaces []struct{ Name, Sandbox string }
			IPs        []struct {
				Version string
				Address netip.Prefix
			}
		}
		if err := errors.Join(err, json.Unmarshal(raw, &got)); err != nil {
			t.Fatal(err)
		}
		if got.CNIVersion != version || len(got.Interfaces) != 1 || got.Interfaces[0].Sandbox != r.Netns ||
			len(got.IPs) == 0 || got.IPs[0].Version != wantVersion || !got.IPs[0].Address.Addr().IsLoopback() {
			t.Errorf("version %s: %s", version, raw)
		}
	}
	before := json.RawMessage(`{"cniVersion":"1.0.0"}`)
	result, err := call("ADD", conf{CNIVersion: "1.0.0", PrevResult: before})
	if raw, ok := result.(json.RawMessage); err != nil || !ok || string(raw) != string(before) {
		t.Errorf("with a result of another plugin: %s, %v", result, err)
	}
	if _, err := call("CHECK", conf{}); err != nil {
		t.Error(err)
	}
	for _, command := range []string{"STATUS", "GC", "DEL"} {
		if _, err := call(command, conf{}); err != nil {
			t.Errorf("%s: %v", command, err)
		}
	}
	if _, err := call("CHECK", conf{}); err == nil {
		t.Error("CHECK finds nothing wrong after DEL")
	}
	if _, err := loopback(cni.Request{Command: "DEL"}, conf{}, nil); err != nil {
		t.Errorf("DEL of a sandbox that is gone: %v", err)
	}
}

// newNetns returns a new network namespace.
func newNetns(t *testing.T) *os.File {
	t.Helper()
	type made struct {
		file *os.File
		err  error
	}
	to := make(chan made)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			to <- made{nil, err}
			return
		}
		file, err := os.Open("/proc/thread-self/ns/net")
		to <- made{file, err}
	}()
	m := <-to
	if errors.Is(m.err, os.ErrPermission) {
		t.Skipf("needs root: %v", m.err)
	}
	if m.err != nil {
		t.Fatal(m.err)
	}
	t.Cleanup(func() { m.file.Close() })
	return m.file
}
