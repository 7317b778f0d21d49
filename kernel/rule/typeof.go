package rule

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// A RawField is a field of a header that nft has no name for, in bytes. nft prints it by its offset (@th,96,24) and
// accepts what it printed only where a set is declared with the same field (typeof, nft(8)), not with a type.
type RawField struct {
	Base        expr.PayloadBase
	Offset, Len uint32
}

// Into loads the field into a register.
func (f RawField) Into(register uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: f.Base, Offset: f.Offset, Len: f.Len}
}

// The numbers by which nft writes the expressions of a declaration into the user data of a set, and reads them:
// libnftnl/udata.h, and in nft's sources expression.h, proto.h and payload.h.
const (
	exprPayload, exprMeta, exprConcat          = 7, 9, 13
	typeofExpr, typeofData                     = 0, 1
	metaKey                                    = 0
	payloadProto, payloadField                 = 0, 1
	payloadBase, payloadOffset, payloadLen     = 2, 3, 4
	protoIP, ipSource, protoIP6, ip6Source     = 12, 11, 13, 8
	baseLink, baseNetwork, baseTransport   int = 1, 2, 3
)

// WithFieldNames adds to the declarations of sets among messages what nft has to know to print the sets' raw fields.
// google/nftables does not write it.
func WithFieldNames(msgs []netlink.Message, sets []Set) error {
	for i, m := range msgs {
		if m.Header.Type&0xff != unix.NFT_MSG_NEWSET || len(m.Data) < unix.SizeofNlAttr {
			continue
		}
		attrs, err := netlink.UnmarshalAttributes(m.Data[unix.SizeofNlAttr:])
		if err != nil {
			return fmt.Errorf("describe a set's fields: %w", err)
		}
		spec, name, data := Set{}, "", -1
		for j, a := range attrs {
			switch a.Type {
			case unix.NFTA_SET_NAME:
				name = string(a.Data[:max(len(a.Data)-1, 0)])
				spec, _ = SpecOf(sets, SetName(name))
			case unix.NFTA_SET_USERDATA:
				data = j
			}
		}
		if spec.Raw.Len == 0 {
			continue
		}
		if data < 0 {
			attrs, data = append(attrs, netlink.Attribute{Type: unix.NFTA_SET_USERDATA}), len(attrs)
		}
		attrs[data].Data = userdata.Append(attrs[data].Data, userdata.NFTNL_UDATA_SET_KEY_TYPEOF, spec.typeof())
		raw, err := netlink.MarshalAttributes(attrs)
		if err != nil {
			return fmt.Errorf("describe the fields of set %s: %w", name, err)
		}
		msgs[i].Data = slices.Concat(m.Data[:unix.SizeofNlAttr], raw)
	}
	return nil
}

// typeof encodes the set's key as expressions: its last field is the raw one.
func (s Set) typeof() []byte {
	base := map[expr.PayloadBase]int{
		expr.PayloadBaseLLHeader: baseLink, expr.PayloadBaseNetworkHeader: baseNetwork,
		expr.PayloadBaseTransportHeader: baseTransport,
	}[s.Raw.Base]
	last := described(exprPayload, numbers(payloadProto, 0, payloadField, 0,
		payloadBase, base, payloadOffset, int(s.Raw.Offset)*8, payloadLen, int(s.Raw.Len)*8))
	if !s.Concat {
		return last
	}
	var fields []byte
	all := FieldsOf(s.Type)
	for i, field := range all {
		one := last
		if i < len(all)-1 {
			one = named(field)
		}
		fields = userdata.Append(fields, userdata.Type(i), one) //nolint:gosec // two or three
	}
	return described(exprConcat, fields)
}

// named encodes the field of a type that sets with raw fields also have.
func named(field nftables.SetDatatype) []byte {
	switch field {
	case nftables.TypeIPAddr:
		return described(exprPayload, numbers(payloadProto, protoIP, payloadField, ipSource))
	case nftables.TypeIP6Addr:
		return described(exprPayload, numbers(payloadProto, protoIP6, payloadField, ip6Source))
	}
	return described(exprMeta, numbers(metaKey, int(expr.MetaKeyIIFNAME)))
}

func described(kind int, data []byte) []byte {
	return userdata.Append(numbers(typeofExpr, kind), typeofData, data)
}

// numbers encodes pairs of a type and a number.
func numbers(pairs ...int) (b []byte) {
	for i := 0; i < len(pairs); i += 2 {
		value := binary.NativeEndian.AppendUint32(nil, uint32(pairs[i+1])) //nolint:gosec // small
		b = userdata.Append(b, userdata.Type(pairs[i]), value)             //nolint:gosec // small
	}
	return b
}
