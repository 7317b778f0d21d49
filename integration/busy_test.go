package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"netyard/integration/lab"
)

// fewest is a number of addresses that take the kernel about a second to load.
const fewest = 60000

// TestBusyHost: another program's nftables transaction blocks the kernel's nftables, and the daemon is stopped for 8 s.
// Each request succeeds or fails with the reason; afterwards everything works, and doctor finds nothing. NETYARD_BUSY
// sets how many addresses the other program loads, and NETYARD_ROUNDS how often; two million block other changes for
// longer than a request may take.
func TestBusyHost(t *testing.T) {
	t.Parallel()
	h := host(t, lab.Engine285)
	h.Docker("network create -d netyard --ipam-driver netyard --subnet 10.77.0.0/24 web")
	h.Run("first", "--network web -p 8000:80")
	h.Run("old", "--network web -p 8001:80")
	many, addresses := filepath.Join(h.Dir, "many.nft"), number(t, "NETYARD_BUSY", fewest)
	h.Tool(fmt.Sprintf(`{ printf 'table inet many {}\nflush table inet many\ntable inet many {\nset s { type ipv4_addr; elements = {\n';
		awk 'BEGIN { for (i = 0; i < %d; i++) printf "%%d.%%d.%%d.%%d,\n", 10+i/16777216, i/65536%%256, i/256%%256, i%%256 }'; printf '}\n}\n}\n'; } > %s`,
		addresses, many))
	for round := range number(t, "NETYARD_ROUNDS", 1) {
		var wg sync.WaitGroup
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			began := time.Now()
			h.Tool("nft -f " + many + " && nft delete table inet many")
			t.Logf("round %d: nft -f took %s", round, time.Since(began).Round(time.Millisecond))
		}()
		t.Cleanup(func() { <-ended })
		probed := untilBusy(h, ended, addresses)
		var mu sync.Mutex
		var failed []string
		request := func(name string, do func() (string, error)) {
			wg.Go(func() {
				began := time.Now()
				out, err := do()
				took := time.Since(began).Round(time.Millisecond)
				if err == nil {
					t.Logf("round %d: %s took %s", round, name, took)
					return
				}
				said := fmt.Sprint(out, " ", err)
				t.Logf("round %d: %s ended after %s: %s", round, name, took, said)
				if !strings.Contains(said, "try again") && !strings.Contains(said, "wait for another request") {
					t.Errorf("%s failed without the reason: %s", name, said)
				}
				mu.Lock()
				defer mu.Unlock()
				failed = append(failed, name)
			})
		}
		suffix := strconv.Itoa(round)
		for i := range 3 {
			name := fmt.Sprintf("c%d-%d", round, i)
			request("docker run -p "+name, func() (string, error) {
				return h.TryDocker("run -d --name", name, "--network web -p", fmt.Sprintf("%d:80", 9000+10*round+i),
					lab.Image, "sleep 1d")
			})
		}
		request("policy apply", func() (string, error) {
			return apply(t, h, "", "name: p"+suffix+"\nselect: {network: web, container: first}\ningress: {allow: "+
				"[{cidr: 10.77.0.0/24}]}\n")
		})
		request("network create", func() (string, error) {
			return h.TrySh(fmt.Sprintf("netyard network create n%d --subnet 10.78.%[1]d.0/24", round))
		})
		request("docker rm", func() (string, error) { return h.TryDocker("rm -f old") })

		freeze(t, h.Netyard.PID())
		wg.Wait()
		<-ended
		<-probed
		h.Docker("run -d --name old --network web -p 8001:80", lab.Image, "sleep 1d")
		for i := range 3 {
			name := fmt.Sprintf("c%d-%d", round, i)
			if _, err := h.TryDocker("start", name); err != nil { // its creation or start had failed
				_, _ = h.TryDocker("rm -f", name)
				port := fmt.Sprintf("%d:80", 9000+10*round+i)
				out, err := h.TryDocker("run -d --name", name, "--network web -p", port, lab.Image, "sleep 1d")
				if err != nil {
					t.Errorf("afterwards %s: %s %v", name, out, err)
				}
			}
			c := h.In(name).Listen("tcp", ":80")
			h.Outside.Dial("tcp", fmt.Sprintf("%s:%d", h.IP, 9000+10*round+i))
			_ = c.Close()
			h.Ping(name, h.Outside.IP)
		}
		h.Ping("first", h.Outside.IP)
		healthy(t, h)
		for _, word := range []string{"mismatched sequence", "i/o timeout"} {
			if strings.Contains(h.Netyard.Log(), word) {
				t.Errorf("the daemon's log has %q:\n%s", word, h.Netyard.Log())
			}
		}
		t.Logf("round %d: %d requests failed with the reason", round, len(failed))
	}
	h.RemoveAll()
	h.Sh("for p in $(netyard policy ls --format '{{.Name}}'); do netyard policy rm $p; done;",
		"for n in $(netyard network ls --format '{{.Name}}'); do netyard network rm $n; done")
}

// untilBusy waits until a change of nftables is blocked, or the program that would block it has ended. probed is closed
// when the last change has been made.
func untilBusy(h *lab.Host, ended chan struct{}, addresses int) (probed chan struct{}) {
	// A change that takes longer is blocked; this is a small part of the other program's time.
	atOnce := 300 * time.Millisecond * time.Duration(max(1, addresses/fewest/3))
	for {
		probed = make(chan struct{})
		go func() {
			defer close(probed)
			h.Tool("nft add table inet probe && nft delete table inet probe")
		}()
		select {
		case <-ended:
			return probed
		case <-probed:
		case <-time.After(atOnce):
			return probed
		}
	}
}

// freeze stops a process for longer than any deadline of its calls to the kernel.
func freeze(t *testing.T, pid int) {
	t.Helper()
	const frozen = 8 * time.Second
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	<-time.After(frozen) // the duration is what is tested
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
}

// number returns the number in an environment variable, or a default.
func number(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}
