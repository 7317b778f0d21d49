package book

import (
	"fmt"

	"netyard/modes"
	"netyard/yard/event"
)

// Tell adds an event to the ring. It may be called with or without locks held.
func (y *Book) Tell(e event.Event) {
	v := &y.Ring
	v.Mu.Lock()
	defer v.Mu.Unlock()
	v.Last++
	e.ID, e.Time = v.Last, y.Config.Now()
	v.Ring = append(v.Ring, e)
	if len(v.Ring) > event.MaxEvents {
		v.Ring = v.Ring[len(v.Ring)-event.MaxEvents:]
	}
	v.Wake()
}

// Events returns the kept events after the one with that ID, and a channel that is closed when there are more. The
// channel is nil if there will be no more, since the daemon ends.
func (y *Book) Events(after uint64) (some []event.Event, more <-chan struct{}) {
	v := &y.Ring
	v.Mu.Lock()
	defer v.Mu.Unlock()
	for _, e := range v.Ring {
		if e.ID > after {
			some = append(some, e)
		}
	}
	if v.Ended {
		return some, nil
	}
	if v.More == nil {
		v.More = make(chan struct{})
	}
	return some, v.More
}

// About returns an event of a type about an endpoint.
func About(kind string, n modes.Network, e modes.Endpoint, text string) event.Event {
	return event.Event{
		Type: kind, Network: n.Name, NetworkID: n.ID, EndpointID: e.ID,
		Container: e.Container.Name, ContainerID: e.Container.ID, Text: text,
	}
}

// TellPorts records events about the ports that an endpoint got and lost, except those in but, which have other events.
func (y *Book) TellPorts(n modes.Network, was, is modes.Endpoint, but map[modes.Port]bool) {
	for _, list := range []struct {
		kind, text string
		some, not  []modes.Port
	}{
		{event.PortPublished, "port %s is published by %s", is.Ports, was.Ports},
		{event.PortWithdrawn, "port %s is no longer published by %s", was.Ports, is.Ports},
	} {
		not := map[modes.Port]bool{}
		for _, p := range list.not {
			not[p] = true
		}
		var told []modes.Port
		for _, p := range list.some {
			if !not[p] && !but[p] {
				told = append(told, p)
			}
		}
		for _, name := range PortNames(told) {
			e := About(list.kind, n, is, fmt.Sprintf(list.text, name, Owned(is)))
			e.Port = name
			y.Tell(e)
		}
	}
}

// MaxTold is how many ports of a container are told one by one when they change at once. A container decides how many
// there are, and must not fill the log and the events.
const MaxTold = 16

// PortNames returns what ports are called in messages: each its name, or one name for all if there are too many.
func PortNames(ports []modes.Port) (names []string) {
	if len(ports) > MaxTold {
		return []string{fmt.Sprintf("%s and %d more", ports[0], len(ports)-1)}
	}
	for _, p := range ports {
		names = append(names, p.String())
	}
	return names
}

// TellDeviceReturned records an event if an endpoint returned a device to the host.
func (y *Book) TellDeviceReturned(n modes.Network, e modes.Endpoint) {
	if len(e.Kept) > 0 {
		y.Tell(About(event.DeviceReturned, n, e, fmt.Sprintf("the device of %s is returned to the host", Owned(e))))
	}
}
