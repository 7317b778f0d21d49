package door

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"netyard/cni"
	"netyard/kernel/kerneltest"
	"netyard/modes"
	"netyard/yard/book"
	"netyard/yard/own"
	"netyard/yard/reconcile"
)

// A netBox is a container with an interface of another network, eth0, which has the default route with metric 0. On the
// LAN it has net1.
type netBox struct {
	*kerneltest.Host
	d        *dhcpHost
	id, conf string
}

func (d *dhcpHost) newNetBox(id, conf string) *netBox {
	b := &netBox{kerneltest.New(d.t), d, id, conf}
	b.Sh(d.t, "ip link add eth0 type veth peer name p0 && ip link set eth0 up && ip link set p0 up && "+
		"ip addr add 10.5.5.2/24 dev eth0 && ip route add default via 10.5.5.1")
	return b
}

func (b *netBox) call(command string) error {
	netns, err := os.Open(b.Path())
	if err != nil {
		return err
	}
	defer netns.Close()
	_, err = b.d.answer(b.d.t.Context(), cni.Request{
		Command: command, ContainerID: b.id, IfName: "net1", Netns: b.Path(), Config: json.RawMessage(b.conf),
	}, int(netns.Fd()))
	return err
}

func (b *netBox) do(command string) {
	b.d.t.Helper()
	if err := b.call(command); err != nil {
		b.d.t.Fatalf("%s %s: %v", command, b.id, err)
	}
}

// inside returns what a lease makes of the container, without its address.
func (b *netBox) inside() string {
	out := b.Sh(b.d.t, "ip route; ip -o link show net1 | grep -o 'mtu [0-9]*'")
	return regexp.MustCompile(`192\.0\.2\.1\d\d`).ReplaceAllString(out, "ITSELF")
}

// renew gives a container a new name, so that its lease is renewed with it, and waits until it is.
func (b *netBox) renew(name string) {
	b.d.t.Helper()
	began := b.d.leases()[0].Lease.Start
	n, err := own.NetworkNamed(b.d.Yard, "lan")
	if err != nil {
		b.d.t.Fatal(err)
	}
	es, err := b.d.Yard.Attachments(n.ID)
	if err != nil {
		b.d.t.Fatal(err)
	}
	for _, e := range es {
		if e.Attachment != b.id || e.Phase != modes.Ready {
			continue
		}
		c := modes.Container{Engine: book.CNI, ID: b.id, Name: name}
		if err := reconcile.Identify(b.d.t.Context(), b.d.Yard, e, c); err != nil {
			b.d.t.Fatal(err)
		}
	}
	b.d.eventually("the lease is renewed", func() bool { return b.d.leases()[0].Lease.Start.After(began) })
}

// TestDHCPChanged shows that a container is after each renewal as a new one would be: its router, the routes with their
// metric, among which those of the configuration stay, and its MTU.
func TestDHCPChanged(t *testing.T) {
	t.Parallel()
	kerneltest.Needs(t, "macvlan")
	d := newDHCPHost(t)
	const conf = `{"cniVersion":"1.0.0","name":"lan","type":"netyard","master":"eth0",` +
		`"ipam":{"type":"dhcp","routes":[{"dst":"10.7.0.0/16","gw":"192.0.2.7"}]}}`
	box := d.newNetBox("c1", conf)
	for i, options := range [][]string{
		{"3,192.0.2.1", "26,1400"},
		{"121,0.0.0.0/0,192.0.2.2,198.51.100.0/24,192.0.2.3,203.0.113.0/24,0.0.0.0", "26,1300"},
		{"121,198.51.100.0/24,192.0.2.1,10.9.9.9/32,0.0.0.0,0.0.0.0/0,10.9.9.9"}, // the parent's MTU again
		{"3,192.0.2.9", "26,9000"}, // more than the parent has
		{"3", "26,1280"},           // no router
		{"3,192.0.2.1"},
	} {
		var args []string
		for _, o := range options {
			args = append(args, "--dhcp-option="+o)
		}
		d.dnsmasq("192.0.2.100,192.0.2.150,255.255.255.0,1h", args...)
		if i == 0 {
			box.do("ADD")
		} else {
			box.renew(fmt.Sprintf("web%d", i))
		}
		fresh := d.newNetBox("c2", conf)
		fresh.do("ADD")
		if want := fresh.inside(); box.inside() != want {
			t.Errorf("with %v the container has\n%s\nand a new one\n%s", options, box.inside(), want)
		}
		d.eventually("CHECK expects what there is", func() bool { return box.call("CHECK") == nil })
		fresh.do("DEL")
		d.eventually("one lease is left", func() bool { return len(d.leases()) == 1 })
	}

	// A range without the container's address: the server refuses it, and the container gets another one.
	d.dnsmasq("192.0.2.160,192.0.2.170,255.255.255.0,1h", "--dhcp-option=3,192.0.2.1", "--dhcp-option=26,1400")
	box.renew("web")
	fresh := d.newNetBox("c2", conf)
	fresh.do("ADD")
	if want := fresh.inside(); box.inside() != want || !strings.Contains(want, "10.7.0.0/16") {
		t.Errorf("with another address the container has\n%s\nand a new one\n%s", box.inside(), want)
	}
	fresh.do("DEL")
	for change, want := range map[string]string{
		"ip link set net1 mtu 1300":                                            "MTU 1300 in the sandbox instead of 1400",
		"ip route replace default via 192.0.2.5 dev net1 metric 1":             "route 0.0.0.0/0 via 192.0.2.1 is missing",
		"ip route del 10.7.0.0/16; ip route add 10.7.0.0/16 dev net1 metric 9": "route 10.7.0.0/16 via 192.0.2.7 is missing",
	} {
		box.Sh(t, change)
		if err := box.call("CHECK"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("after %s, CHECK says: %v", change, err)
		}
	}
	box.do("DEL")
}
