package lab

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"
)

// allSpaces are all kinds of namespaces that a node has of its own.
const allSpaces = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC

// A space is a set of namespaces for a thread to enter. It is used once.
type space struct {
	file  *os.File // a pidfd, which holds no namespace alive, or a file of /proc/PID/ns
	flags int      // which of its namespaces: CLONE_NEWNET, …
}

// do calls f on a thread of its own inside the namespaces. The thread is not reused: it might not get back to its
// former namespaces, so it ends with the goroutine.
func (s space) do(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread cannot end before the process does: it would keep the namespaces, and /proc/self
			// would show them. While it is locked here, the next goroutine gets another thread.
			done <- s.do(f)
			runtime.UnlockOSThread()
			return
		}
		defer s.file.Close()
		if err := s.enter(); err != nil {
			done <- fmt.Errorf("enter namespaces: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

// start starts cmd inside the namespaces, as a child of this process: its PID is the one in this machine's namespace,
// and signals reach it directly.
func (s space) start(cmd *exec.Cmd) error { return s.do(cmd.Start) }

func (s space) enter() error {
	if s.flags&unix.CLONE_NEWNS != 0 {
		// Threads that share a working directory cannot be in different mount namespaces.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return err
		}
	}
	return unix.Setns(int(s.file.Fd()), s.flags)
}

// space returns namespaces of the running node.
func (n *Node) space(flags int) (space, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.init == nil {
		return space{}, fmt.Errorf("%s is off", n.Name)
	}
	fd, err := unix.FcntlInt(n.pidfd.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return space{}, err
	}
	return space{os.NewFile(uintptr(fd), "pidfd"), flags}, nil
}
