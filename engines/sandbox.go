package engines

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"

	"netyard/modes"
)

// A nsID tells one namespace from another (namespaces(7)).
type nsID struct{ dev, ino uint64 }

// residents says which process lives in which network namespace: the one with the lowest id, which for a container is
// its first.
type residents map[nsID]int

// inhabitants looks at every process once.
func inhabitants() residents {
	r := residents{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		id, ok := namespace(filepath.Join(dir, "ns/net"))
		if !ok {
			continue // it ended, or it is a kernel thread
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

// of finds out who lives in a sandbox.
func (r residents) of(sandbox string) (modes.Container, bool) {
	id, ok := namespace(sandbox)
	if !ok {
		return modes.Container{}, false
	}
	pid, ok := r[id]
	if !ok {
		return modes.Container{}, false
	}
	who := modes.Container{PID: pid}
	raw, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cgroup"))
	if err == nil {
		who.ID = containerID(string(raw))
	}
	return who, true
}

// hexID is a container's id as every engine writes it into the names of control groups.
var hexID = regexp.MustCompile(`[/-]([0-9a-f]{64})(?:\.scope)?(?:/|\n|$)`)

// containerID finds the id in a process's /proc/PID/cgroup (cgroups(7)); empty when it is in no container.
func containerID(cgroups string) string {
	if m := hexID.FindStringSubmatch(cgroups); m != nil {
		return m[1]
	}
	return ""
}
