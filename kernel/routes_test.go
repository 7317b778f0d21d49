package kernel_test

import (
	"slices"
	"strings"
	"testing"

	"netyard/kernel/core"
	"netyard/kernel/kerneltest"
	"netyard/kernel/sandbox"
)

// TestDefaultRoutes: the default routes of a sandbox, by the addresses of their links, without those that routers
// announce.
func TestDefaultRoutes(t *testing.T) {
	t.Parallel()
	h := kerneltest.New(t)
	h.Sh(t, `for l in eth0 eth1; do ip link add $l type veth peer name p$l; ip link set p$l up; ip link set $l up; done
		ip addr add 10.9.0.2/24 dev eth0; ip addr add fd00:9::2/64 dev eth0 nodad
		ip addr add 10.8.0.2/24 dev eth1; ip addr add fd00:8::2/64 dev eth1 nodad`)
	for _, c := range []struct{ cmd, want string }{
		{"true", ""},
		{"ip route add default via 10.9.0.1; ip -6 route add default via fd00:8::1", "4 10.9.0.2, 6 fd00:8::2"},
		{"ip route replace default dev eth1; ip -6 route del default", "4 10.8.0.2"},
		{"ip route add 0.0.0.0/1 dev eth0; ip -6 route add ::/1 dev eth0", "4 10.8.0.2"},
		{"ip route replace blackhole default; ip -6 route add default via fd00:9::1 proto ra", ""},
	} {
		h.Sh(t, c.cmd)
		routes, err := sandbox.DefaultRoutes(h.Path(), core.NamespaceID{})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, r := range routes {
			text := map[bool]string{false: "4", true: "6"}[r.V6]
			for _, a := range r.Addrs {
				if a.Is6() == r.V6 && !a.IsLinkLocalUnicast() {
					text += " " + a.String()
				}
			}
			got = append(got, text)
		}
		slices.Sort(got)
		if text := strings.Join(got, ", "); text != c.want {
			t.Errorf("%s: %q, want %q", c.cmd, text, c.want)
		}
	}
	if routes, err := sandbox.DefaultRoutes("/run/netns/nobody", core.NamespaceID{}); err != nil || len(routes) > 0 {
		t.Errorf("no sandbox: %v %v", routes, err)
	}
}
