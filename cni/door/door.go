// Package door is the daemon's half of CNI: it answers the plugin, for nerdctl and whatever else speaks CNI.
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
	"time"

	"netyard/cni"
	"netyard/ipam"
	"netyard/modes"
	"netyard/yard"
	"netyard/yard/attach"
	"netyard/yard/book"
	"netyard/yard/own"
)

const (
	// answerTime is when a request has to end, so that the plugin hears of it before its own deadline.
	answerTime = cni.Deadline - time.Second
	// lookTime is how long an attachment waits to be told whose it is: with it come the labels of the container.
	lookTime = 500 * time.Millisecond
	// stoneTime is the pause between two looks for tombstones: of a runtime whose request took too long, while the
	// daemon was there.
	stoneTime = time.Minute
)

// A Server answers the plugin.
type Server struct {
	Yard *yard.Yard
	Log  *slog.Logger
	// Whose finds the container of an attachment; nil when there is nobody to ask. It must not wait for a task that is
	// being made: that one waits for this answer.
	Whose func(ctx context.Context, attachment string) (c modes.Container, labels map[string]string, err error)
	// Tombstones is the directory of cni.TombstoneDir.
	Tombstones string
}

// Serve answers on a socket until ctx ends, and then lets what is under way come to its end.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	done := make(chan struct{}, 1<<10)
	running := 0
	defer func() {
		for ; running > 0; running-- {
			<-done
		}
	}()
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("serve on %s: %w", l.Addr(), err)
		}
		for more := true; more; { // forget those that have ended
			select {
			case <-done:
				running--
			default:
				more = false
			}
		}
		running++
		go func() {
			s.serve(context.WithoutCancel(ctx), c)
			done <- struct{}{}
		}()
	}
}

func (s *Server) serve(ctx context.Context, c net.Conn) {
	defer c.Close() //nolint:errcheck // what was to be said is said, or nobody listens
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	u, ok := c.(*net.UnixConn)
	if !ok {
		return
	}
	_ = c.SetDeadline(time.Now().Add(cni.Deadline)) // a plugin that hangs is no reason to
	q, netns, err := cni.Receive(u)
	if err != nil {
		s.Log.Debug("read a request of a CNI plugin", "err", err)
		return
	}
	go func() { // a runtime that was killed takes the plugin with it
		if _, err := c.Read(make([]byte, 1)); err != nil {
			cancel()
		}
	}()
	start := time.Now()
	a := cni.Answer{}
	made, err := s.inTime(ctx, q, netns)
	a.Result = made.result
	if err != nil {
		s.Log.Warn("refused a CNI plugin", "command", q.Command, "container", q.ContainerID, "interface", q.IfName, "err", err)
		a.Error = inWords(err)
	}
	s.Log.Debug("answered a CNI plugin", "command", q.Command, "container", q.ContainerID, "took", time.Since(start))
	if err := json.NewEncoder(c).Encode(a); err != nil && q.Command == "ADD" && a.Error == nil { // nobody knows of it
		s.undo(context.WithoutCancel(ctx), q, made.endpoint)
	}
}

// An answer is what a plugin gets, and which endpoint was made for it.
type answer struct {
	result   json.RawMessage
	endpoint string
}

// inTime answers whatever hangs. An attachment that is made after that is one that nobody knows of.
func (s *Server) inTime(ctx context.Context, q cni.Request, netns *os.File) (answer, error) {
	start := time.Now()
	return yard.InTime(ctx, s.Yard, func() (answer, error) {
		if netns != nil {
			defer netns.Close() //nolint:errcheck // nothing is written to it
		}
		return s.answer(ctx, q, netns)
	}, func(a answer, err error) {
		s.Log.Info("a CNI request that took too long has ended", "command", q.Command, "container", q.ContainerID, "took", time.Since(start), "err", err)
		if q.Command == "ADD" && err == nil {
			s.undo(context.WithoutCancel(ctx), q, a.endpoint)
		}
	})
}

// undo takes back an attachment that its runtime did not hear of. The runtime may have asked again meanwhile: what that
// made stays.
func (s *Server) undo(ctx context.Context, q cni.Request, endpoint string) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	if err := s.del(ctx, q, nil, attach.DetachRequest{Gone: true, Endpoint: endpoint}); err != nil {
		s.Log.Warn("take back an attachment that nobody waited for", "container", q.ContainerID, "err", err)
	}
}

func (s *Server) answer(ctx context.Context, q cni.Request, netns *os.File) (a answer, err error) {
	if strings.ContainsAny(q.ContainerID+q.IfName, "|/\x00") { // they are parts of keys and paths
		return a, fmt.Errorf("%w: container %q, interface %q", errEnvironment, q.ContainerID, q.IfName)
	}
	switch q.Command {
	case "ADD":
		return s.add(ctx, q, netns)
	case "DEL":
		return a, s.del(ctx, q, netns, attach.DetachRequest{Gone: q.Netns != ""})
	case "CHECK":
		return a, s.check(q, netns)
	case "GC":
		return a, s.gc(ctx, q)
	case "STATUS":
		return a, s.status(q)
	}
	return a, fmt.Errorf("%w: command %q", errEnvironment, q.Command)
}

