package kernel

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
)

// allSets are the sets of both tables.
func allSets() []setSpec {
	sets := append(setSpecs(), guardSets()...)
	return slices.Concat(sets, policySets(), vtepSets(), tunnelSets())
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

// showKey reads an element as nft prints it, field by field; each takes whole 32-bit registers.
func showKey(set SetName, key, end string) string {
	const register = 4
	spec, ok := specOf(set)
	if !ok {
		return fmt.Sprintf("%x", key)
	}
	if !spec.concat {
		end = "" // it is behind the interval, and where that begins is enough
	}
	var words []string
	for _, field := range fieldsOf(spec.key) {
		size := int(field.Bytes)
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
