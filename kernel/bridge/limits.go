package bridge

import (
	"errors"
	"fmt"
	"math"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"netyard/kernel/core"
)

const (
	// limitMark is "ny". It is the handle of netyard's qdiscs and the preference of its filters, and tells them from
	// those of others.
	limitMark   = 0x6e79
	limitHandle = limitMark << 16

	// A queue sends at once what the rate carries in burstTime, so a timer that fires late by less costs nothing. It
	// drops what would have to wait longer than queueTime: a full queue delays a packet by that much.
	burstTime = 10e-3
	queueTime = 100e-3
	// frameSlack is what a frame has in addition to the MTU: addresses, type, two VLAN tags.
	frameSlack = 22
)

// A Rate is a speed in bits per second; 0 means unlimited.
type Rate uint64

// String formats the rate as tc(8) does.
func (r Rate) String() string {
	if r == 0 {
		return "unlimited"
	}
	units := []string{"bit", "kbit", "mbit", "gbit", "tbit"}
	n, unit := uint64(r), 0
	for n%1000 == 0 && unit < len(units)-1 {
		n, unit = n/1000, unit+1
	}
	return strconv.FormatUint(n, 10) + units[unit]
}

// Limits are how fast packets may go to and from an endpoint whose outer link is on the host. The queues are on the
// host, where the endpoint cannot change them: packets to the endpoint wait in a queue of its outer link, packets from
// it in a queue of another link (an ifb, the shaper), to which they are redirected as they arrive. Limits of 0 are an
// object, too: they remove former limits.
type Limits struct {
	Link    string
	Shaper  string // the link that packets from the endpoint are redirected to
	Alias   string // of the shaper
	MTU     int
	Ingress Rate // to the endpoint
	Egress  Rate // from the endpoint
}

// String names the limited link.
func (l Limits) String() string { return "rate limits of link " + l.Link }

// None reports whether both directions are unlimited.
func (l Limits) None() bool { return l.Ingress == 0 && l.Egress == 0 }

func (l Limits) Ensure(k *core.Handle) error {
	link, err := k.Link(l.Link)
	if err != nil {
		return err
	}
	if link == nil {
		return fmt.Errorf("set %s: %w", l, unix.ENODEV)
	}
	if l.Ingress > 0 {
		err = k.NL.QdiscReplace(l.queue(link, l.Ingress))
	} else {
		err = removeQueue(k, link)
	}
	if err != nil {
		return fmt.Errorf("limit traffic to link %s to %s: %w", l.Link, l.Ingress, err)
	}
	if l.Egress > 0 {
		err = l.shape(k, link)
	} else {
		err = l.unshape(k, link)
	}
	if err != nil {
		return fmt.Errorf("limit traffic from link %s to %s: %w", l.Link, l.Egress, err)
	}
	return nil
}

func (l Limits) Remove(k *core.Handle) error {
	link, err := k.Link(l.Link)
	if err != nil {
		return err
	}
	if link == nil {
		return k.DeleteLink(l.Shaper, l.Alias)
	}
	return errors.Join(removeQueue(k, link), l.unshape(k, link))
}

// queue returns the token bucket filter for a rate. Its burst is small, so that tbf splits the large packets of
// segmentation offload into frames (tbf_segment, net/sched/sch_tbf.c): a packet of 64 kB in one piece would occupy a
// link of 10mbit for 52 ms, and every other packet would wait for it.
func (l Limits) queue(link netlink.Link, r Rate) *netlink.Tbf {
	const bits = 8
	perSecond := float64(r) / bits
	// A burst of less than a frame would let nothing pass.
	burst := math.Max(perSecond*burstTime, 2*float64(l.MTU+frameSlack))
	limit := math.Min(perSecond*queueTime+burst, math.MaxUint32)
	return &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: limitHandle, Parent: netlink.HANDLE_ROOT},
		Rate:       uint64(r) / bits,
		Limit:      uint32(limit),
		Buffer:     netlink.Xmittime(uint64(r)/bits, uint32(burst)),
	}
}

