package yard_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"netyard/modes"
	"netyard/yard/book"
	"netyard/yard/port"
	"netyard/yard/reconcile"
)

// joined makes a network with two endpoints that are joined, and returns their ids.
func (r *rig) joined() (first, second string) {
	r.t.Helper()
	n := r.network()
	n.Subnets[0].Space = ""
	if err := r.CreateNetwork(r.t.Context(), n); err != nil {
		r.t.Fatal(err)
	}
	for i, id := range []string{epID, "ffffffffffff0002"} {
		e := modes.Endpoint{
			ID: id, NetworkID: netID,
			Addrs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 9, 0, byte(2 + i)}), 24)},
		}
		if _, err := r.CreateEndpoint(r.t.Context(), e); err != nil {
			r.t.Fatal(err)
		}
		if _, _, err := r.Join(r.t.Context(), netID, id, "/proc/self/ns/net"); err != nil {
			r.t.Fatal(err)
		}
	}
	return epID, "ffffffffffff0002"
}

func texts(ports []modes.Port) string {
	var out []string
	for _, p := range ports {
		out = append(out, p.String())
	}
	return strings.Join(out, " ")
}

// run returns a request for count consecutive ports.
func run(proto string, host, container, count uint16) (asks []book.PortRequest) {
	for i := range count {
		asks = append(asks, book.PortRequest{Proto: proto, HostPort: host + i, ContainerPort: container + i})
	}
	return asks
}

// TestPublish shows which ports an endpoint gets for an engine's requests.
func TestPublish(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	first, second := r.joined()
	publish := func(id string, asks ...book.PortRequest) (string, error) {
		ports, err := r.Publish(t.Context(), netID, id, asks)
		return texts(ports), err
	}
	for _, c := range []struct {
		asks []book.PortRequest
		want string
	}{
		{run("tcp", 8080, 80, 1), "0.0.0.0:8080->80/tcp"},
		{slices.Concat(run("udp", 10000, 10000, 100), run("tcp", 10000, 10000, 100)), "0.0.0.0:10000-10099->10000-10099/tcp 0.0.0.0:10000-10099->10000-10099/udp"},
		{run("tcp", 7000, 8000, 3), "0.0.0.0:7000-7002->8000-8002/tcp"},
		{[]book.PortRequest{{Proto: "tcp", HostPort: 90, ContainerPort: 80}, {Proto: "tcp", HostPort: 91, ContainerPort: 80}}, "0.0.0.0:90->80/tcp 0.0.0.0:91->80/tcp"},
		{[]book.PortRequest{{Proto: "sctp", HostPort: 5, HostPortEnd: 9, ContainerPort: 1, HostIP: netip.MustParseAddr("127.0.0.1")}}, "127.0.0.1:5->1/sctp"},
		// Who asks for one comes first, whatever the order.
		{[]book.PortRequest{{Proto: "tcp", HostPort: 5, HostPortEnd: 9, ContainerPort: 1}, {Proto: "tcp", HostPort: 5, ContainerPort: 2}}, "0.0.0.0:5->2/tcp 0.0.0.0:6->1/tcp"},
		{nil, ""},
	} {
		got, err := publish(first, c.asks...)
		if err != nil || got != c.want {
			t.Errorf("%v: %q, %v; want %q", c.asks, got, err, c.want)
		}
		r.healthy(c.want)
	}

	// A port that nobody chose stays what it is when it is asked for again, and another endpoint gets another.
	tcp, udp := book.PortRequest{Proto: "tcp", ContainerPort: 80}, book.PortRequest{Proto: "udp", ContainerPort: 80}
	some, err := publish(first, tcp)
	if again, err2 := publish(first, tcp, udp); err != nil || err2 != nil || !strings.HasPrefix(again, some) {
		t.Errorf("asked again: %q after %q, %v %v", again, some, err, err2)
	}
	if other, err := publish(second, book.PortRequest{Proto: "tcp", ContainerPort: 80}); err != nil || other == some {
		t.Errorf("another endpoint: %q, %v", other, err)
	}
	r.healthy("two endpoints")
}

