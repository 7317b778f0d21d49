package kernel

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A container on the LAN answers its neighbours there itself, and everybody else by the LAN's router. So what was sent
// to a port of the host, and comes to such a container by the host's own link, has to come from the host: or the answer
// would not go by the host, and come to the client from an address that it never spoke to. The link has no address to
// masquerade with (Shim): which one it is, is said for each container.
const (
	// Shims has the host's own links on parents that published ports lead to.
	Shims SetName = "shims"

	// back4 and back6 say, for containers that are reached by such a link, which of the host's addresses they answer
	// to.
	back4 SetName = "back4"
	back6 SetName = "back6"
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
func (r Return) element(k *Kernel) (Element, error) {
	e := Element{Set: either(r.Route.Dst.Is6(), back4, back6), Owner: r.Owner, text: r.Route.Dst.String(), key: string(r.Route.Dst.AsSlice())}
	parent, err := k.parent(r.Route.Shim.Parent)
	if err != nil {
		return e, err
	}
	src, err := sourceFor(k, parent, r.Route.Dst)
	if err == nil && !src.IsValid() {
		err = fmt.Errorf("the host has no address of that family on parent %s", r.Route.Shim.Parent.Name)
	}
	e.text += " : " + src.String()
	e.val = string(src.AsSlice())
	return e, err
}

func (r Return) ensure(k *Kernel) error {
	e, err := r.element(k)
	if err == nil {
		err = k.fw.supersede(e)
	}
	if err != nil {
		return fmt.Errorf("make %s: %w", r, err)
	}
	return nil
}

func (r Return) remove(k *Kernel) error {
	id := elementID{either(r.Route.Dst.Is6(), back4, back6), string(r.Route.Dst.AsSlice())}
	k.fw.mu.Lock()
	w := k.fw.want[id]
	k.fw.mu.Unlock()
	if w == nil {
		return nil
	}
	if err := k.fw.remove([]Element{w.For(r.Owner)}); err != nil {
		return err
	}
	return k.forgetFlowsTo(r.Route.Dst)
}

// check compares with what is wanted where the firewall is not looked at: the host's addresses change.
func (r Return) check(s *snapshot) []string {
	if s.links[r.Route.Shim.Name] == nil {
		return nil // that the link is missing is said by the link
	}
	e, err := r.element(s.k)
	if err != nil {
		return []string{fmt.Sprintf("%s: %v", r, err)}
	}
	if !s.noTable {
		return e.check(s)
	}
	s.k.fw.mu.Lock()
	defer s.k.fw.mu.Unlock()
	if w := s.k.fw.want[e.id()]; w == nil || w.content != e.content {
		return []string{r.String() + " are not as they should be"}
	}
	return nil
}

// supersede puts an element into its set, in place of one of the same key.
func (f *firewall) supersede(e Element) error {
	ctx, cancel := context.WithTimeout(context.Background(), netlinkTimeout)
	defer cancel()
	f.mu.Lock()
	var old []Element
	if w := f.want[e.id()]; w != nil && w.content != e.content {
		old = []Element{w.For("")} // one that was found there is nobody's
		for owner := range w.owners {
			old = append(old, w.For(owner))
		}
	}
	f.mu.Unlock()
	if err := f.remove(old); err != nil {
		return err
	}
	return f.add(ctx, []Element{e})
}

func returnSets() []setSpec {
	return []setSpec{
		{name: Shims, key: nftables.TypeIFName},
		{name: back4, key: nftables.TypeIPAddr, data: nftables.TypeIPAddr},
		{name: back6, key: nftables.TypeIP6Addr, data: nftables.TypeIP6Addr},
	}
}

// returning gives what goes to a container on the LAN the host's address.
func returning(b setBook) (rules []ruleSpec) {
	for _, f := range families() {
		rules = append(rules, ruleSpec{f.name("a container on the LAN answers by way of the host"), rule(dnatted(), nfproto(f.proto), []expr.Any{
			&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: f.dst, Len: f.size},
		}, b.translate(either(f.v6(), back4, back6)), []expr.Any{&expr.NAT{Type: expr.NATTypeSourceNAT, Family: uint32(f.proto), RegAddrMin: reg1}})})
	}
	return rules
}

// onlyPublished keeps to published ports, and the answers, what Docker's chain lets through for the sake of them
// (Bypass). What other containers of this host send to the LAN by such a link they could send before.
func onlyPublished(b setBook) []ruleSpec {
	return []ruleSpec{
		{"nothing else goes by the host's links on the LAN", rule(b.oif(Shims, false), b.iif(Bridges, true), b.iif(foreign, true), drop())},
		{"nor comes by them", rule(b.iif(Shims, false), notDnatted(), drop())},
	}
}

// notDnatted matches packets whose destination is as it was sent.
func notDnatted() []expr.Any {
	es := dnatted()
	es[len(es)-1].(*expr.Cmp).Op = expr.CmpOpEq
	return es
}

// forgetFlowsTo makes connection tracking forget where datagrams for the host's ports went: a client that goes on
// sending from one port keeps a flow alive for ever.
func (k *Kernel) forgetFlowsTo(to netip.Addr) error {
	addrs, _, err := k.hostAddrs()
	if err != nil {
		return err
	}
	family := netlink.InetFamily(unix.AF_INET)
	if to.Is6() {
		family = unix.AF_INET6
	}
	if _, err := k.forgetFlows(flowsTo{host: addrs, to: to}, family); err != nil {
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
		(f.host[dst] || loop4().Contains(dst) || dst == loop6())
}
