// Command netyard-cni is the plugin that CNI runtimes start for netyard's networks. It hands each call on to the daemon.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"netyard/cni"
)

func main() {
	err := skel.PluginMainFuncsWithError(skel.CNIFuncs{Add: call("ADD"), Check: call("CHECK"), Del: del, GC: call("GC"), Status: call("STATUS")},
		version.PluginSupports("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"), "netyard-cni: hands on to the netyard daemon")
	if err == nil {
		return
	}
	if os.Getenv("CNI_COMMAND") == "DEL" { // an error here would keep a runtime from ever stopping the container
		fmt.Fprintln(os.Stderr, "netyard-cni: "+err.Error())
		return
	}
	_ = err.Print() // there is nowhere to say that it could not be said
	os.Exit(1)
}

// call hands a command on and prints the daemon's answer.
func call(command string) func(*skel.CmdArgs) error {
	return func(args *skel.CmdArgs) error {
		netns, err := openNetns(args.Netns)
		if err != nil {
			return types.NewError(types.ErrInvalidNetNS, "open CNI_NETNS: "+err.Error(), "")
		}
		result, err := ask(command, args, netns)
		if err != nil {
			return say(err)
		}
		if len(result) > 0 {
			_, err = os.Stdout.Write(append(result, '\n'))
		}
		return err
	}
}

// del leaves a tombstone where the daemon cannot be told, for it to find when it is back.
func del(args *skel.CmdArgs) error {
	began := time.Now()
	netns, _ := openNetns(args.Netns) // one that is gone is as good as none
	_, err := ask("DEL", args, netns)
	if err == nil {
		return nil
	}
	stone := cni.Tombstone{Request: request("DEL", args), Deleted: began, Gone: args.Netns != ""}
	if lost := stone.Put(cni.TombstoneDir(socketOf(args))); lost != nil {
		return fmt.Errorf("%w; %w", err, lost)
	}
	return err
}

func ask(command string, args *skel.CmdArgs, netns *os.File) (json.RawMessage, error) {
	ctx, cancel := context.WithTimeout(context.Background(), cni.Deadline)
	defer cancel()
	return cni.Call(ctx, socketOf(args), request(command, args), netns)
}

func request(command string, args *skel.CmdArgs) cni.Request {
	return cni.Request{
		Command: command, ContainerID: args.ContainerID, Netns: args.Netns, IfName: args.IfName, Args: args.Args, Config: args.StdinData,
	}
}

func openNetns(path string) (*os.File, error) {
	if path == "" {
		return nil, nil //nolint:nilnil // none was named
	}
	return os.Open(path)
}

// socketOf is the daemon's socket, as the network configuration says.
func socketOf(args *skel.CmdArgs) string {
	var conf struct{ Socket string }
	if err := json.Unmarshal(args.StdinData, &conf); err != nil || conf.Socket == "" {
		return cni.DefaultSocket
	}
	return conf.Socket
}

// say puts an error into CNI's form.
func say(err error) error {
	var refused *cni.Error
	if errors.As(err, &refused) {
		return types.NewError(refused.Code, refused.Msg, refused.Details)
	}
	return types.NewError(types.ErrTryAgainLater, err.Error(), "")
}
