package core

import (
	"fmt"
	"reflect"
	"sync"

	"github.com/vishvananda/netlink"
)

// A View is the state of the kernel at one moment: links, addresses and routes, and the dumps of other packages, which
// are made when first asked for.
type View struct {
	Handle *Handle
	// Firewall: the view includes the firewall. Otherwise it looks as if the host had none.
	Firewall bool
	Links    map[string]netlink.Link
	Addrs    map[int][]netlink.Addr
	Routes   map[int][]netlink.Route

	mu    sync.Mutex
	dumps map[reflect.Type]any
}

// NewView reads the links, addresses and routes of the namespace into a View.
func NewView(h *Handle, firewall bool) (*View, error) {
	v := &View{
		Handle: h, Firewall: firewall,
		Links: map[string]netlink.Link{}, Addrs: map[int][]netlink.Addr{}, Routes: map[int][]netlink.Route{},
		dumps: map[reflect.Type]any{},
	}
	links, err := h.ListLinks()
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		v.Links[l.Attrs().Name] = l
	}
	addrs, err := Retry(func() ([]netlink.Addr, error) { return h.NL.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		v.Addrs[a.LinkIndex] = append(v.Addrs[a.LinkIndex], a)
	}
	routes, err := Retry(func() ([]netlink.Route, error) { return h.NL.RouteList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		v.Routes[r.LinkIndex] = append(v.Routes[r.LinkIndex], r)
	}
	return v, nil
}

// Dump returns what read reads for a view. It calls read once a view, and stores one result of each type.
func Dump[T any](v *View, read func(*View) (T, error)) (T, error) {
	v.mu.Lock()
	key := reflect.TypeFor[T]()
	if v.dumps[key] == nil {
		v.dumps[key] = sync.OnceValues(func() (T, error) { return read(v) })
	}
	once := v.dumps[key].(func() (T, error))
	v.mu.Unlock()
	return once()
}
