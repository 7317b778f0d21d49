package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"netyard/integration/lab"
)

// megabits measures the throughput of TCP between a container and the outside, in Mbit/s, in both directions.
func megabits(t *testing.T, h *lab.Host, container string) (sent, got float64) {
	t.Helper()
	measure := func(flag string) float64 {
		// The server may still be starting, or busy with the end of the last measurement.
		out := h.In(container).Tool(fmt.Sprintf(
			"for i in $(seq 50); do iperf3 -J -c %s %s && exit; sleep 0.2; done; exit 1", h.Outside.IP, flag))
		type report struct {
			End struct {
				Received struct {
					Rate float64 `json:"bits_per_second"`
				} `json:"sum_received"`
			}
		}
		if i := strings.LastIndex(out, "\n{"); i >= 0 { // failed attempts have printed reports before
			out = out[i:]
		}
		return parse[report](t, out).End.Received.Rate / 1e6
	}
	return measure(""), measure("-R")
}

// carries checks that a container sends and receives at its limits in Mbit/s: at least 90 % and at most 105 %. 0 means
// no limit: more than any limit of these tests. A busy machine may be slower than the limits, so too little counts only
// after three attempts.
func carries(t *testing.T, h *lab.Host, container string, sends, gets float64) {
	t.Helper()
	const tries, much = 3, 100
	least := func(limit float64) float64 {
		if limit == 0 {
			return much
		}
		return 0.9 * limit
	}
	for try := 1; ; try++ {
		sent, got := megabits(t, h, container)
		t.Logf("%s sends %.2f and receives %.2f Mbit/s, limits %v and %v", container, sent, got, sends, gets)
		if sends > 0 && sent > 1.05*sends || gets > 0 && got > 1.05*gets {
			t.Errorf("%s sends %.2f and receives %.2f Mbit/s, above its limits %v and %v", container, sent, got, sends,
				gets)
		}
		if sent >= least(sends) && got >= least(gets) {
			return
		}
		if try == tries {
			t.Errorf("%s sends %.2f and receives %.2f Mbit/s, far below its limits %v and %v", container, sent, got,
				sends, gets)
			return
		}
	}
}

// limits returns the rate limits that exist on the host.
func limits(h *lab.Host) string {
	return strings.TrimSpace(h.Tool("tc qdisc show | grep -E 'tbf|ingress' || true; ip -o link show type ifb"))
}

func TestRates(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := host(t, e)
		h.Outside.Service("iperf3", "iperf3", "-s").Start()
		h.Docker("network create -d netyard-bridge -o rate=10mbit web")
		h.Run("c1", "--network web")
		carries(t, h, "c1", 10, 10)
		h.Run("c2", "--network name=web,driver-opt=rate=unlimited,driver-opt=egress_rate=20mbit")
		carries(t, h, "c2", 20, 0)
		healthy(t, h)
		has(t, h.DockerErr("run --rm --network name=web,driver-opt=rate=fast busybox true"),
			"rate=fast: want a rate such as 10mbit")
		has(t, h.DockerErr("network create -d netyard-bridge -o rate=10mb bad"),
			"rate=10mb: want a rate such as 10mbit")

		named(t, h, "c1", "c2")
		h.Sh("netyard endpoint set c1 rate=50mbit")
		carries(t, h, "c1", 50, 50)
		h.Netyard.Restart()
		healthy(t, h)
		carries(t, h, "c1", 50, 50)
		has(t, h.ShErr("netyard endpoint set c1 icc=false"), "icc is a network option")

		link := strings.TrimSpace(h.Sh("netyard endpoint inspect c1 --format '{{.Interface}}'"))
		h.Tool("tc qdisc del dev " + link + " root")
		eventually(t, "a deleted limit is back", func() bool { return strings.Count(limits(h), "rate 50Mbit") == 2 })
		healthy(t, h)

		h.Docker("restart -t 0 c1") // the new endpoint has its network's limit
		if got := limits(h); strings.Count(got, "rate 10Mbit") != 2 || strings.Contains(got, "50Mbit") {
			t.Errorf("limits after a restart of c1: %s", got)
		}
		h.Docker("rm -f c1 c2")
		eventually(t, "no limit is left", func() bool { return limits(h) == "" })
		healthy(t, h)
	})
}

