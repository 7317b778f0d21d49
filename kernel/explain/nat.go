package explain

import (
	"bytes"
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"

	"netyard/kernel/rule"
)

// translation returns the verdict of a rule that translates the destination; !ok: netyard cannot tell where to.
func translation(to netip.AddrPort, ok bool) verdict {
	if !ok {
		return unknown()
	}
	return verdict{Verdict: expr.Verdict{Kind: expr.VerdictAccept}, translates: true, to: to}
}

// nat returns the verdict of an expression that translates addresses. The caller knows where netyard's own rules
// translate the packet to.
func (j *judge) nat(t *nftables.Table, g *registers, e expr.Any) verdict {
	n, isNAT := e.(*expr.NAT)
	switch {
	case isNAT && n.Type == expr.NATTypeSourceNAT:
		return verdict{Verdict: expr.Verdict{Kind: expr.VerdictAccept}}
	case t.Name == rule.TableName:
		return translation(netip.AddrPort{}, true)
	case isNAT:
		to, ok := j.natTo(g, n)
		return translation(to, ok && !n.Prefix)
	}
	r := e.(*expr.Redir)
	to, ok := j.natTo(g, &expr.NAT{RegProtoMin: r.RegisterProtoMin, RegProtoMax: r.RegisterProtoMax})
	return translation(to, ok && j.p.Local)
}

// natTo returns the destination that an expression translates to; ok is false if netyard cannot tell.
func (j *judge) natTo(g *registers, e *expr.NAT) (to netip.AddrPort, ok bool) {
	dst, port := j.p.Dst, j.p.Port
	if e.RegAddrMin != 0 {
		addr, ok := knownRange(g, e.RegAddrMin, e.RegAddrMax, len(dst.AsSlice()))
		if !ok {
			return to, false
		}
		dst, _ = netip.AddrFromSlice(addr)
	}
	if e.RegProtoMin != 0 {
		b, ok := knownRange(g, e.RegProtoMin, e.RegProtoMax, 2)
		if !ok {
			return to, false
		}
		port = binary.BigEndian.Uint16(b)
	}
	return netip.AddrPortFrom(dst, port), true
}

// knownRange returns the value of a register, if it is known and the same as that of the register that ends the range.
func knownRange(g *registers, first, last uint32, n int) (value []byte, ok bool) {
	value, known := g.at(first, n)
	if last != 0 && last != first {
		end, endKnown := g.at(last, n)
		if !bytes.Equal(value, end) || !bytes.Equal(endKnown, allKnown(n)) {
			return nil, false
		}
	}
	return value, bytes.Equal(known, allKnown(n))
}

// targetTo returns the destination that a target of iptables translates to, DNAT or REDIRECT; ok is false if netyard
// cannot tell.
func (j *judge) targetTo(e *expr.Target) (to netip.AddrPort, ok bool) {
	var r xt.NatRange
	switch i := e.Info.(type) {
	case *xt.NatIPv4MultiRangeCompat:
		if len(*i) != 1 {
			return to, false
		}
		r = xt.NatRange((*i)[0])
	case *xt.NatRange:
		r = *i
	case *xt.NatRange2:
		r = i.NatRange
	default:
		return to, false
	}
	dst, port := j.p.Dst, j.p.Port
	if e.Name == "REDIRECT" && !j.p.Local || r.Flags&uint(xt.NatRangeNetmap|xt.NatRangeProtoOffset) != 0 {
		return to, false
	}
	if e.Name == "DNAT" && r.Flags&uint(xt.NatRangeMapIPs) != 0 {
		addr, valid := netip.AddrFromSlice(r.MinIP)
		if !valid || !r.MinIP.Equal(r.MaxIP) {
			return to, false
		}
		dst = addr.Unmap()
	}
	if r.Flags&uint(xt.NatRangeProtoSpecified) != 0 {
		if port = r.MinPort; r.MinPort != r.MaxPort {
			return to, false
		}
	}
	return netip.AddrPortFrom(dst, port), true
}

// translate continues with the packet as a rule has translated it. The chains that follow at the hook see it so.
func (j *judge) translate() error {
	to := j.to
	j.to = netip.AddrPort{}
	if !to.IsValid() {
		return nil
	}
	own, _, err := j.k.HostAddrs()
	if err != nil {
		return err
	}
	j.p.OrigDst, j.p.OrigPort = j.p.Dst, j.p.Port
	j.p.Dst, j.p.Port = to.Addr(), to.Port()
	j.p.Local = own[to.Addr()] || to.Addr().IsLoopback()
	return nil
}
