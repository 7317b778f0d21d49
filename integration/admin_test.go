package integration

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"netyard/cli/api"
	"netyard/integration/lab"
)

// TestAgree: netyard ps and docker network inspect show the same of every container.
func TestAgree(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := host6(t, e)
		h.Docker("network create -d netyard --ipam-driver netyard a")
		h.Docker("network create -d netyard-bridge --ipv6 --subnet 10.77.0.0/24 --subnet fd77::/64 b")
		h.Docker("network create -d netyard-none --ipam-driver null c")
		h.Run("c1", "--network a")
		h.Run("c2", "--network a")
		h.Run("c3", "--network b --ip 10.77.0.33")
		h.Run("c4", "--network c")
		h.Docker("network connect b c1")
		agree := func() bool {
			got, want := shown(t, h), inspected(t, h, "a", "b", "c")
			if !slices.Equal(got, want) {
				t.Logf("netyard:\n%s\ndocker:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			return slices.Equal(got, want)
		}
		eventually(t, "netyard and docker agree", agree)
		h.Docker("restart -t 0 c1")
		h.Docker("rename c3 renamed")
		h.Run("c5", "--network b")
		eventually(t, "netyard and docker agree again", agree)
		// Two containers swap their names, and nothing else makes netyard look.
		h.Docker("rename c1 tmp")
		h.Docker("rename c2 c1")
		h.Docker("rename tmp c2")
		swapped := time.Now()
		eventually(t, "netyard and docker agree about the names", agree)
		if took := time.Since(swapped); took > 10*time.Second {
			t.Errorf("names were wrong for %s", took)
		} else {
			t.Logf("names were wrong for %s at most", took)
		}
		healthy(t, h)
	})
}

// shown returns what netyard ps shows, a line per endpoint.
func shown(t *testing.T, h *lab.Host) (lines []string) {
	t.Helper()
	for _, r := range ps(t, h) {
		mac := r.MAC
		if len(r.Addresses) == 0 {
			mac = ""
		}
		lines = append(lines, fmt.Sprint(r.Network, r.Container, r.ContainerID, r.ID, mac, r.Addresses, r.State,
			r.Engine, r.PID))
	}
	slices.Sort(lines)
	return lines
}

// inspected returns the same from docker.
func inspected(t *testing.T, h *lab.Host, networks ...string) (lines []string) {
	t.Helper()
	type network struct {
		Containers map[string]struct{ Name, EndpointID, MacAddress, IPv4Address, IPv6Address string }
	}
	for _, name := range networks {
		for _, n := range parse[[]network](t, h.Docker("network inspect", name)) {
			for id, c := range n.Containers {
				addrs := slices.DeleteFunc([]string{c.IPv4Address, c.IPv6Address},
					func(a string) bool { return a == "" })
				pid := strings.TrimSpace(h.Docker("inspect -f '{{.State.Pid}}'", c.Name))
				lines = append(lines, fmt.Sprint(name, c.Name, id, c.EndpointID, c.MacAddress, addrs, "up", "docker",
					pid))
			}
		}
	}
	slices.Sort(lines)
	return lines
}

// TestWithoutAPI: an engine whose API does not answer is served all the same, and its containers are known by their
// IDs.
func TestWithoutAPI(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := lab.New(t, e)
		h.Netyard.Start("--docker-host", "unix:///run/nobody.sock")
		h.Docker("network create -d netyard --ipam-driver netyard a")
		h.Run("c1", "--network a")
		h.Run("c2", "--network a")
		h.Ping("c1", "c2")
		want := h.Docker("inspect -f '{{.Id}} {{.State.Pid}}' c1 c2")
		eventually(t, "ps shows the containers", func() bool {
			rows := ps(t, h)
			return len(rows) == 2 && !slices.ContainsFunc(rows, func(r api.Endpoint) bool {
				return !strings.Contains(want, fmt.Sprintf("%s %d", r.ContainerID, r.PID)) || r.ContainerID == ""
			})
		})
		healthy(t, h)
		h.Docker("rm -f c1 c2")
		h.Docker("network rm a")
		healthy(t, h)
	})
}

// TestDoctor: doctor and gc on a host with an engine, for a few faults; yard's tests have the rest.
func TestDoctor(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := host(t, e)
		h.Docker("network create -d netyard --ipam-driver netyard --subnet 10.77.0.0/24 web")
		h.Run("c1", "--network web")
		h.Run("c2", "--network web")
		named(t, h, "c1", "c2")
		healthy(t, h)
		veth := h.Sh("netyard endpoint inspect c2 --format '{{.Interface}}'")
		bridge := h.Sh("netyard ps --format '{{.NetworkID}}'")[:11]
		// These are repaired before doctor can find them; yard tests that it names them.
		for cmd, healed := range map[string]string{
			"ip addr del 10.77.0.1/24 dev nyb-" + bridge: "ip addr show dev nyb-" + bridge + " | grep -q 10.77.0.1/24",
			"ip link set " + veth + " nomaster":          "ip link show master nyb-" + bridge + " | grep -q " + veth,
			"iptables -D DOCKER-USER -i nyb-+ -m comment --comment netyard -j ACCEPT; iptables -A DOCKER-USER -j DROP": "iptables -D DOCKER-USER -j DROP; iptables -S DOCKER-USER | grep -q -- '-i nyb-+'",
		} {
			if e.Nftables() && strings.Contains(cmd, "DOCKER-USER") {
				continue // it has none
			}
			h.Sh(cmd)
			eventually(t, cmd+" is repaired", func() bool {
				_, err := h.TrySh(healed)
				return err == nil
			})
		}
		healthy(t, h)
		h.Sh("ip link add nyb-0123456789a type bridge")
		out, err := h.TrySh("netyard doctor")
		if err == nil {
			t.Error("doctor exits with 0 although there is a stray link")
		}
		has(t, strings.Join(strings.Fields(out), " "), "stray - link nyb-0123456789a belongs to no network or endpoint")
		has(t, h.Sh("netyard gc --dry-run"), "would remove  stray  -  link nyb-0123456789a")
		has(t, h.Sh("netyard gc"), "removed  stray  -  link nyb-0123456789a")
		h.Netyard.Restart() // repairs what is missing
		healthy(t, h)
		h.Ping("c1", "c2")
	})
}

// TestReserve: a requested address stays with its stopped container, and a reserved one is not given to containers.
func TestReserve(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := host(t, e)
		h.Docker("network create -d netyard --ipam-driver netyard --subnet 10.77.0.0/29 small")
		h.Run("fixed", "--network small --ip 10.77.0.3")
		h.Docker("stop -t 0 fixed")
		h.Sh("netyard lease reserve 10.77.0.4")
		has(t, h.Sh("netyard lease ls"), "10.77.0.4")
		for i := range 3 { // .2, .5 and .6 are left
			h.Run(fmt.Sprintf("c%d", i), "--network small")
		}
		has(t, h.DockerErr("run --rm --network small busybox sleep 1"), "10.77.0.0/29")
		h.Docker("start fixed")
		if a := h.Addr("fixed", "small"); a != "10.77.0.3" {
			t.Errorf("the address is %s", a)
		}
		h.Sh("netyard lease release 10.77.0.4")
		h.Run("c4", "--network small")
		if a := h.Addr("c4", "small"); a != "10.77.0.4" {
			t.Errorf("the address is %s", a)
		}
		has(t, h.ShErr("netyard lease release 10.77.0.4"), "in use")
		healthy(t, h)
	})
}