// TestRateOfConnect: a limit from docker network connect applies to that network only, and survives lost records.
func TestRateOfConnect(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := host(t, e)
		h.Docker("network create -d netyard-bridge a")
		h.Docker("network create -d netyard --ipam-driver netyard b")
		h.Run("c1", "--network a")
		h.Docker("network connect --driver-opt ingress_rate=10mbit b c1")
		has(t, limits(h), "rate 10Mbit")
		if strings.Contains(limits(h), "ifb") {
			t.Errorf("what c1 sends is limited: %s", limits(h))
		}
		eventually(t, "ps shows the container's name",
			func() bool { return h.Sh("netyard ps --format '{{.Container}}'") == "c1\nc1" })
		has(t, h.ShErr("netyard endpoint set c1 rate=20mbit"), "name its network with --network")
		has(t, h.Sh("netyard endpoint set c1 --network b ingress_rate= egress_rate=20000kbit"), "changed endpoint")
		has(t, limits(h), "rate 20Mbit")
		healthy(t, h)

		lose := func(files ...string) string { // what the engine was told is rebuilt from it
			h.Netyard.Stop()
			for _, f := range files {
				if err := os.Remove(filepath.Join(h.Dir, "state", f)); err != nil {
					t.Fatal(err)
				}
			}
			h.Netyard.Start()
			eventually(t, "the records are rebuilt",
				func() bool { return h.Sh("netyard ps --format '{{.Container}}'") == "c1\nc1" })
			healthy(t, h)
			return limits(h)
		}
		has(t, lose("netyard.db"), "rate 20Mbit") // what was changed in place has a copy
		if got := lose("netyard.db", "netyard.db.kept"); !strings.Contains(got, "rate 10Mbit") ||
			strings.Contains(got, "ifb") {
			t.Errorf("limits after the records and their copy were lost: %s", got)
		}
		h.Docker("network disconnect b c1")
		eventually(t, "no limit is left", func() bool { return limits(h) == "" })
		healthy(t, h)
	})
}

func TestNetworkSet(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := host(t, e)
		h.Docker("network create -d netyard --ipam-driver netyard web")
		h.Run("c1", "--network web")
		h.Run("c2", "--network web")
		h.Ping("c1", "c2")
		outside := h.Outside.Listen("tcp", ":80")
		eventually(t, "network ls shows the network's name",
			func() bool { return strings.Contains(h.Sh("netyard network ls"), "web") })

		has(t, h.Sh("netyard network set web icc=false rate=10mbit"), "changed network web: icc=false rate=10mbit")
		h.PingFail("c1", "c2")
		has(t, limits(h), "rate 10Mbit")
		h.In("c1").Dial("tcp", h.Outside.IP+":80")
		healthy(t, h)
		for _, bad := range []struct{ options, want string }{
			{"bridge=web0", "bridge cannot be changed in place: endpoints are attached to that bridge"},
			{"mtu=1400", "mtu cannot be changed in place: the interfaces of running containers have it already"},
			{"mode=none", "mode cannot be changed in place"},
			{"rate=fast", "rate=fast: want a rate"},
			{"icd=true", "did you mean icc?"},
		} {
			has(t, h.ShErr("netyard network set web masquerade=false "+bad.options), bad.want)
		}
		h.In("c1").Dial("tcp", h.Outside.IP+":80")

		h.Netyard.Restart()
		healthy(t, h)
		h.PingFail("c1", "c2")
		h.Docker("restart -t 0 c2")
		h.PingFail("c1", "c2")
		has(t, h.Sh("netyard network inspect web"), `"rate": "10mbit"`)

		h.Sh("netyard network set web icc= rate= masquerade=false")
		h.Ping("c1", "c2")
		if left := limits(h); left != "" {
			t.Errorf("a limit is left: %s", left)
		}
		h.In("c1").DialFail("tcp", h.Outside.IP+":80") // the outside has no route back
		h.Sh("netyard network set web masquerade=")
		h.In("c1").Dial("tcp", h.Outside.IP+":80")
		if len(outside.Seen()) == 0 || !strings.HasPrefix(outside.Seen()[0], h.IP+":") {
			t.Errorf("the outside saw %v", outside.Seen())
		}
		healthy(t, h)
	})
}
