package core

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
)

// A View is the state of the kernel at one moment: links, addresses and routes, and the dumps of other packages, which
// are made when first asked for. A narrow view reads nothing before somebody asks for it, and then as little as it can:
// what it costs depends on the objects that are compared with it, and not on what else the host has.
type View struct {
	Handle *Handle
	// Firewall: the view includes the firewall. Otherwise it looks as if the host had none.
	Firewall bool
	// Narrow: the view has only what somebody has asked for.
	Narrow bool

	links  map[string]netlink.Link
	all    bool // links are all links
	addrs  map[int][]netlink.Addr
	routes map[int][]netlink.Route

	mu    sync.Mutex
	dumps map[dumpKey]any
	reads int
	err   error
}

// NewView reads the links, addresses and routes of the namespace into a View.
func NewView(h *Handle, firewall bool) (*View, error) {
	v := &View{Handle: h, Firewall: firewall, routes: map[int][]netlink.Route{}, dumps: map[dumpKey]any{}}
	v.Links()
	v.readAddrs()
	routes, err := Retry(func() ([]netlink.Route, error) { return h.NL.RouteList(nil, netlink.FAMILY_ALL) })
	v.Note(len(routes), wrap("list routes", err))
	for _, r := range routes {
		v.routes[r.LinkIndex] = append(v.routes[r.LinkIndex], r)
	}
	return v, v.err
}

// NarrowView returns a narrow View, without the firewall.
func NarrowView(h *Handle) *View {
	return &View{
		Handle: h, Narrow: true,
		links: map[string]netlink.Link{}, routes: map[int][]netlink.Route{}, dumps: map[dumpKey]any{},
	}
}

// Links returns all links, by name.
func (v *View) Links() map[string]netlink.Link {
	if v.all || v.Handle == nil {
		return v.links
	}
	links, err := v.Handle.ListLinks()
	v.Note(len(links), err)
	v.links, v.all = map[string]netlink.Link{}, true
	for _, l := range links {
		v.links[l.Attrs().Name] = l
	}
	return v.links
}

// Link returns the link of a name, or nil if there is none.
func (v *View) Link(name string) netlink.Link {
	l, known := v.links[name]
	if known || v.all || v.Handle == nil || name == "" {
		return l
	}
	l, err := v.Handle.Link(name)
	v.Note(1, err)
	if l != nil && l.Attrs().Name != name { // it is an alternative name of another link
		l = nil
	}
	v.links[name] = l
	return l
}

// AddrsOf returns the addresses of a link, by its index.
func (v *View) AddrsOf(link int) []netlink.Addr {
	v.readAddrs()
	return v.addrs[link]
}

// HasAddr reports whether a link of the host has an address.
func (v *View) HasAddr(a netip.Addr) bool {
	v.readAddrs()
	for of := range maps.Values(v.addrs) {
		if slices.ContainsFunc(of, func(got netlink.Addr) bool { return PrefixOf(got.IPNet).Addr() == a }) {
			return true
		}
	}
	return false
}

// readAddrs reads all addresses: links of endpoints have none on the host, so they are few.
func (v *View) readAddrs() {
	if v.addrs != nil || v.Handle == nil {
		return
	}
	v.addrs = map[int][]netlink.Addr{}
	addrs, err := Retry(func() ([]netlink.Addr, error) { return v.Handle.NL.AddrList(nil, netlink.FAMILY_ALL) })
	v.Note(len(addrs), wrap("list addresses", err))
	for _, a := range addrs {
		v.addrs[a.LinkIndex] = append(v.addrs[a.LinkIndex], a)
	}
}

// RoutesOf returns the routes of the main table by a link, by its index.
func (v *View) RoutesOf(link int) []netlink.Route {
	routes, known := v.routes[link]
	if known || !v.Narrow {
		return routes
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		some, err := Retry(func() ([]netlink.Route, error) {
			by := &netlink.Route{LinkIndex: link}
			return v.Handle.Filtered.RouteListFiltered(family, by, netlink.RT_FILTER_OIF)
		})
		v.Note(len(some), wrap("list routes", err))
		routes = append(routes, some...)
	}
	v.routes[link] = routes
	return routes
}

// Routes returns the routes that the view has, by the index of their link; a narrow view has few.
func (v *View) Routes() map[int][]netlink.Route { return v.routes }

// Note counts what was read, and keeps the first error.
func (v *View) Note(reads int, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.reads += reads
	if v.err == nil {
		v.err = err
	}
}

// Reads returns how many links, addresses, routes and other things were read so far.
func (v *View) Reads() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.reads
}

// Err returns why something could not be read; what was compared with it is not known then.
func (v *View) Err() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.err
}

func wrap(act string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", act, err)
	}
	return nil
}

// A dumpKey identifies what is read once a view: of all links, or of one by its index.
type dumpKey struct {
	of   reflect.Type
	link int
}

// Dump returns what read reads for a view. It calls read once a view, and stores one result of each type.
func Dump[T any](v *View, read func(*View) (T, error)) (T, error) {
	return DumpOf(v, 0, read)
}

// DumpOf is Dump of one link, by its index: it calls read once for each.
func DumpOf[T any](v *View, link int, read func(*View) (T, error)) (T, error) {
	v.mu.Lock()
	key := dumpKey{reflect.TypeFor[T](), link}
	if v.dumps[key] == nil {
		v.dumps[key] = sync.OnceValues(func() (T, error) {
			t, err := read(v)
			if v.Narrow { // nobody has read it before and looked at the error
				v.Note(0, err)
			}
			return t, err
		})
	}
	once := v.dumps[key].(func() (T, error))
	v.mu.Unlock()
	return once()
}
