package door

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"netyard/cni"
)

// A turnstile is a listener that says when it is asked for a second connection: then the first is being served.
type turnstile struct {
	net.Listener

	asked  atomic.Int32
	second chan struct{}
}

func (l *turnstile) Accept() (net.Conn, error) {
	if l.asked.Add(1) == 2 {
		close(l.second)
	}
	return l.Listener.Accept()
}

// TestServeEnds shows that Serve, when it is to end, takes no more requests and answers those in progress.
func TestServeEnds(t *testing.T) {
	t.Parallel()
	d := newRecordingDoor(t)
	config := fmt.Sprintf(bridgeConfig, 8080)
	if _, err := d.do("ADD", "c1", config, nil); err != nil {
		t.Fatal(err)
	}
	es, err := d.Yard.Endpoints()
	if err != nil || len(es) != 1 {
		t.Fatalf("%v %v", es, err)
	}
	held, err := d.Yard.Hold(t.Context(), es[0].NetworkID, es[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Release()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	gate := &turnstile{Listener: l, second: make(chan struct{})}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	served := make(chan error, 1)
	go func() { served <- d.Serve(ctx, gate) }()
	answered := make(chan error, 1)
	go func() {
		q := cni.Request{Command: "DEL", ContainerID: "c1", IfName: "eth0", Config: json.RawMessage(config)}
		_, err := cni.Call(time.Now().Add(time.Minute), socket, q, nil) // it waits for the endpoint
		answered <- err
	}()
	<-gate.second
	stop()
	status := cni.Request{Command: "STATUS", Config: json.RawMessage(`{}`)}
	if _, err := cni.Call(time.Now().Add(100*time.Millisecond), socket, status, nil); err == nil {
		t.Error("a request was answered after the end")
	}
	select {
	case err := <-served:
		t.Fatalf("Serve did not wait for a request in progress: %v", err)
	default:
	}
	held.Release()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if err := <-answered; err != nil {
		t.Errorf("the request in progress: %v", err)
	}
}
