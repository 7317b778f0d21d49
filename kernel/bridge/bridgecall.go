package bridge

import (
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"netyard/kernel/core"
)

// A NetfilterCall makes br_netfilter pass the frames of one bridge to the chains of the inet family, whatever
// net.bridge.bridge-nf-call-iptables says for all bridges (BROPT_NF_CALL_IPTABLES, net/bridge/br_netfilter_hooks.c).
// Only kernels without nf_conntrack_bridge need it.
type NetfilterCall struct {
	Name    string
	Foreign bool // not netyard's bridge: checked and never changed
}

// String names the setting.
func (b NetfilterCall) String() string { return "nf_call_iptables of bridge " + b.Name }

func (b NetfilterCall) Ensure(k *core.Handle) error {
	on, err := bridgeCalls(k, b.Name)
	if err != nil || on {
		return err
	}
	if b.Foreign {
		return fmt.Errorf("enforce policy on the host's bridge %s: this kernel has no nf_conntrack_bridge, and "+
			"neither %s nor net.bridge.bridge-nf-call-iptables is on; turn one of them on", b.Name, b)
	}
	if err := setBridgeCalls(k, b.Name); err != nil {
		return fmt.Errorf("turn on %s (this kernel has no nf_conntrack_bridge; is br_netfilter loaded?): %w", b, err)
	}
	return nil
}

func (NetfilterCall) Remove(*core.Handle) error { return nil } // it is removed with the bridge

func (b NetfilterCall) Check(s *core.View) []string {
	if s.Link(b.Name) == nil {
		return nil // the bridge reports that it is missing
	}
	on, err := bridgeCalls(s.Handle, b.Name)
	if err != nil {
		return []string{err.Error()}
	}
	if !on {
		return []string{b.String() + " is off"}
	}
	return nil
}

// bridgeCalls reports whether br_netfilter passes the frames of a bridge on, for both families.
func bridgeCalls(k *core.Handle, bridge string) (bool, error) {
	all := true
	for _, name := range []string{"bridge-nf-call-iptables", "bridge-nf-call-ip6tables"} {
		v, err := k.ReadSysctl("/proc/sys/net/bridge/" + name)
		all = all && err == nil && v != "0"
	}
	if all {
		return true, nil
	}
	link, err := k.NL.LinkByName(bridge)
	if err != nil {
		return false, fmt.Errorf("find bridge %s: %w", bridge, err)
	}
	own := false
	err = k.Inside(func() error {
		req := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
		msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
		msg.Index = int32(link.Attrs().Index) //nolint:gosec // an index from the kernel
		req.AddData(msg)
		answers, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
		if err != nil {
			return fmt.Errorf("read settings of bridge %s: %w", bridge, err)
		}
		for _, a := range answers {
			own = own || callsIn(a)
		}
		return nil
	})
	return own, err
}

// callsIn reports whether a link's netlink message has both settings on.
func callsIn(msg []byte) bool {
	found := map[uint16]bool{}
	eachAttr(msg[unix.SizeofIfInfomsg:], unix.IFLA_LINKINFO, func(info []byte) {
		eachAttr(info, nl.IFLA_INFO_DATA, func(data []byte) {
			for _, kind := range []uint16{nl.IFLA_BR_NF_CALL_IPTABLES, nl.IFLA_BR_NF_CALL_IP6TABLES} {
				eachAttr(data, kind, func(v []byte) { found[kind] = len(v) > 0 && v[0] != 0 })
			}
		})
	})
	return found[nl.IFLA_BR_NF_CALL_IPTABLES] && found[nl.IFLA_BR_NF_CALL_IP6TABLES]
}

// eachAttr calls f with the value of each attribute of a kind.
func eachAttr(raw []byte, kind uint16, f func([]byte)) {
	attrs, err := nl.ParseRouteAttr(raw)
	if err != nil {
		return
	}
	for _, a := range attrs {
		if a.Attr.Type&^unix.NLA_F_NESTED == kind {
			f(a.Value)
		}
	}
}

func setBridgeCalls(k *core.Handle, bridge string) error {
	link, err := k.NL.LinkByName(bridge)
	if err != nil {
		return err
	}
	return k.Inside(func() error {
		req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
		msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
		msg.Index = int32(link.Attrs().Index) //nolint:gosec // an index from the kernel
		req.AddData(msg)
		info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
		info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
		data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
		data.AddRtAttr(nl.IFLA_BR_NF_CALL_IPTABLES, []byte{1})
		data.AddRtAttr(nl.IFLA_BR_NF_CALL_IP6TABLES, []byte{1})
		req.AddData(info)
		_, err := req.Execute(unix.NETLINK_ROUTE, 0)
		return err
	})
}
