package driver_test

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/vishvananda/netlink" // the bare calls that the driver is measured against
)

// BenchmarkLANEndpoint measures what BenchmarkEndpoint does for the start of a container, in mode macvlan, and in mode
// ipvlan if the kernel has it.
func BenchmarkLANEndpoint(b *testing.B) {
	for _, mode := range []string{"macvlan", "ipvlan"} {
		b.Run("mode="+mode+"/join/netyard", func(b *testing.B) {
			e := newLANBench(b, mode)
			for i := 0; b.Loop(); i++ {
				e.start(i)
				b.StopTimer()
				e.stop(i)
				e.waitIdle()
				b.StartTimer()
			}
		})
		b.Run("mode="+mode+"/join/netlink", func(b *testing.B) {
			e := newLANBench(b, mode)
			e.bareOn("eth0", func(nl *netlink.Handle, parent netlink.Link) {
				for i := 0; b.Loop(); i++ {
					l := bareChild(b, nl, parent, mode, i)
					b.StopTimer()
					bareDelete(b, nl, l)
					b.StartTimer()
				}
			})
		})
	}
}

func newLANBench(b *testing.B, mode string) bench {
	b.Helper()
	e := newEngine(b, mode)
	if !e.host.HasKind(mode) {
		b.Skipf("this kernel has no %s", mode)
	}
	e.host.Peer(b, "eth0")
	body := strings.Replace(lanCreate("01", `"parent":"eth0"`), "10.9.0.0/24", "10.9.0.0/16", 1)
	e.ok("NetworkDriver.CreateNetwork", body)
	return bench{e}
}

// bareChild makes the link of a container: one on the parent, with the container's hardware address and an alias.
func bareChild(b *testing.B, nl *netlink.Handle, parent netlink.Link, mode string, i int) netlink.Link {
	b.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex = fmt.Sprintf("p%d", i), parent.Attrs().Index
	var l netlink.Link = &netlink.IPVlan{LinkAttrs: attrs}
	if mode == "macvlan" {
		attrs.HardwareAddr = net.HardwareAddr{2, 66, 10, 9, 0, 2}
		l = &netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE}
	}
	if err := nl.LinkAdd(l); err != nil {
		b.Fatal(err)
	}
	if err := nl.LinkSetAlias(l, "bench"); err != nil {
		b.Fatal(err)
	}
	return l
}
