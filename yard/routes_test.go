package yard_test

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"netyard/modes"
	"netyard/yard/book"
)

// A routedNetwork is a network of a container, and what the engine is told when it joins it.
type routedNetwork struct {
	mode, subnet, gateway string
	options               map[string]string
	want                  string // gateways and routes, or a part of the refusal
	refused               bool
}

// TestOneRouteEach shows that an engine gets no route that the container's sandbox has already, and which network is
// refused: those of the option routes, of the networks' subnets, and default routes.
func TestOneRouteEach(t *testing.T) {
	t.Parallel()
	routes := func(text string) map[string]string { return map[string]string{"routes": text} }
	l3 := map[string]string{"parent": "eth0", "ipvlan_mode": "l3"}
	for name, joins := range map[string][]routedNetwork{
		"the same option": {
			{"bridge", "10.9.0.0/24", "10.9.0.1/24", routes("10.7.0.0/16@10.9.0.7,10.6.0.0/16"), "[10.9.0.1] [10.7.0.0/16@10.9.0.7 10.6.0.0/16]", false},
			{"bridge", "10.8.0.0/24", "10.8.0.1/24", routes("10.7.0.0/16@10.8.0.7,10.5.0.0/16"), "[10.8.0.1] [10.5.0.0/16]", false},
		},
		"a route to the subnet before": {
			{"bridge", "10.8.0.0/24", "10.8.0.1/24", nil, "[10.8.0.1] []", false},
			{"bridge", "10.9.0.0/24", "10.9.0.1/24", routes("10.8.0.0/24@10.9.0.7,10.8.0.0/16@10.9.0.7"), "[10.9.0.1] [10.8.0.0/16@10.9.0.7]", false},
		},
		"a route to its own subnet": {
			{"bridge", "10.9.0.0/24", "10.9.0.1/24", routes("10.9.0.0/24@10.9.0.7"), "[10.9.0.1] []", false},
		},
		"a route to the subnet after": {
			{"bridge", "10.9.0.0/24", "10.9.0.1/24", routes("10.8.0.0/24@10.9.0.7"), "[10.9.0.1] [10.8.0.0/24@10.9.0.7]", false},
			{"bridge", "10.8.0.0/24", "10.8.0.1/24", nil, "subnet 10.8.0.0/24 of network bbbbbbbbbbbb: the container has a route to 10.8.0.0/24, by network aaaaaaaaaaaa; disconnect", true},
		},
		"a route around the subnet after": {
			{"bridge", "10.9.0.0/24", "10.9.0.1/24", routes("10.0.0.0/8@10.9.0.7"), "[10.9.0.1] [10.0.0.0/8@10.9.0.7]", false},
			{"bridge", "10.8.0.0/24", "10.8.0.1/24", nil, "a route to 10.0.0.0/8, by network aaaaaaaaaaaa", true},
		},
		"two default routes on links": {
			{"ipvlan", "10.9.0.0/24", "", l3, "[] [0.0.0.0/0]", false},
			{"ipvlan", "10.8.0.0/24", "", l3, "[] []", false},
		},
		"a default route on a link before a gateway": {
			{"ipvlan", "10.9.0.0/24", "", l3, "[] [0.0.0.0/0]", false},
			{"bridge", "10.8.0.0/24", "10.8.0.1/24", nil, "[] []", false},
		},
		"a default route on a link after a gateway": {
			{"bridge", "10.8.0.0/24", "10.8.0.1/24", nil, "[10.8.0.1] []", false},
			{"ipvlan", "10.9.0.0/24", "", l3, "[] []", false},
		},
		"two gateways, of which the engine takes one": {
			{"bridge", "10.8.0.0/24", "10.8.0.1/24", nil, "[10.8.0.1] []", false},
			{"bridge", "10.9.0.0/24", "10.9.0.1/24", nil, "[10.9.0.1] []", false},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, err := newWorld(t.Context(), filepath.Join(t.TempDir(), "w"))
			if err != nil {
				t.Fatal(err)
			}
			defer w.st.Close()
			w.kernel.OpenSandbox("/run/docker/netns/1")
			for i, j := range joins {
				got, err := w.joins(t, strings.Repeat(string(rune('a'+i)), 64), j)
				switch {
				case j.refused && (err == nil || !strings.Contains(err.Error(), j.want)):
					t.Errorf("network %d: %v, want %q", i, err, j.want)
				case !j.refused && (err != nil || got != j.want):
					t.Errorf("network %d: %s, %v, want %s", i, got, err, j.want)
				}
			}
		})
	}
}

// joins creates a network and joins an endpoint on it to the one sandbox. It returns the gateways and routes.
func (w *world) joins(t *testing.T, id string, j routedNetwork) (string, error) {
	t.Helper()
	s := modes.Subnet{Pool: netip.MustParsePrefix(j.subnet), Space: "LocalDefault"}
	if j.gateway != "" {
		s.Gateway = netip.MustParsePrefix(j.gateway)
	}
	n := modes.Network{ID: id, Engine: book.Docker, Mode: j.mode, Options: j.options, Subnets: []modes.Subnet{s}}
	if err := w.y.CreateNetwork(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	e := modes.Endpoint{
		ID: id[:11] + strings.Repeat("e", 53), NetworkID: id, Container: modes.Container{Engine: book.Docker},
		Addrs: []netip.Prefix{netip.PrefixFrom(s.Pool.Addr().Next().Next(), s.Pool.Bits())},
	}
	if err := w.createEndpoint(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	_, link, err := w.y.Join(t.Context(), id, e.ID, "/run/docker/netns/1")
	return fmt.Sprint(link.Gateways, " ", link.Routes), err
}
