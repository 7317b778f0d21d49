// Package door is the door for CNI: the daemon's side of the protocol of package cni. It serves the plugin for nerdctl,
// podman and every other CNI runtime.
package door

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"netyard/cni"
	"netyard/cni/receive"
	"netyard/ipam"
	"netyard/modes"
	"netyard/yard"
	"netyard/yard/attach"
	"netyard/yard/book"
	"netyard/yard/own"
	"netyard/yard/source"
)

const (
	// answerTimeout bounds a request from its turn on, so that the plugin has the answer before its own deadline.
	answerTimeout = cni.Deadline - time.Second
	// lookupTimeout bounds the look-up of an attachment's container and its labels.
	lookupTimeout = 500 * time.Millisecond
	// tombstoneInterval is the time between two reads of the tombstones. A running daemon has some when it answered a
	// DEL too late.
	tombstoneInterval = time.Minute
)

// A Server serves the plugin.
type Server struct {
	Yard *yard.Yard
	Log  *slog.Logger
	// FindContainer finds the container of an attachment; nil if there is no engine to ask. It must not wait for a task
	// that is being created: that task waits for the answer to this request.
	FindContainer func(ctx context.Context, attachment string) (c modes.Container, labels map[string]string, err error)
	// Tombstones is the directory of cni.TombstoneDir.
	Tombstones string
}

// Serve serves requests on a socket until ctx ends, and then waits for the requests in progress. An error of Accept
// ends it: l has to wait out those that pass.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	lines := newLines()
	var running sync.WaitGroup
	defer running.Wait()
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("serve on %s: %w", l.Addr(), err)
		}
		running.Go(func() { s.serve(context.WithoutCancel(ctx), c, lines) })
	}
}

func (s *Server) serve(ctx context.Context, c net.Conn, lines lines) {
	defer c.Close() //nolint:errcheck // the answer was sent, or the plugin is gone
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	u, ok := c.(*net.UnixConn)
	if !ok {
		return
	}
	_ = c.SetDeadline(time.Now().Add(cni.Deadline)) // so that a plugin that hangs does not block this goroutine
	q, netns, err := receive.Request(u)
	if errors.Is(err, receive.ErrDescriptor) {
		s.Log.Warn("CNI request refused", "err", err)
		_ = json.NewEncoder(c).Encode(cni.Answer{Error: cniError(err)}) // the runtime tries again without it, too
		return
	}
	if err != nil {
		s.Log.Debug("CNI request not read", "err", err)
		return
	}
	_ = c.SetDeadline(time.Time{}) // now the plugin waits
	go func() {                    // the connection closes when the plugin ends, as when its runtime is killed
		if _, err := c.Read(make([]byte, 1)); err != nil {
			cancel()
		}
	}()
	start := time.Now()
	made, err := s.inTurn(ctx, c, lines, call{q, netns})
	a := cni.Answer{Result: made.result}
	if err != nil {
		s.Log.Warn("CNI request failed",
			"command", cni.Shorten(q.Command), "container_id", cni.Shorten(q.ContainerID),
			"interface", cni.Shorten(q.IfName), "err", cni.Abridge(err.Error()))
		a.Error = cniError(err)
	}
	s.Log.Debug("CNI request answered", "command", q.Command, "container_id", q.ContainerID, "took", time.Since(start))
	_ = c.SetWriteDeadline(time.Now().Add(cni.Deadline))
	if err := json.NewEncoder(c).Encode(a); err != nil && q.Command == "ADD" && a.Error == nil {
		s.undo(context.WithoutCancel(ctx), q, made.endpoint) // the runtime does not know of the attachment
	}
}

// A call is a request and the sandbox that came with it; nil: none came.
type call struct {
	cni.Request

	netns *os.File
}

// inTurn answers a request when it is its turn. Its deadline counts from then on, here and in the plugin.
func (s *Server) inTurn(ctx context.Context, c net.Conn, lines lines, q call) (answer, error) {
	sign := func() {
		_ = c.SetWriteDeadline(time.Now().Add(cni.SignInterval))
		_, _ = c.Write([]byte(cni.Sign)) // if the plugin is gone, so is the request
	}
	leave, err := lines.of(q.Command).enter(ctx, sign)
	if err != nil {
		if q.netns != nil {
			_ = q.netns.Close() // opened for reading only
		}
		return answer{}, err
	}
	defer leave()
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	return s.inTime(ctx, q.Request, q.netns)
}

// An answer is the result of a request and the ID of the endpoint that it made.
type answer struct {
	result   json.RawMessage
	endpoint string
}

