package driver

import (
	"bytes"
	"testing"

	"netyard/modes"
	"netyard/modes/bridge"
	"netyard/yard"
	"netyard/yard/book"
)

// fuzz shows that a decoder accepts only bodies with all fields that the verb needs.
func fuzz[Q request](f *testing.F, seeds ...string) {
	f.Helper()
	for _, s := range append(seeds, "", "{}", "null", "[]", `{"NetworkID":1}`) {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		q, err := decode[Q](bytes.NewReader(body))
		if err == nil && q.missing() != "" {
			t.Errorf("%q was accepted without %s", body, q.missing())
		}
	})
}

// fuzzed is a door that knows the options of bridges.
func fuzzed() *Door {
	return &Door{Yard: yard.New(book.Config{Modes: map[string]modes.Mode{"bridge": bridge.New(modes.Env{})}})}
}

func FuzzCreateNetwork(f *testing.F) {
	const seed = `{"NetworkID":"a",` +
		`"Options":{"com.docker.network.generic":{"mtu":"1400"},"com.docker.network.internal":true},` +
		`"IPv4Data":[{"AddressSpace":"netyard","Pool":"10.9.0.0/24","Gateway":"10.9.0.1/24",` +
		`"AuxAddresses":{"r":"10.9.0.9/24"}},null]}`
	for _, s := range []string{seed, "{}", `{"NetworkID":"a","IPv6Data":[{"Pool":"::/0"}]}`} {
		f.Add([]byte(s))
	}
	d := fuzzed()
	f.Fuzz(func(t *testing.T, body []byte) {
		q, err := decode[createNetwork](bytes.NewReader(body))
		if err != nil {
			return
		}
		n, err := d.network(q)
		if err != nil {
			return
		}
		if n.ID == "" || n.Mode == "" {
			t.Errorf("%q: %+v", body, n)
		}
		for _, s := range n.Subnets {
			if !s.Pool.IsValid() || s.Pool != s.Pool.Masked() || s.Pool.Bits() == 0 {
				t.Errorf("%q: subnet %v", body, s)
			}
		}
	})
}

func FuzzCreateEndpoint(f *testing.F) {
	const seed = `{"NetworkID":"a","EndpointID":"b",` +
		`"Interface":{"Address":"10.9.0.2/24","AddressIPv6":"fd00::2/64","MacAddress":"02:42:0a:09:00:02"},` +
		`"Options":{"com.docker.network.endpoint.ifname":"wan0","com.docker.network.portmap":[{"Proto":6,"Port":80}]}}`
	for _, s := range []string{seed, "{}"} {
		f.Add([]byte(s))
	}
	d := fuzzed()
	f.Fuzz(func(t *testing.T, body []byte) {
		q, err := decode[createEndpoint](bytes.NewReader(body))
		if err != nil {
			return
		}
		if e, err := d.endpoint(q, "bridge"); err == nil {
			for _, a := range e.Addrs {
				if !a.IsValid() || a.Bits() == 0 {
					t.Errorf("%q: address %v", body, a)
				}
			}
		}
		ports, err := portMap(q.Options)
		if err != nil {
			return
		}
		asks, err := asksOf(ports)
		for _, a := range asks {
			if err == nil && a.Proto == "" {
				t.Errorf("%q: a port without a protocol", body)
			}
		}
	})
}

func FuzzRequestPool(f *testing.F) {
	const seed = `{"AddressSpace":"netyard","Pool":"10.9.0.0/24","SubPool":"10.9.0.0/25",` +
		`"Options":{"parent":"eth0.10"},"V6":false}`
	for _, s := range []string{seed, "{}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		q, err := decode[requestPool](bytes.NewReader(body))
		if err != nil {
			return
		}
		r, err := yard.PoolRequest(q.Pool, q.SubPool, q.Options)
		if err == nil && q.Pool != "" && !r.Subnet.IsValid() {
			t.Errorf("%q: %+v", body, r)
		}
	})
}

func FuzzJoin(f *testing.F) {
	fuzz[join](f, `{"NetworkID":"a","EndpointID":"b","SandboxKey":"/run/docker/netns/5","Options":{}}`)
}
func FuzzLeave(f *testing.F)          { fuzz[leave](f, `{"NetworkID":"a","EndpointID":"b"}`) }
func FuzzProgram(f *testing.F)        { fuzz[program](f, `{"NetworkID":"a","EndpointID":"b","Options":{}}`) }
func FuzzDeleteNetwork(f *testing.F)  { fuzz[deleteNetwork](f, `{"NetworkID":"a"}`) }
func FuzzDeleteEndpoint(f *testing.F) { fuzz[deleteEndpoint](f, `{"NetworkID":"a","EndpointID":"b"}`) }

func FuzzGwAllocCheck(f *testing.F) {
	fuzz[gwAllocCheck](f, `{"Options":{"com.docker.network.generic":{}}}`)
}

func FuzzRequestAddress(f *testing.F) {
	fuzz[requestAddress](f, `{"PoolID":"10.9.0.0/24","Address":"10.9.0.2","Options":{}}`)
}

func FuzzReleaseAddress(f *testing.F) {
	fuzz[releaseAddress](f, `{"PoolID":"10.9.0.0/24","Address":"10.9.0.2"}`)
}
func FuzzReleasePool(f *testing.F) { fuzz[releasePool](f, `{"PoolID":"10.9.0.0/24"}`) }
