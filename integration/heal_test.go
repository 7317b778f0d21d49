package integration

import (
	"errors"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"netyard/integration/lab"
)

// TestHeals: what is removed from a host's kernel is repaired, and everything works again.
func TestHeals(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := lab.New(t, e)
		h.Netyard.Start()
		h.Docker("network create -d netyard-bridge --subnet 10.70.0.0/24 a")
		h.Run("web", "--network a -p 8000:80")
		h.Run("peer", "--network a")
		h.In("web").Listen("tcp", ":80")
		var bridge, port string
		eventually(t, "the container has its interface", func() bool {
			rows := ps(t, h)
			port = rows[0].Interface
			return port != ""
		})
		bridge = strings.Fields(h.Sh("ip -o link show type bridge | grep -o 'nyb-[0-9a-f]*'"))[0]
		for _, cmd := range []string{
			"iptables -F DOCKER-USER", "iptables -F FORWARD", "iptables -F; iptables -t nat -F", "nft flush ruleset",
			"ip addr del 10.70.0.1/24 dev " + bridge,
			"ip route del 10.70.0.0/24 dev " + bridge, "ip link set " + bridge + " down",
			"ip link set " + port + " down", "ip link set " + port + " nomaster",
			"ip link set " + bridge + " mtu 1280", "ip link del " + bridge,
		} {
			if e.Nftables() && strings.Contains(cmd, "DOCKER-USER") {
				continue // it has none
			}
			h.Sh(cmd)
			began := time.Now()
			eventually(t, "everything is repaired after "+cmd, func() bool {
				out, err := h.TrySh("netyard doctor")
				return err == nil && out == ""
			})
			t.Logf("%s: repaired after %s", cmd, time.Since(began).Round(10*time.Millisecond))
			h.Ping("web", h.Outside.IP)
			h.Ping("peer", "web")
			h.Outside.Dial("tcp", h.IP+":8000")
		}
		h.Dockerd.Restart() // it restores its own flushed rules
	})
}

// TestFlushesUnderTraffic: in 100 rounds of flushes and reloads no isolated target is reached even once, and an
// established flow goes on.
func TestFlushesUnderTraffic(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		if !firewalldWith(t, e) {
			return
		}
		lab.Alone(t)
		h := lab.New(t, e)
		h.Netyard.Env = append(h.Netyard.Env, lab.Bus)
		fw := h.Firewall()
		firewalld := fw.Firewalld()
		h.Netyard.Start()
		restore := keepRules(h)
		firewalld.Start()
		h.Docker("network create -d netyard-bridge --subnet 10.70.0.0/24 a")
		h.Docker("network create -d netyard-bridge --subnet 10.71.0.0/24 b")
		h.Docker("network create -d netyard-bridge --internal --subnet 10.72.0.0/24 sealed")
		h.Run("web", "--network a -p 127.0.0.1:8001:82/udp")
		h.Run("stranger", "--network b")
		h.Run("inside", "--network sealed")
		h.In("inside").Tool("ip route add default via 10.72.0.1")
		h.Outside.Sh("ip route add 10.70.0.0/16 via " + h.IP)
		web := h.Addr("web", "a")
		h.Ping("web", h.Outside.IP)
		never := map[string]*lab.Server{
			"an isolated network":                        h.In("web").Listen("udp4", ":80"),
			"a port that is not published":               h.In("web").Listen("udp4", ":81"),
			"a port published on loopback, from the LAN": h.In("web").Listen("udp4", ":82"),
			"the outside, from an internal network":      h.Outside.Listen("udp4", ":83"),
		}
		probes := []*probe{
			newProbe(t, h.In("stranger"), web+":80"), newProbe(t, h.Outside.Net, web+":81"),
			newProbe(t, h.Outside.Net, h.IP+":8001"), newProbe(t, h.In("inside"), h.Outside.IP+":83"),
		}
		// ends when its input ends
		sink := h.Outside.Service("sink", "sh", "-c", "sleep 1d | /usr/bin/busybox nc -l -p 7001")
		sink.Start()
		eventually(t, "the sink listens", func() bool { return strings.Contains(h.Outside.Tool("ss -Htln"), ":7001") })
		h.Docker("exec -d web sh -c 'while true; do echo x; usleep 20000; done | nc " + h.Outside.IP + " 7001'")
		arrived := func() int { return strings.Count(sink.Log(), "x\n") }
		eventually(t, "a flow is established", func() bool { return arrived() > 0 })
		const rounds, reloads = 100, 10
		for round := range rounds {
			switch {
			case round < reloads: // before the first flush, which removes firewalld's own table
				fw.Sh(lab.Bus + " firewall-cmd --reload")
			case round%10 == 5:
				h.Sh("iptables -F DOCKER-USER; iptables -F")
			default:
				h.Sh("nft flush ruleset")
			}
			sendMore(t, probes) // while netyard notices and repairs
		}
		for _, p := range probes {
			p.end()
		}
		for what, s := range never {
			if seen := s.Seen(); len(seen) > 0 {
				t.Errorf("%d violations: %s was reached: %v", len(seen), what, seen[0])
			}
		}
		before := arrived()
		eventually(t, "the established flow goes on", func() bool { return arrived() > before })
		sink.Kill()
		healthy(t, h)
		firewalld.Stop()
		h.Dockerd.Restart()
		restore()
	})
}

// A probe sends datagrams where none may arrive, at most a thousand per second, until its end.
type probe struct {
	conn net.Conn
	sent atomic.Int64
	done chan struct{}
}

func newProbe(t *testing.T, from *lab.Net, to string) *probe {
	t.Helper()
	p := &probe{done: make(chan struct{})}
	err := from.Do(func() (err error) {
		p.conn, err = net.Dial("udp4", to)
		return err
	})
	if err != nil {
		t.Fatalf("send to %s: %v", to, err)
	}
	go func() {
		defer close(p.done)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for range tick.C {
			// Write fails after an ICMP error, and while there is no route.
			if _, err := p.conn.Write([]byte("x\n")); errors.Is(err, net.ErrClosed) {
				return
			}
			p.sent.Add(1)
		}
	}()
	t.Cleanup(p.end)
	return p
}

// sendMore waits until each probe has sent some more datagrams.
func sendMore(t *testing.T, probes []*probe) {
	t.Helper()
	const some = 20
	enough := map[*probe]int64{}
	for _, p := range probes {
		enough[p] = p.sent.Load() + some
	}
	eventually(t, "all probes have sent datagrams", func() bool {
		return !slices.ContainsFunc(probes, func(p *probe) bool { return p.sent.Load() < enough[p] })
	})
}

func (p *probe) end() {
	_ = p.conn.Close()
	<-p.done
}
