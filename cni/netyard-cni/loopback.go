package main

import (
	"errors"
	"fmt"
	"net"
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
		i, err := net.InterfaceByName(lo)
		if err == nil && i.Flags&net.FlagUp == 0 {
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
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a socket: %w", err)
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	q, err := unix.NewIfreq(lo)
	if err == nil {
		err = unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, q)
	}
	if err == nil {
		flags := q.Uint16() &^ unix.IFF_UP
		if up {
			flags |= unix.IFF_UP
		}
		q.SetUint16(flags)
		err = unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, q)
	}
	if err != nil {
		return fmt.Errorf("set interface lo up or down: %w", err)
	}
	return nil
}

// loopbackResult returns the result of the plugins before in the chain, or else the interface and its addresses.
func loopbackResult(r cni.Request, c conf) (any, error) {
	if len(c.PrevResult) > 0 {
		return c.PrevResult, nil
	}
	i, err := net.InterfaceByName(lo)
	if err != nil {
		return nil, fmt.Errorf("find interface lo: %w", err)
	}
	addrs, err := i.Addrs()
	if err != nil {
		return nil, fmt.Errorf("list addresses of lo: %w", err)
	}
	type ip struct {
		Version   string `json:"version,omitempty"` // before 1.0.0
		Interface int    `json:"interface"`
		Address   string `json:"address"`
	}
	ips := []ip{}
	for _, a := range addrs {
		n, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		out := ip{Address: n.String()}
		if c.CNIVersion < "1" {
			out.Version = map[bool]string{true: "4", false: "6"}[n.IP.To4() != nil]
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
