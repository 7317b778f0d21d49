package integration

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"netyard/cli/api"
	"netyard/integration/lab"
)

// steps returns the steps at which the test kills the daemon in the life of a network and a container: see yard's Step.
// The test fails if one of them is never reached.
func steps() []string {
	var all []string
	for _, s := range []string{
		"pool recorded", "address recorded", "network recorded", "network ready", "endpoint recorded",
		"endpoint joining",
		"endpoint ready", "ports recorded", "endpoint left", "endpoint deleting", "endpoint gone",
		"address released", "pool released",
		"network deleting", "network gone",
	} {
		all = append(all, "before "+s, "after "+s)
	}
	return append(all, "after network up", "after endpoint attached", "after ports published", "after ports withdrawn",
		"before endpoint detached", "after network down")
}

// TestKillAnywhere kills the daemon at each step while an engine uses it, and restarts it like a supervisor. Afterwards
// records, kernel and engine agree, and the next container works.
func TestKillAnywhere(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		const hosts = 3 // in parallel, since each mostly waits
		all := steps()
		for i := range hosts {
			t.Run(fmt.Sprint("host ", i+1), func(t *testing.T) {
				t.Parallel()
				killAt(t, e, all[i*len(all)/hosts:(i+1)*len(all)/hosts])
			})
		}
	})
}

func killAt(t *testing.T, e lab.Engine, steps []string) {
	t.Helper()
	h := lab.New(t, e)
	failpoint := filepath.Join(h.Dir, "failpoint")
	h.Netyard.Env = append(h.Netyard.Env, "NETYARD_FAILPOINT="+failpoint)
	h.Netyard.Start()
	before := h.Snapshot()
	for _, step := range steps {
		t.Run(step, func(t *testing.T) {
			h.Use(t)
			if err := os.WriteFile(failpoint, []byte(step), 0o600); err != nil {
				t.Fatal(err)
			}
			supervised(t, h,
				"network create -d netyard --ipam-driver netyard --subnet 10.77.0.0/24 net",
				"run -d --name c1 --network net -p 8080:80 busybox sleep 1d",
				"rm -f c1",
				"network rm net",
			)
			if _, err := os.Stat(failpoint); err == nil {
				t.Fatal("the daemon never reached this step")
			}
			_, _ = h.TryDocker("rm -f c1")
			_, _ = h.TryDocker("network rm net")
			// Leftovers of the first network are removed once they count as orphans.
			eventually(t, "the network can be created again", func() bool {
				t.Logf("gc: %s", h.Sh("netyard gc"))
				_, err := h.TryDocker("network create -d netyard --ipam-driver netyard --subnet 10.77.0.0/24 net")
				return err == nil
			})
			healthy(t, h)
			h.Docker("run --rm --network net -p 8080:80 busybox ping -c 1 10.77.0.1")
			h.Docker("network rm net")
			h.SameAs(before)
		})
	}
}

// supervised runs docker commands, which may fail, and restarts netyard whenever it has ended.
func supervised(t *testing.T, h *lab.Host, cmds ...string) {
	t.Helper()
	for _, cmd := range cmds {
		done := make(chan string, 1)
		go func() {
			out, err := h.TryDocker(cmd)
			done <- fmt.Sprint(out, err)
		}()
		for running := true; running; {
			select {
			case out := <-done:
				t.Logf("docker %s: %s", cmd, out)
				running = false
			case <-time.After(20 * time.Millisecond):
			}
			if !h.Netyard.Running() {
				h.Netyard.Start()
			}
		}
	}
}

