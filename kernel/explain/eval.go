package explain

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"netyard/kernel/rule"
)

// A truth says whether something matches, as far as netyard can tell.
type truth uint8

const (
	no truth = iota
	maybe
	yes
)

func truthOf(b bool) truth {
	if b {
		return yes
	}
	return no
}

func (t truth) not() truth { return yes - t }

// A verdict is what a rule does when it matches; uncertain says that the rule may also do nothing, or something else.
type verdict struct {
	expr.Verdict
	uncertain bool
	// to is where the rule translates the destination to, if it is another program's and netyard can tell. translates:
	// it translates the destination, whoever's it is.
	to         netip.AddrPort
	translates bool
}

// unknown returns the verdict of a rule that may do anything.
func unknown() verdict {
	return verdict{Verdict: expr.Verdict{Kind: expr.VerdictQueue}, uncertain: true}
}

// registers are the 64 bytes of registers of nf_tables, of which some are known. NFT_REG_1 to 4, of 16 bytes each, are
// the same memory as NFT_REG32_00 to 15, of 4 bytes each.
type registers struct{ value, known [64]byte }

func regAt(r uint32) int {
	if r >= unix.NFT_REG32_00 {
		return int(r-unix.NFT_REG32_00) * 4
	}
	return int(r-1) * 16
}

// load puts bytes into a register; known has the bits of value that are known. The kernel pads the last four bytes with
// zeros, and so does load.
func (g *registers) load(r uint32, value, known []byte) {
	at := regAt(r)
	if at < 0 || at+len(value) > len(g.value) {
		return
	}
	copy(g.value[at:], value)
	copy(g.known[at:], known)
	for i := len(value); i%4 != 0; i++ {
		g.value[at+i], g.known[at+i] = 0, 0xff
	}
}

// allKnown returns the mask of n bytes that are known.
func allKnown(n int) []byte { return bytes.Repeat([]byte{0xff}, n) }

func (g *registers) at(r uint32, n int) (value, known []byte) {
	at := regAt(r)
	if at < 0 || at+n > len(g.value) {
		return make([]byte, n), make([]byte, n)
	}
	return g.value[at : at+n], g.known[at : at+n]
}

// rule says whether a rule matches the packet, and what it then does.
func (j *judge) rule(t *nftables.Table, r readRule) (matches truth, v verdict) {
	matches, v = yes, verdict{Verdict: expr.Verdict{Kind: expr.VerdictContinue}}
	g := &registers{}
	for _, e := range r.exprs {
		m := yes
		switch e := e.(type) {
		case *expr.Verdict:
			v.Verdict = *e
		case *expr.Reject:
			v.Kind = expr.VerdictDrop
		case *expr.Target:
			v = j.target(e)
		case *expr.NAT, *expr.Redir:
			v = j.nat(t, g, e)
		case *expr.Lookup:
			var vm *expr.Verdict
			if m, vm = j.lookup(t, g, e); vm != nil {
				v.Verdict = *vm
			}
			if m == maybe && e.IsDestRegSet && e.DestRegister == unix.NFT_REG_VERDICT {
				v = unknown()
			}
		default:
			m = j.match(g, e)
		}
		if m < matches {
			matches = m
		}
		if matches == no {
			return no, v
		}
	}
	return matches, v
}

// target returns the verdict of an iptables target.
func (j *judge) target(e *expr.Target) verdict {
	switch e.Name {
	case "DNAT", "REDIRECT":
		to, ok := j.targetTo(e)
		return translation(to, ok)
	case "REJECT":
		return verdict{Verdict: expr.Verdict{Kind: expr.VerdictDrop}}
	case "LOG", "NFLOG", "MARK", "CONNMARK", "TCPMSS", "CT", "MASQUERADE", "SNAT", "CHECKSUM", "DSCP", "TOS",
		"CLASSIFY", "TRACE":
		return verdict{Verdict: expr.Verdict{Kind: expr.VerdictContinue}}
	}
	return unknown()
}

// match evaluates an expression: it updates the registers, and says whether the rule continues.
func (j *judge) match(g *registers, e expr.Any) truth {
	switch e := e.(type) {
	case *expr.Meta:
		if e.Key == rule.MetaIIFKind {
			return j.kind(g, e)
		}
		if !e.SourceRegister {
			j.meta(g, e)
		}
	case *expr.Payload:
		if e.OperationType == expr.PayloadLoad {
			j.payload(g, e)
		}
	case *expr.Ct:
		if !e.SourceRegister {
			j.ct(g, e)
		}
	case *expr.Fib:
		j.fib(g, e)
	case *expr.Immediate:
		g.load(e.Register, e.Data, allKnown(len(e.Data)))
	case *expr.Bitwise:
		bitwise(g, e)
	case *expr.Cmp:
		return compare(g, e)
	case *expr.Range:
		value, known := g.at(e.Register, len(e.FromData))
		if !bytes.Equal(known, allKnown(len(known))) {
			return maybe
		}
		in := truthOf(bytes.Compare(value, e.FromData) >= 0 && bytes.Compare(value, e.ToData) <= 0)
		if e.Op == expr.CmpOpNeq {
			return in.not()
		}
		return in
	case *expr.Match:
		return j.xtMatch(e)
	case *expr.Counter, *expr.Log, *expr.Masq, *expr.Dynset, *expr.Objref, *expr.Notrack:
	default:
		g.known = [64]byte{} // it may have loaded anything, into any register
		return maybe
	}
	return yes
}

