package driver_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"netyard/driver"
	"netyard/ipam"
	"netyard/kernel/kerneltest"
	"netyard/modes"
	"netyard/modes/all"
	"netyard/store"
	"netyard/yard"
	"netyard/yard/book"
	"netyard/yard/plan"
	"netyard/yard/pool"
	"netyard/yard/reconcile"
)

// An engine calls a door as dockerd does, over a real socket.
type engine struct {
	tb      testing.TB
	client  *http.Client
	host    *kerneltest.Host
	yard    *yard.Yard
	greeted atomic.Int32
	ahead   atomic.Int64 // by how much the yard's clock is ahead
}

func newEngine(tb testing.TB, mode string) *engine {
	tb.Helper()
	e := &engine{tb: tb, host: kerneltest.New(tb)}
	e.host.Sh(tb, "sysctl -qw net.ipv4.ip_forward=1")
	if err := e.host.LoadFirewall(); err != nil {
		tb.Fatal(err)
	}
	_, measures := tb.(*testing.B)
	st, err := store.Open(tb.Context(), store.Config{Path: filepath.Join(tb.TempDir(), "db"), NoSync: !measures})
	if err != nil {
		tb.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	e.yard = yard.New(book.Config{
		Log: log, Store: st, Kernel: plan.Host{Kernel: e.host.Kernel}, Handle: e.host.Handle,
		Modes: all.On(modes.Env{}), BootID: "b",
		IPAM: ipam.New(ipam.Config{ULA: ipam.HostULA("test")}),
		Now:  func() time.Time { return time.Now().Add(time.Duration(e.ahead.Load())) },
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = e.yard.Run(ctx) }()
	d := &driver.Door{Name: "netyard", Mode: mode, Yard: e.yard, Log: log, OnActivate: func() { e.greeted.Add(1) }}
	sock := filepath.Join(tb.TempDir(), "s")
	l, err := net.Listen("unix", sock)
	if err != nil {
		tb.Fatal(err)
	}
	s := &http.Server{Handler: d.Handler(), ConnContext: driver.WithCaller}
	go func() { _ = s.Serve(l) }()
	dial := func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", sock) }
	e.client = &http.Client{Transport: &http.Transport{DialContext: dial}}
	tb.Cleanup(func() { _ = s.Close(); cancel(); <-done; _ = st.Close() })
	return e
}

func (e *engine) post(verb, body string) (int, map[string]any) {
	e.tb.Helper()
	r, err := e.client.Post("http://x/"+verb, "application/json", strings.NewReader(body))
	if err != nil {
		e.tb.Fatal(err)
	}
	defer r.Body.Close()
	raw, err := io.ReadAll(r.Body)
	if err != nil {
		e.tb.Fatal(err)
	}
	var v map[string]any
	if err := json.Unmarshal(raw, &v); err != nil {
		e.tb.Fatalf("%s: %q: %v", verb, raw, err)
	}
	return r.StatusCode, v
}

// ok calls a verb, which must succeed, and returns the answer.
func (e *engine) ok(verb, body string) map[string]any {
	e.tb.Helper()
	status, v := e.post(verb, body)
	if status != http.StatusOK || v["Err"] != nil {
		e.tb.Fatalf("%s %s: %d %v", verb, body, status, v)
	}
	return v
}

// refused calls a verb, which must fail with an error that contains want, under both keys.
func (e *engine) refused(verb, body, want string) {
	e.tb.Helper()
	_, v := e.post(verb, body)
	text, _ := v["Err"].(string)
	if v["Err"] != v["Error"] || !strings.Contains(text, want) || text == "" {
		e.tb.Errorf("%s %s: %v, want %q under Err and Error", verb, body, v, want)
	}
	if strings.Contains(text, "\n") {
		e.tb.Errorf("%s: the error has more than one line: %q", verb, text)
	}
}

func (e *engine) state() string {
	e.tb.Helper()
	ns, err := e.yard.Networks()
	if err != nil {
		e.tb.Fatal(err)
	}
	es, err := e.yard.Endpoints()
	if err != nil {
		e.tb.Fatal(err)
	}
	ls, ps, err := pool.Leases(e.yard)
	if err != nil {
		e.tb.Fatal(err)
	}
	return fmt.Sprintf("%d networks %d endpoints %d leases %d pools\n%s",
		len(ns), len(es), len(ls), len(ps), e.host.Dump(e.tb))
}

const (
	create = `{"NetworkID":"aaaaaaaaaaaa01",` +
		`"Options":{"com.docker.network.generic":{%s},"com.docker.network.enable_ipv6":false},` +
		`"IPv4Data":[{"AddressSpace":"LocalDefault","Pool":"10.9.0.0/24","Gateway":"10.9.0.1/24",` +
		`"AuxAddresses":{"r":"10.9.0.9/24"}}],"IPv6Data":[]}`
	endpoint = `{"NetworkID":"aaaaaaaaaaaa01","EndpointID":"eeeeeeeeeeee01",` +
		`"Interface":{"Address":"10.9.0.2/24","AddressIPv6":"","MacAddress":""},"Options":{}}`
	ids  = `{"NetworkID":"aaaaaaaaaaaa01","EndpointID":"eeeeeeeeeeee01"}`
	join = `{"NetworkID":"aaaaaaaaaaaa01","EndpointID":"eeeeeeeeeeee01","SandboxKey":"/run/docker/netns/5",` +
		`"Options":null}`
	joined = "map[DisableGatewayService:true Gateway:10.9.0.1 " +
		"InterfaceName:map[DstPrefix:eth SrcName:nyp-eeeeeeeeeee]]" // the answer to join
)

// plain returns the body of a CreateNetwork without options.
func plain() string { return fmt.Sprintf(create, "") }

// TestLife shows the life of a network with one endpoint, and that each verb can be sent twice.
func TestLife(t *testing.T) {
	t.Parallel()
	e := newEngine(t, "bridge")
	before := e.state()
	if v := e.ok("Plugin.Activate", ""); fmt.Sprint(v["Implements"]) != "[NetworkDriver IpamDriver]" {
		t.Errorf("Activate: %v", v)
	}
	if v := e.ok("NetworkDriver.GetCapabilities", ""); v["Scope"] != "local" || v["GwAllocChecker"] != true {
		t.Errorf("GetCapabilities: %v", v)
	}
	if e.greeted.Load() != 2 {
		t.Errorf("Greeted was called %d times", e.greeted.Load())
	}
	for range 2 {
		e.ok("NetworkDriver.CreateNetwork", plain())
	}
	first := e.ok("NetworkDriver.CreateEndpoint", endpoint)
	if fmt.Sprint(first) != "map[Interface:map[MacAddress:02:42:0a:09:00:02]]" {
		t.Errorf("CreateEndpoint: %v", first)
	}
	e.ok("NetworkDriver.CreateEndpoint", endpoint)
	for range 2 {
		if j := e.ok("NetworkDriver.Join", join); fmt.Sprint(j) != joined {
			t.Errorf("Join: %v, want %s", j, joined)
		}
		e.ok("NetworkDriver.ProgramExternalConnectivity", ids)
		e.ok("NetworkDriver.EndpointOperInfo", ids)
	}
	e.host.Sh(t, "ip link show nyp-eeeeeeeeeee && ip link show master nyb-aaaaaaaaaaa | grep nyv-eeeeeeeeeee")
	for range 2 {
		e.ok("NetworkDriver.RevokeExternalConnectivity", ids)
		e.ok("NetworkDriver.Leave", ids)
		e.ok("NetworkDriver.DeleteEndpoint", ids)
	}
	for range 2 {
		e.ok("NetworkDriver.DeleteNetwork", ids)
	}
	if after := e.state(); after != before {
		t.Errorf("something is left:\n%s", after)
	}
}

// TestUnknown shows that verbs which remove something succeed for unknown IDs, and that others fail.
func TestUnknown(t *testing.T) {
	t.Parallel()
	e := newEngine(t, "")
	before := e.state()
	for _, verb := range []string{
		"Leave", "DeleteEndpoint", "DeleteNetwork", "RevokeExternalConnectivity", "FreeNetwork", "DiscoverNew",
		"DiscoverDelete",
	} {
		e.ok("NetworkDriver."+verb, ids)
	}
	e.ok("IpamDriver.ReleasePool", `{"PoolID":"10.9.0.0/24"}`)
	e.ok("IpamDriver.ReleaseAddress", `{"PoolID":"10.9.0.0/24","Address":"10.9.0.2"}`)
	e.refused("NetworkDriver.CreateEndpoint", endpoint, "network aaaaaaaaaaaa: not found")
	e.refused("NetworkDriver.Join", join, "network aaaaaaaaaaaa: not found")
	e.refused("IpamDriver.RequestAddress", `{"PoolID":"10.9.0.0/24","Address":"","Options":{}}`, "pool 10.9.0.0/24")
	e.refused("NetworkDriver.AllocateNetwork", ids, "create the network on each host, without --scope swarm")
	if after := e.state(); after != before {
		t.Errorf("a call with unknown IDs changed something:\n%s", after)
	}
}

// TestDamagedBody shows that calls with an empty or damaged body are refused: a call that an engine sends again has no
// body, and must not be read as one with every field zero.
func TestDamagedBody(t *testing.T) {
	t.Parallel()
	e := newEngine(t, "bridge")
	e.ok("NetworkDriver.CreateNetwork", plain())
	e.ok("NetworkDriver.CreateEndpoint", endpoint)
	before := e.state()
	bodies := map[string]string{
		"NetworkDriver.CreateNetwork": plain(), "NetworkDriver.CreateEndpoint": endpoint, "NetworkDriver.Join": join,
		"NetworkDriver.Leave": ids, "NetworkDriver.DeleteEndpoint": ids, "NetworkDriver.DeleteNetwork": ids,
		"NetworkDriver.ProgramExternalConnectivity": ids, "NetworkDriver.GwAllocCheck": `{"Options":{}}`,
		"IpamDriver.RequestPool": `{"AddressSpace":"netyard"}`, "IpamDriver.RequestAddress": `{"PoolID":"x"}`,
		"IpamDriver.ReleasePool": `{"PoolID":"x"}`, "IpamDriver.ReleaseAddress": `{"PoolID":"x","Address":"10.0.0.1"}`,
	}
	for verb, whole := range bodies {
		for name, body := range map[string]string{
			"empty": "", "truncated": whole[:len(whole)-2], "trailing": whole + "{}", "not an object": "[]",
		} {
			if status, v := e.post(verb, body); status != http.StatusBadRequest || v["Err"] == "" {
				t.Errorf("%s with a %s body: %d %v", verb, name, status, v)
			}
		}
		if verb != "NetworkDriver.GwAllocCheck" {
			if status, _ := e.post(verb, "{}"); status != http.StatusBadRequest {
				t.Errorf("%s without any field: %d", verb, status)
			}
		}
	}
	if after := e.state(); after != before {
		t.Errorf("a damaged call changed something:\n%s", after)
	}
}

// TestBadInput shows that invalid options and values are refused by name, and change nothing.
func TestBadInput(t *testing.T) {
	t.Parallel()
	e := newEngine(t, "bridge")
	before := e.state()
	for opts, want := range map[string]string{
		`"mode":"nosuch"`:  "mode=nosuch",
		`"mode":"none"`:    "netyard-bridge has networks of mode bridge only",
		`"parent":"eth0"`:  "parent is not an option of mode bridge, but of ipvlan, macvlan",
		`"mtuu":"1400"`:    "did you mean mtu?",
		`"mtu":"abc"`:      "mtu=abc: want a number",
		`"mtu":1400`:       "mtu: want text",
		`"icc":"perhaps"`:  "icc=perhaps: want true or false",
		`"bridge":"a/b"`:   "bridge=a/b: want an interface name",
		`"bridge":"nyv-x"`: "netyard's own",
		`"mtu":"1400","com.docker.network.driver.mtu":"1500"`: "contradicts",
	} {
		e.refused("NetworkDriver.CreateNetwork", fmt.Sprintf(create, opts), want)
	}
	notSubnet := strings.Replace(plain(), "10.9.0.0/24", "10.9.0.0", 1)
	e.refused("NetworkDriver.CreateNetwork", notSubnet, `subnet "10.9.0.0"`)
	e.refused("NetworkDriver.CreateNetwork", strings.Replace(plain(), "10.9.0.1/24", "10.8.0.1/24", 1),
		"gateway 10.8.0.1 is not in subnet")
	e.refused("IpamDriver.RequestPool", `{"AddressSpace":"netyard","Pool":"10.9.0.0/33"}`, "subnet")
	outside := `{"AddressSpace":"netyard","Pool":"10.9.0.0/24","SubPool":"10.8.0.0/25"}`
	e.refused("IpamDriver.RequestPool", outside, "ip-range")
	e.refused("IpamDriver.RequestPool", `{"AddressSpace":"netyard","Options":{"scope":"x"}}`, "--ipam-opt scope")
	e.refused("IpamDriver.RequestPool", `{"AddressSpace":"netyard","Pool":"247.0.0.0/8"}`, "subnet 247.0.0.0/8")
	e.refused("NetworkDriver.CreateNetwork", strings.ReplaceAll(plain(), "10.9.0.", "224.0.7."),
		"subnet 224.0.7.0/24: no container can have addresses of 224.0.0.0/4 (multicast)")
	e.refused("NetworkDriver.CreateNetwork", strings.ReplaceAll(plain(), "/24", "/32"), "gateway 10.9.0.1 is not in")
	single := strings.NewReplacer("10.9.0.0/24", "10.9.0.1/32", "/24", "/32").Replace(plain())
	e.refused("NetworkDriver.CreateNetwork", single, "subnet 10.9.0.1/32: not usable")
	if after := e.state(); after != before {
		t.Errorf("a refusal changed something:\n%s", after)
	}
	e.ok("NetworkDriver.CreateNetwork", plain())
	for body, want := range map[string]string{
		strings.Replace(endpoint, `"MacAddress":""`, `"MacAddress":"nope"`, 1):                                  `mac-address "nope"`,
		strings.Replace(endpoint, `"Options":{}`, `"Options":{"rat":"1mbit"}`, 1):                               "unknown option rat",
		strings.Replace(endpoint, `"Options":{}`, `"Options":{"com.docker.network.endpoint.ifname":"wan1"}`, 1): "end in 0",
		strings.Replace(endpoint, `"Address":"10.9.0.2/24"`, `"Address":"10.9.0.2"`, 1):                         `Address "10.9.0.2"`,
	} {
		e.refused("NetworkDriver.CreateEndpoint", body, want)
	}
	e.ok("NetworkDriver.CreateEndpoint", endpoint)
	e.refused("NetworkDriver.CreateEndpoint", strings.Replace(endpoint, "10.9.0.2", "10.9.0.3", 1),
		"with a different configuration")
	e.refused("NetworkDriver.CreateNetwork", fmt.Sprintf(create, `"icc":"false"`), "with a different configuration")
	e.refused("NetworkDriver.ProgramExternalConnectivity",
		`{"NetworkID":"aaaaaaaaaaaa01","EndpointID":"eeeeeeeeeeee01",`+
			`"Options":{"com.docker.network.portmap":[{"Proto":6,"Port":80,`+
			`"HostIP":"192.0.2.7","HostPort":8080,"HostPortEnd":8080}]}}`,
		"publish 192.0.2.7:8080:80/tcp: 192.0.2.7 is not an address of this host")
	e.refused("NetworkDriver.ProgramExternalConnectivity",
		`{"NetworkID":"aaaaaaaaaaaa01","EndpointID":"eeeeeeeeeeee01",`+
			`"Options":{"com.docker.network.portmap":[{"Proto":6,"Port":80,`+
			`"HostIP":"::","HostPort":8080,"HostPortEnd":8080}]}}`,
		"publish [::]:8080:80/tcp: the container has no IPv6 address")
	for port, want := range map[string]string{
		`{"Proto":6,"Port":80,"HostIP":"web","HostPort":8080}`: "publish web",
		`{"Proto":1,"Port":80}`:                                "publish port 80: protocol 1 is not tcp, udp or sctp",
	} {
		options := `"Options":{"com.docker.network.portmap":[` + port + `]}}`
		e.refused("NetworkDriver.ProgramExternalConnectivity", strings.TrimSuffix(ids, "}")+","+options, want)
	}
}

// TestEngineKeys shows that options which an engine reads itself, and sends to every driver, are none of netyard's.
func TestEngineKeys(t *testing.T) {
	t.Parallel()
	e := newEngine(t, "bridge")
	opts := `"mtu":"1400","com.docker.network.enable_ipv4":"true","com.docker.network.enable_ipv6":"perhaps",` +
		`"com.docker.network.advertise_addr_nmsgs":"2","com.docker.network.advertise_addr_ms":"100"`
	e.ok("NetworkDriver.GwAllocCheck", `{"Options":{"com.docker.network.generic":{`+opts+`}}}`)
	e.ok("NetworkDriver.CreateNetwork", fmt.Sprintf(create, opts))
	e.ok("NetworkDriver.CreateNetwork", fmt.Sprintf(create, `"mtu":"1400"`))
	ns, err := e.yard.Networks()
	if err != nil || len(ns) != 1 || fmt.Sprint(ns[0].Options) != "map[mtu:1400]" || ns[0].IPv6 {
		t.Errorf("networks %+v, %v", ns, err)
	}
	e.refused("NetworkDriver.CreateNetwork", fmt.Sprintf(create, `"com.docker.network.enable_ipv8":"true"`),
		"unknown option com.docker.network.enable_ipv8")
}

// TestInterfaceName shows that an interface's name in the container reaches the answer to Join.
func TestInterfaceName(t *testing.T) {
	t.Parallel()
	e := newEngine(t, "bridge")
	e.ok("NetworkDriver.CreateNetwork", plain())
	options := `"Options":{"com.docker.network.endpoint.ifname":"wan0"}`
	e.ok("NetworkDriver.CreateEndpoint", strings.Replace(endpoint, `"Options":{}`, options, 1))
	j := e.ok("NetworkDriver.Join", join)
	if got := fmt.Sprint(j["InterfaceName"]); got != "map[DstName:wan0 DstPrefix:wan SrcName:nyp-eeeeeeeeeee]" {
		t.Errorf("InterfaceName %s", got)
	}
}

// TestWholeInterfaceName shows that an interface can have any name on engines that take it, and that the others are
// named in the refusal.
func TestWholeInterfaceName(t *testing.T) {
	t.Parallel()
	e := newEngine(t, "bridge")
	e.ok("NetworkDriver.CreateNetwork", plain())
	named := func(name string) string {
		return strings.Replace(endpoint, `"Options":{}`,
			`"Options":{"com.docker.network.endpoint.ifname":"`+name+`"}`, 1)
	}
	for version, cause := range map[string]string{
		"":               "foo: engine of unknown version (see docker_host) can only set names",
		"dev":            "foo: engine dev can only",
		"20.10.24+dfsg1": "foo: engine 20.10.24+dfsg1 can only set names of letters that end in 0, such as wan0",
		"29.7.2":         "others need engine 29.8 or newer",
		"9.10.0":         "engine 9.10.0",
	} {
		if err := reconcile.RecordEngineVersion(e.yard, "docker", version); err != nil {
			t.Fatal(err)
		}
		e.refused("NetworkDriver.CreateEndpoint", named("foo"), cause)
	}
	for version, name := range map[string]string{
		"29.8.0-rc.1": "foo", "29.10.0": "wan1", "30.0.1": "lan.50", "29.8": "7",
	} {
		if err := reconcile.RecordEngineVersion(e.yard, "docker", version); err != nil {
			t.Fatal(err)
		}
		e.refused("NetworkDriver.CreateEndpoint", named("a/b"), "ifname=a/b: want an interface name")
		e.refused("NetworkDriver.CreateEndpoint", named("lo"), "ifname=lo: want an interface name, not lo")
		e.ok("NetworkDriver.CreateEndpoint", named(name))
		j := e.ok("NetworkDriver.Join", join)
		if got := fmt.Sprint(j["InterfaceName"]); !strings.Contains(got, "DstName:"+name+" ") {
			t.Errorf("InterfaceName %s, want %s", got, name)
		}
		e.ok("NetworkDriver.DeleteEndpoint", ids)
	}
}

// TestGatewayless shows that GwAllocCheck has an engine skip the gateway address of a network without a gateway.
func TestGatewayless(t *testing.T) {
	t.Parallel()
	e := newEngine(t, "bridge")
	for opts, want := range map[string][2]bool{
		``: {false, false},
		`"com.docker.network.bridge.gateway_mode_ipv4":"isolated"`:      {true, false},
		`"gateway_mode_ipv6":"isolated"`:                                {false, true},
		`"gateway_mode_ipv4":"isolated","gateway_mode_ipv6":"isolated"`: {true, true},
		`"gateway_mode_ipv4":"routed"`:                                  {false, false},
		`"com.docker.network.bridge.inhibit_ipv4":"true"`:               {false, false},
	} {
		e.skips(want, `"com.docker.network.generic":{`+opts+`}`)
	}
	for opts, want := range map[string][2]bool{``: {false, false}, `"inhibit_ipv4":"true"`: {true, false}} {
		e.skips(want, `"com.docker.network.internal":true,"com.docker.network.generic":{`+opts+`}`)
	}
}

// TestGatewayOfLAN shows that an engine picks no address to be the router of a LAN, where the user names none.
func TestGatewayOfLAN(t *testing.T) {
	t.Parallel()
	for mode, more := range map[string]string{
		"macvlan": "", "ipvlan": "", "netyard": `,"mode":"macvlan","macvlan_mode":"private"`,
	} {
		e := newEngine(t, strings.TrimPrefix(mode, "netyard"))
		generic := `"com.docker.network.generic":{"parent":"eth0"` + more + `}`
		e.skips([2]bool{true, true}, generic)
		e.skips([2]bool{true, true}, `"com.docker.network.internal":true,`+generic)
	}
}

// skips fails the test unless GwAllocCheck of a network with these options skips the gateways of these families.
func (e *engine) skips(want [2]bool, options string) {
	e.tb.Helper()
	v := e.ok("NetworkDriver.GwAllocCheck", `{"Options":{`+options+`}}`)
	if v["SkipIPv4"] != want[0] || v["SkipIPv6"] != want[1] {
		e.tb.Errorf("%s: %v, want %v", options, v, want)
	}
}

// TestStaticRoutes shows that routes are in the answer to Join in the engine's form: via a next hop, or on-link.
func TestStaticRoutes(t *testing.T) {
	t.Parallel()
	e := newEngine(t, "bridge")
	e.ok("NetworkDriver.CreateNetwork", fmt.Sprintf(create, `"routes":"10.7.0.0/16@10.9.0.7,10.6.0.1/16"`))
	e.ok("NetworkDriver.CreateEndpoint", endpoint)
	want := "[map[Destination:10.7.0.0/16 NextHop:10.9.0.7 RouteType:0] " +
		"map[Destination:10.6.0.0/16 NextHop: RouteType:1]]"
	if got := fmt.Sprint(e.ok("NetworkDriver.Join", join)["StaticRoutes"]); got != want {
		t.Errorf("StaticRoutes %s, want %s", got, want)
	}
}

// TestNone shows the life of a network without addresses.
func TestNone(t *testing.T) {
	t.Parallel()
	e := newEngine(t, "none")
	if v := e.ok("NetworkDriver.GwAllocCheck", `{"Options":{}}`); v["SkipIPv4"] != true || v["SkipIPv6"] != true {
		t.Errorf("GwAllocCheck: %v", v)
	}
	p := e.ok("IpamDriver.RequestPool", `{"AddressSpace":"netyard"}`)
	if p["Pool"] != "0.0.0.0/0" {
		t.Errorf("RequestPool: %v", p)
	}
	body := `{"NetworkID":"aaaaaaaaaaaa01","IPv4Data":[{"AddressSpace":"null","Pool":"0.0.0.0/0"}]}`
	e.ok("NetworkDriver.CreateNetwork", body)
	v := e.ok("NetworkDriver.CreateEndpoint", strings.Replace(endpoint, "10.9.0.2/24", "", 1))
	if fmt.Sprint(v) != "map[Interface:map[]]" {
		t.Errorf("CreateEndpoint: %v", v)
	}
	if v := e.ok("NetworkDriver.Join", join); fmt.Sprint(v) != "map[DisableGatewayService:true]" {
		t.Errorf("Join: %v", v)
	}
}

// TestIPAM makes the calls of docker network create with --ipam-driver netyard, and of its containers.
func TestIPAM(t *testing.T) {
	t.Parallel()
	e := newEngine(t, "")
	address := func(pool, more string) string {
		return e.ok("IpamDriver.RequestAddress", fmt.Sprintf(`{"PoolID":%q,%s}`, pool, more))["Address"].(string)
	}
	request := `{"AddressSpace":"netyard","Pool":"10.9.0.0/29","SubPool":"","Options":{},"V6":false}`
	id := e.ok("IpamDriver.RequestPool", request)["PoolID"].(string)
	gateway := `"Address":"","Options":{"RequestAddressType":"com.docker.network.gateway"}`
	if a := address(id, gateway); a != "10.9.0.1/29" {
		t.Errorf("gateway %s", a)
	}
	if a := address(id, `"Address":"10.9.0.6","Options":{}`); a != "10.9.0.6/29" {
		t.Errorf("aux %s", a)
	}
	second := e.ok("IpamDriver.RequestPool", `{"AddressSpace":"netyard","Pool":"10.9.1.0/29"}`)["PoolID"].(string)
	body := `{"NetworkID":"aaaaaaaaaaaa01","Options":{},"IPv4Data":[` +
		`{"AddressSpace":"netyard","Pool":"10.9.0.0/29","Gateway":"10.9.0.1/29"},` +
		`{"AddressSpace":"netyard","Pool":"10.9.1.0/29","Gateway":"10.9.1.1/29"}]}`
	e.ok("NetworkDriver.CreateNetwork", body)
	e.refused("IpamDriver.RequestPool", `{"AddressSpace":"netyard","Pool":"10.9.0.0/28"}`,
		"subnet 10.9.0.0/28 overlaps pool 10.9.0.0/29")
	e.ok("IpamDriver.RequestPool", `{"AddressSpace":"netyard","Pool":"10.9.0.0/28","Options":{"parent":"eth0.10"}}`)
	for _, want := range []string{"10.9.0.2/29", "10.9.0.3/29", "10.9.0.4/29", "10.9.0.5/29"} {
		if a := address(id, `"Address":"","Options":{}`); a != want {
			t.Errorf("got %s, want %s", a, want)
		}
	}
	// An engine requests addresses from the first pool only. If that is full, they come from the network's other pool.
	if a := address(id, `"Address":"","Options":{}`); a != "10.9.1.2/29" && a != "10.9.1.1/29" {
		t.Errorf("from the other pool %s", a)
	}
	e.refused("IpamDriver.RequestAddress", `{"PoolID":"10.9.0.0/29","Address":"10.9.0.3","Options":{}}`, "10.9.0.3")
	_ = second

	v6 := e.ok("IpamDriver.RequestPool", `{"AddressSpace":"netyard","V6":true}`)
	if p := v6["Pool"].(string); !strings.HasPrefix(p, "fd") || !strings.HasSuffix(p, "/64") {
		t.Errorf("IPv6 pool %s", p)
	}
}

// TestLateRelease shows that a late ReleaseAddress for a former endpoint does not release the address of the endpoint
// that has it now.
func TestLateRelease(t *testing.T) {
	t.Parallel()
	e := newEngine(t, "bridge")
	e.ok("IpamDriver.RequestPool", `{"AddressSpace":"netyard","Pool":"10.9.0.0/24"}`)
	e.ok("NetworkDriver.CreateNetwork", strings.Replace(plain(), "LocalDefault", "netyard", 1))
	e.ok("IpamDriver.RequestAddress", `{"PoolID":"10.9.0.0/24","Address":"10.9.0.2"}`)
	e.ok("NetworkDriver.CreateEndpoint", endpoint)
	e.ok("IpamDriver.ReleaseAddress", `{"PoolID":"10.9.0.0/24","Address":"10.9.0.2"}`)
	e.refused("IpamDriver.RequestAddress", `{"PoolID":"10.9.0.0/24","Address":"10.9.0.2"}`, "taken")
	e.ok("NetworkDriver.DeleteEndpoint", ids)
	e.ok("IpamDriver.ReleaseAddress", `{"PoolID":"10.9.0.0/24","Address":"10.9.0.2"}`)
	e.ok("IpamDriver.RequestAddress", `{"PoolID":"10.9.0.0/24","Address":"10.9.0.2"}`)
}

// TestManyNetworks shows that 300 networks without a named subnet overlap no route and not each other.
func TestManyNetworks(t *testing.T) {
	t.Parallel()
	e := newEngine(t, "bridge")
	e.host.Sh(t, "ip link add vpn type bridge && ip link set vpn up && "+
		"ip addr add 10.224.7.1/24 dev vpn && ip route add 10.225.0.0/16 dev vpn")
	seen := map[string]bool{}
	for range 300 {
		p := e.ok("IpamDriver.RequestPool", `{"AddressSpace":"netyard"}`)["Pool"].(string)
		if seen[p] || p == "10.224.7.0/24" || strings.HasPrefix(p, "10.225.") {
			t.Fatalf("pool %s", p)
		}
		seen[p] = true
	}
}
