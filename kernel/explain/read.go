package explain

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"netyard/kernel/nft"
)

// A readRule is a rule as the kernel has it. google/nftables leaves out the expressions of a rule that it does not
// know, and so the rule would seem to match more packets than it does. So netyard reads the rules itself, and keeps the
// names of unknown expressions.
type readRule struct {
	handle   uint64
	exprs    []expr.Any
	unknown  []string
	userData []byte
}

// readRules reads the rules of all tables of a family; the keys are table and chain.
func readRules(v nft.View, family nftables.TableFamily) (map[string][]readRule, error) {
	msgs, err := v.Sock.Execute(netlink.Message{
		Header: netlink.Header{
			Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETRULE, Flags: netlink.Request | netlink.Dump,
		},
		Data: []byte{byte(family), 0, 0, 0},
	})
	if err != nil {
		return nil, fmt.Errorf("list rules: %w", err)
	}
	all := map[string][]readRule{}
	for _, m := range msgs {
		const head = 4 // struct nfgenmsg
		if len(m.Data) < head || m.Data[0] != byte(family) {
			continue
		}
		chain, r, err := readRuleOf(byte(family), m.Data[head:])
		if err != nil {
			return nil, fmt.Errorf("read a rule: %w", err)
		}
		all[chain] = append(all[chain], r)
	}
	return all, nil
}

func readRuleOf(family byte, data []byte) (chain string, r readRule, err error) {
	attrs, err := netlink.UnmarshalAttributes(data)
	if err != nil {
		return "", r, err
	}
	var table, name string
	for _, a := range attrs {
		switch a.Type &^ unix.NLA_F_NESTED {
		case unix.NFTA_RULE_TABLE:
			table = strings.TrimRight(string(a.Data), "\x00")
		case unix.NFTA_RULE_CHAIN:
			name = strings.TrimRight(string(a.Data), "\x00")
		case unix.NFTA_RULE_HANDLE:
			r.handle = binary.BigEndian.Uint64(a.Data)
		case unix.NFTA_RULE_USERDATA:
			r.userData = a.Data
		case unix.NFTA_RULE_EXPRESSIONS:
			if err := r.readExprs(family, a.Data); err != nil {
				return "", r, err
			}
		}
	}
	return table + " " + name, r, nil
}

func (r *readRule) readExprs(family byte, data []byte) error {
	list, err := netlink.UnmarshalAttributes(data)
	if err != nil {
		return err
	}
	for _, one := range list {
		attrs, err := netlink.UnmarshalAttributes(one.Data)
		if err != nil {
			return err
		}
		var name string
		var body []byte
		for _, a := range attrs {
			switch a.Type &^ unix.NLA_F_NESTED {
			case unix.NFTA_EXPR_NAME:
				name = strings.TrimRight(string(a.Data), "\x00")
			case unix.NFTA_EXPR_DATA:
				body = a.Data
			}
		}
		e := newExpr(name)
		if e != nil && name != "notrack" && unmarshal(family, body, e) != nil {
			e = nil
		}
		if imm, ok := e.(*expr.Immediate); ok && imm.Register == unix.NFT_REG_VERDICT {
			v := &expr.Verdict{}
			if expr.Unmarshal(family, body, v) == nil {
				e = v
			}
		}
		if e == nil {
			r.unknown = append(r.unknown, name)
			e = &unknownExpr{}
		}
		r.exprs = append(r.exprs, e)
	}
	return nil
}

// unmarshal reads an expression. google/nftables reads the direction of a ct expression as four bytes, where the kernel
// has one, and does not see whether the expression sets a value.
func unmarshal(family byte, body []byte, e expr.Any) error {
	ct, ok := e.(*expr.Ct)
	if !ok {
		return expr.Unmarshal(family, body, e)
	}
	attrs, err := netlink.UnmarshalAttributes(body)
	if err != nil {
		return err
	}
	for _, a := range attrs {
		switch {
		case a.Type == unix.NFTA_CT_DIRECTION && len(a.Data) == 1:
			ct.Direction = uint32(a.Data[0])
		case len(a.Data) != 4:
		case a.Type == unix.NFTA_CT_KEY:
			ct.Key = expr.CtKey(binary.BigEndian.Uint32(a.Data))
		case a.Type == unix.NFTA_CT_DREG, a.Type == unix.NFTA_CT_SREG:
			ct.Register, ct.SourceRegister = binary.BigEndian.Uint32(a.Data), a.Type == unix.NFTA_CT_SREG
		}
	}
	return nil
}

// An unknownExpr stands for an expression that netyard does not know: it may match or not.
type unknownExpr struct{ expr.Any }

// newExpr returns an empty expression with that name; nil for one that netyard does not understand.
func newExpr(name string) expr.Any {
	switch name {
	case "meta":
		return &expr.Meta{}
	case "cmp":
		return &expr.Cmp{}
	case "payload":
		return &expr.Payload{}
	case "lookup":
		return &expr.Lookup{}
	case "immediate":
		return &expr.Immediate{}
	case "bitwise":
		return &expr.Bitwise{}
	case "range":
		return &expr.Range{}
	case "ct":
		return &expr.Ct{}
	case "fib":
		return &expr.Fib{}
	case "counter":
		return &expr.Counter{}
	case "log":
		return &expr.Log{}
	case "reject":
		return &expr.Reject{}
	case "match":
		return &expr.Match{}
	case "target":
		return &expr.Target{}
	case "nat":
		return &expr.NAT{}
	case "redir":
		return &expr.Redir{}
	case "masq":
		return &expr.Masq{}
	case "dynset":
		return &expr.Dynset{}
	case "objref":
		return &expr.Objref{}
	case "notrack":
		return &expr.Notrack{}
	}
	return nil
}