func compare(g *registers, e *expr.Cmp) truth {
	value, known := g.at(e.Register, len(e.Data))
	differs, all := false, true
	for i := range value {
		differs = differs || (value[i]^e.Data[i])&known[i] != 0
		all = all && known[i] == 0xff
	}
	switch {
	case e.Op == expr.CmpOpEq && differs, e.Op == expr.CmpOpNeq && !differs && all:
		return no
	case e.Op == expr.CmpOpNeq && differs, e.Op == expr.CmpOpEq && all:
		return yes
	case !all:
		return maybe
	}
	c := bytes.Compare(value, e.Data)
	return truthOf(map[expr.CmpOp]bool{
		expr.CmpOpLt: c < 0, expr.CmpOpLte: c <= 0, expr.CmpOpGt: c > 0, expr.CmpOpGte: c >= 0,
	}[e.Op])
}

func bitwise(g *registers, e *expr.Bitwise) {
	n := int(e.Len)
	value, known := g.at(e.SourceRegister, n)
	if len(e.Mask) != n || len(e.Xor) != n { // a shift
		g.load(e.DestRegister, make([]byte, n), make([]byte, n))
		return
	}
	v, k := make([]byte, n), make([]byte, n)
	for i := range n {
		v[i], k[i] = value[i]&e.Mask[i]^e.Xor[i], known[i]|^e.Mask[i] // bits that the mask clears are known
	}
	g.load(e.DestRegister, v, k)
}

func (j *judge) meta(g *registers, e *expr.Meta) {
	set := func(b []byte) { g.load(e.Register, b, allKnown(len(b))) }
	nfproto, ether := byte(unix.NFPROTO_IPV4), []byte{0x08, 0x00}
	if j.p.Dst.Is6() {
		nfproto, ether = unix.NFPROTO_IPV6, []byte{0x86, 0xdd}
	}
	switch e.Key {
	case expr.MetaKeyIIFNAME:
		set([]byte(rule.IfName(j.p.In)))
	case expr.MetaKeyOIFNAME:
		set([]byte(rule.IfName(j.p.Out)))
	case expr.MetaKeyIIF:
		set(binaryutil.NativeEndian.PutUint32(j.index(j.p.In)))
	case expr.MetaKeyOIF:
		set(binaryutil.NativeEndian.PutUint32(j.index(j.p.Out)))
	case expr.MetaKeyNFPROTO:
		set([]byte{nfproto})
	case expr.MetaKeyPROTOCOL:
		set(ether)
	case expr.MetaKeyL4PROTO:
		set([]byte{j.p.l4()})
	default:
		g.load(e.Register, make([]byte, 16), make([]byte, 16))
	}
}

// kind loads the kind of the link that the packet came in by. A network card has no kind, and a rule that asks for it
// does not match.
func (j *judge) kind(g *registers, e *expr.Meta) truth {
	l, err := j.k.Link(j.p.In)
	if err != nil {
		g.load(e.Register, make([]byte, unix.IFNAMSIZ), make([]byte, unix.IFNAMSIZ))
		return maybe
	}
	if l == nil || l.Type() == "device" {
		return no
	}
	g.load(e.Register, []byte(rule.IfName(l.Type())), allKnown(unix.IFNAMSIZ))
	return yes
}

func (j *judge) index(name string) uint32 {
	if l, err := j.k.Link(name); name != "" && err == nil && l != nil {
		return uint32(l.Attrs().Index) //nolint:gosec // an index
	}
	return 0
}

// payload loads from the headers of the packet, of which only some fields are known (RFC 791, RFC 8200, RFC 9293).
func (j *judge) payload(g *registers, e *expr.Payload) {
	const size, syn = 64, 2
	var head, known [size]byte
	put := func(at int, b []byte) { copy(head[at:], b); copy(known[at:], allKnown(len(b))) }
	switch e.Base {
	case expr.PayloadBaseNetworkHeader:
		if j.p.Dst.Is4() {
			put(9, []byte{j.p.l4()})
			put(12, j.p.Src.AsSlice())
			put(16, j.p.Dst.AsSlice())
		} else {
			put(6, []byte{j.p.l4()})
			put(8, j.p.Src.AsSlice())
			put(24, j.p.Dst.AsSlice())
		}
	case expr.PayloadBaseTransportHeader:
		put(2, binary.BigEndian.AppendUint16(nil, j.p.Port))
		if j.p.l4() == unix.IPPROTO_TCP {
			put(13, []byte{syn})
		}
	}
	from, to := min(int(e.Offset), size), min(int(e.Offset+e.Len), size)
	g.load(e.DestRegister, head[from:to], known[from:to])
}

