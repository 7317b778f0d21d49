// Package device is about cards of the host's that a container has for itself: taken, given back, and put in order.
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

// devicePrefix begins the alias of a card of the host's while a container has it:
// netyard-device:<network>:<endpoint>:<name>. The alias goes with the card into another namespace and back, under
// whatever name (dev_change_net_namespace, net/core/dev.c), and is gone with the next boot: so a card that carries it
// is one that has to be put back in order, and one that does not is in order.
const devicePrefix = "netyard-device:"

// homecoming is how long a card may be under way: the kernel takes namespaces apart in the background (cleanup_net,
// net/core/net_namespace.c).
const homecoming = 2 * time.Second

// A Device is a card of the host's that a sandbox gets for itself.
type Device struct {
	Name              string
	Network, Endpoint string
	// Sandbox is the path of its namespace; empty when there is none any more.
	Sandbox string
	// Was is what it was like on the host. Noted says that this is known, and that the card was taken.
	Was   State
	Noted bool
}

// String names the card.
func (d Device) String() string { return "device " + d.Name }

func (d Device) alias() string {
	return devicePrefix + d.Network + ":" + d.Endpoint + ":" + d.Name
}

// deviceOf is the network and the name of a card that carries an alias.
func deviceOf(alias string) (network, name string, ok bool) {
	rest, ok := strings.CutPrefix(alias, devicePrefix)
	parts := strings.SplitN(rest, ":", 3)
	if !ok || len(parts) != 3 {
		return "", "", false
	}
	return parts[0], parts[2], true
}

func (d Device) Ensure(k *core.Handle) error {
	if err := spacesOf(k).hold(d.alias(), d.Sandbox); err != nil {
		return fmt.Errorf("keep the sandbox of %s: %w", d, err)
	}
	link, err := k.LinkByAlias(k.NL, d.alias())
	if err != nil || link != nil { // it waits to be moved in
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
		return fmt.Errorf("take %s: another container has it, or has not yet given it back", d)
	}
	if err := k.NL.LinkSetAlias(link, d.alias()); err != nil {
		return fmt.Errorf("mark %s: %w", d, err)
	}
	return nil
}

// inside says whether the sandbox has the card.
func (d Device) inside(k *core.Handle) (yes bool, err error) {
	err = spacesOf(k).in(d.alias(), func(nl *netlink.Handle) error {
		link, err := k.LinkByAlias(nl, d.alias())
		yes = link != nil
		return err
	})
	return yes, err
}

// Remove gives the card back as it was: wherever it is, under whatever name. A card that carries no mark is in order:
// it was never taken, or the host has started since.
func (d Device) Remove(k *core.Handle) error {
	for end := time.Now().Add(homecoming); ; time.Sleep(homecoming / 20) {
		if err := d.fetch(k); err != nil {
			return err
		}
		link, err := k.LinkByAlias(k.NL, d.alias())
		if err != nil {
			return err
		}
		if link != nil {
			if err := d.Was.restore(k, link, d.Name); err != nil {
				return fmt.Errorf("give %s back: %w", d, err)
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
			// Not an error: nobody can bring back what is unplugged, or was deleted with its namespace.
			k.Log.Warn("a device did not come back from its container", "device", d.Name, "network", d.Network, "endpoint", d.Endpoint)
			break
		}
	}
	return spacesOf(k).release(d.alias())
}

// fetch brings the card home from a sandbox that is still there, or is kept by netyard.
func (d Device) fetch(k *core.Handle) error {
	if err := spacesOf(k).hold(d.alias(), d.Sandbox); err != nil {
		return fmt.Errorf("keep the sandbox of %s: %w", d, err)
	}
	return spacesOf(k).in(d.alias(), func(nl *netlink.Handle) error {
		link, err := k.LinkByAlias(nl, d.alias())
		if err != nil || link == nil {
			return err
		}
		// On the way it has a name that nobody else has.
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
			return fmt.Errorf("take %s back from its sandbox: %w", d, err)
		}
		return nil
	})
}

func (d Device) Check(s *core.View) []string {
	if link := s.Links[d.Name]; link != nil && link.Attrs().Alias != d.alias() {
		return []string{d.String() + " is on the host instead of in its container"}
	}
	return nil
}

// StrayDevices are the cards on the host that carry the mark of an endpoint which nobody knows.
func StrayDevices(s *core.View, wanted []core.Object) (strays []core.Stray) {
	want := map[string]bool{}
	for _, o := range wanted {
		if d, ok := o.(Device); ok {
			want[d.alias()] = true
		}
	}
	for at, l := range s.Links {
		alias := l.Attrs().Alias
		network, name, ok := deviceOf(alias)
		if !ok || want[alias] {
			continue
		}
		strays = append(strays, core.Stray{Text: "mark of a container on device " + name + ", now " + at, Network: network, Drop: func() error {
			link, err := s.Handle.LinkByAlias(s.Handle.NL, alias)
			if err != nil || link == nil {
				return err
			}
			return State{}.restore(s.Handle, link, name)
		}})
	}
	return strays
}
