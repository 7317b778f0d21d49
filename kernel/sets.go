package kernel

import (
	"encoding/binary"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/google/nftables"
)

// allSets are the sets of both tables.
func allSets() []setSpec {
	sets := append(setSpecs(), guardSets()...)
	return append(sets, policySets()...)
}

func (s setSpec) table() *nftables.Table {
	if s.bridge {
		return tables()[1]
	}
	return tables()[0]
}

func specOf(set SetName) (setSpec, bool) {
	for _, s := range allSets() {
		if s.name == set {
			return s, true
		}
	}
	return setSpec{}, false
}

// showKey says an element in words, part by part as nft does. Without end, or where end is the same, it is a single value.
func showKey(set SetName, key, end string) string {
	spec, ok := specOf(set)
	if !ok {
		return strconv.Quote(key)
	}
	if !spec.concat {
		end = "" // it is behind the interval, and where that begins is enough
	}
	const register = 4
	var parts []string
	for _, t := range nftables.ConcatSetTypeElements(spec.key) {
		n := int(t.Bytes)
		size := (n + register - 1) / register * register
		if len(key) < n {
			break
		}
		part := showValue(t, key[:n])
		if len(end) >= n {
			if last := showValue(t, end[:n]); last != part {
				part += "-" + last
			}
			end = end[min(size, len(end)):]
		}
		parts = append(parts, part)
		key = key[min(size, len(key)):]
	}
	return strings.Join(parts, " . ")
}

func showValue(t nftables.SetDatatype, v string) string {
	switch t.Name {
	case nftables.TypeIPAddr.Name, nftables.TypeIP6Addr.Name:
		a, _ := netip.AddrFromSlice([]byte(v))
		return a.String()
	case nftables.TypeEtherAddr.Name:
		return net.HardwareAddr(v).String()
	case nftables.TypeInetProto.Name:
		return strconv.Itoa(int(v[0]))
	case nftables.TypeInetService.Name:
		return strconv.Itoa(int(binary.BigEndian.Uint16([]byte(v))))
	}
	return strings.TrimRight(v, "\x00")
}
