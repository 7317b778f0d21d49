package yard_test

import (
	"slices"
	"strings"
	"testing"

	"netyard/yard/trace"
)

// TestTraceTranslated shows that trace follows a port that another program publishes to where its rule leads, and names
// the rule that decides there.
func TestTraceTranslated(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, cmd := range []string{
		"ip link add lan0 type bridge && ip addr add 192.0.2.1/24 dev lan0 && ip link set lan0 up",
		"ip link add docker0 type bridge && ip addr add 172.17.0.1/16 dev docker0 && ip link set docker0 up",
		"iptables-nft -t nat -N DOCKER && iptables-nft -t nat -A DOCKER ! -i docker0 -p tcp --dport 8085 -j DNAT " +
			"--to-destination 172.17.0.2:80",
		"iptables-nft -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER",
		"iptables-nft -t nat -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER",
		"iptables-nft -N DOCKER && iptables-nft -A FORWARD -o docker0 -j DOCKER",
		"iptables-nft -A DOCKER -d 172.17.0.2 ! -i docker0 -o docker0 -p tcp --dport 80 -j ACCEPT",
		"iptables-nft -A DOCKER ! -i docker0 -o docker0 -j DROP",
	} {
		r.host.Sh(t, cmd)
	}
	r.start() // the set of other managers' bridges is filled
	n := r.network()
	n.Subnets[0].Space = "LocalDefault"
	must(t, r.CreateNetwork(t.Context(), n))
	r.joins(n.ID, epID, "10.9.0.2/24", newPlace(t))
	for _, c := range []struct {
		from, to, cmd, reachable string
		words                    []string
	}{
		{"192.0.2.7", "8085", "", "yes", []string{"translated to 172.17.0.2 port 80 by another program", "leaves on docker0"}},
		{epID, "8085", "", "yes", []string{"translated to 172.17.0.2 port 80", "leaves on docker0"}},
		{trace.Host, "8085", "", "no", []string{"no program of the host listens on it"}}, // Docker's proxy does
		{"192.0.2.1", "8085", "", "yes", []string{"output: translated to 172.17.0.2 port 80", "leaves on docker0"}},
		{"192.0.2.7", "8086", "", "no", []string{"no program of the host listens on it"}},
		{
			"192.0.2.7", "8085", "iptables-nft -D DOCKER 1", "no",
			[]string{
				"translated to 172.17.0.2 port 80", "forward: dropped by another program: rule 1 ", "ip filter DOCKER",
			},
		},
	} {
		if c.cmd != "" {
			r.host.Sh(t, c.cmd)
		}
		got, err := trace.Follow(r.Yard, c.from, c.to, false)
		if err != nil || got.Reachable != c.reachable {
			t.Errorf("%s to %s: %s, want %s: %v\n%s", c.from, c.to, got.Reachable, c.reachable, err,
				strings.Join(got.Steps, "\n"))
		}
		for _, w := range c.words {
			if !slices.ContainsFunc(got.Steps, func(step string) bool { return strings.Contains(step, w) }) {
				t.Errorf("%s to %s: no step says %q:\n%s", c.from, c.to, w, strings.Join(got.Steps, "\n"))
			}
		}
	}
}
