package lab

import (
	"fmt"
	"os"
	"path/filepath"
)

// Firewall makes a node for the host's firewall: it runs this machine's own system, whatever the engine's is, in the
// host's network namespace. So ufw and firewalld of Debian 12 can be tested with engines of other releases. The node
// has a disk of its own.
func (h *Host) Firewall() *Node {
	t := h.report.TB()
	t.Helper()
	return newNode(h.report, nodeConfig{name: "firewall", root: "/", bridgeNF: true, net: h.Node})
}

// Bus is the environment variable for clients of the system bus that Firewalld starts. An abstract address is reachable
// from the whole network namespace, whatever its files.
const Bus = "DBUS_SYSTEM_BUS_ADDRESS=unix:abstract=/lab/bus"

// busConfig configures a system bus without restrictions. The usual one would try to start PolicyKit for each call, and
// fail.
const busConfig = `<busconfig><type>system</type><listen>unix:abstract=/lab/bus</listen><auth>EXTERNAL</auth>
<policy context="default">
<allow user="*"/><allow own="*"/>
<allow send_destination="*" eavesdrop="false"/><allow receive_sender="*"/></policy></busconfig>`

// Firewalld declares firewalld as a service, and starts the system bus that it uses.
func (n *Node) Firewalld() *Service {
	config := filepath.Join(n.Dir, "bus.xml")
	if err := os.WriteFile(config, []byte(busConfig), 0o644); err != nil {
		n.report.TB().Fatal(err)
	}
	bus := n.Service("dbus-daemon", "dbus-daemon", "--nofork", "--nopidfile", "--config-file="+config)
	bus.ready = func() error { return n.tries("grep -q /lab/bus /proc/net/unix") }
	bus.Start()
	s := n.Service("firewalld", "firewalld", "--nofork", "--nopid")
	s.Env = []string{Bus}
	s.ready = func() error { return n.tries(Bus + " firewall-cmd --state") }
	return s
}

// tries runs a shell command in the node; the error has its output.
func (n *Node) tries(cmd string) error {
	if out, err := n.TrySh(cmd); err != nil {
		return fmt.Errorf("%s: %w", out, err)
	}
	return nil
}
