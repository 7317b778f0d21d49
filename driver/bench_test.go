package driver_test

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink" // the bare calls that the driver is measured against
)

// BenchmarkEndpoint measures what an engine waits for when a container starts and stops: the calls over the socket,
// with the records, and beside them the bare netlink calls that they need. Each iteration is a new endpoint.
func BenchmarkEndpoint(b *testing.B) {
	b.Run("join/netyard", func(b *testing.B) {
		e := newBench(b)
		for i := 0; b.Loop(); i++ {
			e.start(i)
			b.StopTimer()
			e.stop(i)
			e.waitIdle()
			b.StartTimer()
		}
	})
	b.Run("join/netlink", func(b *testing.B) {
		e := newBench(b)
		e.bare(func(nl *netlink.Handle, br netlink.Link) {
			for i := 0; b.Loop(); i++ {
				v := bareVeth(b, nl, br, i)
				b.StopTimer()
				bareDelete(b, nl, v)
				b.StartTimer()
			}
		})
	})
	b.Run("leave/netyard", func(b *testing.B) {
		e := newBench(b)
		for i := 0; b.Loop(); i++ {
			b.StopTimer()
			e.waitIdle()
			e.start(i)
			b.StartTimer()
			e.stop(i)
		}
	})
	b.Run("leave/netlink", func(b *testing.B) {
		e := newBench(b)
		e.bare(func(nl *netlink.Handle, br netlink.Link) {
			for i := 0; b.Loop(); i++ {
				b.StopTimer()
				v := bareVeth(b, nl, br, i)
				b.StartTimer()
				bareDelete(b, nl, v)
			}
		})
	})
}

type bench struct{ *engine }

func newBench(b *testing.B) bench {
	b.Helper()
	e := newEngine(b, "bridge")
	e.ok("NetworkDriver.CreateNetwork", strings.Replace(plain(), "10.9.0.0/24", "10.9.0.0/16", 1))
	return bench{e}
}

func (e bench) start(i int) {
	id := fmt.Sprintf("%014x", i)
	addr := fmt.Sprintf("10.9.%d.%d/16", 1+i/250%250, 1+i%250)
	body := strings.NewReplacer("eeeeeeeeeeee01", id, "10.9.0.2/24", addr).Replace(endpoint)
	e.ok("NetworkDriver.CreateEndpoint", body)
	e.ok("NetworkDriver.Join", strings.Replace(join, "eeeeeeeeeeee01", id, 1))
}

func (e bench) stop(i int) {
	body := strings.Replace(ids, "eeeeeeeeeeee01", fmt.Sprintf("%014x", i), 1)
	e.ok("NetworkDriver.Leave", body)
	e.ok("NetworkDriver.DeleteEndpoint", body)
}

// BenchmarkPublish measures what an engine waits for when a container with published ports starts and stops: one port,
// and twenty thousand in two ranges, which an engine lists one by one, in the endpoint's options and again in
// ProgramExternalConnectivity.
func BenchmarkPublish(b *testing.B) {
	ports := func(first, last int, protos ...int) string {
		var all []string
		for _, proto := range protos {
			for p := first; p <= last; p++ {
				const port = `{"Proto":%d,"IP":"","Port":%d,"HostIP":"0.0.0.0","HostPort":%d,"HostPortEnd":%d}`
				all = append(all, fmt.Sprintf(port, proto, p, p, p))
			}
		}
		return `"com.docker.network.portmap":[` + strings.Join(all, ",") + "]"
	}
	for name, portmap := range map[string]string{
		"one":   ports(10_000, 10_000, 6),
		"range": ports(10_000, 19_999, 6, 17),
	} {
		options := `"Options":{` + portmap + "}"
		e := newBench(b)
		b.Run("ports="+name, func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				id := fmt.Sprintf("%014x", i)
				r := strings.NewReplacer("eeeeeeeeeeee01", id, `"Options":{}`, options)
				e.ok("NetworkDriver.CreateEndpoint", r.Replace(endpoint))
				e.ok("NetworkDriver.Join", r.Replace(join))
				e.ok("NetworkDriver.ProgramExternalConnectivity",
					r.Replace(strings.TrimSuffix(ids, "}")+","+options+"}"))
				e.ok("NetworkDriver.RevokeExternalConnectivity", r.Replace(ids))
				e.stop(i)
				b.StopTimer()
				e.waitIdle()
				b.StartTimer()
			}
		})
	}
}

// waitIdle waits until work in the background is done, so that the next call need not wait for it.
func (e bench) waitIdle() {
	for {
		es, err := e.yard.Endpoints()
		if err != nil {
			e.tb.Fatal(err)
		}
		if len(es) == 0 {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// bare runs f with a handle on the host's network and a bridge like a network's.
func (e bench) bare(f func(nl *netlink.Handle, br netlink.Link)) {
	e.tb.Helper()
	e.bareOn("nyb-aaaaaaaaaaa", f)
}

// bareOn runs f with a handle on the host's network and a link of it.
func (e bench) bareOn(name string, f func(nl *netlink.Handle, link netlink.Link)) {
	e.tb.Helper()
	var nl *netlink.Handle
	err := e.host.Do(func() (err error) {
		nl, err = netlink.NewHandle(0)
		return err
	})
	if err != nil {
		e.tb.Fatal(err)
	}
	defer nl.Close()
	link, err := nl.LinkByName(name)
	if err != nil {
		e.tb.Fatal(err)
	}
	f(nl, link)
}

// bareVeth makes the links of a container: a veth pair, one end on the bridge, with an alias, and up.
func bareVeth(b *testing.B, nl *netlink.Handle, br netlink.Link, i int) netlink.Link {
	b.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex = fmt.Sprintf("v%d", i), br.Attrs().Index
	v := &netlink.Veth{
		LinkAttrs: attrs, PeerName: fmt.Sprintf("p%d", i), PeerHardwareAddr: net.HardwareAddr{2, 66, 10, 9, 0, 2},
	}
	if err := nl.LinkAdd(v); err != nil {
		b.Fatal(err)
	}
	if err := nl.LinkSetAlias(v, "bench"); err != nil {
		b.Fatal(err)
	}
	if err := nl.LinkSetUp(v); err != nil {
		b.Fatal(err)
	}
	return v
}

func bareDelete(b *testing.B, nl *netlink.Handle, v netlink.Link) {
	b.Helper()
	if err := nl.LinkDel(v); err != nil {
		b.Fatal(err)
	}
}
