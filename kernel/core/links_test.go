package core

import (
	"bytes"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// TestTrimLink shows that a link is decoded the same from a trimmed message, as far as netyard reads it, and that a
// message that is cut is refused as before.
func TestTrimLink(t *testing.T) {
	t.Parallel()
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = 7
	raw := msg.Serialize()
	for _, a := range []*nl.RtAttr{
		nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated("nyv-1")), // 6 bytes, and 2 to the next attribute
		nl.NewRtAttr(unix.IFLA_STATS64, make([]byte, 200)),
		nl.NewRtAttr(unix.IFLA_ADDRESS, []byte{2, 66, 10, 9, 0, 2}),
		nl.NewRtAttr(unix.IFLA_AF_SPEC|unix.NLA_F_NESTED, make([]byte, 900)),
		nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(1400)),
		nl.NewRtAttr(unix.IFLA_IFALIAS, nl.ZeroTerminated("netyard:n:e")),
	} {
		raw = append(raw, a.Serialize()...)
	}
	trimmed := trimLink(slices.Clone(raw))
	if len(trimmed) > len(raw)-1100 {
		t.Errorf("of %d bytes %d are left", len(raw), len(trimmed))
	}
	l, err := netlink.LinkDeserialize(nil, trimmed)
	if err != nil {
		t.Fatal(err)
	}
	a := l.Attrs()
	if a.Index != 7 || a.Name != "nyv-1" || a.MTU != 1400 || a.Alias != "netyard:n:e" ||
		!bytes.Equal(a.HardwareAddr, []byte{2, 66, 10, 9, 0, 2}) || a.Statistics != nil {
		t.Errorf("the link is %+v", a)
	}
	cut := raw[:len(raw)-4]
	_, want := netlink.LinkDeserialize(nil, slices.Clone(cut))
	if _, err := netlink.LinkDeserialize(nil, trimLink(slices.Clone(cut))); want == nil || err == nil {
		t.Errorf("a cut message is decoded: %v, and trimmed: %v", want, err)
	}
}
