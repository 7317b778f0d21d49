package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// startTime is how long a service may take until it is ready. Dockerd waits 15 s for each plugin call without an
	// answer.
	startTime = 3 * time.Minute
	// stopTime is how long a service may take to end after SIGTERM.
	stopTime = 90 * time.Second
)

// fatalOutput matches what no log of a Go program may contain.
var fatalOutput = regexp.MustCompile(`(?m)^(WARNING: DATA RACE|panic: .*|fatal error: .*|unexpected fault address .*)$`)

// A Service is a program that a node runs: dockerd, netyard, a DHCP server. It can be started and stopped any number of
// times. A service that ends by itself fails the test.
type Service struct {
	// Name is also the name of its log.
	Name string
	// Args are added to its command line at the next start.
	Args []string
	// Env is added to its environment at the next start: "NETYARD_FAILPOINT=…".
	Env []string

	node    *Node
	command func() []string // the program and its fixed arguments
	ready   func() error    // whether it answers; nil: it is ready once started
	onReady func()
	// lateMessage is in its last line of output if something that it waits for was late; it is started again then, as
	// by systemd.
	lateMessage string

	mu       sync.Mutex
	cmd      *exec.Cmd
	ended    chan struct{} // closed when the process is gone
	expected bool          // the test expects its end
}

// Service declares a program for the node to run, without starting it. The program must stay in the foreground.
func (n *Node) Service(name string, command ...string) *Service {
	s := &Service{Name: name, node: n, command: func() []string { return command }}
	n.services = append(n.services, s)
	return s
}

// Start starts the service and waits until it answers.
func (s *Service) Start() {
	t := s.node.report.TB()
	t.Helper()
	s.Launch()
	s.WaitReady()
}

// Launch starts the service without waiting until it answers.
func (s *Service) Launch() {
	t := s.node.report.TB()
	t.Helper()
	if s.Running() {
		t.Fatalf("start %s on %s: it is running", s.Name, s.node.Name)
	}
	if err := s.launch(); err != nil {
		t.Fatalf("start %s on %s: %v", s.Name, s.node.Name, err)
	}
}

func (s *Service) launch() error {
	log, err := os.OpenFile(s.logPath(), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	line := slices.Concat(s.command(), s.Args)
	fmt.Fprintf(log, "──── %s %s %s\n",
		time.Now().Format(time.TimeOnly), strings.Join(s.Env, " "), strings.Join(line, " "))
	// The shell finds the program in the node's own root, and replaces itself by it.
	cmd := exec.Command("/bin/sh", append([]string{"-c", `exec "$0" "$@"`}, line...)...)
	cmd.Env = append(s.node.environ(), s.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := s.node.startInside(cmd); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		cmd.Wait()
	}()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cmd, s.ended, s.expected = cmd, ended, false
	return nil
}

// WaitReady waits until the service answers.
func (s *Service) WaitReady() {
	t := s.node.report.TB()
	t.Helper()
	if s.ready == nil {
		return
	}
	err := within(startTime, func() error {
		if s.Running() {
			return s.ready()
		}
		if s.wasLate() {
			return errors.Join(s.launch(), errors.New("it was started again"))
		}
		return nil
	})
	switch {
	case !s.Running():
		t.Fatalf("%s on %s ended before it was ready: %s", s.Name, s.node.Name, s.state())
	case err != nil:
		t.Fatalf("%s on %s is not ready after %v: %v", s.Name, s.node.Name, startTime, err)
	}
	if s.onReady != nil {
		s.onReady()
	}
}

// wasLate says whether the service ended since something that it waits for was late.
func (s *Service) wasLate() bool {
	last := tail(s.Log(), 1)
	return s.lateMessage != "" && strings.Contains(last, s.lateMessage)
}

// Stop sends SIGTERM to the service, as systemd would, and fails the test unless it exits with code 0.
func (s *Service) Stop() {
	t := s.node.report.TB()
	t.Helper()
	s.Signal(syscall.SIGTERM)
	state := s.Wait(stopTime)
	if !state.Success() {
		t.Errorf("%s on %s ended with %v when it was stopped", s.Name, s.node.Name, state)
	}
}

// Kill sends SIGKILL to the service's own process; its child processes go on.
func (s *Service) Kill() {
	t := s.node.report.TB()
	t.Helper()
	s.Signal(syscall.SIGKILL)
	s.Wait(stopTime)
}

// Restart is Stop and Start.
func (s *Service) Restart() {
	t := s.node.report.TB()
	t.Helper()
	s.Stop()
	s.Start()
}

// Signal sends a signal to the running service.
func (s *Service) Signal(sig syscall.Signal) {
	t := s.node.report.TB()
	t.Helper()
	if !s.Running() {
		t.Fatalf("send %v to %s on %s: it is not running: %s", sig, s.Name, s.node.Name, s.state())
	}
	if sig == syscall.SIGTERM || sig == syscall.SIGKILL || sig == syscall.SIGINT {
		s.expectEnd()
	}
	cmd, _ := s.process()
	cmd.Process.Signal(sig)
}

// Wait waits until the service has ended, and returns its state; the end is expected.
func (s *Service) Wait(limit time.Duration) *os.ProcessState {
	t := s.node.report.TB()
	t.Helper()
	cmd, ended := s.process()
	if cmd == nil {
		t.Fatalf("wait for %s on %s: it was never started", s.Name, s.node.Name)
	}
	s.expectEnd()
	select {
	case <-ended:
	case <-time.After(limit):
		t.Fatalf("%s on %s has not ended after %v", s.Name, s.node.Name, limit)
	}
	return cmd.ProcessState
}

// Running says whether the service's process exists.
func (s *Service) Running() bool {
	cmd, ended := s.process()
	if cmd == nil {
		return false
	}
	select {
	case <-ended:
		return false
	default:
		return true
	}
}

// PID returns the service's PID on this machine; 0 if it is not running.
func (s *Service) PID() int {
	if cmd, _ := s.process(); s.Running() {
		return cmd.Process.Pid
	}
	return 0
}

// Log returns the output of the service, from all its starts.
func (s *Service) Log() string {
	data, _ := os.ReadFile(s.logPath())
	return string(data)
}

func (s *Service) logPath() string { return filepath.Join(s.node.Dir, "log", s.Name+".log") }

func (s *Service) process() (*exec.Cmd, chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cmd, s.ended
}

func (s *Service) expectEnd() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expected = true
}

// state describes the service's state in errors.
func (s *Service) state() string {
	cmd, _ := s.process()
	switch {
	case cmd == nil:
		return "never started"
	case s.Running():
		return "running"
	}
	return cmd.ProcessState.String()
}

// check fails the test if the service ended by itself, or if its log has fatalOutput.
func (s *Service) check() {
	t := s.node.report.TB()
	t.Helper()
	s.mu.Lock()
	expected := s.expected || s.cmd == nil
	s.mu.Unlock()
	if !expected && !s.Running() {
		t.Errorf("%s on %s ended by itself: %s", s.Name, s.node.Name, s.state())
	}
	if found := fatalOutput.FindString(s.Log()); found != "" {
		t.Errorf("the log of %s on %s has %q", s.Name, s.node.Name, found)
	}
}
