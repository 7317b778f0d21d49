package reconcile_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"netyard/ipam"
	"netyard/kernel/core"
	"netyard/kernel/nft"
	"netyard/modes"
	"netyard/modes/all"
	"netyard/modes/modetest"
	"netyard/store"
	"netyard/yard"
	"netyard/yard/book"
	"netyard/yard/plan"
	"netyard/yard/reconcile"
	"netyard/yard/yardtest"
)

// A counter counts what a daemon makes and reads.
type counter struct {
	*yardtest.Kernel

	mu    sync.Mutex
	made  []string // objects, but no set elements
	reads int      // of endpoints
}

func (c *counter) Ensure(ctx context.Context, objects ...core.Object) error {
	for _, o := range objects {
		if _, element := o.(nft.Element); !element {
			c.made = append(c.made, o.String())
		}
	}
	return c.Kernel.Ensure(ctx, objects...)
}

func (c *counter) read(bucket, _ string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if bucket == book.Endpoints.Name {
		c.reads++
	}
}

const network, endpoints = "aaaaaaaaaaaa01", 3

// joined returns a yard with endpoints that have joined a bridge network, and what counts for it.
func joined(t *testing.T) (*yard.Yard, *counter) {
	t.Helper()
	c := &counter{Kernel: yardtest.New(modetest.Facts{})}
	st, err := store.Open(t.Context(), store.Config{
		NoSync: true, Path: filepath.Join(t.TempDir(), "db"), Read: c.read, FlushDelay: time.Hour,
	})
	must(t, err)
	t.Cleanup(func() { _ = st.Close() })
	y := yard.New(book.Config{
		Log: slog.New(slog.DiscardHandler), Store: st, Kernel: c, Modes: all.On(modes.Env{}), BootID: "b",
		IPAM: ipam.New(ipam.Config{}), Background: func(func()) {},
	})
	must(t, c.LoadFirewall())
	subnet := modes.Subnet{Space: "LocalDefault", Pool: netip.MustParsePrefix("10.9.0.0/24")}
	subnet.Gateway = netip.MustParsePrefix("10.9.0.1/24")
	must(t, y.CreateNetwork(t.Context(), modes.Network{
		ID: network, Mode: "bridge", Engine: book.Docker, Subnets: []modes.Subnet{subnet},
	}))
	for i := range endpoints {
		id, sandbox := fmt.Sprintf("%03deeeeeeeee01", i), fmt.Sprintf("/run/netns/c%d", i)
		c.OpenSandbox(sandbox)
		of := book.Holder{Network: network, Endpoint: id}
		_, err := y.CreateEndpoint(t.Context(), of, func(modes.Network) (modes.Endpoint, error) {
			addr := netip.MustParsePrefix(fmt.Sprintf("10.9.0.%d/24", 2+i))
			return modes.Endpoint{ID: id, NetworkID: network, Addrs: []netip.Prefix{addr}}, nil
		})
		must(t, err)
		_, _, err = y.Join(t.Context(), network, id, sandbox)
		must(t, err)
	}
	return y, c
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestRestartMakesNothing shows that a restart makes nothing for endpoints whose objects are there, and makes what
// somebody has removed meanwhile.
func TestRestartMakesNothing(t *testing.T) {
	t.Parallel()
	y, c := joined(t)
	restart := func() (made []string) {
		c.made = nil
		must(t, reconcile.Restore(t.Context(), y, false))
		for _, o := range c.made {
			if strings.Contains(o, core.VethPrefix) {
				made = append(made, o)
			}
		}
		return made
	}
	state := func() []string { return slices.Sorted(strings.Lines(c.String())) }
	before := state()
	if made := restart(); len(made) > 0 {
		t.Errorf("made again: %q", made)
	}
	lost := c.Lose(func(text string) bool { return strings.HasPrefix(text, "static-port ") })
	if made := restart(); lost == 0 || len(made) == 0 {
		t.Errorf("%d objects were lost, and made again are %q", lost, made)
	}
	if after := state(); !slices.Equal(after, before) {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// TestComparedOnce shows that a comparison reads the records once if none changes meanwhile, and once more if one does.
func TestComparedOnce(t *testing.T) {
	t.Parallel()
	y, c := joined(t)
	compare := func() int {
		c.reads = 0
		must(t, reconcile.Prune(t.Context(), y))
		return c.reads
	}
	if n := compare(); n != endpoints {
		t.Errorf("%d endpoints were read for %d", n, endpoints)
	}
	e, err := y.Endpoint(network, "000eeeeeeeee01")
	must(t, err)
	changing := &changing{counter: c, during: func() {
		must(t, book.Endpoints.PutSoon(y.Config.Store, book.EndpointKey(network, e.ID), e))
	}}
	y.Config.Kernel = changing
	if n := compare(); n != 2*endpoints {
		t.Errorf("%d endpoints were read for %d, of which one changed", n, endpoints)
	}
}

// A changing kernel is looked at while somebody changes a record.
type changing struct {
	*counter

	during func()
}

func (c *changing) Snapshot() (plan.Snapshot, error) {
	c.during()
	return c.counter.Snapshot()
}
