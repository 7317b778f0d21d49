package door

import (
	"context"
	"encoding/json"
	"net"
	"path/filepath"
	"testing"
	"time"

	"netyard/cni"
	"netyard/modes"
)

// TestServeEnds shows that Serve, when it is to end, takes no more requests and answers those in progress.
func TestServeEnds(t *testing.T) {
	t.Parallel()
	d := newRecordingDoor(t)
	entered, leave := make(chan struct{}), make(chan struct{})
	d.FindContainer = func(context.Context, string) (c modes.Container, labels map[string]string, err error) {
		close(entered)
		<-leave
		return c, nil, nil
	}
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	served := make(chan error, 1)
	go func() { served <- d.Serve(ctx, l) }()
	q, netns := d.request("ADD", "c1", `{"cniVersion":"1.0.0","name":"blue","type":"netyard","bridge":"x"}`)
	answered := make(chan error, 1)
	go func() {
		_, err := cni.Call(time.Now().Add(time.Minute), socket, q, netns)
		answered <- err
	}()
	<-entered
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
	close(leave)
	if err := <-served; err != nil {
		t.Error(err)
	}
	<-answered // the sandbox is none, so it was refused
}