// removeQueue removes netyard's queue from a link, and nobody else's: the kernel compares handles.
func removeQueue(k *core.Handle, link netlink.Link) error {
	err := k.NL.QdiscDel(&netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: limitHandle, Parent: netlink.HANDLE_ROOT},
	})
	return unlessAbsent(err)
}

// unlessAbsent returns err unless it says that the qdisc or filter to be removed does not exist (tc_get_qdisc,
// net/sched/sch_api.c; tc_del_tfilter, net/sched/cls_api.c).
func unlessAbsent(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// shape makes the shaper and its queue before it redirects packets there.
func (l Limits) shape(k *core.Handle, link netlink.Link) error {
	shaper, err := l.ensureShaper(k)
	if err != nil {
		return err
	}
	if err := k.NL.QdiscReplace(l.queue(shaper, l.Egress)); err != nil {
		return err
	}
	return redirect(k, link, shaper)
}

func (l Limits) ensureShaper(k *core.Handle) (netlink.Link, error) {
	shaper, err := k.Link(l.Shaper)
	if err != nil {
		return nil, err
	}
	if shaper == nil {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = l.Shaper, l.MTU
		if err := k.NL.LinkAdd(&netlink.Ifb{LinkAttrs: attrs}); err != nil {
			return nil, fmt.Errorf("create link %s: %w", l.Shaper, err)
		}
		if shaper, err = k.NL.LinkByName(l.Shaper); err != nil {
			return nil, fmt.Errorf("create link %s: %w", l.Shaper, err)
		}
	}
	if shaper.Type() == "ifb" {
		err = core.EnsureAlias(k, shaper, l.Alias)
	} else {
		err = core.ErrForeign
	}
	if err != nil {
		return nil, fmt.Errorf("create link %s: a link of that name exists and %w", l.Shaper, err)
	}
	if err := core.NoIPv6(l.Shaper).Ensure(k); err != nil {
		return nil, err
	}
	if err := k.NL.LinkSetUp(shaper); err != nil {
		return nil, fmt.Errorf("set link %s up: %w", l.Shaper, err)
	}
	return shaper, nil
}

// redirect sends what arrives on link to the shaper. From there it comes back as if it arrived on link just then.
func redirect(k *core.Handle, link, shaper netlink.Link) error {
	to, err := redirected(k, link)
	if err != nil || to == shaper.Attrs().Index {
		return err
	}
	ingress := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS,
	}}
	if err := k.NL.QdiscAdd(ingress); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("redirect link %s: %w", link.Attrs().Name, err)
	}
	action := netlink.NewMirredAction(shaper.Attrs().Index)
	f := &netlink.U32{FilterAttrs: redirection(link), Actions: []netlink.Action{action}}
	if err := errors.Join(unlessAbsent(k.NL.FilterDel(f)), k.NL.FilterAdd(f)); err != nil {
		return fmt.Errorf("redirect link %s to %s: %w", link.Attrs().Name, shaper.Attrs().Name, err)
	}
	return nil
}

// redirection identifies netyard's filter. It is a u32 filter without a key, which every kernel with traffic control
// has.
func redirection(link netlink.Link) netlink.FilterAttrs {
	return netlink.FilterAttrs{
		LinkIndex: link.Attrs().Index, Parent: netlink.HANDLE_MIN_INGRESS,
		Priority: limitMark, Protocol: unix.ETH_P_ALL,
	}
}

// redirected returns the index of the link that netyard's filter redirects to, or 0 if there is no filter.
func redirected(k *core.Handle, link netlink.Link) (to int, err error) {
	filters, err := ingressFilters(k, link)
	if unlessAbsent(err) != nil {
		return 0, fmt.Errorf("list filters of link %s: %w", link.Attrs().Name, err)
	}
	for _, f := range filters {
		u, ok := f.(*netlink.U32)
		if !ok || u.Priority != limitMark {
			continue
		}
		for _, a := range u.Actions {
			if m, ok := a.(*netlink.MirredAction); ok {
				to = m.Ifindex
			}
		}
	}
	return to, nil
}

