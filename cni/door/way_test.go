package door

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"netyard/cni"
	"netyard/ipam"
	"netyard/kernel/core"
	"netyard/modes"
	"netyard/modes/all"
	"netyard/modes/modetest"
	"netyard/store"
	"netyard/yard"
	"netyard/yard/book"
	"netyard/yard/yardtest"
)

// A recordingDoor is a door whose yard is on a kernel that records, so that a test needs no root.
type recordingDoor struct {
	*Server
	t      *testing.T
	kernel *yardtest.Kernel

	mu    sync.Mutex
	reads map[string]int // of records of networks and endpoints: how many
}

func newRecordingDoor(t *testing.T) *recordingDoor {
	t.Helper()
	d := &recordingDoor{
		t: t, reads: map[string]int{},
		kernel: yardtest.New(modetest.Facts{
			Link: map[string]core.LinkInfo{"eth0": modetest.Ethernet(1500)},
			Addr: map[string][]netip.Prefix{"eth0": {netip.MustParsePrefix("192.0.2.1/24")}},
		}),
	}
	if err := d.kernel.LoadFirewall(); err != nil {
		t.Fatal(err)
	}
	st, err := store.Open(t.Context(), store.Config{NoSync: true, Path: filepath.Join(t.TempDir(), "db"), Read: d.note})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	log := slog.New(slog.DiscardHandler)
	d.Server = &Server{Log: log, Yard: yard.New(book.Config{
		Log: log, Store: st, Kernel: d.kernel, BootID: "b", Modes: all.On(modes.Env{}), IPAM: ipam.New(ipam.Config{}),
		Background: func(f func()) { f() },
	})}
	return d
}

func (d *recordingDoor) note(bucket, _ string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if bucket == book.Networks.Name || bucket == book.Endpoints.Name {
		d.reads[bucket]++
	}
}

// bridgeConfig is a configuration as nerdctl writes it, for a container that publishes a port.
const bridgeConfig = `{"cniVersion":"1.0.0","name":"blue","type":"netyard","isGateway":true,"ipMasq":true,` +
	`"ipam":{"type":"host-local","ranges":[[{"subnet":"10.4.0.0/24","gateway":"10.4.0.1"}]],` +
	`"routes":[{"dst":"0.0.0.0/0"}]},` +
	`"runtimeConfig":{"portMappings":[{"hostPort":%d,"containerPort":80,"protocol":"tcp"}]}}`

// request returns a runtime's request for a container, and its sandbox as an open file.
func (d *recordingDoor) request(command, container, config string) (cni.Request, *os.File) {
	d.t.Helper()
	netns, err := os.Open(os.DevNull)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = netns.Close() })
	path := "/run/netns/" + container
	d.kernel.AddSandbox(path, int(netns.Fd()))
	return cni.Request{
		Command: command, ContainerID: container, IfName: "eth0", Netns: path, Config: json.RawMessage(config),
	}, netns
}

// reply answers a request.
func (d *recordingDoor) reply(q cni.Request, netns *os.File) (answer, error) {
	return d.answer(d.t.Context(), q, descriptor(netns))
}

// TestWay attaches two containers to a network that the first one makes. Integration's TestWay counts the functions
// that each request enters.
func TestWay(t *testing.T) {
	t.Parallel()
	d := newRecordingDoor(t)
	for i, c := range []struct {
		name, address string
	}{{"first", "10.4.0.2/24"}, {"second", "10.4.0.3/24"}} {
		t.Run(c.name, func(t *testing.T) {
			clear(d.reads)
			q, netns := d.request("ADD", c.name, fmt.Sprintf(bridgeConfig, 8080+i))
			a, err := d.reply(q, netns)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(a.result), c.address) {
				t.Errorf("result %s, want address %s", a.result, c.address)
			}
			// Once to find out whether the configuration's network exists, and once under its lock.
			if want := map[string]int{book.Networks.Name: 2}; !maps.Equal(d.reads, want) {
				t.Errorf("reads %v records, want %v", d.reads, want)
			}
		})
	}
}
