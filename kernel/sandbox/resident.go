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

// A Process identifies one process of this boot. The kernel reuses PIDs, but not with the same start time.
type Process struct {
	PID int `json:",omitempty"`
	// Start is when it started, in clock ticks since the boot (proc(5), /proc/pid/stat).
	Start uint64 `json:",omitempty"`
	// Space is the inode number of the PID namespace in which it has this PID.
	Space uint64 `json:",omitempty"`
}

// initialPIDNamespace is the inode number of the machine's initial PID namespace (PROC_PID_INIT_INO,
// include/linux/proc_ns.h).
const initialPIDNamespace = 0xEFFFFFFC

// pidNamespace returns the inode number of the PID namespace that /proc shows; 0 if it cannot be read.
func pidNamespace() uint64 {
	var st unix.Stat_t
	if unix.Stat("/proc/self/ns/pid", &st) != nil {
		return 0
	}
	return st.Ino
}

// SeesAllProcesses reports whether this process sees all processes of the machine. Inside a container's PID namespace
// it does not.
func SeesAllProcesses() bool { return pidNamespace() == initialPIDNamespace }

// ProcessAt returns the process that has a PID now; ok is false if there is none, or only a zombie.
func ProcessAt(pid int) (p Process, ok bool) {
	if pid <= 0 {
		return p, false
	}
	raw, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return p, false
	}
	at := strings.LastIndexByte(string(raw), ')') // ends the name, which may contain anything
	const state, start = 0, 19
	fields := strings.Fields(string(raw[at+1:]))
	if at < 0 || len(fields) <= start || fields[state] == "Z" || fields[state] == "X" {
		return p, false
	}
	began, err := strconv.ParseUint(fields[start], 10, 64)
	return Process{PID: pid, Start: began, Space: pidNamespace()}, err == nil
}

// Known reports whether p identifies a process.
func (p Process) Known() bool { return p.PID > 0 }

// Here reports whether the process is known, and would be visible from here if it lived.
func (p Process) Here() bool { return p.Known() && p.Space == pidNamespace() }

// Ended reports whether the process would be visible from here, and does not live any more.
func (p Process) Ended() bool {
	now, ok := ProcessAt(p.PID)
	return p.Here() && (!ok || now != p)
}

// PeerOf returns the process at the other end of a Unix socket (unix(7), SO_PEERCRED). The result is not Known if that
// process is not visible from this PID namespace.
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
	// hidden: there are processes of containers whose network namespace cannot be read.
	hidden bool
}

// containerGroup matches the control group of a container's process: every engine puts the container's ID into its path
// (cgroups(7)).
var containerGroup = regexp.MustCompile(`[0-9a-f]{64}`)

// FindResidents reads the network namespace of every thread of every process: a thread may be in another namespace than
// its process's first thread, or live longer than that. It reads twice, since a process may have started a child and
// ended while the list was read.
func FindResidents(ctx context.Context) (Residents, error) {
	r := Residents{in: map[core.NamespaceID]bool{}}
	for range 2 {
		if err := r.addAll(ctx); err != nil {
			return r, fmt.Errorf("find the processes of sandboxes: %w", err)
		}
	}
	return r, nil
}

// addAll adds the network namespaces of all processes but this one, whose threads enter sandboxes only for a moment.
func (r *Residents) addAll(ctx context.Context) error {
	procs, err := numericEntries("/proc")
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
		if !r.add(filepath.Join("/proc", pid)) && pid != "1" { // the host's init belongs to no container
			raw, err := os.ReadFile(filepath.Join("/proc", pid, "cgroup"))
			r.hidden = r.hidden || err == nil && containerGroup.Match(raw) || errors.Is(err, fs.ErrPermission)
		}
	}
	return nil
}

// add adds the network namespaces of the threads of a process; seen is false if one may not be read. A thread that has
// ended is in none.
func (r *Residents) add(proc string) (seen bool) {
	tasks, err := numericEntries(filepath.Join(proc, "task"))
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

// Empty reports whether it is certain that no process lives in a namespace.
func (r Residents) Empty(id core.NamespaceID) bool { return !r.hidden && !r.in[id] }

// numericEntries returns the entries of a directory whose names are numbers; none if the directory no longer exists.
func numericEntries(dir string) (names []string, err error) {
	all, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil, nil
	}
	for _, e := range all {
		if _, notNumber := strconv.Atoi(e.Name()); notNumber == nil {
			names = append(names, e.Name())
		}
	}
	return names, err
}