// TestPublishTaken shows that a port has one owner, that a refusal changes nothing, and that a withdrawn port is free.
func TestPublishTaken(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	first, second := r.joined()
	if _, err := r.Publish(t.Context(), netID, first, run("tcp", 1000, 1000, 1000)); err != nil {
		t.Fatal(err)
	}
	before := r.host.Dump(t)
	for _, c := range []struct {
		asks []book.PortRequest
		want string
	}{
		{run("tcp", 1500, 80, 1), "publish 0.0.0.0:1500:80/tcp: in use: port 1500/tcp of the host is published by endpoint eeeeeeeeeeee on network aaaaaaaaaaaa"},
		{run("tcp", 1999, 80, 2), "port 1999/tcp"},
		{[]book.PortRequest{{Proto: "tcp", HostPort: 1000, ContainerPort: 1, HostIP: netip.MustParseAddr("127.0.0.1")}}, "port 1000/tcp"},
		{slices.Concat(run("udp", 53, 53, 1), run("tcp", 1000, 1, 1)), "port 1000/tcp"},
		{[]book.PortRequest{{Proto: "tcp", HostPort: 1000, HostPortEnd: 1999, ContainerPort: 1}}, "no port from 1000 to 1999 of the host is free"},
		{[]book.PortRequest{{Proto: "tcp", HostPort: 80, ContainerPort: 1}, {Proto: "tcp", HostPort: 80, ContainerPort: 2}}, "port 80/tcp of the host is asked for twice"},
		{[]book.PortRequest{{Proto: "tcp", HostPort: 80, ContainerPort: 1, HostIP: netip.MustParseAddr("192.0.2.9")}}, "192.0.2.9 is not an address of this host"},
		{[]book.PortRequest{{Proto: "tcp", HostPort: 80, ContainerPort: 1, HostIP: netip.IPv6Unspecified()}}, "the container has no IPv6 address"},
	} {
		if _, err := r.Publish(t.Context(), netID, second, c.asks); err == nil ||
			!strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v, want %q", c.asks, err, c.want)
		}
	}
	if after := r.host.Dump(t); after != before {
		t.Errorf("refusals changed something:\n%s", after)
	}
	if _, err := r.Publish(t.Context(), netID, second, run("tcp", 999, 80, 1)); err != nil {
		t.Error(err)
	}
	if err := r.Leave(t.Context(), netID, first); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Publish(t.Context(), netID, second, run("tcp", 1500, 80, 1)); err != nil {
		t.Errorf("a port that was given back: %v", err)
	}
	r.healthy("at the end")
}

// TestPublishedAfterRestart shows that ports stay published over a restart, and are found when records are rebuilt.
func TestPublishedAfterRestart(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	first, _ := r.joined()
	asks := slices.Concat(run("tcp", 8080, 80, 1), run("udp", 10000, 10000, 9), run("tcp", 7000, 8000, 3),
		[]book.PortRequest{{Proto: "tcp", HostPort: 53, ContainerPort: 53, HostIP: netip.MustParseAddr("127.0.0.53")}})
	ports, err := r.Publish(t.Context(), netID, first, asks)
	if err != nil {
		t.Fatal(err)
	}
	// The order in which the kernel lists what it finds by hashing changes from one set to the next.
	words := func() []string {
		return slices.Sorted(slices.Values(strings.Fields(strings.ReplaceAll(r.host.Dump(t), ",", " "))))
	}
	before := words()
	r.start()
	if after := words(); !slices.Equal(after, before) {
		t.Errorf("a restart changed something:\n%s", r.host.Dump(t))
	}
	e, err := r.Endpoint(netID, first)
	if err != nil || texts(e.Ports) != texts(ports) {
		t.Errorf("after a restart: %v, %v", texts(e.Ports), err)
	}
	found := reconcile.FoundPorts(r.Yard, e.ID, reconcile.SeenEndpoint{Sandbox: e.Sandbox, Addrs: e.Addrs})
	slices.SortFunc(ports, port.ComparePorts)
	if texts(found) != texts(ports) {
		t.Errorf("found in the kernel: %s, want %s", texts(found), texts(ports))
	}
}
