package integration

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"netyard/driver"
	"netyard/integration/lab"
	"netyard/modes/all"
)

// TestInstall: scripts/install installs the expected files below a directory, and removes them again.
func TestInstall(t *testing.T) {
	t.Parallel()
	root := filepath.Join(t.TempDir(), "a root")
	install := func(args ...string) {
		t.Helper()
		cmd := exec.Command("../scripts/install", append(args, "--prefix", "/opt/ny")...)
		cmd.Env = append(os.Environ(), "DESTDIR="+root, "GORACE=atexit_sleep_ms=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("scripts/install %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	install("--binary", lab.Build(t), "--plugin", lab.BuildPlugin(t))
	want := map[string]string{
		"opt/ny/bin/netyard":                                  "",
		"opt/cni/bin/netyard":                                 "",
		"opt/cni/bin/loopback":                                "",
		"opt/ny/share/bash-completion/completions/netyard":    "complete ",
		"opt/ny/share/zsh/site-functions/_netyard":            "#compdef netyard",
		"opt/ny/share/fish/vendor_completions.d/netyard.fish": "complete -c netyard",
		"opt/ny/share/man/man8/netyard.8":                     ".TH netyard 8",
		"etc/systemd/system/netyard.socket":                   "SocketMode=0600",
		"etc/systemd/system/netyard.service":                  "ExecStart=/opt/ny/bin/netyard serve\n",
		"etc/systemd/system/docker.service.d/netyard.conf":    "After=netyard.socket",
		"etc/netyard/netyard.yaml":                            "#modes: [bridge, host, ipvlan, macvlan, none, overlay]",
	}
	got := filesBelow(t, root)
	for path, text := range want {
		if raw, ok := got[path]; !ok || !strings.Contains(raw, text) {
			t.Errorf("%s: exists: %t; want %q in it", path, ok, text)
		}
		delete(got, path)
	}
	for path := range got {
		t.Errorf("unexpected file %s", path)
	}
	verifyUnits(t, root)

	config := filepath.Join(root, "etc/netyard/netyard.yaml")
	check(t, root, config)
	edited := []byte("cooldown: 5m\n")
	if err := os.WriteFile(config, edited, 0o600); err != nil {
		t.Fatal(err)
	}
	install("--binary", lab.Build(t), "--plugin", lab.BuildPlugin(t))
	loopback := filepath.Join(root, "opt/cni/bin/loopback")
	if to, err := os.Readlink(loopback); err != nil || to != "netyard" {
		t.Errorf("the plugin loopback links to %q, %v", to, err)
	}
	install("--uninstall")
	if left := filesBelow(t, root); len(left) != 1 || left["etc/netyard/netyard.yaml"] != string(edited) {
		t.Errorf("left after --uninstall: %q; want the edited configuration", left)
	}

	// Another loopback plugin stays as it is.
	if err := os.WriteFile(loopback, []byte("another's"), 0o600); err != nil {
		t.Fatal(err)
	}
	install("--binary", lab.Build(t), "--plugin", lab.BuildPlugin(t))
	install("--uninstall")
	if raw, err := os.ReadFile(loopback); err != nil || string(raw) != "another's" {
		t.Errorf("another loopback plugin: %q, %v", raw, err)
	}
}

// filesBelow returns the files of a tree, with the content of those that are not programs.
func filesBelow(t *testing.T, root string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err == nil && filepath.Base(filepath.Dir(path)) != "bin" {
			var raw []byte
			raw, err = os.ReadFile(path)
			files[rel] = string(raw)
		} else {
			files[rel] = ""
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// verifyUnits checks that systemd-analyze, if there is one, accepts the units, and that the socket unit lists exactly
// the sockets that the daemon serves, since the daemon refuses others.
func verifyUnits(t *testing.T, root string) {
	t.Helper()
	unit := filepath.Join(root, "etc/systemd/system/netyard.socket")
	raw, err := os.ReadFile(unit)
	if err != nil {
		t.Fatal(err)
	}
	var listed []string
	for _, m := range regexp.MustCompile(`(?m)^ListenStream=(.*)$`).FindAllStringSubmatch(string(raw), -1) {
		listed = append(listed, m[1])
	}
	served := []string{
		"/run/netyard/netyard.sock", "/run/netyard/cni.sock", "/run/docker/plugins/" + driver.DHCPName + ".sock",
	}
	for name := range driver.Modes(all.Modes()) {
		served = append(served, "/run/docker/plugins/"+name+".sock")
	}
	slices.Sort(listed)
	slices.Sort(served)
	if !slices.Equal(listed, served) {
		t.Errorf("netyard.socket lists  %q\nthe daemon serves     %q", listed, served)
	}
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Log("units not verified: there is no systemd-analyze")
		return
	}
	// systemd-analyze looks for programs and manual pages in this machine's root.
	dir := t.TempDir()
	for _, name := range []string{"netyard.socket", "netyard.service"} {
		raw, err := os.ReadFile(filepath.Join(filepath.Dir(unit), name))
		if err != nil {
			t.Fatal(err)
		}
		text := strings.ReplaceAll(string(raw), "/opt/ny/bin/netyard", "/bin/true")
		text = strings.ReplaceAll(text, "Documentation=man:netyard(8)\n", "")
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(analyze, "verify", filepath.Join(dir, "netyard.socket"), filepath.Join(dir, "netyard.service"))
	if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), dir) {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

// check checks that the example configuration is valid, also with all its comments made settings, and that those have
// the default values.
func check(t *testing.T, root, config string) {
	t.Helper()
	program := filepath.Join(root, "opt/ny/bin/netyard")
	ask := func(file string) string {
		out, err := exec.Command(program, "serve", "--check", "--config", file).CombinedOutput()
		if err != nil {
			t.Errorf("serve --check: %v\n%s", err, out)
		}
		return string(out)
	}
	raw, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	explicit := filepath.Join(t.TempDir(), "explicit.yaml")
	settings := regexp.MustCompile(`(?m)^#(\w)`).ReplaceAll(raw, []byte("$1"))
	if err := os.WriteFile(explicit, settings, 0o600); err != nil {
		t.Fatal(err)
	}
	// For these keys, an empty value means a default that is not shown.
	blocks := regexp.MustCompile(`(?m)^(pools:.*\n(    - .*\n)*|ipv6_pool:.*\n)`)
	defaults, shown := blocks.ReplaceAllString(ask(config), ""), blocks.ReplaceAllString(ask(explicit), "")
	if defaults != shown {
		t.Errorf("the example shows other values than the defaults:\n%s\nfor\n%s", shown, defaults)
	}
}

// TestSocketActivation starts the daemon as systemd does, with sockets that exist before it and stay after it.
func TestSocketActivation(t *testing.T) {
	t.Parallel()
	lab.NeedRoot(t)
	dir := t.TempDir()
	s := activation{dir: dir, program: lab.Build(t)}
	paths := []string{"run/netyard.sock", "run/cni.sock"}
	for name := range driver.Modes(all.Modes()) {
		paths = append(paths, "plugins/"+name+".sock")
	}
	for _, path := range paths {
		s.listen(t, path)
	}
	// A request that is sent before the daemon starts waits for it.
	early := make(chan string, 1)
	go func() { early <- ask(dir, "plugins/netyard-bridge.sock", http.MethodPost, "/Plugin.Activate") }()
	for range 2 {
		stop := s.start(t)
		for _, path := range paths[2:] {
			has(t, ask(dir, path, http.MethodPost, "/Plugin.Activate"), "NetworkDriver")
		}
		has(t, ask(dir, paths[0], http.MethodGet, "/v1/version"), "version")
		stop()
		for _, path := range paths {
			if _, err := os.Stat(filepath.Join(dir, path)); err != nil {
				t.Errorf("the daemon removed a socket that it was given: %v", err)
			}
		}
	}
	has(t, <-early, "NetworkDriver")

	// An engine would wait forever on a socket that nobody serves.
	s.listen(t, "plugins/netyard-nosuch.sock")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	out, err := s.command(ctx).CombinedOutput()
	if err == nil {
		t.Error("the daemon started with an unknown socket")
	}
	has(t, string(out), "plugins/netyard-nosuch.sock")
}

// An activation does systemd's part of a socket activation.
type activation struct {
	dir, program string
	sockets      []*os.File
}

// listen opens a socket for the daemon.
func (a *activation) listen(t *testing.T, name string) {
	t.Helper()
	path := filepath.Join(a.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	a.sockets = append(a.sockets, f)
}

// command returns the daemon's command with the sockets passed to it, in a network namespace of its own.
func (a *activation) command(ctx context.Context) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "unshare", "--net", "sh", "-c", `LISTEN_PID=$$ exec "$@"`, "sh",
		a.program, "--run-dir", a.dir+"/run", "serve", "--config", "/dev/null",
		"--state-dir", a.dir+"/state", "--plugin-dir", a.dir+"/plugins", "--docker-host", "")
	cmd.Env = append(os.Environ(), fmt.Sprintf("LISTEN_FDS=%d", len(a.sockets)), "NOTIFY_SOCKET="+a.dir+"/notify")
	cmd.ExtraFiles = a.sockets
	return cmd
}

// start starts the daemon and waits until it reports that it is ready; stop ends it.
func (a *activation) start(t *testing.T) (stop func()) {
	t.Helper()
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(a.dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(filepath.Join(a.dir, "notify"))
	defer notify.Close()
	cmd := a.command(context.WithoutCancel(t.Context()))
	var log strings.Builder
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	status := make([]byte, 64)
	if err := notify.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	n, err := notify.Read(status)
	if string(status[:n]) != "READY=1" {
		_ = cmd.Process.Kill()
		<-ended
		t.Fatalf("the daemon reported %q, %v; want READY=1\n%s", status[:n], err, &log)
	}
	return func() {
		t.Helper()
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := <-ended; err != nil {
			t.Errorf("the daemon ended with %v\n%s", err, &log)
		}
	}
}

// ask sends a request to a socket and returns the response.
func ask(dir, socket, method, page string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(dir, socket))
	}
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: dial}}
	q, err := http.NewRequestWithContext(ctx, method, "http://netyard"+page, strings.NewReader("{}"))
	if err != nil {
		return err.Error()
	}
	r, err := c.Do(q)
	if err != nil {
		return err.Error()
	}
	defer r.Body.Close()
	raw, err := io.ReadAll(r.Body)
	return fmt.Sprint(string(raw), err)
}
