package ipam

import (
	"math"
	"testing"
)

func TestAddAndDistance(t *testing.T) {
	tests := []struct {
		from  string
		n     uint64
		shift int
		want  string
	}{
		{"10.0.0.0", 0, 0, "10.0.0.0"},
		{"10.0.0.0", 255, 0, "10.0.0.255"},
		{"10.0.255.255", 1, 0, "10.1.0.0"},
		{"10.224.0.0", 4095, 8, "10.239.255.0"},
		{"fd00::", 1<<32 - 1, 0, "fd00::ffff:ffff"},
		{"fd00::ffff:ffff:ffff:ffff", 1, 0, "fd00:0:0:1::"},
		{"fd00:1:2::", 65535, 64, "fd00:1:2:ffff::"},
		{"fd00:1:2::", 3, 68, "fd00:1:2:30::"},
		{"fd00:1:2::", 0x1ffff, 56, "fd00:1:2:1ff:ff00::"},
	}
	for _, tt := range tests {
		t.Run(tt.want, func(t *testing.T) {
			if got := add(ip(tt.from), tt.n, tt.shift); got != ip(tt.want) {
				t.Errorf("%s + %d<<%d is %s", tt.from, tt.n, tt.shift, got)
			}
			if got := distance(ip(tt.from), ip(tt.want), tt.shift); got != tt.n {
				t.Errorf("(%s - %s)>>%d is %d, want %d", tt.want, tt.from, tt.shift, got, tt.n)
			}
		})
	}
	if got := distance(ip("fd00::"), ip("fd01::"), 0); got != math.MaxUint64 {
		t.Errorf("a distance of more than 64 bits is %d", got)
	}
}

func TestMasked(t *testing.T) {
	for in, want := range map[string]string{
		"10.0.0.5/24":          "10.0.0.0/24",
		"::ffff:10.0.0.5/120":  "10.0.0.0/24",
		"fd00::5/64":           "fd00::/64",
		"::fffe:0:0/90":        "::ffc0:0:0/90",
		"192.168.1.1/32":       "192.168.1.1/32",
		"fd12:3456:789a::1/48": "fd12:3456:789a::/48",
	} {
		if got := masked(prefix(in)).String(); got != want {
			t.Errorf("%s is %s, want %s", in, got, want)
		}
	}
}
