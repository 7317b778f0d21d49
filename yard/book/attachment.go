package book

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"netyard/ipam/dhcp"
	"netyard/modes"
	"netyard/store"
)

// An AttachRequest is the request of a CNI runtime for one interface of one container.
type AttachRequest struct {
	// Network is the network as its door found it.
	Network modes.Network
	// Attachment is the runtime's ID of the container, and IfName the interface's name in the sandbox.
	Attachment, IfName string
	// Config is the name of the CNI configuration.
	Config string
	// Sandbox is the path of the container's network namespace, if the runtime knows one, and NS an open descriptor of
	// it.
	Sandbox string
	NS      int
	// Pools are groups of the network's subnets; one address is wanted from each group. Nil: one of each family.
	Pools [][]netip.Prefix
	// Addrs are the requested addresses; each is the one of its group.
	Addrs   []netip.Addr
	MAC     string
	Options map[string]string // canonical names
	// Ports are published, except those that another interface of the container has: a runtime requests the same ports
	// on each.
	Ports []PortRequest
	// Reserver is a process that listens on the ports for the runtime, to reserve them; 0: there is none.
	Reserver int
	// Container is the container as far as it is known.
	Container modes.Container
	Aliases   []string
	// Routes returns the routes of a container with these addresses, beside those of the network, or, with OwnRoutes,
	// in place of them.
	Routes    func(addrs []netip.Prefix) []modes.Route
	OwnRoutes bool
}

// Attached is an attachment as it was set up.
type Attached struct {
	Network  modes.Network
	Endpoint modes.Endpoint
	HostLink string // empty when the mode has none
	// Lease is the DHCP lease; zero if there is none.
	Lease dhcp.Lease
}

// Attachments has the IDs of endpoints by AttachmentKey.
var Attachments = store.Bucket[string]{Name: "attachments"}

// AttachmentKey returns the key of an attachment. It begins with the container, so that the attachments of a container
// are together. No part of it can contain the separator.
func AttachmentKey(attachment, network, ifName string) string {
	return attachment + "|" + network + "|" + ifName
}

// ContainerLock returns the name of the lock of all attachments of a container.
func ContainerLock(attachment string) string { return "container " + attachment }

// An Interface names an attachment of a container and its endpoint.
type Interface struct {
	Holder

	IfName string
}

// Interfaces returns the attachments of a container, without reading the records of their endpoints.
func (y *Book) Interfaces(attachment string) (all []Interface, err error) {
	err = y.Config.Store.View(func(tx store.Tx) error {
		return Attachments.Each(tx, attachment+"|", func(key, id string) error {
			network, ifName, _ := strings.Cut(strings.TrimPrefix(key, attachment+"|"), "|")
			all = append(all, Interface{Holder{network, id}, ifName})
			return nil
		})
	})
	return all, err
}

// Attachment returns the endpoint of a container's interface.
func (y *Book) Attachment(attachment, network, ifName string) (e modes.Endpoint, err error) {
	err = y.Config.Store.View(func(tx store.Tx) error {
		e, err = GetAttachment(tx, attachment, network, ifName)
		return err
	})
	return e, err
}

// GetAttachment returns the endpoint of a container's interface.
func GetAttachment(tx store.Tx, attachment, network, ifName string) (modes.Endpoint, error) {
	id, err := Attachments.Get(tx, AttachmentKey(attachment, network, ifName))
	if errors.Is(err, store.ErrNotFound) {
		return modes.Endpoint{}, fmt.Errorf("attachment %s of container %s: %w", ifName, attachment, ErrNotFound)
	}
	if err != nil {
		return modes.Endpoint{}, err
	}
	return GetEndpoint(tx, network, id)
}

// DropAttachment deletes the attachment of an endpoint, unless the container's interface has another endpoint by now.
func DropAttachment(tx store.Tx, e modes.Endpoint) error {
	if e.Attachment == "" {
		return nil
	}
	key := AttachmentKey(e.Attachment, e.NetworkID, e.IfName)
	id, err := Attachments.Get(tx, key)
	if errors.Is(err, store.ErrNotFound) || err == nil && id != e.ID {
		return nil
	}
	if err != nil {
		return err
	}
	return Attachments.Delete(tx, key)
}

// AttachmentsOf returns all endpoints of a container.
func (y *Book) AttachmentsOf(attachment string) (es []modes.Endpoint, err error) {
	err = y.Config.Store.View(func(tx store.Tx) error {
		es, err = AttachmentsOf(tx, attachment)
		return err
	})
	return es, err
}

// AttachmentsOf returns all endpoints of a container.
func AttachmentsOf(tx store.Tx, attachment string) (es []modes.Endpoint, err error) {
	err = Attachments.Each(tx, attachment+"|", func(key, id string) error {
		network, _, _ := strings.Cut(strings.TrimPrefix(key, attachment+"|"), "|")
		e, err := GetEndpoint(tx, network, id)
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		es = append(es, e)
		return err
	})
	return es, err
}

// Attachments returns the endpoints of a network that came by CNI.
func (y *Book) Attachments(network string) (es []modes.Endpoint, err error) {
	all, err := y.EndpointsOf(network)
	for _, e := range all {
		if e.Attachment != "" {
			es = append(es, e)
		}
	}
	return es, err
}
