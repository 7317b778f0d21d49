package yardtest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/kernel/sandbox"
)

// A box is a container's network namespace.
type box struct {
	path  string
	id    core.NamespaceID
	links []sandbox.Plug
}

func (b *box) has(name string) bool {
	return slices.ContainsFunc(b.links, func(p sandbox.Plug) bool { return p.Name == name })
}

// OpenSandbox returns a descriptor of the sandbox at a path, and makes it if there is none.
func (k *Kernel) OpenSandbox(path string) (fd int) {
	if b := k.at(path); b != nil {
		return int(b.id.Ino) //nolint:gosec // a small number
	}
	k.made++
	const first = 100
	fd = first + k.made
	k.AddSandbox(path, fd)
	return fd
}

// AddSandbox makes a sandbox that a descriptor of the caller's stands for.
func (k *Kernel) AddSandbox(path string, fd int) {
	id := core.NamespaceID{Dev: 1, Ino: uint64(fd)} //nolint:gosec // positive
	k.sandboxes = append(k.sandboxes, &box{path: path, id: id})
}

// EndSandbox removes a sandbox with the links in it, as the kernel does when a container ends.
func (k *Kernel) EndSandbox(path string) {
	b := k.at(path)
	if b == nil {
		return
	}
	k.sandboxes = slices.DeleteFunc(k.sandboxes, func(o *box) bool { return o == b })
	for _, p := range b.links {
		for _, o := range slices.Clone(k.objects) {
			if len(namesOf(o)) > 0 && field(o, "Alias") == p.Alias {
				k.drop(o)
			}
		}
	}
}

// Move moves a link into a sandbox, as Docker does after a join.
func (k *Kernel) Move(ctx context.Context, path string, p sandbox.Plug) error {
	return k.PlugIn(ctx, k.OpenSandbox(path), p)
}

// MoveBack moves the links with an alias out of all sandboxes, as Docker does after a container has left.
func (k *Kernel) MoveBack(alias string) {
	for _, b := range k.sandboxes {
		b.links = slices.DeleteFunc(b.links, func(p sandbox.Plug) bool { return p.Alias == alias })
	}
}

func (k *Kernel) at(path string) *box {
	for _, b := range k.sandboxes {
		if b.path == path {
			return b
		}
	}
	return nil
}

func (k *Kernel) open(fd int) (*box, error) {
	for _, b := range k.sandboxes {
		if b.id.Ino == uint64(fd) { //nolint:gosec // positive
			return b, nil
		}
	}
	return nil, errors.New("identify sandbox: it is not a network namespace")
}

// SandboxID returns the ID of the sandbox that a descriptor refers to.
func (k *Kernel) SandboxID(fd int) (core.NamespaceID, error) {
	b, err := k.open(fd)
	if err != nil {
		return core.NamespaceID{}, err
	}
	return b.id, nil
}

// NamespaceAt returns the ID of the sandbox at a path.
func (k *Kernel) NamespaceAt(path string) (id core.NamespaceID, ok bool) {
	if b := k.at(path); b != nil {
		return b.id, true
	}
	return id, false
}

// IsNamespace reports whether there is a sandbox at a path.
func (k *Kernel) IsNamespace(path string) bool { return k.at(path) != nil }

// PlugIn moves a link into a sandbox.
func (k *Kernel) PlugIn(_ context.Context, fd int, p sandbox.Plug) error {
	b, err := k.open(fd)
	if err != nil {
		return err
	}
	if p.Link == p.Name { // it was made in the sandbox
		at := slices.IndexFunc(b.links, func(o sandbox.Plug) bool { return o.Name == p.Name && o.Alias == p.Alias })
		if at < 0 {
			return fmt.Errorf("find link %s in the sandbox: no such device", p.Name)
		}
		b.links[at] = p
		return nil
	}
	if b.has(p.Name) {
		return fmt.Errorf("move link %s into the sandbox: it has a link %s: %w", p.Link, p.Name, fs.ErrExist)
	}
	if !k.hasLink(p.Link) {
		return fmt.Errorf("move link %s into the sandbox: no such device", p.Link)
	}
	b.links = append(b.links, p)
	return nil
}

// Unplug removes a link from a sandbox.
func (k *Kernel) Unplug(fd int, p sandbox.Plug) error {
	b, err := k.open(fd)
	if err == nil {
		b.links = slices.DeleteFunc(b.links, func(o sandbox.Plug) bool {
			return o.Name == p.Name && o.Alias == p.Alias
		})
	}
	return err
}

// PlugFaults reports a link that is missing in a sandbox.
func (k *Kernel) PlugFaults(fd int, p sandbox.Plug) ([]string, error) {
	b, err := k.open(fd)
	if err != nil {
		return nil, err
	}
	if !b.has(p.Name) {
		return []string{"link " + p.Name + " is missing in the sandbox"}, nil
	}
	return nil, nil
}

// Plugged reports whether a sandbox has the link that an object plugs in.
func (k *Kernel) Plugged(o core.Object) (bool, error) {
	alias := field(o, "Alias")
	return len(namesOf(o)) > 0 && slices.ContainsFunc(k.sandboxes, func(b *box) bool {
		return slices.ContainsFunc(b.links, func(p sandbox.Plug) bool { return p.Alias == alias })
	}), nil
}

// FindIn lists the links in the sandbox at a path.
func (k *Kernel) FindIn(path string) (all []sandbox.Found, err error) {
	b := k.at(path)
	if b == nil {
		return nil, nil
	}
	for _, p := range b.links {
		network, endpoint, _ := core.ParseAlias(p.Alias)
		f := sandbox.Found{Network: network, Endpoint: endpoint, Plug: p}
		f.Plug.Link = p.Name
		for _, o := range k.objects {
			if v, ok := o.(bridge.Veth); ok && v.Alias == p.Alias {
				f.MAC = v.MAC.String()
			}
		}
		all = append(all, f)
	}
	return all, nil
}

// DefaultRoutes lists the default routes of the sandbox at a path.
func (k *Kernel) DefaultRoutes(path string, _ core.NamespaceID) ([]sandbox.DefaultRoute, error) {
	return k.Defaults[path], nil
}

// Listeners lists the host's sockets.
func (k *Kernel) Listeners(protos ...string) (all []sandbox.Listener, err error) {
	for _, l := range k.Listening {
		if len(protos) == 0 || slices.Contains(protos, l.Proto) {
			all = append(all, l)
		}
	}
	return all, nil
}

// EphemeralPorts returns Linux's own range.
func (*Kernel) EphemeralPorts() (first, last uint16, err error) {
	const from, to = 32768, 60999
	return from, to, nil
}
