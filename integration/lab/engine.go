package lab

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// An Engine is a version of Docker.
type Engine string

// These are the engines that tests run on. 20.10 is this machine's own, of Debian 12. The others are in roots that
// scripts/engines makes.
const (
	Engine2010 Engine = "20.10"
	Engine261  Engine = "26.1"
	Engine285  Engine = "28.5"
	Engine298  Engine = "29.8"
	// Engine298nft is 29.8 with its nftables firewall: it has tables of its own and no DOCKER-USER, and does not enable
	// forwarding.
	Engine298nft Engine = "29.8-nft"
)

// Version returns the release of the engine, without the variant.
func (e Engine) Version() string {
	version, _, _ := strings.Cut(string(e), "-")
	return version
}

// Nftables says whether the engine's own firewall uses nftables, and not iptables.
func (e Engine) Nftables() bool { return strings.HasSuffix(string(e), "-nft") }

// args returns the arguments that select the engine's variant.
func (e Engine) args() []string {
	if e.Nftables() {
		return []string{"--firewall-backend=nftables"}
	}
	return nil
}

// suite returns the name of the root that has the engine: that of a Debian release, or of a version that is built.
func (e Engine) suite() string {
	return map[Engine]string{Engine261: "trixie", Engine285: "forky", Engine298: "29.8", Engine298nft: "29.8"}[e]
}

// root returns the directory with the engine's system.
func (e Engine) root() string {
	if e == Engine2010 {
		return "/"
	}
	return filepath.Join(cacheDir(), "engines", e.suite())
}

// need skips the test if the engine is not on this machine.
func (e Engine) need(t testing.TB) {
	t.Helper()
	switch {
	case e == Engine2010:
		if _, err := os.Stat("/usr/sbin/dockerd"); err != nil {
			Skip(t, "no engine 20.10; on Debian 12, apt-get install docker.io installs it")
		}
	case e.suite() == "":
		t.Fatalf("lab: unknown engine %q; known are 20.10, 26.1, 28.5, 29.8 and 29.8-nft", string(e))
	default:
		if _, err := os.Stat(filepath.Join(e.root(), ".ready")); err != nil {
			Skip(t, fmt.Sprintf("no engine %s in %s; scripts/engines %s makes it", e, e.root(), e.suite()))
		}
	}
}

// Etcd installs an etcd that is newer than this machine's own in a directory of a node, and returns its path.
// scripts/engines gets it.
func Etcd(t testing.TB, dir string) string {
	t.Helper()
	program := filepath.Join(Engine285.root(), "usr/bin/etcd")
	if _, err := os.Stat(program); err != nil {
		Skip(t, fmt.Sprintf("no %s; scripts/engines makes it", program))
	}
	to := filepath.Join(dir, "etcd-server")
	if err := install(program, to); err != nil {
		t.Fatal(err)
	}
	return to
}

// Engines runs a test once on each of these engines, or on those that NETYARD_ENGINES names
// ("20.10,26.1,28.5,29.8,29.8-nft").
func Engines(t *testing.T, engines []Engine, test func(t *testing.T, e Engine)) {
	t.Helper()
	for _, e := range Chosen(engines...) {
		t.Run("engine="+string(e), func(t *testing.T) { test(t, e) })
	}
}

// Chosen returns the engines that NETYARD_ENGINES names, or else these.
func Chosen(engines ...Engine) []Engine {
	names := os.Getenv("NETYARD_ENGINES")
	if names == "" {
		return engines
	}
	engines = nil
	for name := range strings.SplitSeq(names, ",") {
		engines = append(engines, Engine(strings.TrimSpace(name)))
	}
	return engines
}

// cacheDir returns the directory for what takes long to make.
func cacheDir() string {
	if dir := os.Getenv("NETYARD_CACHE"); dir != "" {
		return dir
	}
	if user, err := os.UserCacheDir(); err == nil && os.Geteuid() != 0 {
		return filepath.Join(user, "netyard")
	}
	return "/var/cache/netyard"
}

// NeedRoot skips the test unless it runs as root.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Skip(t, "needs root: only root can make the hosts of this test")
	}
}

// dockerd declares the engine of a node as a service.
func dockerd(n *Node, e Engine, args []string) *Service {
	line := append([]string{"dockerd"}, e.args()...)
	s := n.Service("dockerd", append(line,
		"-H", "unix://"+filepath.Join(n.Dir, "docker.sock"), "-H", "unix:///run/docker.sock",
		"--config-file", filepath.Join(n.Dir, "daemon.json"), // not this machine's
		"--data-root", filepath.Join(n.Dir, "docker"), "--storage-driver", "overlay2",
		"--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", "/"+filepath.Base(n.Dir))...)
	s.Args = args
	s.lateMessage = "timeout waiting for containerd to start" // 15 s, which a busy machine may need
	s.ready = func() error { return answers(filepath.Join(n.Dir, "docker.sock"), "/_ping") }
	return s
}

// answers requests a page at a Unix socket; any HTTP response counts as an answer.
func answers(socket, page string) error {
	client := http.Client{
		Timeout: 5 * time.Second,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", socket)
			},
		},
	}
	resp, err := client.Get("http://lab" + page)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}
