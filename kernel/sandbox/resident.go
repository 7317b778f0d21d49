package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"netyard/kernel/core"
)

// A Process tells one process of this boot from every other: the kernel gives numbers out again, but not with the same
// start.
type Process struct {
	PID int `json:",omitempty"`
	// Start is when it began, in ticks since the boot (proc(5), /proc/pid/stat).
	Start uint64 `json:",omitempty"`
	// Space is the PID namespace that it was seen from: elsewhere its number says nothing.
	Space uint64 `json:",omitempty"`
}

// firstSpace is the host's own PID namespace (PROC_PID_INIT_INO, include/linux/proc_ns.h).
const firstSpace = 0xEFFFFFFC

// pidSpace is the PID namespace that /proc shows; 0: it is not to be found.
func pidSpace() uint64 {
	var st unix.Stat_t
	if unix.Stat("/proc/self/ns/pid", &st) != nil {
		return 0
	}
	return st.Ino
}

// SeesAllProcesses says whether no process of the host is out of sight, as those of others are from inside a container.
func SeesAllProcesses() bool { return pidSpace() == firstSpace }

// ProcessAt returns the process that has a number now. A zombie is none.
func ProcessAt(pid int) (p Process, ok bool) {
	if pid <= 0 {
		return p, false
	}
	raw, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return p, false
	}
	at := strings.LastIndexByte(string(raw), ')') // the name before it may contain anything
	const state, start = 0, 19
	fields := strings.Fields(string(raw[at+1:]))
	if at < 0 || len(fields) <= start || fields[state] == "Z" || fields[state] == "X" {
		return p, false
	}
	began, err := strconv.ParseUint(fields[start], 10, 64)
	return Process{PID: pid, Start: began, Space: pidSpace()}, err == nil
}

// Known says whether it is known which process that is.
func (p Process) Known() bool { return p.PID > 0 }

// Here says whether the process is known, and would be seen if it lived.
func (p Process) Here() bool { return p.Known() && p.Space == pidSpace() }

// Ended says whether the process is known, and is no more.
func (p Process) Ended() bool {
	now, ok := ProcessAt(p.PID)
	return p.Here() && (!ok || now != p)
}

// PeerOf returns the process at the other end of a Unix socket (unix(7), SO_PEERCRED). It is not known if that is in a
// PID namespace which cannot be seen from here.
func PeerOf(c net.Conn) (p Process) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return p
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return p
	}
	_ = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err == nil {
			p, _ = ProcessAt(int(cred.Pid))
		}
	})
	return p
}

// Residents are the network namespaces that processes live in.
type Residents struct {
	in map[core.NamespaceID]bool
	// hidden: there are processes of containers of which it cannot be seen where they live.
	hidden bool
}

// contained matches the control group of a process of a container: every engine writes its id there (cgroups(7)).
var contained = regexp.MustCompile(`[0-9a-f]{64}`)

// FindResidents looks at every process of the host, and at each of its threads: one may live elsewhere than the
// process's first one, or longer. It looks twice: a process may have had a child and ended while the list was read.
func FindResidents(ctx context.Context) (Residents, error) {
	r := Residents{in: map[core.NamespaceID]bool{}}
	for range 2 {
		if err := r.look(ctx); err != nil {
			return r, fmt.Errorf("look for the processes of sandboxes: %w", err)
		}
	}
	return r, nil
}

// look adds where all processes live. This one does not count: its threads only visit.
func (r *Residents) look(ctx context.Context) error {
	procs, err := numbered("/proc")
	if err != nil {
		return err
	}
	own := strconv.Itoa(os.Getpid())
	for _, pid := range procs {
		if err := ctx.Err(); err != nil {
			return err
		}
		if pid == own {
			continue
		}
		if !r.add(filepath.Join("/proc", pid)) && pid != "1" { // the host's init is no container's
			raw, err := os.ReadFile(filepath.Join("/proc", pid, "cgroup"))
			r.hidden = r.hidden || err == nil && contained.Match(raw) || errors.Is(err, fs.ErrPermission)
		}
	}
	return nil
}

// add notes where the threads of a process live; seen is false when it may not be known of one. One that has ended
// lives nowhere.
func (r *Residents) add(proc string) (seen bool) {
	tasks, err := numbered(filepath.Join(proc, "task"))
	seen = !errors.Is(err, fs.ErrPermission)
	for _, tid := range tasks {
		var st unix.Stat_t
		switch err := unix.Stat(filepath.Join(proc, "task", tid, "ns/net"), &st); {
		case err == nil:
			r.in[core.NamespaceID{Dev: st.Dev, Ino: st.Ino}] = true
		case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
			seen = false
		}
	}
	return seen
}

// Deserted says whether it is certain that no process lives in a namespace.
func (r Residents) Deserted(id core.NamespaceID) bool { return !r.hidden && !r.in[id] }

// numbered are the entries of a directory whose names are numbers. Of one that went meanwhile there are none.
func numbered(dir string) (names []string, err error) {
	all, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil, nil
	}
	for _, e := range all {
		if _, bad := strconv.Atoi(e.Name()); bad == nil {
			names = append(names, e.Name())
		}
	}
	return names, err
}
