// Package address keeps the addresses of overlay networks that this host has claimed. They are recorded in the host's
// database first and in etcd as soon as possible; a few spare ones are claimed in advance, for containers that start
// while etcd is away. It needs no kernel.
package address

import (
	"net/netip"
	"slices"
	"time"

	"netyard/cluster/record"
	"netyard/store"
)

// An Own is an address that this host has claimed. Synced says that etcd has the same.
type Own struct {
	Network  string
	Addr     netip.Addr
	Use      record.Use
	Endpoint string     `json:",omitempty"`
	MAC      record.MAC `json:",omitempty"`
	Name     string     `json:",omitempty"`
	Aliases  []string   `json:",omitempty"`
	Synced   bool       `json:",omitempty"`
	// Since is since when it has been granted to an endpoint without being published: the endpoint has not started yet,
	// has stopped, or never came.
	Since time.Time `json:",omitzero"`
	// Trying says that it is being claimed in etcd and not granted to anybody yet.
	Trying bool `json:",omitempty"`
	// Gone says that it is to be released.
	Gone bool `json:",omitempty"`
	// Unsure says that etcd did not answer when it was claimed, so that it may be another host's.
	Unsure bool `json:",omitempty"`
	// Lost says that it is another host's according to etcd. It is claimed again when it is free; until then its
	// endpoint is fenced.
	Lost bool `json:",omitempty"`
	// Mute says that its endpoint is fenced because of another address, so that this one is not published either: both
	// have the same MAC, which may be another host's as well.
	Mute bool `json:",omitempty"`
}

// owns holds the addresses of this host, by network and address.
var owns = store.Bucket[Own]{Name: "overlay_addresses"}

func (o Own) key() string { return o.Network + "/" + o.Addr.String() }

// claim returns the claim to write to etcd. The endpoint of a spare or muted address is not written.
func (o Own) claim() record.Address {
	if o.Use == record.Warm || o.Mute {
		return record.Address{Addr: o.Addr, Use: record.Warm}
	}
	return record.Address{Addr: o.Addr, Use: o.Use, Endpoint: o.Endpoint, MAC: o.MAC, Name: o.Name, Aliases: o.Aliases}
}

// record returns the claim with its key, as a record of etcd.
func (o Own) record(host string) *record.Address {
	rec := o.claim()
	rec.Network, rec.Host = o.Network, host
	return &rec
}

// same says whether two addresses have the same claim.
func same(o, p Own) bool {
	a, b := o.claim(), p.claim()
	return a.Addr == b.Addr && a.Use == b.Use && a.Endpoint == b.Endpoint && a.MAC == b.MAC && a.Name == b.Name &&
		slices.Equal(a.Aliases, b.Aliases)
}

// Idle says whether an address is a spare one that any endpoint can be granted now.
func (o Own) Idle() bool {
	return o.Use == record.Warm && o.Endpoint == "" && !o.Trying && !o.Unsure && !o.Lost
}

// fences says whether an address is the reason for its endpoint to be fenced.
func (o Own) fences() bool { return o.Lost && !o.Gone && o.Endpoint != "" }

// OfHost says whether it is an own address of the host, for its bridge.
func (o Own) OfHost() bool { return o.Use == record.OfHost && !o.Lost && !o.Gone }
