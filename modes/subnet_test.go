package modes_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"netyard/modes"
)

// TestCheckSubnet shows which subnets no network can have, of any mode and by any door.
func TestCheckSubnet(t *testing.T) {
	t.Parallel()
	for subnet, use := range map[string]string{
		"10.9.0.0/24": "", "100.64.0.0/10": "", "169.254.7.0/24": "", "240.0.0.0/24": "", "254.0.0.0/8": "",
		"1.0.0.0/8": "", "126.0.0.0/8": "", "224.0.0.0/3": "netyard", "223.255.255.0/24": "",
		"0.0.0.0/0": "RFC 1122", "0.1.2.0/24": "RFC 1122", "127.29.0.0/16": "loopback", "126.0.0.0/7": "loopback",
		"224.0.7.0/24": "multicast", "239.0.0.0/8": "multicast", "247.0.0.0/8": "netyard's own",
		"247.1.2.3/32": "netyard's own", "246.0.0.0/7": "netyard's own", "240.0.0.0/4": "netyard's own",
		"255.255.255.0/24": "broadcast", "255.255.255.254/31": "broadcast", "255.255.254.0/24": "",
		"fd00::/64": "", "2001:db8::/64": "", "fe80::/64": "", "64:ff9b::/96": "", "::/0": "RFC 4291",
		"::/64": "RFC 4291", "::ffff:10.9.0.0/112": "IPv4-mapped",
		"::ffff:127.0.0.0/104": "IPv4-mapped", "::ffff:0.0.0.0/96": "IPv4-mapped", "::fffe:0:0/95": "IPv4-mapped",
		"fe80::/10": "", "169.254.0.0/16": "", "::1/128": "RFC 4291", "ff02::/16": "multicast",
		"fe00::/7": "multicast", "fd6e:6574:7961:7264::/64": "netyard's own", "fd6e:6574:7961:7265::/64": "",
	} {
		err := modes.CheckSubnet(netip.MustParsePrefix(subnet))
		switch {
		case use == "" && err != nil:
			t.Errorf("%s: %v", subnet, err)
		case use != "" && (err == nil || !errors.Is(err, modes.ErrOption) ||
			!strings.HasPrefix(err.Error(), "subnet "+subnet+": ") || !strings.Contains(err.Error(), use)):
			t.Errorf("%s: got %v, want %s", subnet, err, use)
		}
	}
}