// ct loads what connection tracking knows of the first packet of a flow (nf_conntrack_common.h).
func (j *judge) ct(g *registers, e *expr.Ct) {
	const dstNAT, dstDone = 1 << 5, 1 << 8
	set := func(b []byte) { g.load(e.Register, b, allKnown(len(b))) }
	dst, port := j.p.Dst, j.p.Port
	if j.p.translated() {
		dst, port = j.p.OrigDst, j.p.OrigPort
	}
	switch e.Key {
	case expr.CtKeySTATE:
		set(binaryutil.NativeEndian.PutUint32(expr.CtStateBitNEW))
	case expr.CtKeySTATUS:
		status := uint32(0)
		if j.p.translated() {
			status = dstNAT | dstDone
		}
		g.load(e.Register, binaryutil.NativeEndian.PutUint32(status), binaryutil.NativeEndian.PutUint32(dstNAT))
	case expr.CtKeyDIRECTION:
		set([]byte{0})
	case expr.CtKeyPROTOCOL:
		set([]byte{j.p.l4()})
	case expr.CtKeySRC:
		set(j.p.Src.AsSlice())
	case expr.CtKeyDST:
		set(dst.AsSlice())
	case expr.CtKeyPROTODST:
		set(binary.BigEndian.AppendUint16(nil, port))
	default:
		g.load(e.Register, make([]byte, 16), make([]byte, 16))
	}
	if e.Direction == 1 { // that of the reply, which is not known yet
		g.load(e.Register, make([]byte, 16), make([]byte, 16))
	}
}

func (j *judge) fib(g *registers, e *expr.Fib) {
	switch {
	case e.ResultADDRTYPE && e.FlagDADDR:
		kind := uint32(unix.RTN_UNICAST)
		if j.p.Local {
			kind = unix.RTN_LOCAL
		}
		g.load(e.Register, binaryutil.NativeEndian.PutUint32(kind), allKnown(4))
	case e.ResultOIF && e.FlagSADDR && e.FlagIIF: // is the route back by the interface that it came in by?
		iface, _, err := RouteTo(j.k, j.p.Src)
		if err != nil || iface != j.p.In {
			g.load(e.Register, make([]byte, 4), make([]byte, 4))
			return
		}
		back := binaryutil.NativeEndian.PutUint32(j.index(iface))
		if e.FlagPRESENT {
			back = []byte{1, 0, 0, 0}
		}
		g.load(e.Register, back, allKnown(len(back)))
	default:
		g.load(e.Register, make([]byte, 16), make([]byte, 16))
	}
}

// xtMatch evaluates a match extension of iptables.
func (j *judge) xtMatch(e *expr.Match) truth {
	ports := func(p [2]uint16, invert bool) truth {
		in := truthOf(j.p.Port >= p[0] && j.p.Port <= p[1])
		if invert {
			return in.not()
		}
		return in
	}
	any16 := [2]uint16{0, 0xffff}
	switch i := e.Info.(type) {
	case *xt.Comment:
		return yes
	case *xt.Tcp:
		if i.SrcPorts != any16 || i.Option != 0 || i.FlagsMask != 0 {
			return maybe
		}
		return ports(i.DstPorts, i.InvFlags&xt.TcpInvDestPorts != 0)
	case *xt.Udp:
		if i.SrcPorts != any16 {
			return maybe
		}
		return ports(i.DstPorts, i.InvFlags&xt.UdpInvDestPorts != 0)
	case *xt.ConntrackMtinfo3:
		return j.xtConntrack(i.MatchFlags, i.InvertFlags, i.StateMask, i.StatusMask)
	case *xt.ConntrackMtinfo2:
		return j.xtConntrack(i.MatchFlags, i.InvertFlags, i.StateMask, i.StatusMask)
	case *xt.AddrTypeV1:
		if i.Source != 0 || i.Flags != 0 || i.Dest != 1<<unix.RTN_LOCAL {
			return maybe
		}
		return truthOf(j.p.Local)
	}
	return maybe
}

