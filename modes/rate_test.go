package modes

import (
	"testing"

	"netyard/kernel/bridge"
)

func TestParseRate(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"10mbit": "10mbit", "10MBit": "10mbit", "10000kbit": "10mbit",
		"10000000": "10mbit", "10000000bit": "10mbit", "1.5gbit": "1500mbit",
		"500kbps": "4mbit", "8000": "8kbit", "1000bps": "8kbit",
		"1mibit": "1048576bit", "1KiBps": "8192bit", "1tbit": "1tbit",
		"0": "unlimited", "0mbit": "unlimited", "unlimited": "unlimited", "0.5mbit": "500kbit", "8000.4": "8kbit",
	} {
		r, err := ParseRate(text)
		if err != nil || r.String() != want {
			t.Errorf("%s reads %s, not %s: %v", text, r, want, err)
		}
	}
	for _, text := range []string{
		"", "fast", "10m", "10mb", "10mbit/s", "-1mbit", "10 mbit", ".5mbit",
		"1.mbit", "1e9", "7999", "1bit", "0.1", "1001gbit", "99999999999999999999tbit",
		"infinite", "NaN", "10%", "0x10", "10mbit\n",
	} {
		if r, err := ParseRate(text); err == nil {
			t.Errorf("%q reads %s", text, r)
		}
	}
}

func FuzzParseRate(f *testing.F) {
	for _, s := range []string{"10mbit", "1.5Gbit", "500kbps", "0", "unlimited", "1mibit", "8000.0001"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := ParseRate(text)
		if err != nil {
			return
		}
		if again, err := ParseRate(r.String()); err != nil || again != r {
			t.Errorf("%q reads %s, and that reads %s: %v", text, r, again, err)
		}
	})
}

func TestLimits(t *testing.T) {
	t.Parallel()
	type said = map[string]string
	for _, c := range []struct {
		options, changed, endpoint said
		ingress, egress            bridge.Rate
	}{
		{nil, nil, nil, 0, 0},
		{said{"rate": "10mbit"}, nil, nil, 10e6, 10e6},
		{said{"rate": "10mbit", "egress_rate": "20mbit"}, nil, nil, 10e6, 20e6},
		{said{"ingress_rate": "10mbit"}, nil, nil, 10e6, 0},
		{said{"rate": "10mbit"}, said{"rate": "50mbit"}, nil, 50e6, 50e6},
		{said{"rate": "10mbit"}, said{"rate": ""}, nil, 0, 0},
		{said{"ingress_rate": "10mbit"}, nil, said{"rate": "20mbit"}, 20e6, 20e6},
		{said{"rate": "10mbit"}, nil, said{"egress_rate": "20mbit"}, 10e6, 20e6},
		{said{"rate": "10mbit"}, nil, said{"rate": "unlimited"}, 0, 0},
		{said{"rate": "10mbit"}, nil, said{"rate": "unlimited", "ingress_rate": "1mbit"}, 1e6, 0},
	} {
		n := Network{Options: c.options, Changed: c.changed}
		if in, out := n.Limits(Endpoint{Options: c.endpoint}); in != c.ingress || out != c.egress {
			t.Errorf("%v %v %v: %s in, %s out", c.options, c.changed, c.endpoint, in, out)
		}
	}
}
