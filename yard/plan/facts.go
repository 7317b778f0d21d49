package plan

import (
	"net/netip"

	"netyard/kernel/core"
	"netyard/kernel/device"
	"netyard/kernel/lan"
	"netyard/kernel/sandbox"
	"netyard/modes"
)

// Facts returns the host's facts, as its kernel knows them.
func (r Runner) Facts() modes.Facts { return facts{r.Kernel.Handle} }

type facts struct{ *core.Handle }

func (f facts) HasAddr(a netip.Addr) (bool, error) { return sandbox.HasAddr(f.Handle, a) }

func (f facts) LinkAddrs(link string) ([]netip.Prefix, error) {
	return lan.Addrs(f.Handle, lan.Parent{Name: link})
}

func (f facts) ReversePath(link string) (string, error) { return lan.ReversePath(f.Handle, link) }

func (f facts) Device(name string) (device.State, error) { return device.StateOf(f.Handle, name) }
