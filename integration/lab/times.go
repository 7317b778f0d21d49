package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// timesEnv names the file that gets a line for each node that is powered off: the CPU time, user and system, in
// seconds, of those of its processes that no parent waits for and accounts.
const timesEnv = "NETYARD_TIMES"

// recordTimes adds the line of the running node.
func (n *Node) recordTimes() error {
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

// orphanTimes returns the CPU time of the processes in the PID namespace of init and in those below it, with that of
// children that they have waited for. When init is killed, the kernel ends them, and nobody waits for them. Not
// included are init and the services, which this program waits for.
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

// A process is a process as /proc shows it.
type process struct {
	parent, space string
	user, system  float64 // seconds, with those of the children that it waited for
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
