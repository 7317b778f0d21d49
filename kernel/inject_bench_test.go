package kernel_test

import (
	"encoding/json"
	"regexp"
	"slices"
	"testing"

	"netyard/kernel/kerneltest"
)

// BenchmarkForged measures what the rules cost that tell frames of VXLAN devices from forged ones: a stream between
// containers on two hosts, in turn with and without them. The ratio is the median of the pairs.
func BenchmarkForged(b *testing.B) {
	for name, flags := range map[string]string{"TCP": "", "small datagrams": " -u -b 0 -l 64"} {
		b.Run(name, func(b *testing.B) {
			l := benchLab(b)
			var with, without, ratios []float64
			for range max(b.N, 10) {
				l.rules(b, false)
				a := l.stream(b, flags)
				l.rules(b, true)
				w := l.stream(b, flags)
				with, without, ratios = append(with, w), append(without, a), append(ratios, w/a)
			}
			b.ReportMetric(middle(with)/1e6, "with-Mbit/s")
			b.ReportMetric(middle(without)/1e6, "without-Mbit/s")
			b.ReportMetric(middle(ratios), "ratio")
			b.ReportMetric(0, "ns/op")
		})
	}
}

func middle(of []float64) float64 {
	slices.Sort(of)
	return of[len(of)/2]
}

type benchHosts struct {
	hosts []*overlaid
	blue  []*kerneltest.Host
}

func benchLab(b *testing.B) *benchHosts {
	b.Helper()
	hosts := overlayOf(b, 2, false)
	l := &benchHosts{hosts, join(b, hosts, blueNet, blueVNI, 20)}
	if !l.blue[0].Pings("10.20.2.2", true) {
		b.Fatal("the containers do not reach each other")
	}
	return l
}

// forgedRules matches the measured rules by their comments, in a listing with handles.
var forgedRules = regexp.MustCompile(`table (\w+) netyard|chain (\w+)|` +
	`comment "(?:check frames from a link that does not lead back to the sender|check outgoing VXLAN|` +
	`drop frames to a translated port|drop what is forwarded into the tunnel|` +
	`accept frames of netyard's networks, without the mark|mark other VXLAN, which may hide such frames|` +
	`drop overlay frames hidden behind another datagram)" # handle (\d+)`)

// rules loads the ruleset as it is, or without those rules.
func (l *benchHosts) rules(b *testing.B, all bool) {
	b.Helper()
	for _, o := range l.hosts {
		must(b, o.UnloadFirewall())
		must(b, o.LoadFirewall())
		if all {
			continue
		}
		family, chain, found := "", "", 0
		for _, m := range forgedRules.FindAllStringSubmatch(o.Sh(b, "nft -a list ruleset"), -1) {
			switch {
			case m[1] != "":
				family = m[1]
			case m[2] != "":
				chain = m[2]
			default:
				o.Sh(b, "nft delete rule "+family+" netyard "+chain+" handle "+m[3])
				found++
			}
		}
		const many = 7
		if found != many {
			b.Fatalf("%d rules are measured, want %d", found, many)
		}
	}
}

// stream returns the throughput of iperf3, in bits per second.
func (l *benchHosts) stream(b *testing.B, flags string) float64 {
	b.Helper()
	l.blue[1].Sh(b, "iperf3 -s -1 -D && "+
		"for i in $(seq 100); do ss -ltn | grep -q :5201 && exit; sleep 0.02; done; exit 1")
	var said struct {
		End struct {
			Received struct {
				Bits float64 `json:"bits_per_second"`
			} `json:"sum_received"`
			Sum struct {
				Bits float64 `json:"bits_per_second"`
				Lost float64 `json:"lost_percent"`
			}
		}
	}
	must(b, json.Unmarshal([]byte(l.blue[0].Sh(b, "iperf3 -J -t 2 -c 10.20.2.2"+flags)), &said))
	if flags != "" {
		return said.End.Sum.Bits * (1 - said.End.Sum.Lost/100)
	}
	return said.End.Received.Bits
}
