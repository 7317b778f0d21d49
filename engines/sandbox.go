package engines

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"

	"netyard/modes"
)

// A nsID identifies a namespace (namespaces(7)).
type nsID struct{ dev, ino uint64 }

// firstProcesses has the process with the lowest ID of each network namespace; a container's is its first process.
type firstProcesses map[nsID]int

// scanProcesses reads the namespace of every process of the host.
func scanProcesses() firstProcesses {
	r := firstProcesses{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		id, ok := namespace(filepath.Join(dir, "ns/net"))
		if !ok {
			continue // the process has ended, or is a kernel thread
		}
		if old, known := r[id]; !known || pid < old {
			r[id] = pid
		}
	}
	return r
}

func namespace(path string) (nsID, bool) {
	st, err := os.Stat(path)
	if err != nil {
		return nsID{}, false
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return nsID{}, false
	}
	return nsID{sys.Dev, sys.Ino}, true
}

// container returns the process and container ID of a sandbox; ok is false if the sandbox has no process.
func (r firstProcesses) container(sandbox string) (c modes.Container, ok bool) {
	id, ok := namespace(sandbox)
	if !ok {
		return modes.Container{}, false
	}
	pid, ok := r[id]
	if !ok {
		return modes.Container{}, false
	}
	c.PID = pid
	raw, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cgroup"))
	if err == nil {
		c.ID = containerID(string(raw))
	}
	return c, true
}

// hexID matches a container's ID as every engine writes it into the names of control groups.
var hexID = regexp.MustCompile(`[/-]([0-9a-f]{64})(?:\.scope)?(?:/|\n|$)`)

// containerID returns the container ID in a process's /proc/PID/cgroup (cgroups(7)), or "" if there is none.
func containerID(cgroups string) string {
	if m := hexID.FindStringSubmatch(cgroups); m != nil {
		return m[1]
	}
	return ""
}
