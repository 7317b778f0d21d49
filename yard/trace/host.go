package trace

import (
	"net/netip"
	"slices"

	"netyard/kernel/explain"
	"netyard/modes"
	"netyard/yard/book"
)

// notPublished follows a packet to a port of the host that netyard does not publish: another program's rule translates
// it, or a program of the host listens on it.
func (t *tracer) notPublished(p explain.Packet) error {
	t.say("no container on a netyard network publishes port %d/%s for this client", t.port, t.proto)
	any4or6 := netip.IPv4Unspecified()
	if t.v6 {
		any4or6 = netip.IPv6Unspecified()
	}
	var err error
	if p.Dst, err = t.hostAddr(modes.Port{HostIP: any4or6}, p); err != nil {
		return err
	}
	if !p.Src.IsValid() {
		p.Src = p.Dst
	}
	hook := explain.Prerouting
	if p.In == "" {
		hook = explain.Output
	}
	found, _, err := explain.Judge(t.y.Config.Handle, hook, p)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(found, func(j explain.Judgement) bool { return j.To.IsValid() }) {
		return t.translated(hook, p)
	}
	listening, err := t.listens(p)
	if err != nil || !listening || p.In == "" {
		return err
	}
	if err := t.judge(hook, p); err != nil {
		return err
	}
	return t.judge(explain.Input, p)
}

// translated follows a packet to where another program's rule translates it.
func (t *tracer) translated(hook explain.Hook, p explain.Packet) error {
	if err := t.judge(hook, p); err != nil || t.reach == explain.Dropped {
		return err
	}
	p.OrigDst, p.OrigPort = p.Dst, p.Port
	p.Dst, p.Port = t.to.Addr(), t.to.Port()
	own, err := t.y.Config.Kernel.HasAddr(p.Dst)
	if err != nil {
		return err
	}
	if p.Local = own || p.Dst.IsLoopback(); p.Local {
		listening, err := t.listens(p)
		if err != nil || !listening || p.In == "" {
			return err
		}
		return t.judge(explain.Input, p)
	}
	if p.Out, _, err = explain.RouteTo(t.y.Config.Handle, p.Dst); err != nil {
		return err
	}
	if err := t.nameTarget(p); err != nil {
		return err
	}
	if p.In != "" {
		if err := t.judge(explain.Forward, p); err != nil {
			return err
		}
	}
	p.In = ""
	return t.judge(explain.Postrouting, p)
}

// nameTarget says by which link a translated packet leaves, and to which endpoint.
func (t *tracer) nameTarget(p explain.Packet) error {
	es, err := t.y.Endpoints()
	if err != nil {
		return err
	}
	for _, e := range es {
		if e.Address(p.Dst.Is4()) != p.Dst {
			continue
		}
		n, err := t.y.Network(e.NetworkID)
		if err != nil {
			return err
		}
		t.say("%s is %s on network %s; the packet leaves on %s", p.Dst, nameOf(e), book.Label(n), p.Out)
		return nil
	}
	t.say("it leaves on %s", p.Out)
	return nil
}

// listens reports whether a program of the host listens on the port, and says which.
func (t *tracer) listens(p explain.Packet) (bool, error) {
	ls, err := t.y.Config.Kernel.Listeners()
	if err != nil {
		return false, err
	}
	for _, l := range ls {
		a := netip.IPv4Unspecified()
		if t.v6 {
			a = netip.IPv6Unspecified()
		}
		if l.Receives(t.proto, a, p.Port, 1) && (!l.Addr.IsLoopback() || p.In == "") {
			t.say("%s on the host listens on it", l.Owner())
			return true, nil
		}
	}
	t.drop("no program of the host listens on it")
	return false, nil
}
