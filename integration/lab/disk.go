package lab

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	dirPrefix  = "netyard-lab-"
	cgroupRoot = "/sys/fs/cgroup"
)

// baseDir returns the directory with the disks of nodes. Its file system must support overlay2.
func baseDir() string {
	if dir := os.Getenv("NETYARD_LAB_DIR"); dir != "" {
		return dir
	}
	return "/var/tmp"
}

// newDir makes a directory for a node, and removes those that killed test processes left. A directory is in use while
// its lock is held.
func newDir(name string) (string, *os.File, error) {
	removeStale()
	made, err := os.MkdirTemp(baseDir(), "."+dirPrefix+name+"-")
	if err != nil {
		return "", nil, err
	}
	lock, err := os.Create(filepath.Join(made, "lock"))
	if err != nil {
		return "", nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return "", nil, err
	}
	// Only now that it is locked it gets a name that removeStale considers.
	dir := filepath.Join(baseDir(), filepath.Base(made)[1:])
	if err := os.Rename(made, dir); err != nil {
		return "", nil, err
	}
	return dir, lock, os.Chmod(dir, 0o755)
}

// removeStale removes the directories and cgroups of test processes that have ended; their nodes ended with them.
func removeStale() {
	dirs, _ := filepath.Glob(filepath.Join(baseDir(), dirPrefix+"*"))
	for _, dir := range dirs {
		lock, err := os.Open(filepath.Join(dir, "lock"))
		if err != nil {
			continue
		}
		if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			removeCgroups(filepath.Base(dir))
			os.RemoveAll(dir)
		}
		lock.Close()
	}
}

// destroy powers the node off and removes what it has on this machine; the test fails if something is left.
func (n *Node) destroy() {
	t := n.report.TB()
	t.Helper()
	for _, s := range n.services {
		s.check()
	}
	if t.Failed() {
		for _, s := range n.services {
			if log := s.Log(); log != "" {
				t.Logf("log of %s on %s:\n%s", s.Name, n.Name, tail(log, 200))
			}
		}
	}
	n.powerOff()
	for _, p := range n.plugs {
		p.disconnect()
	}
	if err := os.RemoveAll(n.Dir); err != nil {
		t.Errorf("lab: %s left files: %v", n.Name, err)
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	if strings.Contains(string(mounts), n.Dir) {
		t.Errorf("lab: %s left mounts", n.Name)
	}
	n.lock.Close()
}

// removeCgroups removes the cgroup with a name, and those below it, in every hierarchy: in cgroup v1 each controller
// has one. It tries for 2 s, since the kernel may need a moment after the last process of a cgroup has ended.
func removeCgroups(name string) error {
	tops, _ := filepath.Glob(filepath.Join(cgroupRoot, "*", name))
	tops = append(tops, filepath.Join(cgroupRoot, name))
	var err error
	for range 100 {
		if err = removeTrees(tops); err == nil {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return err
}

// removeTrees removes directories with the directories in them, but no files: those of a cgroup go with it.
func removeTrees(tops []string) error {
	var errs []error
	for _, top := range tops {
		var dirs []string
		filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for _, dir := range slices.Backward(dirs) {
			if err := unix.Rmdir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, fmt.Errorf("remove %s: %w", dir, err))
			}
		}
	}
	return errors.Join(errs...)
}

// install puts a program at path: as a hard link if it is on the same file system, otherwise as a copy.
func install(from, path string) error {
	from, err := filepath.EvalSymlinks(from)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if os.Link(from, path) == nil {
		return nil
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// newBootID returns an ID in the form of the kernel's boot ID.
func newBootID() string {
	var b [16]byte
	rand.Read(b[:])
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
