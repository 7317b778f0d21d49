package lan

import (
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

// A container on the LAN answers its neighbours there itself, and everybody else by the LAN's router. So what was sent
// to a port of the host, and comes to such a container by the host's own link, has to come from the host: or the answer
// would not go by the host, and come to the client from an address that it never spoke to. The link has no address to
// masquerade with (Shim): which one it is, is said for each container.
const (
	// Shims has the host's own links on parents that published ports lead to.
	Shims rule.SetName = "shims"

	// back4 and back6 say, for containers that are reached by such a link, which of the host's addresses they answer
	// to.
	back4 rule.SetName = "back4"
	back6 rule.SetName = "back6"
)

// A Return makes a container answer the host, whoever it was that the host passed on to it.
type Return struct {
	Route HostRoute
	// Owner is the endpoint.
	Owner string
}

// String names the container.
func (r Return) String() string { return fmt.Sprintf("answers of %s to the host", r.Route.Dst) }

// element is the map's. It is not known from the records, since the host's addresses are not.
func (r Return) element(k *core.Handle) (nft.Element, error) {
	e := nft.Element{Set: rule.Either(r.Route.Dst.Is6(), back4, back6), Owner: r.Owner, Text: r.Route.Dst.String(), Key: string(r.Route.Dst.AsSlice())}
	parent, err := FindParent(k, r.Route.Shim.Parent)
	if err != nil {
		return e, err
	}
	src, err := sourceFor(k, parent, r.Route.Dst)
	if err == nil && !src.IsValid() {
		err = fmt.Errorf("the host has no address of that family on parent %s", r.Route.Shim.Parent.Name)
	}
	e.Text += " : " + src.String()
	e.Val = string(src.AsSlice())
	return e, err
}

func (r Return) Ensure(k *core.Handle) error {
	e, err := r.element(k)
	if err == nil {
		err = nft.Of(k).Supersede(e)
	}
	if err != nil {
		return fmt.Errorf("make %s: %w", r, err)
	}
	return nil
}

func (r Return) Remove(k *core.Handle) error {
	id := nft.ElementID{Set: rule.Either(r.Route.Dst.Is6(), back4, back6), Key: string(r.Route.Dst.AsSlice())}
	nft.Of(k).Mu.Lock()
	w := nft.Of(k).Want[id]
	nft.Of(k).Mu.Unlock()
	if w == nil {
		return nil
	}
	if err := nft.Of(k).Remove([]nft.Element{w.For(r.Owner)}); err != nil {
		return err
	}
	return forgetFlowsTo(k, r.Route.Dst)
}

// Check compares with what is wanted where the firewall is not looked at: the host's addresses change.
func (r Return) Check(s *core.View) []string {
	if s.Links[r.Route.Shim.Name] == nil {
		return nil // that the link is missing is said by the link
	}
	e, err := r.element(s.Handle)
	if err != nil {
		return []string{fmt.Sprintf("%s: %v", r, err)}
	}
	if !nft.NoTable(s) {
		return e.Check(s)
	}
	nft.Of(s.Handle).Mu.Lock()
	defer nft.Of(s.Handle).Mu.Unlock()
	if w := nft.Of(s.Handle).Want[e.ID()]; w == nil || w.Content != e.Content {
		return []string{r.String() + " are not as they should be"}
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

// Returning gives what goes to a container on the LAN the host's address.
func Returning(b rule.Book) (rules []rule.Rule) {
	for _, f := range rule.Families() {
		rules = append(rules, rule.New(f.Name("a container on the LAN answers by way of the host"), rule.Translated(), rule.NFProto(f.Proto), []expr.Any{
			&expr.Payload{DestRegister: rule.Reg1, Base: expr.PayloadBaseNetworkHeader, Offset: f.Dst, Len: f.Size},
		}, b.Translate(rule.Either(f.V6(), back4, back6)), []expr.Any{&expr.NAT{Type: expr.NATTypeSourceNAT, Family: uint32(f.Proto), RegAddrMin: rule.Reg1}}))
	}
	return rules
}

// OnlyPublished keeps to published ports, and the answers, what Docker's chain lets through for the sake of them
// (Bypass). What other containers of this host send to the LAN by such a link they could send before.
func OnlyPublished(b rule.Book) []rule.Rule {
	return []rule.Rule{
		rule.New("nothing else goes by the host's links on the LAN", b.OIF(Shims, false), b.IIF(bridge.Bridges, true), b.IIF(bridge.Foreign, true), rule.Drop()),
		rule.New("nor comes by them", b.IIF(Shims, false), rule.Untranslated(), rule.Drop()),
	}
}

// forgetFlowsTo makes connection tracking forget where datagrams for the host's ports went: a client that goes on
// sending from one port keeps a flow alive for ever.
func forgetFlowsTo(k *core.Handle, to netip.Addr) error {
	addrs, _, err := k.HostAddrs()
	if err != nil {
		return err
	}
	family := netlink.InetFamily(unix.AF_INET)
	if to.Is6() {
		family = unix.AF_INET6
	}
	if _, err := k.ForgetFlows(flowsTo{host: addrs, to: to}, family); err != nil {
		return fmt.Errorf("forget UDP flows to %s: %w", to, err)
	}
	return nil
}

// flowsTo finds datagrams that were sent to an address of the host and went to a container.
type flowsTo struct {
	host map[netip.Addr]bool
	to   netip.Addr
}

// MatchConntrackFlow is netlink's name for it.
func (f flowsTo) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	dst, _ := netip.AddrFromSlice(flow.Forward.DstIP)
	from, _ := netip.AddrFromSlice(flow.Reverse.SrcIP)
	dst = dst.Unmap()
	return flow.Forward.Protocol == unix.IPPROTO_UDP && from.Unmap() == f.to && dst != f.to &&
		(f.host[dst] || rule.Loop4().Contains(dst) || dst == rule.Loop6())
}
