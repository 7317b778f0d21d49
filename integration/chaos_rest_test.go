package integration

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"netyard/cli/api"
	"netyard/cluster/etcd"
	"netyard/cluster/record"
	"netyard/kernel/core"
)

// rest undoes faults and waits until everything agrees: the requests, etcd, and each host's records and kernel.
func (c *chaos) rest() {
	c.t.Helper()
	if !c.store.Running() {
		c.store.Launch()
	}
	for _, h := range c.hosts {
		h.Sh("for t in $(nft list tables inet | grep -o 'cut[0-9]*'); do nft delete table inet $t; done")
	}
	const limit = 3 * time.Minute // netyard compares by itself once a minute
	var wrong []string
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
		if wrong = c.differences(); len(wrong) == 0 {
			return
		}
	}
	slices.Sort(wrong)
	c.t.Errorf("differences at the end:\n%s", strings.Join(wrong, "\n"))
}

// A picture is the content of etcd.
type picture struct {
	hosts    map[string]*record.Host
	networks map[string]*record.Network // by name
	members  map[string][]string        // hosts, by network
	addrs    map[string][]*record.Address
	revision string
}

// gateway calls etcd by its JSON gateway, independently of netyard's client.
func (c *chaos) gateway(verb string, ask, answer any) error {
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
			err = c.etcd.Do(func() error {
				conn, err = (&net.Dialer{}).DialContext(ctx, network, addr)
				return err
			})
			return conn, err
		},
	}}
	raw, err := json.Marshal(ask)
	if err != nil {
		return err
	}
	resp, err := client.Post("http://"+c.etcd.IP+":2379/v3/kv/"+verb, "application/json", bytes.NewReader(raw))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return json.NewDecoder(resp.Body).Decode(answer)
}

// look reads the content of etcd.
func (c *chaos) look() (p picture, err error) {
	p = picture{
		hosts: map[string]*record.Host{}, networks: map[string]*record.Network{},
		members: map[string][]string{}, addrs: map[string][]*record.Address{},
	}
	const prefix = etcd.DefaultPrefix + "/"
	var answer struct {
		Header struct{ Revision string }
		Kvs    []struct{ Key, Value string }
	}
	all := map[string][]byte{"key": []byte(prefix), "range_end": []byte(etcd.DefaultPrefix + "0")}
	err = c.gateway("range", all, &answer)
	if err != nil {
		return p, err
	}
	p.revision = answer.Header.Revision
	for _, kv := range answer.Kvs {
		key, _ := base64.StdEncoding.DecodeString(kv.Key)
		value, _ := base64.StdEncoding.DecodeString(kv.Value)
		r, err := record.Decode(strings.TrimPrefix(string(key), prefix), value)
		if err != nil {
			return p, err
		}
		switch r := r.(type) {
		case *record.Host:
			p.hosts[r.ID] = r
		case *record.Network:
			p.networks[r.Name] = r
		case *record.Member:
			p.members[r.Network] = append(p.members[r.Network], r.Host)
		case *record.Address:
			p.addrs[r.Network] = append(p.addrs[r.Network], r)
		}
	}
	return p, nil
}

// differences returns everything that does not agree.
func (c *chaos) differences() (wrong []string) {
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	p, err := c.look()
	if err != nil {
		return []string{err.Error()}
	}
	if len(p.hosts) != chaosHosts {
		say("etcd has %d hosts", len(p.hosts))
	}
	for on := range chaosNetworks {
		n := p.networks[chaosName(on)]
		if n == nil {
			for _, h := range c.hosts {
				if h.networks[on] != "" {
					say("%s has network %d, and etcd does not", h.Name, on)
				}
			}
			continue
		}
		var have, want []string
		for _, r := range p.addrs[n.ID] {
			if r.Use == record.Endpoint {
				have = append(have, fmt.Sprintf("etcd: network %d: %s of %s is %s on %s",
					on, r.Addr, r.MAC, r.Endpoint[:12], p.hosts[r.Host].Name))
			}
			if r.Host != "" && !slices.Contains(p.members[n.ID], r.Host) {
				say("etcd: %s of network %d belongs to a host that is not on the network", r.Addr, on)
			}
		}
		for _, h := range c.hosts {
			for _, is := range h.slots[on] {
				if is != nil {
					want = append(want, fmt.Sprintf("etcd: network %d: %s of %s is %s on %s",
						on, is.addr.Addr(), is.mac, is.id[:12], h.Name))
				}
			}
		}
		wrong = append(wrong, differ(have, want)...)
	}
	for _, h := range c.hosts {
		wrong = append(wrong, c.differencesOn(h, p)...)
	}
	return wrong
}

