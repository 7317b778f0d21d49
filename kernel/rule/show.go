package rule

import (
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/google/nftables"
)

// showField prints one field of a key as nft does.
func showField(field nftables.SetDatatype, v string) string {
	switch field {
	case nftables.TypeIPAddr, nftables.TypeIP6Addr:
		addr, _ := netip.AddrFromSlice([]byte(v))
		return addr.String()
	case nftables.TypeInetProto:
		return ProtoName(v[0])
	case nftables.TypeInetService:
		return strconv.Itoa(int(v[0])<<8 | int(v[1]))
	case nftables.TypeIFName:
		return strings.TrimRight(v, "\x00")
	case nftables.TypeInteger:
		return fmt.Sprintf("%#x", new(big.Int).SetBytes([]byte(v)))
	case nftables.TypeEtherAddr:
		return net.HardwareAddr(v).String()
	}
	return fmt.Sprintf("%x", v)
}

// SpecOf finds the declaration of a set.
func SpecOf(sets []Set, set SetName) (Set, bool) {
	for _, s := range sets {
		if s.Name == set {
			return s, true
		}
	}
	return Set{}, false
}

// Show prints an element's key as nft does, field by field. Each field takes whole 32-bit registers.
func Show(sets []Set, set SetName, key, end string) string {
	const register = 4
	spec, ok := SpecOf(sets, set)
	if !ok {
		return fmt.Sprintf("%x", key)
	}
	if !spec.Concat {
		end = "" // the first address after the interval; its beginning identifies the element
	}
	var words []string
	for _, field := range FieldsOf(spec.Type) {
		size := int(field.Bytes)
		if field == nftables.TypeInteger {
			size = int(spec.Raw.Len)
		}
		if len(key) < size {
			break
		}
		word, whole := showField(field, key[:size]), (size+register-1)/register*register
		if len(end) >= size {
			if last := showField(field, end[:size]); last != word {
				word += "-" + last
			}
			end = end[min(len(end), whole):]
		}
		words = append(words, word)
		key = key[min(len(key), whole):]
	}
	return strings.Join(words, " . ")
}
