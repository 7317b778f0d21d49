package driver_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"netyard/kernel/kerneltest"
	"netyard/kernel/sandbox"
	"netyard/modes"
	"netyard/yard/book"
)

const deadNetwork, deadFirst, deadNext = "aaaaaaaaaaaa01", "eeeeeeeeeeee01", "ffffffffffff02"

// TestMaker shows that an endpoint's record has the engine's process that requested it.
func TestMaker(t *testing.T) {
	t.Parallel()
	e := newEngine(t, "bridge")
	e.ok("NetworkDriver.CreateNetwork", plain())
	e.ok("NetworkDriver.CreateEndpoint", endpoint)
	own, ok := sandbox.ProcessAt(os.Getpid())
	if got, err := e.yard.Endpoint(deadNetwork, deadFirst); err != nil || !ok || got.Maker != own {
		t.Errorf("the endpoint's process is %+v, want %+v (%v)", got.Maker, own, err)
	}
}

// TestDeadExclusive shows that a resource for one container only, a passthru parent or a device of the host, is free at
// once for the next container if its owner is dead: its engine was killed, and only a mount of its sandbox is left.
func TestDeadExclusive(t *testing.T) {
	t.Parallel()
	const passing = "passthru is for one container at a time, and eth0 has one: invalid argument " +
		"(on eth0: endpoint eeeeeeeeeeee on network aaaaaaaaaaaa)"
	for name, c := range map[string]struct{ mode, options, refusal string }{
		"passthru":           {"macvlan", `"parent":"eth0","macvlan_mode":"passthru"`, passing},
		"a card of the host": {"host", `"device":"eth0"`, "take device eth0: endpoint eeeeeeeeeeee has it"},
	} {
		for _, lives := range []bool{false, true} {
			t.Run(name+map[bool]string{false: ", dead", true: ", living"}[lives], func(t *testing.T) {
				t.Parallel()
				e := lanEngine(t, c.mode)
				e.ok("NetworkDriver.CreateNetwork", lanCreate("01", c.options))
				engine := kerneltest.Sleep(t, nil)
				maker, _ := sandbox.ProcessAt(engine.Process.Pid)
				box := kerneltest.New(t)
				path := filepath.Join(t.TempDir(), "netns")
				if err := os.WriteFile(path, nil, 0o600); err != nil {
					t.Fatal(err)
				}
				if err := syscall.Mount(box.Path(), path, "", syscall.MS_BIND, ""); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = syscall.Unmount(path, syscall.MNT_DETACH) })
				addr := netip.MustParsePrefix("10.9.0.2/24")
				first := modes.Endpoint{
					ID: deadFirst, NetworkID: deadNetwork, Maker: maker, Addrs: []netip.Prefix{addr},
				}
				of := book.Holder{Network: deadNetwork, Endpoint: deadFirst}
				made := func(modes.Network) (modes.Endpoint, error) { return first, nil }
				if _, err := e.yard.CreateEndpoint(t.Context(), of, made); err != nil {
					t.Fatal(err)
				}
				_, link, err := e.yard.Join(t.Context(), deadNetwork, deadFirst, path)
				if err != nil {
					t.Fatal(err)
				}
				e.host.Give(t, box, link.SrcName)
				if lives {
					kerneltest.Sleep(t, box)
				}
				_ = engine.Process.Kill()
				_ = engine.Wait()
				other := strings.NewReplacer(deadFirst, deadNext, "10.9.0.2", "10.9.0.3").Replace(endpoint)
				e.ok("NetworkDriver.CreateEndpoint", other)
				next := strings.NewReplacer(deadFirst, deadNext).Replace(join)
				if lives {
					e.refused("NetworkDriver.Join", next, c.refusal)
					if _, err := e.yard.Endpoint(deadNetwork, deadFirst); err != nil {
						t.Errorf("the living endpoint was removed: %v", err)
					}
					return
				}
				e.ok("NetworkDriver.Join", next)
				if _, err := e.yard.Endpoint(deadNetwork, deadFirst); err == nil {
					t.Error("the dead endpoint is still on record")
				}
			})
		}
	}
}
