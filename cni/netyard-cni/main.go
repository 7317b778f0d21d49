// Command netyard-cni is the plugin that CNI runtimes start for netyard's networks. It hands each call on to the
// daemon.
//
// It is the protocol's smallest part, and written out: a runtime starts it anew for every call, and of the package that
// would do it most of the time goes into what is not needed here.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"netyard/cni"
)

// versions are those of the specification that netyard speaks, from the oldest.
func versions() []string { return []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"} }

// A verb is a command of the specification.
type verb struct {
	// since is the first version that has it.
	since string
	// needs are the parameters that it cannot be without (CNI specification 1.1.0, section 2, "Parameters").
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

// conf is what the plugin itself reads of a network configuration.
type conf struct {
	CNIVersion, Name, Socket string
}

func main() {
	command := os.Getenv("CNI_COMMAND")
	c, err := run(command)
	switch {
	case err == nil:
	case command == "DEL": // an error here would keep a runtime from ever stopping the container
		fmt.Fprintln(os.Stderr, "netyard-cni: "+err.Error())
	default:
		_ = answer(struct { // there is nowhere to say that it could not be said
			CNIVersion string `json:"cniVersion,omitempty"`
			*cni.Error
		}{c.CNIVersion, say(err)})
		os.Exit(1)
	}
}

func run(command string) (c conf, err error) {
	switch command {
	case "":
		_, err = fmt.Fprintf(os.Stderr, "netyard-cni: hands on to the netyard daemon\nCNI protocol versions supported: %s\n", strings.Join(versions(), ", "))
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
	if err != nil && command != "DEL" { // there, one that is gone is as good as none
		return c, refuse(cni.CodeNamespace, "open CNI_NETNS: %v", err)
	}
	result, err := cni.Call(began.Add(cni.Deadline), c.Socket, r, netns)
	if err != nil && command == "DEL" { // for the daemon to find when it is back
		stone := cni.Tombstone{Request: r, Deleted: began, Gone: r.Netns != ""}
		if lost := stone.Put(cni.TombstoneDir(c.Socket)); lost != nil {
			err = fmt.Errorf("%w; %w", err, lost)
		}
	}
	if err == nil && len(result) > 0 {
		_, err = os.Stdout.Write(append(result, '\n'))
	}
	return c, err
}

// read reads a call from the environment and in, and refuses what the specification does not have.
func read(command string, in io.Reader) (r cni.Request, c conf, err error) {
	v, known := verbs()[command]
	if !known {
		return r, c, refuse(cni.CodeEnvironment, "unknown CNI_COMMAND: %s", command)
	}
	missing := slices.DeleteFunc(v.needs, func(name string) bool { return os.Getenv(name) != "" })
	if len(missing) > 0 {
		return r, c, refuse(cni.CodeEnvironment, "required env variables [%s] missing", strings.Join(missing, ","))
	}
	raw, err := io.ReadAll(in)
	if err != nil {
		return r, c, refuse(cni.CodeIO, "read the network configuration: %v", err)
	}
	r = cni.Request{
		Command: command, ContainerID: os.Getenv("CNI_CONTAINERID"), Netns: os.Getenv("CNI_NETNS"), IfName: os.Getenv("CNI_IFNAME"),
		Args: os.Getenv("CNI_ARGS"), Config: raw,
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		return r, c, refuse(cni.CodeDecoding, "decode the network configuration: %v", err)
	}
	if c.Socket == "" {
		c.Socket = cni.DefaultSocket
	}
	switch at := slices.Index(versions(), c.CNIVersion); {
	case at < 0:
		return r, c, refuse(cni.CodeVersion, "incompatible CNI versions: the configuration's is %q, supported are %s", c.CNIVersion, strings.Join(versions(), ", "))
	case at < slices.Index(versions(), v.since):
		return r, c, refuse(cni.CodeVersion, "the configuration's version %s does not allow %s", c.CNIVersion, command)
	case !valid(c.Name):
		return r, c, refuse(cni.CodeConfig, "key name: %q is no name of a network", c.Name)
	case r.ContainerID != "" && !valid(r.ContainerID):
		return r, c, refuse(cni.CodeEnvironment, "CNI_CONTAINERID=%s: it is no name of a container", r.ContainerID)
	}
	return r, c, nil
}

// valid says whether a container or a network can be called so: [a-zA-Z0-9][a-zA-Z0-9_.-]*.
func valid(name string) bool {
	for i, b := range []byte(name) {
		alnum := b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9'
		if !alnum && (i == 0 || b != '_' && b != '.' && b != '-') {
			return false
		}
	}
	return name != ""
}

func openNetns(path string) (*os.File, error) {
	if path == "" {
		return nil, nil //nolint:nilnil // none was named
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

// say puts an error into CNI's form.
func say(err error) *cni.Error {
	var refused *cni.Error
	if errors.As(err, &refused) {
		return refused
	}
	return &cni.Error{Code: cni.CodeTryAgain, Msg: err.Error()}
}
