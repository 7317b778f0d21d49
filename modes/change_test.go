package modes_test

import (
	"errors"
	"maps"
	"strings"
	"testing"

	"netyard/modes"
	"netyard/modes/all"
)

func TestChange(t *testing.T) {
	t.Parallel()
	type said = map[string]string
	created := said{"icc": "false", "rate": "10mbit", "mtu": "1400"}
	for name, c := range map[string]struct {
		changed, given, want, now said
		complaint                 string
	}{
		"one":            {nil, said{"rate": "50mbit"}, said{"rate": "50mbit"}, said{"icc": "false", "rate": "50mbit", "mtu": "1400"}, ""},
		"Docker's key":   {nil, said{"com.docker.network.bridge.enable_icc": "1"}, said{"icc": "true"}, said{"icc": "true", "rate": "10mbit", "mtu": "1400"}, ""},
		"default":        {nil, said{"rate": "", "icc": ""}, said{"rate": "", "icc": "true"}, said{"icc": "true", "mtu": "1400"}, ""},
		"as created":     {said{"rate": "50mbit"}, said{"rate": "10mbit"}, said{}, created, ""},
		"never said":     {said{"masquerade": "false"}, said{"masquerade": ""}, said{}, created, ""},
		"beside others":  {said{"masquerade": "false"}, said{"rate": "50mbit"}, said{"masquerade": "false", "rate": "50mbit"}, nil, ""},
		"cannot":         {nil, said{"bridge": "web0"}, nil, nil, "bridge cannot be changed in place: endpoints are attached to that bridge"},
		"cannot, to ''":  {nil, said{"mtu": ""}, nil, nil, "mtu cannot be changed in place"},
		"both cannot":    {nil, said{"mode": "none", "com.docker.network.driver.mtu": "9000", "icc": "true"}, nil, nil, "mode cannot be changed"},
		"unknown":        {nil, said{"rat": "1mbit"}, nil, nil, "did you mean rate?"},
		"ill-typed":      {nil, said{"icc": "perhaps"}, nil, nil, "icc=perhaps: want true or false"},
		"contradiction":  {nil, said{"icc": "", "com.docker.network.bridge.enable_icc": "false"}, nil, nil, "icc= contradicts icc=false"},
		"nothing at all": {nil, said{}, nil, nil, "no option to change"},
	} {
		n := modes.Network{Mode: "bridge", Options: maps.Clone(created), Changed: maps.Clone(c.changed)}
		got, err := all.Options().Change(n, c.given)
		if !maps.Equal(n.Options, created) || !maps.Equal(n.Changed, c.changed) {
			t.Errorf("%s: the former network is changed too", name)
		}
		if c.complaint != "" {
			if !errors.Is(err, modes.ErrOption) || !strings.Contains(err.Error(), c.complaint) {
				t.Errorf("%s: %v, want %q", name, err, c.complaint)
			}
			continue
		}
		if err != nil || !maps.Equal(got.Changed, c.want) || c.now != nil && !maps.Equal(got.Now(), c.now) {
			t.Errorf("%s: %v %v %v", name, got.Changed, got.Now(), err)
		}
		if !got.Equal(n) {
			t.Errorf("%s: the engine's own request for the network is no longer taken for the same", name)
		}
	}
	_, err := all.Options().Change(modes.Network{Mode: "bridge"},
		said{"mode": "none", "com.docker.network.driver.mtu": "9000"})
	if err == nil || !strings.Contains(err.Error(), "com.docker.network.driver.mtu cannot") ||
		!strings.Contains(err.Error(), "mode cannot") {
		t.Errorf("not all that cannot be changed is named: %v", err)
	}
}

func TestChangeEndpoint(t *testing.T) {
	t.Parallel()
	type said = map[string]string
	n := modes.Network{Mode: "bridge", Options: said{"rate": "10mbit"}}
	e := modes.Endpoint{Options: said{"egress_rate": "1mbit"}}
	got, err := all.Options().ChangeEndpoint(n, e, said{"rate": "50000kbit", "egress_rate": ""})
	if err != nil || !maps.Equal(got.Options, said{"rate": "50mbit"}) || len(e.Options) != 1 {
		t.Errorf("%v %v %v", got.Options, e.Options, err)
	}
	for option, complaint := range map[string]string{
		"icc": "icc is a network option, not an endpoint option", "rate": "want a rate",
	} {
		if _, err := all.Options().ChangeEndpoint(n, e, said{option: "false"}); !errors.Is(err, modes.ErrOption) ||
			!strings.Contains(err.Error(), complaint) {
			t.Errorf("%s: %v", option, err)
		}
	}
}

// TestFixed: who cannot change an option is told why.
func TestFixed(t *testing.T) {
	t.Parallel()
	for _, o := range all.Options().Options() {
		if o.Set && o.Fixed != "" {
			t.Errorf("%s: Set %v, Fixed %q", o.Name, o.Set, o.Fixed)
		}
	}
}

func TestRateOption(t *testing.T) {
	t.Parallel()
	for _, resolve := range []func(string, map[string]string) (map[string]string, error){
		all.Options().Resolve, all.Options().ResolveEndpoint,
	} {
		got, err := resolve("bridge", map[string]string{"rate": "10000kbit", "egress_rate": "0"})
		if err != nil || got["rate"] != "10mbit" || got["egress_rate"] != "unlimited" {
			t.Errorf("%v %v", got, err)
		}
		_, err = resolve("bridge", map[string]string{"rate": "10mb"})
		if !errors.Is(err, modes.ErrOption) || !strings.Contains(err.Error(), "rate=10mb: want a rate such as 10mbit") {
			t.Errorf("%v", err)
		}
	}
	if _, err := all.Options().ResolveEndpoint("bridge", map[string]string{"ratr": "10mbit"}); err == nil ||
		!strings.Contains(err.Error(), "did you mean rate?") {
		t.Errorf("%v", err)
	}
}
