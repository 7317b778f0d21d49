package fabric

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"netyard/cluster/clustertest"
	"netyard/cluster/record"
	"netyard/kernel/core"
	"netyard/kernel/kerneltest"
)

// running makes many hosts that are members, and puts a network on the first on of them.
func running(b *testing.B, many, on int) ([]*host, record.Network) {
	b.Helper()
	all := hosts(b, clustertest.Start(b, ""), many)
	for _, h := range all {
		h.run()
		h.member()
	}
	blue := all[0].network("blue", subnets(20)...)
	for _, h := range all[:on] {
		h.up(blue)
		h.warm(blue)
	}
	return all, blue
}

// claims returns claims of a host for endpoints without containers.
func (h *host) claims(n record.Network, from, many int) (all []record.Address) {
	for i := from; i < from+many; i++ {
		all = append(all, record.Address{
			Network: n.ID, Addr: netip.AddrFrom4([4]byte{10, 20, byte(100 + i/250), byte(2 + i%250)}), Host: h.self,
			Use: record.Endpoint, Endpoint: fmt.Sprint("e", i),
			MAC: record.MAC(fmt.Sprintf("02:42:0a:14:%02x:%02x", i>>8, i&255)),
		})
	}
	return all
}

// percentile returns a percentile of durations, in milliseconds.
func percentile(of []time.Duration, hundredths int) float64 {
	slices.Sort(of)
	return float64(of[min(len(of)*hundredths/100, len(of)-1)]) / float64(time.Millisecond)
}

// BenchmarkFreshHost measures how long a host that joins a network with ten thousand endpoints takes until its kernel
// has them all; and, for comparison, only reading the records from etcd and only updating the kernel.
func BenchmarkFreshHost(b *testing.B) {
	all, blue := running(b, 2, 1)
	const many, chunk = 10000, 50
	m := record.Member{Network: blue.ID, Host: all[0].self}
	all[0].stop() // it would release them, since it has no endpoints for them
	all[0].stop = func() {}
	for i := 0; i < many; i += chunk {
		must(b, all[0].c.Client.ClaimAddresses(b.Context(), m, all[0].claims(blue, i, chunk)...))
	}
	h := all[1]
	_, x := h.links(blue)
	var whole, reading, telling []time.Duration
	for range max(b.N, 5) {
		start := time.Now()
		recs, err := h.c.Client.List(b.Context(), "addr/"+blue.ID+"/")
		must(b, err)
		reading = append(reading, time.Since(start))
		if len(recs) < many {
			b.Fatalf("%d records", len(recs))
		}

		start = time.Now()
		h.up(blue)
		clustertest.Eventually(b, "peers are missing", func() bool {
			n := h.status().Networks[blue.ID]
			return n.Peers >= many && !n.Unsure
		})
		whole = append(whole, time.Since(start))
		peers := h.Objects(blue.ID)

		// The same again, only in the kernel.
		h.Sh(b, "ip neigh flush nud permanent dev "+x+"; bridge fdb flush dev "+x+" self 2>/dev/null || true")
		start = time.Now()
		must(b, h.Ensure(b.Context(), peers...))
		telling = append(telling, time.Since(start))
		must(b, h.Unbind(blue.ID))
		h.Sh(b, "ip link del "+x)
	}
	b.ReportMetric(percentile(whole, 50), "whole-ms")
	b.ReportMetric(percentile(reading, 50), "etcd-ms")
	b.ReportMetric(percentile(telling, 50), "kernel-ms")
	b.ReportMetric(0, "ns/op")
}

// arrivals says when the kernel of a host got neighbour entries.
type arrivals struct {
	mu sync.Mutex
	at map[string]time.Time
}

// listen records when neighbour entries of a link appear.
func (h *host) listen(b *testing.B, link string) *arrivals {
	b.Helper()
	l := &arrivals{at: map[string]time.Time{}}
	must(b, h.Do(func() error {
		cmd := exec.Command("ip", "monitor", "neigh", "dev", link)
		out, err := cmd.StdoutPipe()
		if err != nil {
			return err
		}
		if err := cmd.Start(); err != nil {
			return err
		}
		b.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		go func() {
			for s := bufio.NewScanner(out); s.Scan(); {
				addr, _, _ := strings.Cut(s.Text(), " ")
				l.mu.Lock()
				if _, known := l.at[addr]; !known {
					l.at[addr] = time.Now()
				}
				l.mu.Unlock()
			}
		}()
		return nil
	}))
	probe := netip.MustParseAddr("10.20.255.254") // ip monitor does not say when it is ready
	clustertest.Eventually(b, "ip monitor reports nothing", func() bool {
		h.Sh(b, fmt.Sprintf("ip neigh replace %s lladdr 02:00:00:00:00:01 dev %s && ip neigh del %[1]s dev %[2]s",
			probe, link))
		_, ok := l.when(probe)
		return ok
	})
	return l
}

