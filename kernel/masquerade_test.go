package kernel_test

import (
	"fmt"
	"testing"
)

// TestMasqueradedUnderlay shows that rules of the admin's which masquerade what leaves by the underlay's link do not
// change the source of overlay frames, where the overlay's address is not the link's first.
func TestMasqueradedUnderlay(t *testing.T) {
	t.Parallel()
	const table = "nft 'table inet admin { chain out { type nat hook postrouting priority srcnat; " +
		"oifname eth0 masquerade; }; }'"
	for name, rule := range map[string]string{
		"iptables": "iptables -t nat -A POSTROUTING -o eth0 -j MASQUERADE && " +
			"ip6tables -t nat -A POSTROUTING -o eth0 -j MASQUERADE",
		"nft": table,
	} {
		for _, v6 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, IPv6 %t", name, v6), func(t *testing.T) {
				t.Parallel()
				hosts := overlayOf(t, 2, v6)
				for _, o := range hosts { // masquerading takes the first address of the narrowest scope
					o.Sh(t, fmt.Sprintf("ip addr flush dev eth0 scope global; ip addr add 192.0.2.10%d/24 dev eth0; "+
						"ip addr add 2001:db8::10%[1]d/120 dev eth0 nodad; ip addr add %s/%d dev eth0 %s",
						o.n, o.vtep, o.vtep.BitLen()-8, map[bool]string{true: "nodad preferred_lft 0"}[v6]))
					o.Sh(t, rule)
				}
				containers := join(t, hosts, blueNet, blueVNI, 20)
				reach(t, containers[0], "10.20.2.2", true)
				reach(t, containers[1], "fd20::1:2", true)
			})
		}
	}
}
