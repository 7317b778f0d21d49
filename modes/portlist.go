package modes

import (
	"fmt"
	"strconv"
	"strings"
)

// A PortRange is one entry of a list of ports; an empty Proto means every protocol.
type PortRange struct {
	First, Last uint16
	Proto       string
}

// Has says whether a port is in the range.
func (r PortRange) Has(proto string, port uint16) bool {
	return r.First <= port && port <= r.Last && (r.Proto == "" || r.Proto == proto)
}

// String writes the range as options do: 80, 8000-8100/udp.
func (r PortRange) String() string {
	text := strconv.Itoa(int(r.First))
	if r.Last > r.First {
		text += fmt.Sprintf("-%d", r.Last)
	}
	if r.Proto != "" {
		text += "/" + r.Proto
	}
	return text
}

func parsePorts(v string) (r PortRange, ok bool) {
	ports, proto, said := strings.Cut(v, "/")
	if said && proto != "tcp" && proto != "udp" {
		return r, false
	}
	first, last, isRange := strings.Cut(ports, "-")
	if !isRange {
		last = first
	}
	a, err1 := strconv.ParseUint(first, 10, 16)
	b, err2 := strconv.ParseUint(last, 10, 16)
	return PortRange{uint16(a), uint16(b), proto}, err1 == nil && err2 == nil && a > 0 && a <= b
}