func (l *arrivals) when(addr netip.Addr) (time.Time, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at, ok := l.at[addr.String()]
	return at, ok
}

// BenchmarkPropagation measures the time from a claim on one host until the kernels of two others have the address;
// and, for comparison, until etcd has confirmed the claim.
func BenchmarkPropagation(b *testing.B) {
	all, blue := running(b, 3, 3)
	_, x := all[1].links(blue)
	all[0].stop() // it would release addresses without endpoints
	all[0].stop = func() {}
	two, three := all[1].listen(b, x), all[2].listen(b, x)

	m := record.Member{Network: blue.ID, Host: all[0].self}
	var claim, second, third []time.Duration
	for i := range max(b.N, 200) {
		a := all[0].claims(blue, i, 1)[0]
		start := time.Now()
		must(b, all[0].c.Client.ClaimAddresses(b.Context(), m, a))
		claim = append(claim, time.Since(start))
		for l, took := range map[*arrivals]*[]time.Duration{two: &second, three: &third} {
			clustertest.Eventually(b, "a host does not get the address", func() bool {
				at, ok := l.when(a.Addr)
				if ok {
					*took = append(*took, at.Sub(start))
				}
				return ok
			})
		}
	}
	for _, p := range []int{50, 99} {
		b.ReportMetric(percentile(claim, p), fmt.Sprintf("claim-p%d-ms", p))
		b.ReportMetric(percentile(second, p), fmt.Sprintf("host2-p%d-ms", p))
		b.ReportMetric(percentile(third, p), fmt.Sprintf("host3-p%d-ms", p))
	}
	b.ReportMetric(0, "ns/op")
}

// gigabits returns the throughput of iperf3 from one namespace to an address of another, in Gbit/s.
func gigabits(b *testing.B, from, to *kerneltest.Host, addr string) float64 {
	b.Helper()
	to.Sh(b, "iperf3 -s -1 -D && for i in $(seq 100); do ss -ltn | grep -q :5201 && exit; sleep 0.02; done; exit 1")
	var report struct {
		End struct {
			SumReceived struct {
				BitsPerSecond float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	must(b, json.Unmarshal([]byte(from.Sh(b, "iperf3 -J -t 2 -c "+addr)), &report))
	return report.End.SumReceived.BitsPerSecond / 1e9
}

// BenchmarkThroughput measures TCP between containers on two hosts, over the overlay and over plain routing, in turn.
func BenchmarkThroughput(b *testing.B) {
	all, blue := running(b, 2, 2)
	var cs []*container
	for i, h := range all {
		c := h.start(blue, core.Name("c", strings.Repeat(fmt.Sprint(i+1), 32)))
		cs = append(cs, c)
		h.Sh(b, fmt.Sprintf("sysctl -qw net.ipv4.ip_forward=1; ip link add r0 type veth peer name r1; "+
			"ip addr add 10.9%d.0.1/24 dev r0; ip link set r0 up; ip route add 10.9%d.0.0/24 via 192.0.2.%d",
			i+1, 2-i, 2-i))
		h.Give(b, c.Host, "r1")
		c.Sh(b, fmt.Sprintf("ip addr add 10.9%d.0.2/24 dev r1 && ip link set r1 up && "+
			"ip route add 10.9%d.0.0/24 via 10.9%d.0.1", i+1, 2-i, i+1))
	}
	for i, h := range all {
		h.knows(blue, cs[1-i].v4)
	}
	if !cs[0].Pings("10.92.0.2", true) || !cs[0].Pings(cs[1].v4.String(), true) {
		b.Fatal("the containers do not reach each other")
	}
	var overlay, routed []float64
	for range max(b.N, 7) {
		routed = append(routed, gigabits(b, cs[0].Host, cs[1].Host, "10.92.0.2"))
		overlay = append(overlay, gigabits(b, cs[0].Host, cs[1].Host, cs[1].v4.String()))
	}
	slices.Sort(overlay)
	slices.Sort(routed)
	b.ReportMetric(overlay[len(overlay)/2], "overlay-Gbit/s")
	b.ReportMetric(routed[len(routed)/2], "routed-Gbit/s")
	b.ReportMetric(overlay[len(overlay)/2]/routed[len(routed)/2], "ratio")
	b.ReportMetric(0, "ns/op")
}
