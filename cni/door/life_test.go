package door

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"netyard/cni"
	"netyard/modes"
)

// do sends a request in the sandbox of a container that was attached, or in a new one.
func (d *recordingDoor) do(command, container, config string, netns *os.File) (string, error) {
	d.t.Helper()
	q, fresh := cni.Request{
		Command: command, ContainerID: container, IfName: "eth0", Netns: "/run/netns/" + container,
		Config: []byte(config),
	}, netns
	if netns == nil {
		q, fresh = d.request(command, container, config)
	}
	a, err := d.reply(q, fresh)
	return string(a.result), err
}

// attachments returns the containers that have an endpoint.
func (d *recordingDoor) attachments() (all []string) {
	d.t.Helper()
	es, err := d.Yard.Endpoints()
	if err != nil {
		d.t.Fatal(err)
	}
	for _, e := range es {
		all = append(all, e.Attachment)
	}
	return all
}

// TestLife follows a container through the commands of a runtime.
func TestLife(t *testing.T) {
	t.Parallel()
	d, config := newRecordingDoor(t), fmt.Sprintf(bridgeConfig, 8080)
	_, netns := d.request("ADD", "c1", config)
	first, err := d.do("ADD", "c1", config, netns)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.do("CHECK", "c1", config, netns); err != nil {
		t.Errorf("CHECK of a sound attachment: %v", err)
	}
	again, err := d.do("ADD", "c1", config, netns)
	if err != nil || !strings.Contains(first, "10.4.0.2/24") || !strings.Contains(again, "10.4.0.2/24") {
		t.Errorf("a repeated ADD does not keep the address: %v\n%s\n%s", err, first, again)
	}
	if n := d.kernel.Lose(func(text string) bool { return strings.HasPrefix(text, "veth ") }); n == 0 {
		t.Fatalf("no link was lost of\n%s", d.kernel)
	}
	if _, err := d.do("CHECK", "c1", config, netns); err == nil {
		t.Error("CHECK does not report a lost link")
	}
	for range 2 { // the second finds nothing, and succeeds
		if _, err := d.do("DEL", "c1", config, netns); err != nil {
			t.Errorf("DEL: %v", err)
		}
	}
	if _, err := d.do("DEL", "c1", `{"cniVersion":"1.0.0","name":"unknown","isGatway":1}`, nil); err != nil {
		t.Errorf("DEL with a configuration that ADD refuses: %v", err)
	}
	if left := d.attachments(); len(left) > 0 {
		t.Errorf("after DEL: %v", left)
	}
}

// TestGC shows that GC removes the attachments of its configuration that the runtime does not list, and no others.
func TestGC(t *testing.T) {
	t.Parallel()
	d := newRecordingDoor(t)
	for i, container := range []string{"c1", "c2"} {
		if _, err := d.do("ADD", container, fmt.Sprintf(bridgeConfig, 8080+i), nil); err != nil {
			t.Fatal(err)
		}
	}
	onIt := `{"cniVersion":"1.0.0","name":"other","type":"netyard","network":"blue"}`
	if _, err := d.do("ADD", "c3", onIt, nil); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ list, want string }{
		{``, "c1 c2 c3"}, // without a list there is nothing to compare with
		{`,"cni.dev/valid-attachments":[{"containerID":"c2","ifname":"eth0"}]`, "c2 c3"},
	} {
		config := `{"cniVersion":"1.1.0","name":"blue","type":"netyard"` + c.list + `}`
		if _, err := d.do("GC", "", config, nil); err != nil {
			t.Errorf("GC: %v", err)
		}
		got := d.attachments()
		slices.Sort(got)
		if strings.Join(got, " ") != c.want {
			t.Errorf("after GC with %q: %v, want %s", c.list, got, c.want)
		}
	}
}

// TestStatus shows that STATUS fails when the next ADD would.
func TestStatus(t *testing.T) {
	t.Parallel()
	d := newRecordingDoor(t)
	small := `{"cniVersion":"1.1.0","name":"small","type":"netyard","isGateway":true,` +
		`"ipam":{"type":"host-local","ranges":[[{"subnet":"10.5.0.0/30","gateway":"10.5.0.1"}]]}}`
	if _, err := d.do("STATUS", "", small, nil); err != nil {
		t.Errorf("before the network is made: %v", err)
	}
	if _, err := d.do("ADD", "c1", small, nil); err != nil {
		t.Fatal(err)
	}
	for what, config := range map[string]string{
		"no address is left":       small,
		"the network is not there": `{"cniVersion":"1.1.0","name":"x","type":"netyard","network":"nowhere"}`,
	} {
		_, err := d.do("STATUS", "", config, nil)
		if !errors.Is(err, errUnavailable) || cniError(err).Code != cni.CodeUnavailable {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := d.do("STATUS", "", `{"name":"x","isGatway":true}`, nil); err == nil ||
		cniError(err).Code != cni.CodeConfig {
		t.Errorf("an unknown key: %v", err)
	}
}

// TestCodes shows the code of each kind of error, and that a runtime gets one line.
func TestCodes(t *testing.T) {
	t.Parallel()
	d, config := newRecordingDoor(t), fmt.Sprintf(bridgeConfig, 8080)
	_, netns := d.request("ADD", "c1", config)
	for what, c := range map[string]struct {
		q    cni.Request
		with *os.File
		code uint
	}{
		"no sandbox":      {cni.Request{Command: "ADD", ContainerID: "c1", IfName: "eth0"}, nil, cni.CodeNamespace},
		"interface name":  {cni.Request{Command: "ADD", ContainerID: "c1", IfName: "a b"}, netns, cni.CodeEnvironment},
		"container's ID":  {cni.Request{Command: "ADD", ContainerID: "c|1", IfName: "eth0"}, netns, cni.CodeEnvironment},
		"unknown command": {cni.Request{Command: "DANCE", ContainerID: "c1", IfName: "eth0"}, netns, cni.CodeEnvironment},
		"no JSON":         {cni.Request{Command: "ADD", ContainerID: "c1", IfName: "eth0"}, netns, cni.CodeConfig},
	} {
		_, err := d.reply(c.q, c.with)
		if err == nil || cniError(err).Code != c.code {
			t.Errorf("%s: %v, want code %d", what, err, c.code)
		}
	}
	lines := cniError(errors.Join(modes.Refuse("mtu=1: too small"), errors.New("and more")))
	if lines.Code != cni.CodeConfig || strings.Contains(lines.Msg, "\n") {
		t.Errorf("%d %q", lines.Code, lines.Msg)
	}
}
