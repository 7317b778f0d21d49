package overlay

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"netyard/kernel/core"
)

const tunnelAlias = core.AliasPrefix + "tunnel"

var (
	errNoWireGuard = errors.New("this kernel has no WireGuard")
	errNoIPv6      = errors.New("this host has IPv6 turned off (ipv6.disable=1), and the hosts' addresses inside WireGuard are of it")
)

// A Secret is a private key of WireGuard's. It does not print.
type Secret [wgtypes.KeyLen]byte

// NewSecret makes a key that nobody has.
func NewSecret() (Secret, error) {
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		return Secret{}, fmt.Errorf("make a WireGuard key: %w", err)
	}
	return Secret(key), nil
}

// Public is the key that the others have to know.
func (s Secret) Public() [wgtypes.KeyLen]byte { return wgtypes.Key(s).PublicKey() }

// Format keeps the key to itself, whatever is asked for.
func (Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("(secret)")) }

// LogValue keeps it, too.
func (Secret) LogValue() slog.Value { return slog.StringValue("(secret)") }

// Encrypts says why this host cannot have a WireGuard device; nil: it can. A module that is only not loaded is.
func Encrypts(k *core.Handle) error {
	if _, err := k.ReadSysctl("/proc/sys/net/ipv6/conf/all/disable_ipv6"); err != nil {
		return errNoIPv6
	}
	// A link of an MTU that there is not is refused, but only by who knows its kind (rtnl_create_link,
	// net/core/rtnetlink.c).
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = core.PeerPrefix+"probe", 1<<31
	if err := k.NL.LinkAdd(&netlink.Wireguard{LinkAttrs: attrs}); errors.Is(err, unix.EOPNOTSUPP) {
		return errNoWireGuard
	}
	return nil
}

// A WireGuard is the device that all VXLAN of encrypted networks goes through.
type WireGuard struct {
	Key  Secret
	Port uint16 // UDP, on all addresses of the host
	MTU  int
	// Addr is the host's address inside, and with it the route to the others'.
	Addr netip.Prefix
}

// String names the link.
func (WireGuard) String() string { return "WireGuard link " + core.TunnelName }

func (w WireGuard) Ensure(k *core.Handle) error {
	link, err := k.Link(core.TunnelName)
	if err != nil {
		return err
	}
	if link != nil && link.Attrs().Alias != tunnelAlias && (link.Attrs().Alias != "" || link.Type() != "wireguard") {
		return fmt.Errorf("create %s: a link of that name exists and %w", w, core.ErrForeign)
	}
	if link == nil {
		if link, err = w.create(k); err != nil {
			return fmt.Errorf("create %s: %w", w, err)
		}
	}
	if link.Attrs().Alias == "" {
		if err := k.NL.LinkSetAlias(link, tunnelAlias); err != nil {
			return fmt.Errorf("mark %s: %w", w, err)
		}
	}
	if err := w.configure(k); err != nil {
		return err
	}
	if err := k.NL.LinkSetIP6AddrGenMode(link, nl6None); err != nil {
		return fmt.Errorf("give %s no other address: %w", w, err)
	}
	for _, s := range w.sysctls() {
		if err := s.Ensure(k); err != nil {
			return err
		}
	}
	if link.Attrs().MTU != w.MTU {
		if err := k.NL.LinkSetMTU(link, w.MTU); err != nil {
			return fmt.Errorf("set MTU %d on %s: %w", w.MTU, w, err)
		}
	}
	if err := w.taken(k.NL.LinkSetUp(link)); err != nil {
		return fmt.Errorf("set %s up: %w", w, err)
	}
	return w.address().Ensure(k)
}

func (w WireGuard) create(k *core.Handle) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = core.TunnelName, w.MTU
	err := k.NL.LinkAdd(&netlink.Wireguard{LinkAttrs: attrs})
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = errNoWireGuard
	}
	if err != nil {
		return nil, err
	}
	return k.NL.LinkByName(core.TunnelName)
}