// unshape removes the redirection before the shaper: the kernel drops packets that are redirected to a link which is
// gone (tcf_mirred_act, net/sched/act_mirred.c).
func (l Limits) unshape(k *core.Handle, link netlink.Link) error {
	err := k.NL.FilterDel(&netlink.U32{FilterAttrs: redirection(link)})
	if unlessAbsent(err) != nil {
		return fmt.Errorf("remove the redirection of link %s: %w", l.Link, err)
	}
	if err == nil {
		if err := removeIngress(k, link); err != nil {
			return err
		}
	}
	return k.DeleteLink(l.Shaper, l.Alias)
}

// removeIngress removes the ingress qdisc from a link, unless others have filters there.
func removeIngress(k *core.Handle, link netlink.Link) error {
	filters, err := ingressFilters(k, link)
	if err != nil || len(filters) > 0 {
		return unlessAbsent(err)
	}
	qdiscs, err := core.Retry(func() ([]netlink.Qdisc, error) { return k.NL.QdiscList(link) })
	if err != nil {
		return fmt.Errorf("list qdiscs of link %s: %w", link.Attrs().Name, err)
	}
	for _, q := range qdiscs {
		if _, ok := q.(*netlink.Ingress); ok {
			return unlessAbsent(k.NL.QdiscDel(q))
		}
	}
	return nil
}

func ingressFilters(k *core.Handle, link netlink.Link) ([]netlink.Filter, error) {
	return core.Retry(func() ([]netlink.Filter, error) { return k.NL.FilterList(link, netlink.HANDLE_MIN_INGRESS) })
}

func (l Limits) Check(s *core.View) (faults []string) {
	link := s.Link(l.Link)
	if link == nil {
		return nil // the link reports that it is missing
	}
	fault := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	if text := l.compare(s, link, l.Ingress); text != "" {
		fault("link %s: the limit to the container %s", l.Link, text)
	}
	to, shaper := queuesOf(s, link).redirects[link.Attrs().Index], s.Link(l.Shaper)
	switch {
	case l.Egress == 0 && to != 0:
		fault("link %s: the limit from the container is set, but not wanted", l.Link)
	case l.Egress == 0:
	case shaper == nil:
		fault("link %s is missing", l.Shaper)
	case to != shaper.Attrs().Index:
		fault("link %s is not redirected to %s", l.Link, l.Shaper)
	case !core.DeviceUp(shaper.Attrs()):
		fault("link %s is down", l.Shaper)
	default:
		if shaper.Attrs().Alias != l.Alias {
			fault("link %s has another alias", l.Shaper)
		}
		if text := l.compare(s, shaper, l.Egress); text != "" {
			fault("link %s: the limit from the container %s", l.Link, text)
		}
		faults = append(faults, core.NoIPv6(l.Shaper).Check(s)...)
	}
	return faults
}

// compare says in words how the queue of a link differs from the rate, or returns nothing if it does not.
func (l Limits) compare(s *core.View, link netlink.Link, r Rate) string {
	const bits = 8
	var got *netlink.Tbf
	for _, q := range queuesOf(s, link).qdiscs[link.Attrs().Index] {
		if t, ok := q.(*netlink.Tbf); ok && t.Handle == limitHandle && t.Parent == netlink.HANDLE_ROOT {
			got = t
		}
	}
	switch {
	case got == nil && r == 0:
		return ""
	case got == nil:
		return fmt.Sprintf("(%s) is missing", r)
	case r == 0:
		return "is set, but not wanted"
	}
	if want := l.queue(link, r); got.Rate != want.Rate {
		return fmt.Sprintf("is %s instead of %s", Rate(got.Rate*bits), r)
	} else if got.Limit != want.Limit || got.Buffer != want.Buffer {
		return fmt.Sprintf("(%s) has another queue size", r)
	}
	return ""
}