// differ returns what is only in one of two lists.
func differ(have, want []string) (wrong []string) {
	for _, w := range want {
		if !slices.Contains(have, w) {
			wrong = append(wrong, "missing: "+w)
		}
	}
	for _, h := range have {
		if !slices.Contains(want, h) {
			wrong = append(wrong, "unexpected: "+h)
		}
	}
	return wrong
}

// differencesOn compares one host's kernel and records.
func (c *chaos) differencesOn(h *chaosHost, p picture) (wrong []string) {
	var have, want []string
	ask := func(cmd string) []string {
		out, err := h.TrySh(cmd)
		if err != nil {
			wrong = append(wrong, h.Name+": "+err.Error())
		}
		return strings.Split(out, "\n")
	}
	at := func(format string, args ...any) string { return h.Name + ": " + fmt.Sprintf(format, args...) }
	for on, id := range h.networks {
		if id == "" {
			continue
		}
		n, x, br := p.networks[chaosName(on)], core.Name(core.VXLANPrefix, id), core.Name(core.BridgePrefix, id)
		want = append(want, at("link %s", x), at("link %s", br))
		if n == nil {
			continue
		}
		for _, l := range ask("ip -4 neigh show dev " + x + " nud permanent") {
			if f := strings.Fields(l); len(f) > 2 {
				have = append(have, at("%s: %s is %s", x, f[0], f[2]))
			}
		}
		for _, l := range ask("bridge fdb show dev " + x) {
			if f := strings.Fields(l); len(f) > 2 && f[1] == "dst" {
				have = append(have, at("%s: %s is at %s", x, f[0], f[2]))
			}
		}
		for _, r := range p.addrs[n.ID] {
			if host := p.hosts[r.Host]; r.MAC != "" && host != nil && host.Name != h.Name {
				want = append(want, at("%s: %s is %s", x, r.Addr, r.MAC), at("%s: %s is at %s", x, r.MAC, host.VTEP))
			}
		}
		for _, m := range p.members[n.ID] {
			if host := p.hosts[m]; host != nil && host.Name != h.Name {
				want = append(want, at("frames of %#x from %s", n.VNI, host.VTEP))
			}
		}
		for _, is := range h.slots[on] {
			if is != nil {
				want = append(want, at("link %s", core.Name(core.VethPrefix, is.id)),
					at("ps: %s %s up", is.id[:12], is.addr))
			}
		}
	}
	for _, l := range ask("ls /sys/class/net") {
		if strings.HasPrefix(l, "nyb-") || strings.HasPrefix(l, "nyx-") || strings.HasPrefix(l, "nyv-") {
			have = append(have, at("link %s", l))
		}
	}
	_, set, _ := strings.Cut(strings.Join(ask("nft list set inet netyard vteps4"), " "), "elements = {")
	set, _, _ = strings.Cut(set, "}")
	for e := range strings.SplitSeq(set, ",") {
		if f := strings.Fields(e); len(f) == 3 {
			have = append(have, at("frames of %s from %s", f[2], f[0]))
		}
	}
	ps := parse[[]api.Endpoint](c.t, strings.Join(ask("netyard ps --json"), "\n"))
	for _, e := range ps {
		have = append(have, at("ps: %s %s %s", e.ID[:12], strings.Join(e.Addresses, " "), e.State))
	}
	slices.Sort(want)
	wrong = append(wrong, differ(have, slices.Compact(want))...) // several addresses have the same MAC
	for _, l := range ask("netyard doctor; true") {
		if l != "" {
			wrong = append(wrong, at("doctor: %s", l))
		}
	}
	s := parse[api.ClusterStatus](c.t, strings.Join(ask("netyard cluster status --json"), "\n"))
	for _, n := range s.Networks {
		if n.Waiting+n.Lost+len(n.Refused) > 0 {
			wrong = append(wrong, at("status: %+v", n))
		}
	}
	if s.Reason != "" || s.Rejected > 0 {
		wrong = append(wrong, at("status: %s, %d records rejected", s.Reason, s.Rejected))
	}
	return wrong
}
