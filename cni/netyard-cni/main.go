// Command netyard-cni is the plugin that CNI runtimes start for netyard's networks. It forwards each call to the
// daemon. Under the plugin type loopback it sets up the loopback interface of a sandbox by itself.
//
// It implements the plugin's side of the protocol without the CNI project's package: a runtime starts it for every
// call, and most of that package's start-up time goes into what is not needed here.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"netyard/cni"
)

// versions returns the versions of the specification that netyard supports, oldest first.
func versions() []string { return []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"} }

// A verb is a command of the specification.
type verb struct {
	// since is the first version that has the command.
	since string
	// needs are its required parameters (CNI specification 1.1.0, section 2, "Parameters").
	needs []string
}

func verbs() map[string]verb {
	id, netns, ifName, path := "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"
	return map[string]verb{
		"ADD":    {"0.3.0", []string{id, netns, ifName, path}},
		"DEL":    {"0.3.0", []string{id, ifName, path}},
		"CHECK":  {"0.4.0", []string{id, netns, ifName, path}},
		"GC":     {"1.1.0", []string{path}},
		"STATUS": {"1.1.0", []string{path}},
	}
}

// conf holds the keys of a network configuration that the plugin itself reads.
type conf struct {
	CNIVersion, Name, Type, Socket string
	PrevResult                     json.RawMessage
}

func main() {
	command := os.Getenv("CNI_COMMAND")
	c, err := run(command)
	switch {
	case err == nil:
	case command == "DEL": // with an error, a runtime would never stop the container
		fmt.Fprintln(os.Stderr, cni.Abridge("netyard-cni: "+err.Error()))
	default:
		_ = answer(struct { // an error of writing the error cannot be reported
			CNIVersion string `json:"cniVersion,omitempty"`
			*cni.Error
		}{cni.Shorten(c.CNIVersion), asCNIError(err)})
		os.Exit(1)
	}
}

func run(command string) (c conf, err error) {
	switch command {
	case "":
		_, err = fmt.Fprintf(os.Stderr, "netyard-cni: forwards CNI calls to the netyard daemon\n"+
			"CNI protocol versions supported: %s\n", strings.Join(versions(), ", "))
		return c, err
	case "VERSION":
		return c, answer(struct {
			CNIVersion string   `json:"cniVersion"`
			Supported  []string `json:"supportedVersions"`
		}{slices.Max(versions()), versions()})
	}
	began := time.Now()
	r, c, err := read(command, os.Stdin)
	if err != nil {
		return c, err
	}
	netns, err := openNetns(r.Netns)
	if err != nil && command != "DEL" { // DEL does not need the namespace
		return c, refuse(cni.CodeNamespace, "CNI_NETNS=%s: %v", cni.Shorten(r.Netns), err)
	}
	if c.Type == loopbackType {
		result, err := loopback(r, c, netns)
		if err == nil && result != nil {
			err = answer(result)
		}
		return c, err
	}
	result, err := cni.Call(began.Add(cni.Deadline), c.Socket, r, netns)
	if err != nil && command == "DEL" { // the daemon reads the tombstone when it runs again
		t := cni.Tombstone{Request: r, Deleted: began, Gone: r.Netns != ""}
		if putErr := t.Put(cni.TombstoneDir(c.Socket)); putErr != nil {
			err = fmt.Errorf("%w; %w", err, putErr)
		}
	}
	if err == nil && len(result) > 0 {
		_, err = os.Stdout.Write(append(result, '\n'))
	}
	return c, err
}

// read reads a call from the environment and in, and refuses calls that are invalid by the specification.
func read(command string, in io.Reader) (r cni.Request, c conf, err error) {
	v, known := verbs()[command]
	if !known {
		return r, c, refuse(cni.CodeEnvironment, "unknown CNI_COMMAND: %s", cni.Shorten(command))
	}
	missing := slices.DeleteFunc(v.needs, func(name string) bool { return os.Getenv(name) != "" })
	if len(missing) > 0 {
		return r, c, refuse(cni.CodeEnvironment, "required env variables [%s] missing", strings.Join(missing, ","))
	}
	raw, err := io.ReadAll(in)
	if err != nil {
		return r, c, refuse(cni.CodeIO, "read network configuration: %v", err)
	}
	r = cni.Request{
		Command:     command,
		ContainerID: os.Getenv("CNI_CONTAINERID"),
		Netns:       os.Getenv("CNI_NETNS"),
		IfName:      os.Getenv("CNI_IFNAME"),
		Args:        os.Getenv("CNI_ARGS"),
		Config:      raw,
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		return r, c, refuse(cni.CodeDecoding, "decode network configuration: %v", err)
	}
	if c.Socket == "" {
		c.Socket = cni.DefaultSocket
	}
	switch at := slices.Index(versions(), c.CNIVersion); {
	case at < 0:
		return r, c, refuse(cni.CodeVersion, "key cniVersion: %q is not supported; supported are %s",
			cni.Shorten(c.CNIVersion), strings.Join(versions(), ", "))
	case at < slices.Index(versions(), v.since):
		return r, c, refuse(cni.CodeVersion, "key cniVersion: %s has no command %s, which needs at least %s",
			c.CNIVersion, command, v.since)
	case !valid(c.Name):
		return r, c, refuse(cni.CodeConfig, "key name: %q is not a valid network name%s",
			cni.Shorten(c.Name), limit(c.Name))
	case r.ContainerID != "" && !valid(r.ContainerID):
		return r, c, refuse(cni.CodeEnvironment, "CNI_CONTAINERID=%s: not a valid container ID%s",
			cni.Shorten(r.ContainerID), limit(r.ContainerID))
	}
	return r, c, nil
}

// limit returns the part of an error about a name that is too long.
func limit(name string) string {
	if len(name) <= cni.MaxName {
		return ""
	}
	return fmt.Sprintf(": %d characters, at most %d are allowed", len(name), cni.MaxName)
}

// valid reports whether a network name or container ID matches [a-zA-Z0-9][a-zA-Z0-9_.-]* and is not too long.
func valid(name string) bool {
	for i, b := range []byte(name) {
		alnum := b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9'
		if !alnum && (i == 0 || b != '_' && b != '.' && b != '-') {
			return false
		}
	}
	return name != "" && len(name) <= cni.MaxName
}

// openNetns opens a container's network namespace. It does not open what is no namespace: to open a FIFO is to wait
// for a writer. Of what kind the namespace is, the daemon finds out.
func openNetns(path string) (*os.File, error) {
	if path == "" {
		return nil, nil //nolint:nilnil // the runtime named no namespace
	}
	const nsfs = 0x6e736673 // NSFS_MAGIC (linux/magic.h)
	var on syscall.Statfs_t
	switch err := syscall.Statfs(path, &on); {
	case err != nil:
		return nil, err
	case on.Type != nsfs:
		return nil, errors.New("it is not a namespace")
	}
	return os.Open(path)
}

func answer(v any) error {
	raw, err := json.Marshal(v)
	if err == nil {
		_, err = os.Stdout.Write(append(raw, '\n'))
	}
	return err
}

func refuse(code uint, format string, args ...any) error {
	return &cni.Error{Code: code, Msg: fmt.Sprintf(format, args...)}
}

// asCNIError returns an error in CNI's form. One that did not come from the daemon has the code "try again later".
func asCNIError(err error) *cni.Error {
	var refused *cni.Error
	if errors.As(err, &refused) {
		return &cni.Error{Code: refused.Code, Msg: cni.Abridge(refused.Msg), Details: cni.Abridge(refused.Details)}
	}
	return &cni.Error{Code: cni.CodeTryAgain, Msg: cni.Abridge(err.Error())}
}
