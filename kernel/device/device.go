// Package device moves network cards of the host into containers, and restores them on the host afterwards.
package device

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"netyard/kernel/core"
)

// devicePrefix begins the alias of a card while a container has it: netyard-device:<network>:<endpoint>:<name>. The
// alias stays with the card when it moves to another namespace and back, under whatever name (dev_change_net_namespace,
// net/core/dev.c), and is gone after a boot. So a card with the alias has to be restored, and one without is in order.
const devicePrefix = "netyard-device:"

// returnTime is how long a card may take to come back to the host: the kernel dismantles namespaces in the background
// (cleanup_net, net/core/net_namespace.c).
const returnTime = 2 * time.Second

// A Device is a card of the host that a sandbox uses exclusively.
type Device struct {
	Name              string
	Network, Endpoint string
	// Sandbox is the path of its namespace; empty if the sandbox no longer exists.
	Sandbox string
	// NS is that namespace, if known: a path may later stand for another one.
	NS core.NamespaceID
	// Was is the card's state on the host before. Noted: that state was recorded, and the card was moved.
	Was   State
	Noted bool
}

// String returns the card as messages name it.
func (d Device) String() string { return "device " + d.Name }

func (d Device) alias() string {
	return devicePrefix + d.Network + ":" + d.Endpoint + ":" + d.Name
}

// deviceOf returns the network and the name of the card that an alias is for; ok is false for any other alias.
func deviceOf(alias string) (network, name string, ok bool) {
	rest, ok := strings.CutPrefix(alias, devicePrefix)
	parts := strings.SplitN(rest, ":", 3)
	if !ok || len(parts) != 3 {
		return "", "", false
	}
	return parts[0], parts[2], true
}

func (d Device) Ensure(k *core.Handle) error {
	if err := namespacesOf(k).open(d); err != nil {
		return fmt.Errorf("open the sandbox of %s: %w", d, err)
	}
	link, err := k.LinkByAlias(k.NL, d.alias())
	if err != nil || link != nil { // it is on the host, ready to be moved into the sandbox
		return err
	}
	if inside, err := d.inside(k); err != nil || inside {
		return err
	}
	if link, err = k.Link(d.Name); err != nil {
		return err
	}
	if link == nil {
		return fmt.Errorf("take %s: %w on this host", d, unix.ENODEV)
	}
	if _, _, taken := deviceOf(link.Attrs().Alias); taken {
		return fmt.Errorf("take %s: it belongs to another container, or is not yet restored after one", d)
	}
	if err := k.NL.LinkSetAlias(link, d.alias()); err != nil {
		return fmt.Errorf("set alias of %s: %w", d, err)
	}
	return nil
}

// inside reports whether the sandbox has the card.
func (d Device) inside(k *core.Handle) (yes bool, err error) {
	err = namespacesOf(k).visit(d.alias(), func(nl *netlink.Handle) error {
		link, err := k.LinkByAlias(nl, d.alias())
		yes = link != nil
		return err
	})
	return yes, err
}

// Remove brings the card back to the host and restores its state, wherever it is and under whatever name. A card of
// that name without the alias is in order: it was never moved, or the host has booted since.
func (d Device) Remove(k *core.Handle) error {
	for end := time.Now().Add(returnTime); ; time.Sleep(returnTime / 20) {
		if err := d.bringBack(k); err != nil {
			return err
		}
		link, err := k.LinkByAlias(k.NL, d.alias())
		if err != nil {
			return err
		}
		if link != nil {
			if err := d.Was.restore(k, link, d.Name); err != nil {
				return fmt.Errorf("restore %s: %w", d, err)
			}
			break
		}
		if link, err = k.Link(d.Name); err != nil {
			return err
		} else if link != nil {
			break
		}
		if !d.Noted {
			break
		}
		if time.Now().After(end) {
			// Not an error: the card was unplugged, or deleted with its namespace, and trying again would not help.
			k.Log.Warn("device not found after its sandbox ended",
				"device", d.Name, "network_id", d.Network, "endpoint", d.Endpoint)
			break
		}
	}
	return namespacesOf(k).close(d.alias())
}

// bringBack moves the card from the sandbox to the host, if the sandbox exists or netyard holds it open.
func (d Device) bringBack(k *core.Handle) error {
	if err := namespacesOf(k).open(d); err != nil {
		return fmt.Errorf("open the sandbox of %s: %w", d, err)
	}
	return namespacesOf(k).visit(d.alias(), func(nl *netlink.Handle) error {
		link, err := k.LinkByAlias(nl, d.alias())
		if err != nil || link == nil {
			return err
		}
		// It moves under a name that no other link has.
		for _, step := range []func() error{
			func() error { return nl.LinkSetDown(link) },
			func() error { return nl.LinkSetName(link, core.Name("nydev", d.Endpoint)) },
			func() error { return nl.LinkSetNsFd(link, int(k.NS)) },
		} {
			if err = errors.Join(err, step()); err != nil {
				break
			}
		}
		if err != nil {
			return fmt.Errorf("move %s back to the host: %w", d, err)
		}
		return nil
	})
}

func (d Device) Check(s *core.View) []string {
	if link := s.Link(d.Name); link != nil && link.Attrs().Alias != d.alias() {
		return []string{d.String() + " is on the host instead of in its container"}
	}
	return nil
}

// StrayDevices returns the cards on the host that have the alias of an endpoint which no record has.
func StrayDevices(s *core.View, wanted []core.Object) (strays []core.Stray) {
	want := map[string]bool{}
	for _, o := range wanted {
		if d, ok := o.(Device); ok {
			want[d.alias()] = true
		}
	}
	for at, l := range s.Links() {
		alias := l.Attrs().Alias
		network, name, ok := deviceOf(alias)
		if !ok || want[alias] {
			continue
		}
		strays = append(strays, core.Stray{
			Text:    "alias of an unknown endpoint on device " + name + ", now named " + at,
			Network: network,
			Drop: func() error {
				link, err := s.Handle.LinkByAlias(s.Handle.NL, alias)
				if err != nil || link == nil {
					return err
				}
				return State{}.restore(s.Handle, link, name)
			},
		})
	}
	return strays
}