var (
	errEnvironment = errors.New("bad environment")
	errSandbox     = errors.New("no sandbox")
	errUnavailable = errors.New("not available")
)

// inWords gives an error CNI's code.
func inWords(err error) *cni.Error {
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
		{book.ErrNotFound, cni.CodeUnknown},
	} {
		if errors.Is(err, is.err) {
			code = is.code
			break
		}
	}
	return &cni.Error{Code: code, Msg: "netyard: " + strings.ReplaceAll(err.Error(), "\n", "; ")}
}

// check says what of an attachment is not as it was made.
func (s *Server) check(q cni.Request, netns *os.File) error {
	if netns == nil {
		return fmt.Errorf("%w: CNI_NETNS is empty", errSandbox)
	}
	c, err := decodeConfig(q.Config)
	if err != nil {
		return err
	}
	id, err := s.networkOf(c, q)
	if err != nil {
		return err
	}
	faults, err := attach.Faults(s.Yard, attach.DetachRequest{NetworkID: id, Attachment: q.ContainerID, IfName: q.IfName, NS: int(netns.Fd())})
	if err == nil && len(faults) > 0 {
		err = errors.New(strings.Join(faults, "; "))
	}
	return err
}

// del takes an attachment away. What cannot be understood is nothing that could have been attached: a runtime must not
// be kept from stopping a container.
func (s *Server) del(ctx context.Context, q cni.Request, netns *os.File, r attach.DetachRequest) error {
	id, err := s.networkOf(leniently(q.Config), q)
	if errors.Is(err, book.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	r.NetworkID, r.Attachment, r.IfName, r.NS = id, q.ContainerID, q.IfName, -1
	if netns != nil {
		r.NS = int(netns.Fd())
	}
	return attach.Detach(ctx, s.Yard, r)
}

// leniently reads what a configuration says of the network's name, whatever else is in it.
func leniently(raw []byte) (c config) {
	var names struct{ Name, Network string }
	_ = json.Unmarshal(raw, &names)
	c.Name, c.Network = names.Name, names.Network
	return c
}

// networkOf is the id of the network that a configuration is about; it need not be there. If another of its name came
// later, it is the one that has the attachment.
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
		if slices.ContainsFunc(es, func(e modes.Endpoint) bool { return e.Attachment == q.ContainerID && e.IfName == q.IfName }) {
			return n.ID, nil
		}
	}
	return "", fmt.Errorf("attachment %s of a network %q: %w", q.ContainerID, c.Network, book.ErrNotFound)
}

// gc drops what a runtime no longer has by a configuration: a network may have several. Without a list it says nothing
// of what it has.
func (s *Server) gc(ctx context.Context, q cni.Request) error {
	var list struct {
		Valid *[]struct {
			ContainerID string `json:"containerID"`
			IfName      string `json:"ifname"`
		} `json:"cni.dev/valid-attachments"`
	}
	if err := json.Unmarshal(q.Config, &list); err != nil || list.Valid == nil {
		return nil //nolint:nilerr // it is no list
	}
	c := leniently(q.Config)
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
		s.Log.Info("drop an attachment that its runtime has no more", "network", id, "container", e.Attachment, "interface", e.IfName)
		errs = append(errs, attach.Detach(ctx, s.Yard, attach.DetachRequest{NetworkID: id, Attachment: e.Attachment, IfName: e.IfName, NS: -1, Gone: true}))
	}
	return errors.Join(errs...)
}

// status says whether the next attachment could be made.
func (s *Server) status(q cni.Request) error {
	c, err := decodeConfig(q.Config)
	if err != nil {
		return err
	}
	id := networkID(c.Name)
	if c.Network == "" {
		if _, err = c.plan(s.Yard.Options); err != nil {
			return err
		}
	} else {
		n, err := own.NetworkNamed(s.Yard, c.Network)
		if err != nil {
			return fmt.Errorf("%w: %w", errUnavailable, err)
		}
		id = n.ID
	}
	err = attach.Room(s.Yard, id)
	if err == nil || c.Network == "" && errors.Is(err, book.ErrNotFound) { // it will be made with the first container
		return nil
	}
	return fmt.Errorf("%w: %w", errUnavailable, err)
}

// Exhume does what runtimes wanted while nobody answered; call it after the host matches the records.
func (s *Server) Exhume(ctx context.Context) {
	stones, err := cni.Tombstones(s.Tombstones)
	if err != nil {
		s.Log.Warn("look for what was deleted meanwhile", "err", err)
	}
	for _, t := range stones {
		err := s.del(ctx, t.Request, nil, attach.DetachRequest{Before: t.Deleted, Gone: t.Gone})
		if err == nil {
			err = t.Remove()
		}
		if err != nil {
			s.Log.Warn("delete what was deleted meanwhile", "container", t.ContainerID, "err", err)
		}
	}
}

// Run looks for tombstones until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	tick := time.NewTicker(stoneTime)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			s.Exhume(ctx)
		}
	}
}
