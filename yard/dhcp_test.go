package yard_test

import (
	"bytes"
	"testing"
	"time"

	"netyard/ipam"
	"netyard/kernel/dhcp"
	"netyard/modes"
	"netyard/yard"
	"netyard/yard/book"
	ylease "netyard/yard/lease"
	"netyard/yard/pool"
)

func TestParseDHCP(t *testing.T) {
	for name, c := range map[string]struct {
		always        bool
		subnet, part  string
		v6            bool
		opts          map[string]string
		ok, mustFail  bool
		wantedOptions int
	}{
		"netyard-dhcp":               {always: true, ok: true},
		"netyard":                    {},
		"netyard, asked":             {opts: map[string]string{"dhcp": "true"}, ok: true, wantedOptions: 1},
		"netyard, not asked":         {opts: map[string]string{"dhcp": "false"}},
		"netyard, other options":     {opts: map[string]string{"parent": "eth0"}},
		"not, and options":           {opts: map[string]string{"dhcp": "false", "on_lost": "down"}, mustFail: true},
		"netyard-dhcp, not":          {always: true, opts: map[string]string{"dhcp": "false"}, mustFail: true},
		"unknown":                    {always: true, opts: map[string]string{"color": "blue"}, mustFail: true},
		"DHCPv6":                     {always: true, opts: map[string]string{"ipv6": "dhcp"}, ok: true, wantedOptions: 1},
		"neither":                    {always: true, opts: map[string]string{"ipv6": "true"}, mustFail: true},
		"range":                      {always: true, subnet: "192.0.2.0/24", part: "192.0.2.0/25", mustFail: true},
		"IPv6":                       {always: true, v6: true, mustFail: true},
		"a subnet of IPv6":           {always: true, subnet: "fd00::/64", mustFail: true},
		"every address as a subnet":  {always: true, subnet: "0.0.0.0/0", mustFail: true},
		"a subnet, and all options":  {always: true, subnet: "192.0.2.0/24", opts: map[string]string{"client_id": "mac", "hostname": "0", "conflict": "ignore"}, ok: true, wantedOptions: 3},
		"a wrong value of an option": {always: true, opts: map[string]string{"client_id": "both"}, mustFail: true},
	} {
		r, ok, err := ylease.ParseDHCP(c.always, c.subnet, c.part, c.v6, c.opts)
		if ok != c.ok || (err != nil) != c.mustFail || ok && len(r.Options) != c.wantedOptions {
			t.Errorf("%s: %+v, %v, %v", name, r, ok, err)
		}
	}
}

// TestToken shows that a pool is found by the token that an engine returns, and that no value of a user or another IPAM
// is taken for a token.
func TestToken(t *testing.T) {
	r := newRig(t)
	seen := map[string]bool{}
	for range 64 {
		p, err := ylease.RequestDHCPPool(t.Context(), r.Book, book.DHCPRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if ylease.DHCPPoolOf(p.Token().Addr()) != p.ID || !ylease.IsDHCP(p.ID) || seen[p.ID] {
			t.Errorf("pool %q, token %v", p.ID, p.Token())
		}
		seen[p.ID] = true
		if err := pool.ReleasePool(t.Context(), r.Yard, p.ID); err != nil {
			t.Error(err)
		}
	}
	n := r.network()
	for _, s := range n.Subnets {
		if id := ylease.DHCPPoolOf(s.Gateway.Addr()); id != "" {
			t.Errorf("gateway %v is pool %s", s.Gateway, id)
		}
	}
	if id := ylease.DHCPPoolOf((ylease.DHCPPool{}).Range().Addr()); id != "" {
		t.Errorf("0.0.0.0 is pool %q: it is how the null IPAM says that there is no gateway", id)
	}
}

func TestClientID(t *testing.T) {
	one, other := &yard.Yard{Book: &book.Book{Config: book.Config{HostID: "one"}}},
		&yard.Yard{Book: &book.Book{Config: book.Config{HostID: "other"}}}
	lan, wan := dhcp.LANPort{Parent: "br-lan"}, dhcp.LANPort{Parent: "br-wan"}
	id := ylease.ClientID(one.Book, lan, "web")
	if !bytes.Equal(id, ylease.ClientID(one.Book, lan, "web")) {
		t.Error("a container that is made anew is another client")
	}
	for what, differs := range map[string][]byte{
		"name": ylease.ClientID(one.Book, lan, "db"),
		"host": ylease.ClientID(other.Book, lan, "web"), "LAN": ylease.ClientID(one.Book, wan, "web"),
	} {
		if bytes.Equal(id, differs) {
			t.Errorf("another %s is the same client", what)
		}
	}
	if len(id) != 23 || id[0] != 255 || id[5] != 0 || id[6] != 4 { // RFC 4361, RFC 6355
		t.Errorf("identifier %x", id)
	}
}

// TestClientMAC shows that containers of different names have different MACs, and one of the same name the same MAC.
func TestClientMAC(t *testing.T) {
	y := &yard.Yard{Book: &book.Book{Config: book.Config{HostID: "one"}}}
	seen := map[string]bool{}
	for _, name := range []string{"web", "db", "web"} {
		mac, err := ylease.ClientMAC(y.Book, ylease.Request{AddressRequest: ipam.AddressRequest{Name: name}},
			dhcp.LANPort{Parent: "br-lan"})
		if err != nil || len(mac) != 6 || mac[0] != 2 {
			t.Errorf("%s: %v, %v", name, mac, err)
		}
		seen[mac.String()] = true
	}
	if len(seen) != 2 {
		t.Errorf("two names have %d hardware addresses", len(seen))
	}
}

func TestHostLabel(t *testing.T) {
	for in, want := range map[string]string{
		"web": "web", "shop_web_1": "shop-web-1", "-x.": "x", "ü": "", "a\nb": "ab",
	} {
		if got := ylease.HostLabel(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	if got := ylease.HostLabel(string(bytes.Repeat([]byte{'a'}, 100))); len(got) != 63 {
		t.Errorf("%d letters", len(got))
	}
}

// TestLeaseDuties shows the next task for a lease, by its phase and owner.
func TestLeaseDuties(t *testing.T) {
	r := newRig(t)
	now := r.now
	lease := ylease.DHCPLease{Network: netID, Phase: ylease.DHCPHeld, Since: now}
	for phase, want := range map[ylease.DHCPPhase]bool{
		ylease.DHCPOffered: false, ylease.DHCPDown: false, ylease.DHCPReleasing: true, ylease.DHCPHeld: true,
	} {
		lease.Phase = phase
		if _, do := ylease.TaskOf(r.Book, lease, now); (do != nil) != want {
			t.Errorf("%s: %v", phase, do != nil)
		}
	}
	lease.Phase = ylease.DHCPHeld
	if due, _ := ylease.TaskOf(r.Book, lease, now); due.Sub(now) != time.Minute { // an endpoint may still come
		t.Errorf("a lease without an endpoint is given back after %v", due.Sub(now))
	}
	named := modes.Endpoint{Container: modes.Container{ID: "0123456789abcdef", Name: "web", Hostname: "0123456789ab"}}
	if got := ylease.Hostname(lease, named); got != "web" {
		t.Errorf("a made-up host name: %q", got)
	}
	named.Container.Hostname = "shop"
	if got := ylease.Hostname(lease, named); got != "shop" {
		t.Errorf("a host name: %q", got)
	}
	lease.Options = map[string]string{"hostname": "false"}
	if got := ylease.Hostname(lease, named); got != "" {
		t.Errorf("hostname=false: %q", got)
	}
}
