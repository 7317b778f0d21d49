package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"netyard/integration/lab"
)

// A stop makes the daemon pause at a step.
type stop struct {
	t    *testing.T
	file string
}

// at makes the daemon pause when it next reaches the step.
func (s stop) at(step string) {
	s.t.Helper()
	if err := os.WriteFile(s.file, []byte("hold "+step), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// held waits until the daemon has paused.
func (s stop) held() {
	s.t.Helper()
	eventually(s.t, "the daemon reaches the step", func() bool {
		_, err := os.Stat(s.file + ".held")
		return err == nil
	})
}

// goOn makes the daemon continue.
func (s stop) goOn() {
	s.t.Helper()
	if err := os.Remove(s.file + ".held"); err != nil {
		s.t.Fatal(err)
	}
}

// TestCNIKilled kills the plugin, or the runtime and the plugin, while the daemon works for them: nobody gets the
// answer, so the attachment is removed, and the next container can have its address and port.
func TestCNIKilled(t *testing.T) {
	t.Parallel()
	h := lab.New(t, lab.Engine2010, lab.NoEngine())
	s := stop{t, filepath.Join(h.Dir, "failpoint")}
	h.Netyard.Env = append(h.Netyard.Env, "NETYARD_FAILPOINT="+s.file)
	h.Netyard.Start()
	h.StartContainerd()
	h.Sh("netyard network create web --subnet 10.77.0.0/24; netyard cni install web")
	sandboxes(h, "a")
	const mapping = `"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]`
	a := call{id: "a", netns: "/run/netns/a", conf: with(confOf(t, h, "web", "1.0.0"), mapping)}
	for _, step := range []string{
		"before endpoint attaching", "after endpoint attaching", "after endpoint attached",
		"after endpoint plugged in", "after endpoint ready",
	} {
		s.at(step)
		pid := strings.TrimSpace(h.Sh(fmt.Sprintf(`CNI_COMMAND=ADD CNI_CONTAINERID=a CNI_NETNS=%s CNI_IFNAME=eth0 CNI_PATH=/opt/cni/bin /opt/cni/bin/netyard >/dev/null 2>&1 <<'END' & echo $!
%s
END`, a.netns, a.conf)))
		s.held()
		kill(h, "echo "+pid)
		s.goOn()
		nothing(t, h, step)
		valid(t, "1.0.0", a.do(t, h, "ADD")) // the same attachment, with the same port
		h.Sh("ip netns exec a ping -c 1 -W 2 10.77.0.1")
		a.do(t, h, "DEL")
		nothing(t, h, step)
	}
	h.Sh("ip netns del a")
	healthy(t, h)

	// The runtime and its child processes are killed; the container was created, but is never started.
	run := "setsid ctr --address /run/containerd/containerd.sock run -d --cni --cgroup /" + filepath.Base(h.Dir) +
		"/%s " + lab.CtrImage + " %[1]s sleep 1d >/dev/null 2>&1 & echo $!"
	s.at("after endpoint plugged in")
	group := strings.TrimSpace(h.Sh(fmt.Sprintf(run, "c1")))
	s.held()
	kill(h, "pgrep -g "+group)
	s.goOn()
	eventually(t, "the unanswered attachment is gone", func() bool { return len(ps(t, h)) == 0 })
	h.CtrRemove("c1") // the container holds its address until then
	nothing(t, h, "the container's removal")

	// Only the runtime is killed, and its plugin gets the answer: the container, which is never started, stays attached
	// until it is removed.
	s.at("after endpoint plugged in")
	pid := strings.TrimSpace(h.Sh(fmt.Sprintf(run, "c2")))
	s.held()
	kill(h, "echo "+pid)
	s.goOn()
	eventually(t, "the attachment is up", func() bool {
		rows := ps(t, h)
		return len(rows) == 1 && rows[0].State == "up"
	})
	h.CtrRemove("c2")
	nothing(t, h, "the container's removal")
	h.CtrRun("c3", "")
	if out, err := h.CtrExec("c3", "ping -c 1 -W 2 10.77.0.1"); err != nil {
		t.Errorf("the next container: %s %v", out, err)
	}
	healthy(t, h)
}

// kill kills processes and waits until their sockets are closed; before, an answer to them still counts as received.
func kill(h *lab.Host, which string) {
	h.Sh("p=$(" + which + "); kill -9 $p; " +
		"for i in $p; do while ls -d /proc/$i/fd/* >/dev/null 2>&1; do sleep 0.01; done; done")
}

// nothing waits until there is no attachment, and no address in use.
func nothing(t *testing.T, h *lab.Host, after string) {
	t.Helper()
	eventually(t, "nothing is left after "+after, func() bool {
		active := "netyard lease ls --format '{{.State}} {{.Kind}}' | grep active | grep -v -e gateway -e aux || true"
		return len(ps(t, h)) == 0 && h.Sh(active) == ""
	})
}

// TestCNIRecordsLost: after the database is lost, records of containerd containers are rebuilt, on netyard's own
// network and on one of Docker's, with their addresses, ports and limits, and so are attachments that containerd does
// not know. Running containers are not affected.
func TestCNIRecordsLost(t *testing.T) {
	t.Parallel()
	h := hostCNI(t, lab.Engine2010)
	h.Sh("netyard network create web --subnet 10.77.0.0/24 --ip-range 10.77.0.64/26 --aux-address router=10.77.0.65 " +
		"-o icc=true")
	for aux, want := range map[string]string{
		"10.77.0.9": "not KEY=VALUE", "a=b": "not an IP address",
		"a=10.78.0.1": "not in a --subnet", "a=10.76.0.1": "it is the gateway",
	} {
		out, err := h.TrySh("netyard network create bad --subnet 10.76.0.0/24 --gateway 10.76.0.1 --aux-address", aux)
		if err == nil || !strings.Contains(fmt.Sprint(out, err), want) {
			t.Errorf("--aux-address %s: %s %v, want %q", aux, out, err, want)
		}
	}
	h.Docker("network create -d netyard --ipam-driver netyard --subnet 10.78.0.0/24 theirs")
	h.Sh("netyard cni install web; netyard cni install theirs")
	h.Sh("mkdir /run/conf; mv /etc/cni/net.d/netyard-theirs.conflist /run/conf") // ctr takes the first one
	h.CtrRun("c1", "--label netyard.rate=20mbit --label nerdctl/name=shop")
	h.Sh("mv /run/conf/netyard-theirs.conflist /etc/cni/net.d/00-theirs.conflist")
	h.CtrRun("c2", "")
	h.Run("d1", "--network theirs")
	sandboxes(h, "t") // for an attachment that containerd does not know
	h.Sh(`CNI_PATH=/opt/cni/bin NETCONFPATH=/etc/cni/net.d`,
		`CAP_ARGS='{"portMappings":[{"hostPort":8099,"containerPort":80,"protocol":"tcp"}]}'`,
		`cnitool add web /run/netns/t`)
	row := "netyard ps --format '{{.Container}} {{.Engine}} {{.Network}} {{.Mode}} {{.Addresses}} {{.MAC}}" +
		" {{.Interface}} {{.Options}} {{.State}}'"
	was := ""
	eventually(t, "ps shows all names", func() bool {
		was = h.Sh(row)
		// With the engine, since hexadecimal names may contain "d1", too.
		return strings.Contains(was, "shop containerd") && strings.Contains(was, "c2 containerd") &&
			strings.Contains(was, "d1 docker")
	})
	list := h.Sh("netyard network ls")
	for range 2 {
		h.Netyard.Stop()
		h.Sh("rm", filepath.Join(h.Dir, "state", "netyard.db"))
		h.Netyard.Start()
		now := ""
		eventually(t, "the records are as they were", func() bool {
			if again := h.Sh(row); again != now {
				now = again
				t.Logf("before\n%s\nnow\n%s", was, now)
			}
			return now == was
		})
		if now := h.Sh("netyard network ls"); now != list {
			t.Errorf("the networks were\n%s\nand are\n%s", list, now)
		}
		for c, to := range map[string]string{"c1": "10.77.0.1", "c2": h.Addr("d1", "theirs")} {
			if out, err := h.CtrExec(c, "ping -c 1 -W 2", to); err != nil {
				t.Errorf("%s does not reach %s any more: %s %v", c, to, out, err)
			}
		}
		healthy(t, h)
	}
	h.Sh("ip netns exec t ping -c 1 -W 2 10.77.0.1")
	h.Sh("CNI_PATH=/opt/cni/bin NETCONFPATH=/etc/cni/net.d cnitool check web /run/netns/t;",
		"CNI_PATH=/opt/cni/bin NETCONFPATH=/etc/cni/net.d cnitool del web /run/netns/t; ip netns del t")
	rows := ""
	eventually(t, "the attachment of cnitool is gone", func() bool { // when cnitool returns, its link is gone
		rows = h.Sh(row)
		return strings.Count(strings.TrimSpace(rows), "\n") == 2
	})
	if strings.Contains(rows, " cni ") {
		t.Errorf("after cnitool del ps shows\n%s", rows)
	}
	sandboxes(h, "a")
	a := call{id: "a", netns: "/run/netns/a", conf: confOf(t, h, "web", "1.0.0")}
	if r := valid(t, "1.0.0", a.do(t, h, "ADD")); r.IPs[0].Address == "10.77.0.65/24" {
		t.Errorf("the next address of the range is %s", r.IPs[0].Address)
	}
	has(t, h.Sh("netyard network inspect web"), `"router": "10.77.0.65"`)
	a.do(t, h, "DEL")
	h.Sh("ip netns del a; rmdir /run/conf")
	h.CtrRemove("c1")
	h.CtrRemove("c2")
	h.Docker("rm -f d1")
	nothing(t, h, "the containers' end")
	h.Docker("network rm theirs")
	h.Sh("netyard network rm web")
	healthy(t, h)
}

// TestCNIWithoutDocker: without a Docker engine, which would confirm that no record was lost, strays are removed all
// the same.
func TestCNIWithoutDocker(t *testing.T) {
	t.Parallel()
	h := hostCNI(t, lab.Engine2010)
	h.Dockerd.Stop()
	h.Netyard.Stop()
	h.Sh("rm", filepath.Join(h.Dir, "state", "netyard.db"))
	h.Netyard.Start()
	h.Sh("netyard network create web --subnet 10.77.0.0/24; netyard cni install web")
	sandboxes(h, "a")
	const mapping = `"portMappings":[{"hostPort":8099,"containerPort":80,"protocol":"tcp"}]`
	a := call{id: "a", netns: "/run/netns/a", conf: with(confOf(t, h, "web", "1.0.0"), mapping)}
	a.do(t, h, "ADD")
	published := func() bool { return strings.Contains(h.Tool("nft list table inet netyard"), "8099") }
	if !published() {
		t.Fatal("the port is not published")
	}
	h.Netyard.Stop()
	h.Sh("ip netns del a")
	h.Netyard.Start()
	if published() {
		t.Errorf("the port of a removed container is published:\n%s", h.Tool("nft list table inet netyard"))
	}
	healthy(t, h)
}