// inTime answers a request by the deadline of ctx, even if its work hangs. It undoes an attachment that was made after
// that, since the runtime does not know of it.
func (s *Server) inTime(ctx context.Context, q cni.Request, netns *os.File) (answer, error) {
	start := time.Now()
	return yard.InTime(ctx, s.Yard, func() (answer, error) {
		if netns != nil {
			defer netns.Close() //nolint:errcheck // opened for reading only
		}
		return s.answer(ctx, q, descriptor(netns))
	}, func(a answer, err error) {
		s.Log.Info("timed-out CNI request ended",
			"command", q.Command, "container_id", q.ContainerID, "took", time.Since(start), "err", err)
		if q.Command == "ADD" && err == nil {
			s.undo(context.WithoutCancel(ctx), q, a.endpoint)
		}
	})
}

// undo removes an attachment whose runtime did not get the answer. It removes only the endpoint of that request: the
// runtime may have sent the request again, which made another one.
func (s *Server) undo(ctx context.Context, q cni.Request, endpoint string) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	if err := s.del(ctx, q, -1, attach.DetachRequest{Gone: true, Endpoint: endpoint}); err != nil {
		s.Log.Warn("attachment not removed after a failed answer", "container_id", q.ContainerID, "err", err)
	}
}

// descriptor returns the number of an open descriptor; negative: there is none.
func descriptor(f *os.File) int {
	if f == nil {
		return -1
	}
	return int(f.Fd())
}

// answer does what a request asks for. ns is an open descriptor of the sandbox; negative: none came with the request.
func (s *Server) answer(ctx context.Context, q cni.Request, ns int) (a answer, err error) {
	if len(q.ContainerID) > cni.MaxName {
		return a, fmt.Errorf("%w: CNI_CONTAINERID=%s: %d characters, at most %d are allowed",
			errEnvironment, cni.Shorten(q.ContainerID), len(q.ContainerID), cni.MaxName)
	}
	if strings.ContainsAny(q.ContainerID+q.IfName, "|/\x00") { // they are parts of keys and paths
		return a, fmt.Errorf("%w: container %q, interface %q: must not contain |, / or NUL",
			errEnvironment, q.ContainerID, cni.Shorten(q.IfName))
	}
	switch q.Command {
	case "ADD":
		return s.add(ctx, q, ns)
	case "DEL":
		return a, s.del(ctx, q, ns, attach.DetachRequest{Gone: q.Netns != ""})
	case "CHECK":
		return a, s.check(q, ns)
	case "GC":
		return a, s.gc(ctx, q)
	case "STATUS":
		return a, s.status(ctx, q)
	}
	return a, fmt.Errorf("%w: command %q is unknown", errEnvironment, q.Command)
}

// The kinds of errors that have a code of their own in CNI. Each is the first part of the error's text.
var (
	errEnvironment = errors.New("CNI parameters")
	errSandbox     = errors.New("open sandbox")
	errUnavailable = errors.New("network unavailable")
)

// cniError returns an error in CNI's form, with the code of its kind.
func cniError(err error) *cni.Error {
	code := uint(cni.CodeFailed)
	for _, is := range []struct {
		err  error
		code uint
	}{
		{errConfig, cni.CodeConfig},
		{modes.ErrOption, cni.CodeConfig},
		{errEnvironment, cni.CodeEnvironment},
		{errSandbox, cni.CodeNamespace},
		{errUnavailable, cni.CodeUnavailable},
		{ipam.ErrExhausted, cni.CodeUnavailable},
		{context.DeadlineExceeded, cni.CodeTryAgain},
		{receive.ErrDescriptor, cni.CodeTryAgain},
		{book.ErrNotFound, cni.CodeUnknown},
	} {
		if errors.Is(err, is.err) {
			code = is.code
			break
		}
	}
	return &cni.Error{Code: code, Msg: cni.Abridge("netyard: " + strings.ReplaceAll(err.Error(), "\n", "; "))}
}

// checkSandbox returns an error if a descriptor is not one of a container's network namespace.
func (s *Server) checkSandbox(q cni.Request, ns int) error {
	if ns < 0 {
		return fmt.Errorf("%w: CNI_NETNS is empty", errSandbox)
	}
	if _, err := s.Yard.Config.Kernel.SandboxID(ns); err != nil {
		return fmt.Errorf("%w: CNI_NETNS=%s: %w", errSandbox, cni.Shorten(q.Netns), err)
	}
	return nil
}

// check returns an error that lists the faults of an attachment.
func (s *Server) check(q cni.Request, ns int) error {
	if err := s.checkSandbox(q, ns); err != nil {
		return err
	}
	c, err := decodeConfig(q.Config)
	if err != nil {
		return err
	}
	id, err := s.networkOf(c, q)
	if err != nil {
		return err
	}
	faults, err := attach.Faults(s.Yard, attach.DetachRequest{
		NetworkID: id, Attachment: q.ContainerID, IfName: q.IfName, NS: ns,
	})
	if err == nil && len(faults) > 0 {
		err = errors.New(strings.Join(faults, "; "))
	}
	return err
}

