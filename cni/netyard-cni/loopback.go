package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"netyard/cni"
)

// loopbackType is the plugin type that sets up a sandbox's loopback interface, as the upstream plugin of that name
// does. containerd's CRI calls it for each pod, whatever the pod's network is. The daemon has no part in it.
const loopbackType = "loopback"

// lo is the name that the kernel gives to the loopback interface of each network namespace.
const lo = "lo"

// loopback does what a call asks for with the sandbox's loopback interface, and returns what the plugin prints.
func loopback(r cni.Request, c conf, netns *os.File) (result any, err error) {
	if netns == nil { // a DEL of a sandbox that is gone, or a command without one
		return nil, nil //nolint:nilnil // there is nothing to print
	}
	runtime.LockOSThread() // the thread ends with the process
	if err := unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, refuse(cni.CodeNamespace, "enter CNI_NETNS=%s: %v", cni.Shorten(r.Netns), err)
	}
	switch r.Command {
	case "ADD":
		if err := setUp(true); err != nil {
			return nil, err
		}
		return loopbackResult(r, c)
	case "DEL":
		return nil, setUp(false)
	case "CHECK":
		is, err := change(nil)
		if err == nil && is&unix.IFF_UP == 0 {
			err = errors.New("it is down")
		}
		if err != nil {
			return nil, fmt.Errorf("check interface lo: %w", err)
		}
	}
	return nil, nil //nolint:nilnil // there is nothing to print
}

// setUp sets the loopback interface of this thread's network namespace up or down.
func setUp(up bool) error {
	_, err := change(func(flags uint16) uint16 {
		if up {
			return flags | unix.IFF_UP
		}
		return flags &^ unix.IFF_UP
	})
	if err != nil {
		return fmt.Errorf("set interface lo up or down: %w", err)
	}
	return nil
}

// change returns the flags of the loopback interface (netdevice(7)), and changes them; to nil: it does not.
func change(to func(flags uint16) uint16) (is uint16, err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open a socket: %w", err)
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	q, err := unix.NewIfreq(lo)
	if err == nil {
		err = unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, q)
	}
	if err != nil {
		return 0, err
	}
	if to == nil {
		return q.Uint16(), nil
	}
	q.SetUint16(to(q.Uint16()))
	return q.Uint16(), unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, q)
}

// loopbackResult returns the result of the plugins before in the chain, or else the interface and its addresses.
func loopbackResult(r cni.Request, c conf) (any, error) {
	if len(c.PrevResult) > 0 {
		return c.PrevResult, nil
	}
	type ip struct {
		Version   string `json:"version,omitempty"` // before 1.0.0
		Interface int    `json:"interface"`
		Address   string `json:"address"`
	}
	ips := []ip{}
	for _, a := range []string{"127.0.0.1/8", "::1/128"} { // those that the kernel gives it
		out, v6 := ip{Address: a}, a[0] == ':'
		if v6 && !hasIPv6() {
			continue
		}
		if c.CNIVersion < "1" {
			out.Version = map[bool]string{true: "6", false: "4"}[v6]
		}
		ips = append(ips, out)
	}
	return map[string]any{
		"cniVersion": c.CNIVersion,
		"interfaces": []map[string]string{{"name": lo, "mac": "00:00:00:00:00:00", "sandbox": r.Netns}},
		"ips":        ips,
		"dns":        struct{}{},
	}, nil
}

// hasIPv6 reports whether the loopback interface has ::1: not where IPv6 is off.
func hasIPv6() bool {
	raw, err := os.ReadFile("/proc/thread-self/net/if_inet6")
	return err == nil && bytes.Contains(raw, []byte("00000000000000000000000000000001 "))
}