// TestChurn: containers in a row, enough to show a leak of one object each, and many at once; then everything is as
// before. TestCNICrowd has hundreds, without an engine.
func TestChurn(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		const inARow, atOnce = 40, 20
		lab.Alone(t)
		h := host(t, e)
		h.Docker("network create -d netyard --ipam-driver netyard a")
		h.Docker("network create -d netyard-bridge b")
		h.Docker("run --rm --network a busybox hostname") // what an engine does only once
		before := h.Snapshot()
		// An engine keeps connections open, each of which has a socket and a goroutine.
		goroutines := func() int {
			v := parse[struct{ Daemon api.Version }](t, h.Sh("netyard version --json"))
			sockets := strings.Count(h.Sh(fmt.Sprintf("ls -l /proc/%d/fd", v.Daemon.PID)), "socket:")
			return v.Daemon.Goroutines - sockets
		}
		busy := goroutines()
		var mu sync.Mutex
		seen := map[string]bool{}
		for range inARow {
			a := h.Docker("run --rm --network a busybox hostname -i")
			if seen[a] {
				t.Errorf("address %s was given again before its cooldown ended", a)
			}
			seen[a] = true
		}
		var wg sync.WaitGroup
		owners := map[string]string{}
		for i := range atOnce {
			wg.Go(func() {
				network, name := []string{"a", "b"}[i%2], fmt.Sprintf("p%d", i)
				if _, err := h.TryDocker("run -d --name", name, "--network", network, "busybox sleep 1d"); err != nil {
					t.Error(err)
					return
				}
				out, err := h.TryDocker("inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}'", name)
				mu.Lock()
				defer mu.Unlock()
				if other, taken := owners[out]; taken || err != nil || out == "" {
					t.Errorf("address %q of %s: %v; also given to %q", out, name, err, other)
				}
				owners[out] = name
			})
		}
		wg.Wait()
		healthy(t, h)
		if rows := len(ps(t, h)); rows != atOnce {
			t.Errorf("ps shows %d endpoints, want %d", rows, atOnce)
		}
		h.Docker("rm -f", strings.Join(slices.Sorted(maps.Values(owners)), " "))
		h.SameAs(before)
		const slack = 8 // idle connections to the engine's API, with two goroutines per socket
		eventually(t, "the daemon has as few goroutines as before", func() bool { return goroutines() <= busy+slack })
		leases := h.Sh("netyard lease ls --format '{{.Kind}} {{.State}}'")
		if strings.Contains(leases, "dynamic active") {
			t.Errorf("leases are left:\n%s", leases)
		}
	})
}

// TestRestartUnderTraffic: no packet is lost while netyard restarts or is killed, and docker ps answers without it.
func TestRestartUnderTraffic(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := host(t, e)
		h.Docker("network create -d netyard --ipam-driver netyard a")
		h.Run("c1", "--network a")
		h.Run("c2", "--network a")
		h.Ping("c1", h.Outside.IP)
		// One loop of pings per path, also with NAT; slow enough to span the restarts, and bounded.
		const slow = "i=0; while [ $i -lt 1000 ]; do i=$((i+1)); ping -c 1 -W 3 %[1]s >/dev/null || echo lost " +
			"%[1]s; usleep 5000; done"
		result := make(chan string, 2)
		for _, target := range []string{h.Addr("c2", "a"), h.Outside.IP} {
			go func() {
				out, err := h.TryExec("c1", fmt.Sprintf(slow, target))
				result <- fmt.Sprint(out, err)
			}()
		}
		for range 3 {
			h.Netyard.Restart()
			h.Netyard.Kill()
			start := time.Now()
			h.Docker("ps")
			t.Logf("docker ps took %s without netyard", time.Since(start))
			h.Netyard.Start()
		}
		for range 2 {
			if out := <-result; out != "<nil>" {
				t.Errorf("pings were lost: %s", out)
			}
		}
		healthy(t, h)
		h.Docker("restart -t 0 c1")
		h.Ping("c1", "c2")
		healthy(t, h)
	})
}

// TestEngineRestarts: containers with restart=always come back with their networks, however the engine ended, and
// nothing is left over.
func TestEngineRestarts(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := host(t, e)
		h.Docker("network create -d netyard --ipam-driver netyard own")
		h.Docker("network create -d netyard-bridge theirs")
		h.Run("c1", "--restart=always --network own")
		h.Run("c2", "--restart=always --network theirs")
		h.Run("c3", "--network own")
		working := func(when string) {
			t.Helper()
			eventually(t, "the containers run "+when, func() bool {
				out, err := h.TryDocker("inspect -f '{{.State.Running}}' c1 c2")
				return err == nil && !strings.Contains(out, "false")
			})
			h.Ping("c1", h.Outside.IP)
			h.Ping("c2", h.Outside.IP)
			eventually(t, "ps shows only these two "+when, func() bool {
				t.Logf("%s: gc: %s", when, h.Sh("netyard gc"))
				return len(ps(t, h)) == 2
			})
			healthy(t, h)
		}
		h.Docker("rm -f c3")
		h.Dockerd.Restart()
		working("after a restart of dockerd")
		h.Dockerd.Kill()
		h.Dockerd.Start()
		working("after a kill -9 of dockerd")
		h.PowerLoss()
		h.Boot()
		working("after a power loss")
		// netyard starts late: the engine retries for a while, and its API must not block forever.
		h.Dockerd.Stop()
		h.Netyard.Stop()
		misses(t, h, h.Dockerd.Launch)
		h.Netyard.Start()
		h.Dockerd.WaitReady()
		working("after dockerd booted without netyard")
	})
}