// del removes an attachment. It does not refuse an invalid configuration, since that would prevent a runtime from
// stopping a container, and no attachment was made from one. For the same reason it does not refuse a sandbox that is
// none, but does not enter it.
func (s *Server) del(ctx context.Context, q cni.Request, ns int, r attach.DetachRequest) error {
	id, err := s.networkOf(networkKeys(q.Config), q)
	if errors.Is(err, book.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	r.NetworkID, r.Attachment, r.IfName, r.NS = id, q.ContainerID, q.IfName, -1
	if s.checkSandbox(q, ns) == nil {
		r.NS = ns
	}
	return attach.Detach(ctx, s.Yard, r)
}

// networkKeys reads only the keys of a configuration that name the network, and ignores all others.
func networkKeys(raw []byte) (c config) {
	var names struct{ Name, Network string }
	_ = json.Unmarshal(raw, &names)
	c.Name, c.Network = names.Name, names.Network
	return c
}

// networkOf returns the ID of a configuration's network, which need not exist. If several networks have the name, it is
// the one that has the attachment.
func (s *Server) networkOf(c config, q cni.Request) (string, error) {
	if c.Network == "" {
		return networkID(c.Name), nil
	}
	ns, err := own.NetworksNamed(s.Yard, c.Network)
	if err != nil {
		return "", err
	}
	if len(ns) == 1 {
		return ns[0].ID, nil
	}
	for _, n := range ns {
		es, err := s.Yard.Attachments(n.ID)
		if err != nil {
			return "", err
		}
		if slices.ContainsFunc(es, func(e modes.Endpoint) bool {
			return e.Attachment == q.ContainerID && e.IfName == q.IfName
		}) {
			return n.ID, nil
		}
	}
	return "", fmt.Errorf("attachment %s on network %q: %w", q.ContainerID, c.Network, book.ErrNotFound)
}

// gc removes the attachments of a configuration that the runtime's list of valid attachments does not name. It leaves
// attachments of other configurations of the network alone. Without a list it does nothing.
func (s *Server) gc(ctx context.Context, q cni.Request) error {
	var list struct {
		Valid *[]struct {
			ContainerID string `json:"containerID"`
			IfName      string `json:"ifname"`
		} `json:"cni.dev/valid-attachments"`
	}
	if err := json.Unmarshal(q.Config, &list); err != nil || list.Valid == nil {
		return nil //nolint:nilerr // without a list there is nothing to compare with
	}
	c := networkKeys(q.Config)
	id, err := s.networkOf(c, q)
	if errors.Is(err, book.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	valid := map[string]bool{}
	for _, a := range *list.Valid {
		valid[a.ContainerID+"|"+a.IfName] = true
	}
	es, err := s.Yard.Attachments(id)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range es {
		if valid[e.Attachment+"|"+e.IfName] || e.Config != "" && e.Config != c.Name {
			continue
		}
		err := attach.Detach(ctx, s.Yard, attach.DetachRequest{
			NetworkID: id, Attachment: e.Attachment, IfName: e.IfName, NS: -1, Gone: true,
		})
		if err == nil {
			s.Yard.LogOf(id).Info("orphaned attachment removed",
				"container", e.Container.Name, "container_id", e.Attachment, "interface", e.IfName)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// status returns an error if the next ADD with the configuration would fail.
func (s *Server) status(ctx context.Context, q cni.Request) error {
	c, err := decodeConfig(q.Config)
	if err != nil {
		return err
	}
	id := networkID(c.Name)
	if c.Network == "" {
		if c.IPAM != nil && c.IPAM.Type == "static" && len(c.IPAM.Addresses) == 0 {
			return nil // each container brings its addresses
		}
		if _, err = c.plan(s.Yard.Options, nil); err != nil {
			return err
		}
	} else {
		n, err := own.NetworkNamed(s.Yard, c.Network)
		if err != nil {
			return fmt.Errorf("%w: %w", errUnavailable, err)
		}
		id = n.ID
	}
	err = source.Room(ctx, s.Yard.Book, id)
	if err == nil || c.Network == "" && errors.Is(err, book.ErrNotFound) { // the first ADD makes the network
		return nil
	}
	return fmt.Errorf("%w: %w", errUnavailable, err)
}

// ProcessTombstones removes the attachments that tombstones name, and then the tombstones. Call it after the kernel was
// restored from the records.
func (s *Server) ProcessTombstones(ctx context.Context) {
	tombstones, err := cni.Tombstones(s.Tombstones)
	if err != nil {
		s.Log.Warn("tombstones not read", "err", err)
	}
	for _, t := range tombstones {
		err := s.del(ctx, t.Request, -1, attach.DetachRequest{Before: t.Deleted, Gone: t.Gone})
		if err == nil {
			err = t.Remove()
		}
		if err != nil {
			s.Log.Warn("tombstone not processed", "container_id", t.ContainerID, "err", err)
		}
	}
}

// Run processes tombstones every minute until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	tick := time.NewTicker(tombstoneInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			s.ProcessTombstones(ctx)
		}
	}
}
