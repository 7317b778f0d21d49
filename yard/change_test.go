package yard_test

import (
	"errors"
	"maps"
	"regexp"
	"strings"
	"testing"

	"netyard/kernel/core"
	"netyard/modes"
	"netyard/yard/book"
)

type said = map[string]string

// random is what each shaper has of its own.
var random = regexp.MustCompile(`(?m)(^nyi-.* link/ether )\S+|index \d+ ref`)

// state is the kernel of a rig with its traffic control.
func (r *rig) state() string {
	r.t.Helper()
	dump := r.host.Dump(r.t) + "\n" +
		r.host.Sh(r.t, "tc qdisc show; tc filter show dev "+core.Name(core.VethPrefix, epID)+" ingress")
	return random.ReplaceAllString(dump, "$1")
}

func (r *rig) change(options said) modes.Network {
	r.t.Helper()
	n, err := r.ChangeNetwork(r.t.Context(), netID, options)
	if err != nil {
		r.t.Fatalf("change %v: %v", options, err)
	}
	return n
}

// TestChangeNetwork shows that a change applies to running endpoints, that a restart changes nothing, and that the way
// back restores the former state.
func TestChangeNetwork(t *testing.T) {
	t.Parallel()
	r := r6(t)
	before := r.state()
	for _, options := range []said{
		{"rate": "10mbit"},
		{"rate": "50mbit", "egress_rate": "20mbit"},
		{"icc": "false"},
		{"masquerade": "false", "inhibit_ipv4": "true"},
		{"publish_from": "10.0.0.0/8,eth1"},
		{"publish_from": "192.168.0.0/16,eth0,fd00::/8"},
		{"publish_from": "192.168.7.1,192.168.0.0/16,192.168.7.0/24,eth0,eth0"}, // in one another
		{"publish_from": "192.168.7.0/24"},
		{"publish_from": "192.168.0.0/20"},
	} {
		was := r.state()
		r.change(options)
		now := r.state()
		if now == was {
			t.Errorf("%v changed nothing", options)
		}
		r.healthy("after the change")
		r.start()
		if again := r.state(); again != now {
			t.Errorf("%v: a restart changed the kernel:\n%s\n%s", options, now, again)
		}
		r.healthy("after a restart")
		if err := r.CreateNetwork(t.Context(), r.network()); err != nil {
			t.Errorf("%v: the engine asks for the network again: %v", options, err)
		}
		if again := r.state(); again != now {
			t.Errorf("%v: being asked for the network again changed the kernel", options)
		}
	}
	veth := core.Name(core.VethPrefix, epID)
	for cmd, want := range map[string]string{
		"tc qdisc show dev " + veth:               "rate 50Mbit",
		"tc qdisc show dev nyi-eeeeeeeeeee":       "rate 20Mbit",
		"ip -d link show dev " + veth:             "isolated on",
		"nft list set inet netyard nat4; echo -n": "flags interval\n\t}",
	} {
		if got := r.host.Sh(t, cmd); !strings.Contains(got, want) {
			t.Errorf("%s does not say %q: %s", cmd, want, got)
		}
	}
	n := r.change(said{
		"rate": "", "egress_rate": "", "icc": "", "masquerade": "", "inhibit_ipv4": "",
		"publish_from": "",
	})
	if after := r.state(); after != before || len(n.Changed) != 0 {
		t.Errorf("back to the defaults is not as before: %v\n%s\n%s", n.Changed, before, after)
	}
	r.healthy("at the end")
}

// TestChangeEndpoint shows that an endpoint's options override its network's, and are removed with the endpoint.
func TestChangeEndpoint(t *testing.T) {
	t.Parallel()
	r := r6(t)
	before := r.state()
	set := func(options said, want string) {
		t.Helper()
		if _, err := r.ChangeEndpoint(t.Context(), netID, epID, options); err != nil {
			t.Fatal(err)
		}
		r.healthy("after the change")
		got := r.host.Sh(t, "tc qdisc show dev "+core.Name(core.VethPrefix, epID)+" root")
		if !strings.Contains(got, want) {
			t.Errorf("after %v: %s", options, got)
		}
	}
	r.change(said{"ingress_rate": "10mbit"})
	set(said{"rate": "50mbit"}, "rate 50Mbit")
	r.start()
	r.healthy("after a restart")
	set(said{"egress_rate": "unlimited"}, "rate 50Mbit")
	set(said{"rate": "0"}, "noqueue")
	set(said{"rate": "", "egress_rate": ""}, "rate 10Mbit")
	r.change(said{"ingress_rate": ""})
	if after := r.state(); after != before {
		t.Errorf("back to the defaults is not as before:\n%s\n%s", before, after)
	}

	set(said{"rate": "1mbit"}, "rate 1Mbit")
	if err := errors.Join(r.Leave(t.Context(), netID, epID), r.DeleteEndpoint(t.Context(), netID, epID)); err != nil {
		t.Fatal(err)
	}
	r.healthy("after the endpoint went")
	if left := r.host.Sh(t, "ip -o link show type ifb; tc qdisc show | grep tbf || true"); left != "" {
		t.Errorf("the endpoint left %s", left)
	}
	if _, err := r.ChangeEndpoint(t.Context(), netID, epID, said{"rate": "1mbit"}); !errors.Is(err, book.ErrNotFound) {
		t.Errorf("change of an endpoint that is gone: %v", err)
	}
}