// misses calls do, which makes the engine call netyard while that is down, and waits until such a call has failed.
func misses(t *testing.T, h *lab.Host, do func()) {
	t.Helper()
	count := func() int { return len(inVain.FindAllString(h.Dockerd.Log(), -1)) }
	before := count()
	do()
	eventually(t, "a call of the engine has failed", func() bool { return count() > before })
}

// inVain matches what every engine logs for such a call (pkg/plugins/plugins.go and client.go of moby).
var inVain = regexp.MustCompile(`Unable to (locate|connect to) plugin`)

// TestLiveRestore: with live-restore, containers keep their networks when the engine ends.
func TestLiveRestore(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := host(t, e, lab.DockerdArgs("--live-restore"))
		h.Docker("network create -d netyard --ipam-driver netyard a")
		h.Docker("network create -d netyard-bridge b")
		h.Run("c1", "--network a")
		h.Run("c2", "--network a")
		h.Run("c3", "--network b")
		h.Dockerd.Restart()
		h.Dockerd.Kill()
		h.Netyard.Kill()
		h.Netyard.Start()
		h.Dockerd.Start()
		h.Ping("c1", "c2")
		h.Ping("c3", h.Outside.IP)
		healthy(t, h)
		h.Docker("network connect b c1")
		h.Ping("c1", "c3")
		h.Docker("network disconnect b c1")
		h.Docker("rm -f c1 c2 c3")
		healthy(t, h)
	})
}

// TestDamagedState: after random pages of the database are overwritten, netyard logs that, rebuilds the records, and
// running containers are not affected.
func TestDamagedState(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := host(t, e)
		h.Docker("network create -d netyard --ipam-driver netyard --subnet 10.77.0.0/24 --aux-address " +
			"router=10.77.0.9 own")
		h.Docker("network create -d netyard --ipam-driver netyard auto")
		h.Docker("network create -d netyard-bridge --internal theirs")
		h.Docker("network create -d netyard-none --ipam-driver null nothing")
		h.Run("c1", "--network own")
		h.Run("c2", "--network own --ip 10.77.0.50")
		h.Run("c3", "--network theirs")
		h.Run("c4", "--network theirs")
		h.Run("c5", "--network nothing")
		eventually(t, "ps shows all containers by name",
			func() bool { return strings.Count(h.Sh("netyard ps --format '{{.Container}}'"), "c") == 5 })
		was := h.Sh("netyard ps --format '{{.Container}} {{.Network}} {{.Mode}} {{.Addresses}} {{.MAC}} " +
			"{{.Interface}} {{.State}}'")
		for round := range 5 {
			h.Netyard.Stop()
			file := filepath.Join(h.Dir, "state", "netyard.db")
			if round == 4 { // not damaged, but gone
				if err := os.Remove(file); err != nil {
					t.Fatal(err)
				}
			} else {
				overwritePages(t, file, uint64(round))
			}
			h.Netyard.Start()
			h.Ping("c1", "10.77.0.50")
			h.Ping("c1", h.Outside.IP)
			h.Ping("c3", "c4")
			healthy(t, h)
			eventually(t, "the records are as they were", func() bool {
				return h.Sh("netyard ps --format '{{.Container}} {{.Network}} {{.Mode}} {{.Addresses}} {{.MAC}} "+
					"{{.Interface}} {{.State}}'") == was
			})
		}
		has(t, h.Netyard.Log(), "database damaged and set aside")
		has(t, h.Netyard.Log(), "records rebuilt")
		has(t, h.DockerErr("run --rm --network own --ip 10.77.0.50 busybox sleep 1"), "10.77.0.50")
		h.Run("c6", "--network own")
		h.Ping("c6", "c1")
		h.Ping("c6", h.Outside.IP) // the gateway that the engine chose is rebuilt
		h.Run("c7", "--network auto")
		h.Ping("c7", h.Outside.IP)
		has(t, h.DockerErr("run --rm --network own --ip 10.77.0.9 busybox sleep 1"), "10.77.0.9") // an aux address
		h.Docker("rm -f c1 c2 c3 c4 c5 c6 c7")
		h.Docker("network rm own auto theirs nothing")
		healthy(t, h)
	})
}

// overwritePages overwrites some pages of a file with noise; the seed determines which.
func overwritePages(t *testing.T, file string, seed uint64) {
	t.Helper()
	const page, pages = 4096, 3
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(seed, seed))
	for range pages {
		noise := make([]byte, page)
		for i := range noise {
			noise[i] = byte(r.Uint32())
		}
		if _, err := f.WriteAt(noise, r.Int64N(st.Size()/page)*page); err != nil {
			t.Fatal(err)
		}
	}
}
