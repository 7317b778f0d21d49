package core

import (
	"encoding/binary"
	"net"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"netyard/wake"
)

// A LinkID is what a link is known by.
type LinkID struct {
	Name, Alias, MAC string
	// Addrs: the change was one of its addresses.
	Addrs bool
}

// A Dependent object depends on links that are not netyard's. DependsOn reports whether a link is one of them.
type Dependent interface{ DependsOn(l LinkID) bool }

// Changes collects the links that changes were about, until somebody takes them.
type Changes struct {
	// Signal is sent when there is something to take.
	Signal wake.Signal

	mu    sync.Mutex
	links map[LinkID]bool
	all   bool
}

// NewChanges returns an empty collection.
func NewChanges() *Changes { return &Changes{Signal: wake.New()} }

// Add adds a link.
func (c *Changes) Add(l LinkID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.links == nil {
		c.links = map[LinkID]bool{}
	}
	c.links[l] = true
}

// AddAll adds all links: changes were lost, or one may have affected any object.
func (c *Changes) AddAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = true
}

// Take returns the links since the last Take. all: they are all links.
func (c *Changes) Take() (links []LinkID, all bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for l := range c.links {
		links = append(links, l)
	}
	all = c.all
	c.links, c.all = nil, false
	return links, all
}

// LinkNames are the links of a namespace by index, as far as messages told: most messages have only the index.
type LinkNames map[int]LinkID

// Name calls found with each link that a message of rtnetlink is about. A link that was renamed, or has another alias,
// is found under both.
func (n LinkNames) Name(m syscall.NetlinkMessage, found func(LinkID)) {
	index := linkIn(m)
	was, known := n[index]
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		is := describe(m.Data)
		if m.Data[0] != unix.AF_UNSPEC { // of a bridge about its port: it has no alias
			break
		}
		if n[index] = is; m.Header.Type == unix.RTM_DELLINK {
			delete(n, index)
		}
		found(is)
		if !known || was == is {
			return
		}
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		was.Addrs = true
	}
	if known {
		found(was)
	}
}

// linkIn returns the index of the link that a message of rtnetlink is about; 0: of none.
func linkIn(m syscall.NetlinkMessage) int {
	const at, end = 4, 8 // in struct ifinfomsg, ifaddrmsg, ndmsg and tcmsg (rtnetlink(7))
	if len(m.Data) < end {
		return 0
	}
	if m.Header.Type != unix.RTM_DELROUTE && m.Header.Type != unix.RTM_NEWROUTE {
		return int(binary.NativeEndian.Uint32(m.Data[at:end]))
	}
	attrs, _ := nl.ParseRouteAttr(m.Data[min(len(m.Data), unix.SizeofRtMsg):])
	for _, a := range attrs {
		if a.Attr.Type == unix.RTA_OIF && len(a.Value) >= 4 {
			return int(binary.NativeEndian.Uint32(a.Value))
		}
	}
	return 0
}

// describe returns what a message about a link (struct ifinfomsg, with attributes) says of it.
func describe(raw []byte) (l LinkID) {
	attrs, _ := nl.ParseRouteAttr(raw[min(len(raw), unix.SizeofIfInfomsg):])
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.IFLA_IFNAME:
			l.Name = nl.BytesToString(a.Value)
		case unix.IFLA_IFALIAS:
			l.Alias = nl.BytesToString(a.Value)
		case unix.IFLA_ADDRESS:
			l.MAC = net.HardwareAddr(a.Value).String()
		}
	}
	return l
}

// ReadLinkNames reads the links that are there.
func ReadLinkNames(h *Handle) (LinkNames, error) {
	links, err := h.ListLinks()
	if err != nil {
		return nil, err
	}
	all := LinkNames{}
	for _, l := range links {
		a := l.Attrs()
		all[a.Index] = LinkID{Name: a.Name, Alias: a.Alias, MAC: a.HardwareAddr.String()}
	}
	return all, nil
}
