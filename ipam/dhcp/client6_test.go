package dhcp

import (
	"context"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
)

// A fake6 is a link with DHCPv6 servers.
type fake6 struct {
	answer func(m *dhcpv6.Message) []*dhcpv6.Message
	queue  chan []byte
}

func (f *fake6) Multicast(raw []byte) error {
	m, err := dhcpv6.MessageFromBytes(raw)
	if err != nil {
		return err
	}
	for _, a := range f.answer(m) {
		f.queue <- a.ToBytes()
	}
	return nil
}

func (f *fake6) Receive(ctx context.Context) ([]byte, netip.Addr, error) {
	select {
	case m := <-f.queue:
		return m, netip.MustParseAddr("fe80::1"), nil
	case <-ctx.Done():
		return nil, netip.Addr{}, ctx.Err()
	}
}

// reply6 returns an answer of a server with an address for a minute.
func reply6(m *dhcpv6.Message, kind dhcpv6.MessageType, server []byte, addr string) *dhcpv6.Message {
	duid, err := dhcpv6.DUIDFromBytes(server)
	if err != nil {
		panic(err)
	}
	a := &dhcpv6.Message{MessageType: kind, TransactionID: m.TransactionID}
	a.AddOption(m.GetOneOption(dhcpv6.OptionClientID))
	a.AddOption(dhcpv6.OptServerID(duid))
	ia := &dhcpv6.OptIANA{IaId: m.Options.IANA()[0].IaId}
	ia.Options.Add(&dhcpv6.OptIAAddress{
		IPv6Addr: netip.MustParseAddr(addr).AsSlice(), ValidLifetime: time.Minute, PreferredLifetime: time.Minute,
	})
	a.AddOption(ia)
	return a
}

// TestSilentServer6 is TestSilentServer for DHCPv6.
func TestSilentServer6(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		silent, other := []byte{0, 3, 0, 1, 2, 0, 0, 0, 0, 1}, []byte{0, 3, 0, 1, 2, 0, 0, 0, 0, 2}
		f := &fake6{queue: make(chan []byte, 16), answer: func(m *dhcpv6.Message) []*dhcpv6.Message {
			if m.MessageType == dhcpv6.MessageTypeSolicit {
				return []*dhcpv6.Message{
					reply6(m, dhcpv6.MessageTypeAdvertise, silent, "2001:db8::10"),
					reply6(m, dhcpv6.MessageTypeAdvertise, other, "2001:db8::20"),
				}
			}
			if string(m.Options.ServerID().ToBytes()) == string(silent) {
				return nil
			}
			return []*dhcpv6.Message{reply6(m, dhcpv6.MessageTypeReply, other, "2001:db8::20")}
		}}
		ctx, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
		defer cancel()
		c := &Client6{Transport6: f, DUID: []byte{0, 3, 0, 1, 2, 0, 0, 0, 0, 9}}
		l, err := c.Acquire(ctx, netip.Addr{})
		if err != nil || l.Addr.String() != "2001:db8::20/128" {
			t.Errorf("%v, %v", l.Addr, err)
		}
	})
}