// taken names what somebody else has. The port is bound when the link is set up, or when it is changed while it is
// (wg_open and set_port, drivers/net/wireguard).
func (w WireGuard) taken(err error) error {
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("UDP port %d is in use; overlay.wireguard_port can be another: %w", w.Port, err)
	}
	return err
}

// configure gives the device its key and its port. With another key all that it agreed upon with its peers is void, and
// it agrees anew at once: a peer that learned of the key a moment ago may have asked too early.
func (w WireGuard) configure(k *core.Handle) error {
	dev, err := tunnel(k)
	if err != nil {
		return fmt.Errorf("look at %s: %w", w, err)
	}
	var c wgtypes.Config
	if key := wgtypes.Key(w.Key); dev.PrivateKey != key {
		c.PrivateKey = &key
	}
	if port := int(w.Port); dev.ListenPort != port {
		c.ListenPort = &port
	}
	if c.PrivateKey == nil && c.ListenPort == nil {
		return nil
	}
	if err := w.taken(setTunnel(k, c)); err != nil {
		return fmt.Errorf("configure %s: %w", w, err)
	}
	if c.PrivateKey == nil {
		return nil
	}
	var all []wgtypes.Key
	for _, p := range dev.Peers {
		all = append(all, p.PublicKey)
	}
	return greet(k, all)
}

func (w WireGuard) address() core.Addr {
	return core.Addr{Link: core.TunnelName, Alias: tunnelAlias, Prefix: w.Addr}
}

// sysctls: a new link has what the host has as its default, and IPv6 is often off there.
func (WireGuard) sysctls() []core.Sysctl {
	return []core.Sysctl{
		{Path: []string{"net", "ipv6", "conf", core.TunnelName, "disable_ipv6"}, Value: "0"},
		{Path: []string{"net", "ipv6", "conf", core.TunnelName, "accept_ra"}, Value: "0"},
	}
}

func (WireGuard) Remove(k *core.Handle) error { return k.DeleteLink(core.TunnelName, tunnelAlias) }

func (w WireGuard) Check(s *core.View) []string {
	link := s.Links[core.TunnelName]
	if link == nil {
		return []string{w.String() + " is missing"}
	}
	a := link.Attrs()
	if a.Alias != tunnelAlias {
		return []string{fmt.Sprintf("%s %v", w, core.ErrForeign)}
	}
	var faults []string
	switch dev, err := tunnelIn(s); {
	case err != nil:
		faults = append(faults, fmt.Sprintf("look at %s: %v", w, err))
	case dev.PrivateKey != wgtypes.Key(w.Key):
		faults = append(faults, w.String()+" has another key")
	case dev.ListenPort != int(w.Port):
		faults = append(faults, fmt.Sprintf("%s is at port %d instead of %d", w, dev.ListenPort, w.Port))
	}
	if a.Flags&net.FlagUp == 0 {
		faults = append(faults, w.String()+" is down")
	}
	if a.MTU != w.MTU {
		faults = append(faults, fmt.Sprintf("%s has MTU %d instead of %d", w, a.MTU, w.MTU))
	}
	for _, sysctl := range w.sysctls() {
		faults = append(faults, sysctl.Check(s)...)
	}
	return append(faults, w.address().Check(s)...)
}

// tunnel is the device as WireGuard has it.
func tunnel(k *core.Handle) (dev *wgtypes.Device, err error) {
	err = wireguard(k, func(c *wgctrl.Client) (err error) {
		dev, err = c.Device(core.TunnelName)
		return err
	})
	return dev, err
}

func setTunnel(k *core.Handle, c wgtypes.Config) error {
	return wireguard(k, func(wg *wgctrl.Client) error { return wg.ConfigureDevice(core.TunnelName, c) })
}

// wireguard runs f with a socket of its own, in the Handle's namespace.
func wireguard(k *core.Handle, f func(*wgctrl.Client) error) error {
	return k.Inside(func() error {
		c, err := wgctrl.New()
		if errors.Is(err, os.ErrNotExist) {
			err = errNoWireGuard
		}
		if err != nil {
			return err
		}
		return errors.Join(f(c), c.Close())
	})
}
