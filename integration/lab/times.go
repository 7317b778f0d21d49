package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// timesEnv names the file that gets a line for each node whose power goes: what its processes had of the processors,
// user and system, in seconds, as far as nobody would wait for them and count it.
const timesEnv = "NETYARD_TIMES"

// noteTimes adds the line of the running node.
func (n *Node) noteTimes() error {
	path := os.Getenv(timesEnv)
	if path == "" {
		return nil
	}
	user, system := orphanTimes(n.initPID())
	file, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(file, "%.2f %.2f %s\n", user, system, n.Name)
	if closed := file.Close(); err == nil {
		err = closed
	}
	return err
}

// orphanTimes sums up the processes in the PID namespace that init is the first of, those in namespaces below it, and
// the children that they have waited for. When init is killed the kernel ends them without anybody's waiting. This
// program itself waits for init and the services.
func orphanTimes(init int) (user, system float64) {
	space, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", init))
	if err != nil {
		return 0, 0
	}
	all := map[string]process{}
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, proc := range procs {
		if p, ok := readProcess(proc); ok {
			all[filepath.Base(proc)] = p
		}
	}
	self := strconv.Itoa(os.Getpid())
	for _, p := range all {
		inside := p.space == space
		for up, ok := p, true; ok && !inside; up, ok = all[up.parent] {
			inside = up.space == space
		}
		if inside && p.parent != self {
			user, system = user+p.user, system+p.system
		}
	}
	return user, system
}

// A process is what /proc says of one.
type process struct {
	parent, space string
	user, system  float64 // seconds, its own and those of the children that it waited for
}

func readProcess(proc string) (process, bool) {
	const ticks = 100 // a second, in every Linux's /proc
	space, err := os.Readlink(proc + "/ns/pid")
	if err != nil {
		return process{}, false
	}
	stat, _ := os.ReadFile(proc + "/stat")
	_, rest, _ := strings.Cut(string(stat), ") ") // from the state on, the third field of proc(5)
	f := strings.Fields(rest)
	const parent, utime, stime, cutime, cstime = 1, 11, 12, 13, 14
	if len(f) <= cstime {
		return process{}, false
	}
	seconds := func(at int) float64 {
		v, _ := strconv.ParseFloat(f[at], 64)
		return v / ticks
	}
	return process{f[parent], space, seconds(utime) + seconds(cutime), seconds(stime) + seconds(cstime)}, true
}