func (j *judge) xtConntrack(match, invert, state, status uint16) truth {
	// XT_CONNTRACK_STATE_BIT(IP_CT_NEW), XT_CONNTRACK_STATE_DNAT, IPS_DST_NAT
	const isNew, dstState, dstStatus = 1 << (2%3 + 1), 1 << 7, 1 << 5
	if match&^uint16(xt.ConntrackState|xt.ConntrackStatus|xt.ConntrackStateAlias) != 0 {
		return maybe
	}
	m := yes
	if match&uint16(xt.ConntrackState) != 0 {
		has := state&isNew != 0 || state&dstState != 0 && j.p.translated()
		m = min(m, truthOf(has != (invert&uint16(xt.ConntrackState) != 0)))
	}
	if match&uint16(xt.ConntrackStatus) != 0 {
		if status != dstStatus {
			return min(m, maybe)
		}
		m = min(m, truthOf(j.p.translated() != (invert&uint16(xt.ConntrackStatus) != 0)))
	}
	return m
}

// A knownSet is a set with its elements.
type knownSet struct {
	set      *nftables.Set
	elements []nftables.SetElement
}

func (j *judge) set(t *nftables.Table, name string) (*knownSet, error) {
	id := chainID(t, name)
	if s := j.sets[id]; s != nil {
		return s, nil
	}
	set, err := j.v.GetSetByName(t, name)
	if err != nil {
		return nil, fmt.Errorf("read set %s of table %s: %w", name, t.Name, err)
	}
	s := &knownSet{set: set}
	if s.elements, err = j.v.GetSetElements(set); err != nil {
		return nil, fmt.Errorf("read set %s of table %s: %w", name, t.Name, err)
	}
	j.sets[id] = s
	return s, nil
}

// lookup looks a key up in a set; in a map it also loads the value.
func (j *judge) lookup(t *nftables.Table, g *registers, e *expr.Lookup) (truth, *expr.Verdict) {
	s, err := j.set(t, e.SetName)
	if err != nil {
		return maybe, nil // google/nftables does not know the set's type: the key may be in it
	}
	n := 0
	for _, el := range s.elements {
		n = max(n, len(el.Key))
	}
	key, known := g.at(e.SourceRegister, n)
	found := no
	var hit *nftables.SetElement
	if n > 0 && !bytes.Equal(known, allKnown(n)) {
		found = maybe
	} else if hit = s.find(key); hit != nil {
		found = yes
	}
	if hit != nil && e.IsDestRegSet && e.DestRegister != unix.NFT_REG_VERDICT {
		g.load(e.DestRegister, hit.Val, allKnown(len(hit.Val)))
	}
	if e.Invert {
		found = found.not()
	}
	if hit != nil && e.IsDestRegSet && e.DestRegister == unix.NFT_REG_VERDICT {
		return found, verdictOf(hit.Val)
	}
	return found, nil
}

// verdictOf reads the verdict that a map element has. google/nftables leaves it as netlink attributes (NFTA_VERDICT_*).
func verdictOf(val []byte) *expr.Verdict {
	attrs, err := netlink.UnmarshalAttributes(val)
	if err != nil {
		return nil
	}
	v := &expr.Verdict{}
	for _, a := range attrs {
		switch {
		case a.Type == unix.NFTA_VERDICT_CODE && len(a.Data) == 4:
			v.Kind = expr.VerdictKind(int32(binary.BigEndian.Uint32(a.Data))) //nolint:gosec // negative codes are jumps
		case a.Type == unix.NFTA_VERDICT_CHAIN:
			v.Chain = strings.TrimRight(string(a.Data), "\x00")
		}
	}
	return v
}

// find returns the element that contains a key.
func (s *knownSet) find(key []byte) *nftables.SetElement {
	if !s.set.Interval {
		for i, e := range s.elements {
			if bytes.Equal(e.Key, key) {
				return &s.elements[i]
			}
		}
		return nil
	}
	var best *nftables.SetElement
	for i, e := range s.elements {
		if len(e.KeyEnd) > 0 {
			if s.fieldsWithin(key, e.Key, e.KeyEnd) {
				return &s.elements[i]
			}
			continue
		}
		if bytes.Compare(e.Key, key) <= 0 && (best == nil || bytes.Compare(e.Key, best.Key) > 0 ||
			bytes.Equal(e.Key, best.Key) && best.IntervalEnd) {
			best = &s.elements[i]
		}
	}
	if best == nil || best.IntervalEnd {
		return nil
	}
	return best
}

// fieldsWithin compares each field of a concatenation with its bounds; each field fills whole registers.
func (s *knownSet) fieldsWithin(key, first, last []byte) bool {
	at := 0
	for _, f := range rule.FieldsOf(s.set.KeyType) {
		end := min(at+(int(f.Bytes)+3)/4*4, len(key))
		if bytes.Compare(key[at:end], first[at:end]) < 0 || bytes.Compare(key[at:end], last[at:end]) > 0 {
			return false
		}
		at = end
	}
	return true
}
