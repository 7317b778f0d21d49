// Package event is what happened, kept for those who watch.
package event

import (
	"sync"
	"time"
)

// An Event is something that happened and that somebody may want to be told of. The last ones are kept in memory.
type Event struct {
	// ID counts up by one, from 1, for as long as the daemon runs.
	ID   uint64    `json:"id"`
	Time time.Time `json:"time"`
	// Type is what happened, such as port.conflict.
	Type        string `json:"type"`
	Network     string `json:"network,omitempty"`
	NetworkID   string `json:"network_id,omitempty"`
	EndpointID  string `json:"endpoint_id,omitempty"`
	Container   string `json:"container,omitempty"`
	ContainerID string `json:"container_id,omitempty"`
	// Port is what it is about, as docker ps writes it.
	Port string `json:"port,omitempty"`
	// Address is what it is about, when that is an address that a DHCP server gave.
	Address string `json:"address,omitempty"`
	// Owner is who has what somebody else wants.
	Owner string `json:"owner,omitempty"`
	// Text says it in words.
	Text string `json:"text"`
}

// The types of events.
const (
	NetworkCreated  = "network.created"
	NetworkDeleted  = "network.deleted"
	EndpointJoined  = "endpoint.joined"
	EndpointLeft    = "endpoint.left"
	EndpointFenced  = "endpoint.fenced"
	EndpointFreed   = "endpoint.unfenced"
	PortPublished   = "port.published"
	PortWithdrawn   = "port.withdrawn"
	PortConflict    = "port.conflict"
	PortHealed      = "port.healed"
	PortIgnored     = "port.ignored"
	DeviceTaken     = "device.taken"
	DeviceGivenBack = "device.given_back"
	LeaseDeclined   = "lease.declined"
	LeaseLost       = "lease.lost"
	LeaseDown       = "lease.down"
	LeaseMoved      = "lease.readdressed"
	PoliciesLost    = "policies.lost"
)

// ManyEvents is how many of them are kept.
const ManyEvents = 1024

// Events is the ring of them. Whoever wants to hear of more waits for the channel to be closed.
type Events struct {
	Mu    sync.Mutex
	Ring  []Event
	Last  uint64
	More  chan struct{}
	Ended bool
}

// Wake wakes those who wait for events; the lock is held.
func (v *Events) Wake() {
	if v.More != nil {
		close(v.More)
		v.More = nil
	}
}

// End lets those go who wait.
func (v *Events) End() {
	v.Mu.Lock()
	defer v.Mu.Unlock()
	v.Ended = true
	v.Wake()
}
