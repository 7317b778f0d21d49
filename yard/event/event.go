// Package event defines the daemon's events and the ring that keeps the latest of them for watchers.
package event

import (
	"sync"
	"time"
)

// An Event is something that happened and that an admin may want to know. The latest ones are kept in memory.
type Event struct {
	// ID counts up by one, from 1, while the daemon runs.
	ID   uint64    `json:"id"`
	Time time.Time `json:"time"`
	// Type says what happened, such as port.conflict.
	Type        string `json:"type"`
	Network     string `json:"network,omitempty"`
	NetworkID   string `json:"network_id,omitempty"`
	EndpointID  string `json:"endpoint_id,omitempty"`
	Container   string `json:"container,omitempty"`
	ContainerID string `json:"container_id,omitempty"`
	// Port is the port that the event is about, as docker ps writes it.
	Port string `json:"port,omitempty"`
	// Address is the address that the event is about, if a DHCP server gave it.
	Address string `json:"address,omitempty"`
	// Owner is the owner of the resource that is in conflict.
	Owner string `json:"owner,omitempty"`
	// Text describes the event in words.
	Text string `json:"text"`
}

// The types of events.
const (
	NetworkCreated   = "network.created"
	NetworkDeleted   = "network.deleted"
	EndpointJoined   = "endpoint.joined"
	EndpointLeft     = "endpoint.left"
	EndpointFenced   = "endpoint.fenced"
	EndpointUnfenced = "endpoint.unfenced"
	PortPublished    = "port.published"
	PortWithdrawn    = "port.withdrawn"
	PortConflict     = "port.conflict"
	PortHealed       = "port.healed"
	PortIgnored      = "port.ignored"
	DeviceTaken      = "device.taken"
	DeviceReturned   = "device.given_back"
	LeaseDeclined    = "lease.declined"
	LeaseLost        = "lease.lost"
	LeaseDown        = "lease.down"
	LeaseMoved       = "lease.readdressed"
	PoliciesLost     = "policies.lost"
)

// MaxEvents is how many events are kept.
const MaxEvents = 1024

// Events is the ring of events. A watcher waits for More to be closed, which happens at the next event.
type Events struct {
	Mu    sync.Mutex
	Ring  []Event
	Last  uint64
	More  chan struct{}
	Ended bool
}

// Wake wakes the watchers. The caller holds the lock.
func (v *Events) Wake() {
	if v.More != nil {
		close(v.More)
		v.More = nil
	}
}

// End ends the ring: watchers are woken, and there will be no more events.
func (v *Events) End() {
	v.Mu.Lock()
	defer v.Mu.Unlock()
	v.Ended = true
	v.Wake()
}
