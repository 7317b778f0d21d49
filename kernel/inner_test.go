package kernel_test

import (
	"net"
	"os/exec"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"netyard/kernel/core"
	"netyard/kernel/dhcp"
	"netyard/kernel/kerneltest"
	"netyard/kernel/lan"
	"netyard/kernel/sandbox"
)

// TestHostname reads the host names of many processes, and no thread of this one takes one of them for its own
// afterwards.
func TestHostname(t *testing.T) {
	t.Parallel()
	h := kerneltest.New(t)
	cmd := exec.Command("unshare", "-u", "sh", "-c", "echo shop >/proc/sys/kernel/hostname && echo && exec sleep 1d")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	home := thread(t)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if name, err := h.Hostname(cmd.Process.Pid); name != "shop" || err != nil {
				t.Errorf("host name %q, %v", name, err)
			}
			if now := thread(t); now != home {
				t.Errorf("a thread is on host %s now, and was on %s", now, home)
			}
		})
	}
	wg.Wait()
}

// thread is the name of the host that this thread is on.
func thread(t *testing.T) string {
	t.Helper()
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Error(err)
	}
	return unix.ByteSliceToString(name.Nodename[:])
}

// TestOtherNamespace: a path by a process ID may stand for another namespace after a crash, even for the host's. None
// is entered by it, though a link there has the name, the alias and the hardware address that are looked for.
func TestOtherNamespace(t *testing.T) {
	t.Parallel()
	const mac = "02:00:00:00:00:07"
	h, was, now := kerneltest.New(t), kerneltest.New(t), kerneltest.New(t)
	if err := h.LoadFirewall(); err != nil {
		t.Fatal(err)
	}
	c := lan.Child{
		Name: "nyp-eeeeeeeeeee", Alias: "netyard:n:e", Parent: lan.Parent{Name: "eth0"},
		Kind: "macvlan", Mode: "bridge",
	}
	now.Sh(t, "ip link add "+c.Name+" type veth peer name other && "+
		"ip link set "+c.Name+" address "+mac+" alias "+c.Alias)
	id, err := h.SandboxID(was.NS())
	if err != nil {
		t.Fatal(err)
	}
	other, err := h.SandboxID(now.NS())
	if err != nil {
		t.Fatal(err)
	}
	hw, err := net.ParseMAC(mac)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []struct {
		name, path string
		id         core.NamespaceID
		enters     bool
	}{
		{"the same namespace", now.Path(), other, true},
		{"one that was not known", now.Path(), core.NamespaceID{}, true},
		{"another one", now.Path(), id, false},
		{"the host's", "/proc/self/ns/net", core.NamespaceID{}, false},
		{"one of another kind", "/proc/self/ns/uts", core.NamespaceID{}, false},
	} {
		t.Run(p.name, func(t *testing.T) {
			c := c
			c.Sandbox, c.NS = p.path, p.id
			if got, err := h.Plugged(c); got != p.enters || err != nil {
				t.Errorf("its link was found: %v, %v, want %v", got, err, p.enters)
			}
			box, err := dhcp.OpenSandboxLink(p.path, p.id, c.Alias, hw)
			if (err == nil) != p.enters {
				t.Errorf("its link was opened: %v, want %v", err, p.enters)
			}
			if err == nil {
				_ = box.Close()
			}
			s, err := sandbox.OpenSandbox(p.path, p.id)
			if (err == nil) != p.enters {
				t.Errorf("its sockets were listed: %v, want %v", err, p.enters)
			}
			if err == nil {
				_ = s.Close()
			}
			entered := false
			err = core.InNamespace(p.path, p.id, func(*netlink.Handle) error {
				entered = true
				return nil
			})
			if entered != p.enters || err != nil {
				t.Errorf("it was entered: %v, %v, want %v", entered, err, p.enters)
			}
			if p.enters {
				return
			}
			if err := h.Remove(c); err != nil {
				t.Error(err)
			}
			now.Sh(t, "ip link show "+c.Name)
		})
	}
}
