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
	errNoIPv6      = errors.New("this host has IPv6 turned off (ipv6.disable=1), which hosts use inside WireGuard")
)

// A Secret is a private key of WireGuard. It is never printed.
type Secret [wgtypes.KeyLen]byte

// NewSecret generates a key.
func NewSecret() (Secret, error) {
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		return Secret{}, fmt.Errorf("generate a WireGuard key: %w", err)
	}
	return Secret(key), nil
}

// Public returns the public key, which the other hosts need.
func (s Secret) Public() [wgtypes.KeyLen]byte { return wgtypes.Key(s).PublicKey() }

// Format prints a placeholder, whatever the verb.
func (Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("(secret)")) }

// LogValue returns the same placeholder for logs.
func (Secret) LogValue() slog.Value { return slog.StringValue("(secret)") }

// CheckWireGuard returns an error if this host cannot have a WireGuard device. A kernel module that is not loaded yet
// gets loaded.
func CheckWireGuard(k *core.Handle) error {
	if _, err := k.ReadSysctl("/proc/sys/net/ipv6/conf/all/disable_ipv6"); err != nil {
		return errNoIPv6
	}
	// The kernel refuses a link of an impossible MTU, but only after it has found the driver of its kind
	// (rtnl_create_link, net/core/rtnetlink.c).
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = core.PeerPrefix+"probe", 1<<31
	if err := k.NL.LinkAdd(&netlink.Wireguard{LinkAttrs: attrs}); errors.Is(err, unix.EOPNOTSUPP) {
		return errNoWireGuard
	}
	return nil
}

// A WireGuard is the device that carries the VXLAN packets of all encrypted networks.
type WireGuard struct {
	Key  Secret
	Port uint16 // UDP, on all addresses of the host
	MTU  int
	// Addr is the host's address inside the tunnel; its prefix is the route to the other hosts.
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
	for _, s := range w.sysctls() {
		if err := s.Ensure(k); err != nil {
			return err
		}
	}
	if err := core.EnsureMTU(k, w, link, w.MTU); err != nil {
		return err
	}
	if err := w.port().explain(k, k.NL.LinkSetUp(link)); err != nil {
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

// port returns the device's port. It is bound when the link is set up, or when it is changed while the link is up
// (wg_open and set_port, drivers/net/wireguard).
func (w WireGuard) port() udpPort {
	return udpPort{w.Port, core.TunnelName, "set overlay.wireguard_port to another"}
}

// configure sets the key and the port of the device. A new key voids all its sessions, so it starts new handshakes at
// once: a peer that learned of the key a moment ago may have tried too early.
func (w WireGuard) configure(k *core.Handle) error {
	dev, err := tunnel(k)
	if err != nil {
		return fmt.Errorf("read %s: %w", w, err)
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
	if err := w.port().explain(k, setTunnel(k, c)); err != nil {
		return fmt.Errorf("configure %s: %w", w, err)
	}
	if c.PrivateKey == nil {
		return nil
	}
	var all []wgtypes.Key
	for _, p := range dev.Peers {
		all = append(all, p.PublicKey)
	}
	return startHandshakes(k, all)
}

func (w WireGuard) address() core.Addr {
	return core.Addr{Link: core.TunnelName, Alias: tunnelAlias, Prefix: w.Addr}
}

// sysctls returns the settings of the link. A new link has the host's defaults, and IPv6 is often off there.
func (WireGuard) sysctls() []core.Sysctl {
	return []core.Sysctl{
		noLinkLocal(core.TunnelName),
		{Path: []string{"net", "ipv6", "conf", core.TunnelName, "disable_ipv6"}, Value: "0"},
		{Path: []string{"net", "ipv6", "conf", core.TunnelName, "accept_ra"}, Value: "0"},
	}
}

// DependsOn reports whether a link is the device.
func (WireGuard) DependsOn(l core.LinkID) bool { return l.Name == core.TunnelName }

func (WireGuard) Remove(k *core.Handle) error { return k.DeleteLink(core.TunnelName, tunnelAlias) }

func (w WireGuard) Check(s *core.View) []string {
	link := s.Link(core.TunnelName)
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
		faults = append(faults, fmt.Sprintf("read %s: %v", w, err))
	case dev.PrivateKey != wgtypes.Key(w.Key):
		faults = append(faults, w.String()+" has another key")
	case dev.ListenPort != int(w.Port):
		faults = append(faults, fmt.Sprintf("%s has port %d instead of %d", w, dev.ListenPort, w.Port))
	}
	if a.Flags&net.FlagUp == 0 {
		faults = append(faults, w.String()+" is down")
	}
	faults = append(faults, core.CheckMTU(w, link, w.MTU)...)
	for _, sysctl := range w.sysctls() {
		faults = append(faults, sysctl.Check(s)...)
	}
	return append(faults, w.address().Check(s)...)
}

// tunnel returns the state of the WireGuard device.
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

// wireguard calls f with a client of its own in the Handle's namespace.
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
