package kernel

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// devicePrefix begins the alias of a card of the host's while a container has it: netyard-device:<network>:<endpoint>:<name>. The
// alias goes with the card into another namespace and back, under whatever name (dev_change_net_namespace, net/core/dev.c), and is
// gone with the next boot: so a card that carries it is one that has to be put back in order, and one that does not is in order.
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
	Was   DeviceState
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

func (d Device) ensure(k *Kernel) error {
	if err := k.spaces.hold(d.alias(), d.Sandbox); err != nil {
		return fmt.Errorf("keep the sandbox of %s: %w", d, err)
	}
	link, err := k.linkByAlias(k.nl, d.alias())
	if err != nil || link != nil { // it waits to be moved in
		return err
	}
	if inside, err := d.inside(k); err != nil || inside {
		return err
	}
	if link, err = k.link(d.Name); err != nil {
		return err
	}
	if link == nil {
		return fmt.Errorf("take %s: %w on this host", d, unix.ENODEV)
	}
	if _, _, taken := deviceOf(link.Attrs().Alias); taken {
		return fmt.Errorf("take %s: another container has it, or has not yet given it back", d)
	}
	if err := k.nl.LinkSetAlias(link, d.alias()); err != nil {
		return fmt.Errorf("mark %s: %w", d, err)
	}
	return nil
}

// inside says whether the sandbox has the card.
func (d Device) inside(k *Kernel) (yes bool, err error) {
	err = k.spaces.in(d.alias(), func(nl *netlink.Handle) error {
		link, err := k.linkByAlias(nl, d.alias())
		yes = link != nil
		return err
	})
	return yes, err
}

// remove gives the card back as it was: wherever it is, under whatever name. A card that carries no mark is in order: it was never
// taken, or the host has started since.
func (d Device) remove(k *Kernel) error {
	for end := time.Now().Add(homecoming); ; time.Sleep(homecoming / 20) {
		if err := d.fetch(k); err != nil {
			return err
		}
		link, err := k.linkByAlias(k.nl, d.alias())
		if err != nil {
			return err
		}
		if link != nil {
			if err := d.Was.restore(k, link, d.Name); err != nil {
				return fmt.Errorf("give %s back: %w", d, err)
			}
			break
		}
		if link, err = k.link(d.Name); err != nil {
			return err
		} else if link != nil {
			break
		}
		if !d.Noted {
			break
		}
		if time.Now().After(end) {
			// Not an error: nobody can bring back what is unplugged, or was deleted with its namespace.
			k.log.Warn("a device did not come back from its container", "device", d.Name, "network", d.Network, "endpoint", d.Endpoint)
			break
		}
	}
	return k.spaces.release(d.alias())
}

// fetch brings the card home from a sandbox that is still there, or is kept by netyard.
func (d Device) fetch(k *Kernel) error {
	if err := k.spaces.hold(d.alias(), d.Sandbox); err != nil {
		return fmt.Errorf("keep the sandbox of %s: %w", d, err)
	}
	return k.spaces.in(d.alias(), func(nl *netlink.Handle) error {
		link, err := k.linkByAlias(nl, d.alias())
		if err != nil || link == nil {
			return err
		}
		// On the way it has a name that nobody else has.
		for _, step := range []func() error{
			func() error { return nl.LinkSetDown(link) },
			func() error { return nl.LinkSetName(link, Name("nydev", d.Endpoint)) },
			func() error { return nl.LinkSetNsFd(link, int(k.subscribeNS)) },
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

func (d Device) check(s *snapshot) []string {
	if link := s.links[d.Name]; link != nil && link.Attrs().Alias != d.alias() {
		return []string{d.String() + " is on the host instead of in its container"}
	}
	return nil
}

// linkByAlias finds the link that carries an alias; nil when there is none.
func (*Kernel) linkByAlias(nl *netlink.Handle, alias string) (netlink.Link, error) {
	links, err := retry(nl.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		if l.Attrs().Alias == alias {
			return l, nil
		}
	}
	return nil, nil //nolint:nilnil // nothing there is an answer
}

// strayDevices are the cards on the host that carry the mark of an endpoint which nobody knows.
func (s *snapshot) strayDevices(wanted []Object) (strays []Stray) {
	want := map[string]bool{}
	for _, o := range wanted {
		if d, ok := o.(Device); ok {
			want[d.alias()] = true
		}
	}
	for at, l := range s.links {
		alias := l.Attrs().Alias
		network, name, ok := deviceOf(alias)
		if !ok || want[alias] {
			continue
		}
		strays = append(strays, Stray{Text: "mark of a container on device " + name + ", now " + at, Network: network, remove: func() error {
			link, err := s.k.linkByAlias(s.k.nl, alias)
			if err != nil || link == nil {
				return err
			}
			return DeviceState{}.restore(s.k, link, name)
		}})
	}
	return strays
}

// spaces are the namespaces that netyard keeps from ending: a virtual link ends with its namespace (default_device_exit_batch,
// net/core/dev.c), and a card that goes home by itself goes to the first namespace of the machine, which need not be the host's.
type spaces struct {
	mu sync.Mutex
	by map[string]*os.File
}

// hold keeps the namespace behind a path, under a key. No path, or no namespace there, is nothing to keep.
func (s *spaces) hold(key, path string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.by[key] != nil || path == "" || !IsNamespace(path) {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	if s.by == nil {
		s.by = map[string]*os.File{}
	}
	s.by[key] = f
	return nil
}

// in calls f with the namespace that is kept under a key, if there is one.
func (s *spaces) in(key string, f func(*netlink.Handle) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	ns := s.by[key]
	if ns == nil {
		return nil
	}
	nl, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("look into a sandbox: %w", err)
	}
	defer nl.Close()
	if err := nl.SetSocketTimeout(netlinkTimeout); err != nil {
		return fmt.Errorf("bound netlink's waits: %w", err)
	}
	return f(nl)
}

func (s *spaces) release(key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.by[key]
	delete(s.by, key)
	if f == nil {
		return nil
	}
	return f.Close()
}

func (s *spaces) close() error {
	var errs []error
	for key := range s.by {
		errs = append(errs, s.release(key))
	}
	return errors.Join(errs...)
}

// deviceUp says whether a link was set up, whatever its carrier says.
func deviceUp(a *netlink.LinkAttrs) bool { return a.Flags&net.FlagUp != 0 }
