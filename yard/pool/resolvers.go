package pool

import (
	"bufio"
	"net/netip"
	"os"
	"strings"
)

// resolvers returns the name servers of the host (resolv.conf(5)). Containers could not reach a name server whose
// address is inside a pool.
func resolvers(file string) (out []netip.Prefix) {
	f, err := os.Open(file)
	if err != nil {
		return nil // a host without one has no resolvers
	}
	defer f.Close() //nolint:errcheck // read only
	for sc := bufio.NewScanner(f); sc.Scan(); {
		fields := strings.Fields(sc.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(fields[1]); err == nil {
			out = append(out, netip.PrefixFrom(a.WithZone(""), a.BitLen()))
		}
	}
	return out
}
