package yard

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"netyard/modes"
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

// manyEvents is how many of them are kept.
const manyEvents = 1024

// events is the ring of them. Whoever wants to hear of more waits for the channel to be closed.
type events struct {
	mu    sync.Mutex
	ring  []Event
	last  uint64
	more  chan struct{}
	ended bool
}

// tell keeps an event. The caller need not hold anything, and may.
func (y *Yard) tell(e Event) {
	v := &y.events
	v.mu.Lock()
	defer v.mu.Unlock()
	v.last++
	e.ID, e.Time = v.last, y.c.Now()
	v.ring = append(v.ring, e)
	if len(v.ring) > manyEvents {
		v.ring = v.ring[len(v.ring)-manyEvents:]
	}
	v.wake()
}

func (v *events) wake() {
	if v.more != nil {
		close(v.more)
		v.more = nil
	}
}

// end lets those go who wait.
func (v *events) end() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.ended = true
	v.wake()
}

// Events returns the kept events behind the one with that ID, and a channel that is closed when there are more. The
// channel is nil when there will be none: the daemon ends.
func (y *Yard) Events(after uint64) (some []Event, more <-chan struct{}) {
	v := &y.events
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, e := range v.ring {
		if e.ID > after {
			some = append(some, e)
		}
	}
	if v.ended {
		return some, nil
	}
	if v.more == nil {
		v.more = make(chan struct{})
	}
	return some, v.more
}

// about is an event of that type of an endpoint.
func about(kind string, n modes.Network, e modes.Endpoint, text string) Event {
	return Event{
		Type: kind, Network: n.Name, NetworkID: n.ID, EndpointID: e.ID, Container: e.Container.Name, ContainerID: e.Container.ID, Text: text,
	}
}

// tellPorts says which ports an endpoint got and lost, but for those that are said otherwise.
func (y *Yard) tellPorts(n modes.Network, was, is modes.Endpoint, but map[modes.Port]bool) {
	for _, list := range []struct {
		kind, text string
		some, not  []modes.Port
	}{
		{PortPublished, "port %s is %s's", is.Ports, was.Ports},
		{PortWithdrawn, "port %s is no longer %s's", was.Ports, is.Ports},
	} {
		for _, p := range list.some {
			if !slices.Contains(list.not, p) && !but[p] {
				e := about(list.kind, n, is, fmt.Sprintf(list.text, p, owned(is)))
				e.Port = p.String()
				y.tell(e)
			}
		}
	}
}

// tellGivenBack says that the host has again what an endpoint had taken.
func (y *Yard) tellGivenBack(n modes.Network, e modes.Endpoint) {
	if len(e.Kept) > 0 {
		y.tell(about(DeviceGivenBack, n, e, fmt.Sprintf("the host has back what %s had", owned(e))))
	}
}

// owned names an endpoint by its container, if that is known.
func owned(e modes.Endpoint) string {
	if e.Container.Name != "" {
		return "container " + e.Container.Name
	}
	return "endpoint " + modes.Short(e.ID)
}
