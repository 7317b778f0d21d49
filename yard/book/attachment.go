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

// An AttachRequest is what a CNI runtime wants for one interface of one container.
type AttachRequest struct {
	NetworkID string
	// Attachment is the container as the runtime calls it, and IfName the interface's name inside.
	Attachment, IfName string
	// Config is the name of the configuration that the runtime attaches it by.
	Config string
	// Sandbox is the path of the container's network namespace, as far as the runtime knows one, and NS an open
	// descriptor of it.
	Sandbox string
	NS      int
	// Pools are subnets of the network; one address is wanted from each group. Nil: one of each family the network has.
	Pools [][]netip.Prefix
	// Addrs are asked for by name; each stands for that of its group.
	Addrs   []netip.Addr
	MAC     string
	Options map[string]string // canonical names
	// Ports are published, but for those that another interface of the container has: a runtime asks for the same on
	// each.
	Ports []Ask
	// Reserver is a process that listens on the ports for the runtime, to keep others off them; 0: there is none.
	Reserver int
	// Container is who it is, as far as that is known.
	Container modes.Container
	Aliases   []string
	// Routes says what routes a container with these addresses has beside those of the network, or, with OwnRoutes,
	// instead of them.
	Routes    func(addrs []netip.Prefix) []modes.Route
	OwnRoutes bool
	// Leased are addresses that a DHCP server gave for it, allotted those that are claimed in a cluster.
	Leased   []netip.Prefix
	Allotted Allotment
}

// Attached is an endpoint as it was plugged in.
type Attached struct {
	Network  modes.Network
	Endpoint modes.Endpoint
	HostLink string // empty when the mode has none
	// Lease is what a DHCP server gave; the zero Lease where none did.
	Lease dhcp.Lease
}

// Attachments finds the endpoint of a container's interface.
var Attachments = store.Bucket[string]{Name: "attachments"}

// AttachmentKey begins with the container: all that a container has is found together. No part of it can contain the
// separator.
func AttachmentKey(attachment, network, ifName string) string {
	return attachment + "|" + network + "|" + ifName
}

// ContainerLock is of all attachments of a container.
func ContainerLock(attachment string) string { return "container " + attachment }

// Attachment finds the endpoint of a container's interface.
func (y *Book) Attachment(attachment, network, ifName string) (e modes.Endpoint, err error) {
	err = y.Config.Store.View(func(tx store.Tx) error {
		e, err = GetAttachment(tx, attachment, network, ifName)
		return err
	})
	return e, err
}

// GetAttachment finds the endpoint of a container's interface.
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

// DropAttachment forgets that the endpoint is its container's, unless another one is by now.
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

// AttachmentsOf are all endpoints of a container.
func (y *Book) AttachmentsOf(attachment string) (es []modes.Endpoint, err error) {
	err = y.Config.Store.View(func(tx store.Tx) error {
		es, err = AttachmentsOf(tx, attachment)
		return err
	})
	return es, err
}

// AttachmentsOf are all endpoints of a container.
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

// Attachments lists the endpoints of a network that came by CNI.
func (y *Book) Attachments(network string) (es []modes.Endpoint, err error) {
	all, err := y.EndpointsOf(network)
	for _, e := range all {
		if e.Attachment != "" {
			es = append(es, e)
		}
	}
	return es, err
}

// An Allotment is what an attachment is to have on a network of a cluster. It is claimed before anything is recorded:
// that may take a while.
type Allotment struct {
	Addrs []netip.Prefix
	// Had are those of them that the attachment has already, spare what it has besides and is to give up.
	Had, Spare []netip.Addr
}