// TestChangeBeforeJoin shows that a change before the join applies after it.
func TestChangeBeforeJoin(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, call := range r.life()[:5] {
		if err := call(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.ChangeEndpoint(t.Context(), netID, epID, said{"rate": "1mbit"}); err != nil {
		t.Fatal(err)
	}
	r.change(said{"icc": "false"})
	r.healthy("before the join")
	if _, _, err := r.Join(t.Context(), netID, epID, "/proc/self/ns/net"); err != nil {
		t.Fatal(err)
	}
	r.healthy("after the join")
	got := r.host.Sh(t, "tc qdisc show dev "+core.Name(core.VethPrefix, epID))
	if !strings.Contains(got, "rate 1Mbit") {
		t.Errorf("the limit is lost: %s", got)
	}
}

// TestRefusedChange shows that a refused or failed change leaves kernel and records as they were.
func TestRefusedChange(t *testing.T) {
	t.Parallel()
	r := r6(t)
	r.change(said{"ingress_rate": "10mbit"})
	before := r.state()
	unchanged := func(what string, err error, want string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", what, err, want)
		}
		if after := r.state(); after != before {
			t.Errorf("%s changed the kernel:\n%s\n%s", what, before, after)
		}
		n, _ := r.Network(netID)
		e, _ := r.Endpoint(netID, epID)
		if !maps.Equal(n.Changed, said{"ingress_rate": "10mbit"}) || len(e.Options) != 0 {
			t.Errorf("%s changed the records: %v %v", what, n.Changed, e.Options)
		}
	}
	for option, want := range map[string]string{
		"bridge": "bridge cannot be changed in place",
		"ratr":   "did you mean rate?", "icc": "icc=web0: want true or false",
	} {
		_, err := r.ChangeNetwork(t.Context(), netID, said{"masquerade": "false", option: "web0"})
		unchanged(option, err, want)
	}
	_, err := r.ChangeEndpoint(t.Context(), netID, epID, said{"rate": "1mbit", "icc": "false"})
	unchanged("icc of an endpoint", err, "icc is a network option")

	r.healthy("after the refusals")

	r.host.Sh(t, "ip link add name nyi-eeeeeeeeeee type bridge && ip link set nyi-eeeeeeeeeee alias mine")
	before = r.state()
	_, err = r.ChangeNetwork(t.Context(), netID, said{"masquerade": "false", "icc": "false", "rate": "50mbit"})
	unchanged("a change that cannot be made", err, "create link nyi-eeeeeeeeeee: a link of that name exists")
	_, err = r.ChangeEndpoint(t.Context(), netID, epID, said{"rate": "50mbit"})
	unchanged("a change of the endpoint that cannot be made", err, "create link nyi-eeeeeeeeeee")
	if _, err := r.ChangeNetwork(t.Context(), "bbbb", said{"icc": "false"}); !errors.Is(err, book.ErrNotFound) {
		t.Errorf("change of an unknown network: %v", err)
	}
}

// TestCrashInChange kills the daemon at every step of a change, and shows that afterwards all or nothing of it applies.
func TestCrashInChange(t *testing.T) {
	t.Parallel()
	options := said{"icc": "false", "masquerade": "false", "rate": "10mbit"}
	back := said{"icc": "", "masquerade": "", "rate": ""}
	calls := map[string]func(r *rig, o said) error{
		"network": func(r *rig, o said) error {
			_, err := r.ChangeNetwork(t.Context(), netID, o)
			return err
		},
		"endpoint": func(r *rig, o said) error {
			_, err := r.ChangeEndpoint(t.Context(), netID, epID, said{"rate": o["rate"]})
			return err
		},
	}
	for name, call := range calls {
		r := r6(t)
		before := r.state()
		if err := call(r, options); err != nil {
			t.Fatal(err)
		}
		after := r.state()
		for _, to := range []said{back, options} {
			for at := 1; ; at++ {
				steps, err := r.pull(at, func() error { return call(r, to) })
				if err == nil {
					break
				}
				r.start()
				r.healthy(name + ", " + steps[len(steps)-1])
				if got := r.state(); got != before && got != after {
					t.Errorf("%s: half a change after the plug was pulled at step %q:\n%s", name,
						steps[len(steps)-1], got)
				}
				if at > 20 {
					t.Fatal("a change has no end")
				}
			}
		}
	}
}

// TestUnknownMode shows that the error suggests the mode that was meant.
func TestUnknownMode(t *testing.T) {
	r := newRig(t)
	n := r.network()
	n.Mode = "brigde"
	if err := r.CreateNetwork(t.Context(), n); !errors.Is(err, book.ErrNotFound) ||
		!strings.Contains(err.Error(), `mode "brigde": not found; did you mean bridge?`) {
		t.Errorf("%v", err)
	}
}
