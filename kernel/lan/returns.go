package lan

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/kernel/nft"
	"netyard/kernel/rule"
)

// A container on the LAN replies to its neighbours there directly, and to everybody else through the LAN's router. So a
// packet to a published port of the host, which reaches such a container through the host's own link (the shim), has to
// come from an address of the host. Else the reply would bypass the host, and the client would get it from an address
// that it never contacted. The shim has no address to masquerade with (Shim), so a map holds the address for each
// container.
const (
	// Shims holds the host's own links on parents that published ports lead to.
	Shims rule.SetName = "shims"

	// back4 and back6 map a container that is reached through a shim to the host's address that it replies to.
	back4 rule.SetName = "back4"
	back6 rule.SetName = "back6"
)

// A ReturnNAT is the source NAT that makes a container reply to the host, whichever client sent the packet that the
// host forwards to it.
type ReturnNAT struct {
	Route HostRoute
	// Owner is the endpoint.
	Owner string
}

// String names the address of the container.
func (r ReturnNAT) String() string { return fmt.Sprintf("return address of %s", r.Route.Dst) }

// element returns the element of the map. It reads the value, an address of the host, from the kernel, since the
// records do not have it.
func (r ReturnNAT) element(k *core.Handle) (nft.Element, error) {
	e := nft.Element{Owner: r.Owner, Text: r.Route.Dst.String()}
	e.Set, e.Key = r.Key()
	parent, err := FindParent(k, r.Route.Shim.Parent)
	if err != nil {
		return e, err
	}
	src, err := sourceFor(k, parent, r.Route.Dst)
	if err == nil && !src.IsValid() {
		err = noSource{r.Route.Shim.Parent, isDown(parent)}
	}
	e.Text += " : " + src.String()
	e.Val = string(src.AsSlice())
	return e, err
}

// noSource says that the host has no address to send from. A parent that is down has no IPv6 address, and may get its
// addresses when it comes up.
type noSource struct {
	parent Parent
	down   bool
}

func (n noSource) Error() string {
	return "the host has no address of that family on " + n.parent.String()
}

// Ensure leaves a parent that is down to a later repair, when the parent has its addresses.
func (r ReturnNAT) Ensure(k *core.Handle) error {
	e, err := r.element(k)
	if none := (noSource{}); errors.As(err, &none) && none.down {
		return nil
	}
	if err == nil {
		err = nft.Of(k).ReplaceElement(e)
	}
	if err != nil {
		return fmt.Errorf("set %s: %w", r, err)
	}
	return nil
}

func (r ReturnNAT) Remove(k *core.Handle) error {
	var id nft.ElementID
	id.Set, id.Key = r.Key()
	e, ok := nft.Of(k).WantedAt(id)
	if !ok {
		return nil
	}
	if err := nft.Of(k).Remove([]nft.Element{e.For(r.Owner)}); err != nil {
		return err
	}
	return deleteFlowsTo(k, r.Route.Dst)
}

// Lost reports whether the address has to wait until the parent is up.
func (r ReturnNAT) Lost(s *core.View) bool { return r.Route.Shim.Parent.downIn(s) }

// Check compares with the element that netyard wants where the view has no table: the host's addresses change.
func (r ReturnNAT) Check(s *core.View) []string {
	if s.Link(r.Route.Shim.Name) == nil {
		return nil // the link reports that it is missing
	}
	e, err := r.element(s.Handle)
	if err != nil {
		return []string{fmt.Sprintf("%s: %v", r, err)}
	}
	if !nft.NoTable(s) {
		return e.Check(s)
	}
	if w, ok := nft.Of(s.Handle).WantedAt(e.ID()); !ok || w.Content != e.Content {
		return []string{r.String() + " is missing or different"}
	}
	return nil
}

func returnSets() []rule.Set {
	return []rule.Set{
		{Name: Shims, Type: nftables.TypeIFName},
		{Name: back4, Type: nftables.TypeIPAddr, Data: nftables.TypeIPAddr},
		{Name: back6, Type: nftables.TypeIP6Addr, Data: nftables.TypeIP6Addr},
	}
}

// ReturnRules returns the rules that translate the source of what goes to a container on the LAN to an address of the
// host.
func ReturnRules(b rule.SetBook) (rules []rule.Rule) {
	for _, f := range rule.Families() {
		dst := []expr.Any{
			&expr.Payload{DestRegister: rule.Reg1, Base: expr.PayloadBaseNetworkHeader, Offset: f.Dst, Len: f.Size},
		}
		snat := []expr.Any{
			&expr.NAT{Type: expr.NATTypeSourceNAT, Family: uint32(f.Proto), RegAddrMin: rule.Reg1},
		}
		rules = append(rules, rule.New(f.Name("make containers on the LAN reply through the host"),
			rule.Translated(), rule.NFProto(f.Proto), dst, b.Translate(rule.ByFamily(f.V6(), back4, back6)), snat))
	}
	return rules
}

// ShimRules returns the rules that drop forwarded traffic through shims, except traffic to published ports, its
// replies, and what other containers of this host send to the LAN. Docker's chain lets all of it through (Bypass).
func ShimRules(b rule.SetBook) []rule.Rule {
	return []rule.Rule{
		rule.New("drop other traffic to the LAN through the host's links on it",
			b.OIF(Shims, false), b.IIF(bridge.Bridges, true), b.IIF(bridge.Others, true), rule.Drop()),
		rule.New("drop other traffic from the LAN through the host's links on it",
			b.IIF(Shims, false), rule.Untranslated(), rule.Drop()),
	}
}

// deleteFlowsTo deletes the conntrack entries of UDP datagrams to the host's ports that went to a container: a client
// that goes on sending from one port keeps its flow alive for ever.
func deleteFlowsTo(k *core.Handle, to netip.Addr) error {
	addrs, _, err := k.HostAddrs()
	if err != nil {
		return err
	}
	family := netlink.InetFamily(unix.AF_INET)
	if to.Is6() {
		family = unix.AF_INET6
	}
	if _, err := k.ForgetFlows(flowsTo{host: addrs, to: to}, family); err != nil {
		return fmt.Errorf("delete UDP flows to %s: %w", to, err)
	}
	return nil
}

// flowsTo matches the flows of datagrams that were sent to an address of the host and went to a container.
type flowsTo struct {
	host map[netip.Addr]bool
	to   netip.Addr
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f flowsTo) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	dst, _ := netip.AddrFromSlice(flow.Forward.DstIP)
	from, _ := netip.AddrFromSlice(flow.Reverse.SrcIP)
	dst = dst.Unmap()
	return flow.Forward.Protocol == unix.IPPROTO_UDP && from.Unmap() == f.to && dst != f.to &&
		(f.host[dst] || rule.LoopbackAlias4().Contains(dst) || dst == rule.LoopbackAlias6())
}
