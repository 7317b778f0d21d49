// Package firewalld keeps netyard's bridges in a zone of firewalld's that lets containers out. firewalld's own table
// rejects what is forwarded for interfaces in no zone of that kind, and an accept in another table does not override
// it. Only what runs is changed, never what the admin has configured: a reload forgets it, and netyard says it again.
package firewalld

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
)

const (
	// name, path and the interfaces are firewalld.dbus(5)'s.
	name      = "org.fedoraproject.FirewallD1"
	path      = dbus.ObjectPath("/org/fedoraproject/FirewallD1")
	zoneCalls = name + ".zone."

	// Zone is where bridges go: firewalld's own zone whose interfaces are let out and to the host, as Docker's bridges
	// are. netyard's rules go on deciding who reaches the containers.
	Zone = "trusted"

	callTime = 10 * time.Second
	// again is how often a bus or a firewalld is looked for that tells nobody that it came.
	again = 30 * time.Second
	// settle is how long a network may take from its first change to being wanted.
	settle = 200 * time.Millisecond
)

// A Keeper keeps bridges in the zone.
type Keeper struct {
	Log *slog.Logger
	// Bridges are those that are wanted there, Ours says of an interface that it can only be netyard's.
	Bridges func() []string
	Ours    func(string) bool
	// Changes tells that they may have changed.
	Changes <-chan struct{}
}

// Run keeps the bridges in the zone until ctx ends. A host without firewalld, or without a bus, is left alone.
func (k *Keeper) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := k.follow(ctx); err != nil && ctx.Err() == nil {
			k.Log.Debug("no firewalld to speak to", "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(again):
		}
	}
	return nil
}

// follow is one connection's life.
func (k *Keeper) follow(ctx context.Context) error {
	conn, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return fmt.Errorf("connect to the system bus: %w", err)
	}
	defer conn.Close() //nolint:errcheck // nothing is lost with it
	for _, match := range [][]dbus.MatchOption{
		{dbus.WithMatchInterface(name), dbus.WithMatchMember("Reloaded")},
		{dbus.WithMatchInterface("org.freedesktop.DBus"), dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, name)},
	} {
		if err := conn.AddMatchSignalContext(ctx, match...); err != nil {
			return fmt.Errorf("listen for firewalld: %w", err)
		}
	}
	const several = 16
	signals := make(chan *dbus.Signal, several)
	conn.Signal(signals)
	for {
		k.sync(ctx, conn)
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-signals:
			if !ok {
				return errors.New("the system bus went away")
			}
		case <-k.Changes:
			time.Sleep(settle)
		case <-time.After(again):
		}
	}
}

// sync puts into the zone what belongs there, and takes out what is no more. What the admin has put into another zone
// stays there.
func (k *Keeper) sync(ctx context.Context, conn *dbus.Conn) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	var runs bool
	err := conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.NameHasOwner", 0, name).Store(&runs)
	if err != nil || !runs {
		return
	}
	firewalld := conn.Object(name, path)
	var have []string
	if err := firewalld.CallWithContext(ctx, zoneCalls+"getInterfaces", 0, Zone).Store(&have); err != nil {
		k.Log.Warn("ask firewalld for the interfaces of a zone", "zone", Zone, "err", err)
		return
	}
	want := k.Bridges()
	for _, bridge := range want {
		if slices.Contains(have, bridge) {
			continue
		}
		var zone string
		err := firewalld.CallWithContext(ctx, zoneCalls+"getZoneOfInterface", 0, bridge).Store(&zone)
		if err == nil && zone != "" {
			continue
		}
		k.call(ctx, firewalld, "addInterface", bridge)
	}
	for _, one := range have {
		if k.Ours(one) && !slices.Contains(want, one) {
			k.call(ctx, firewalld, "removeInterface", one)
		}
	}
}

func (k *Keeper) call(ctx context.Context, firewalld dbus.BusObject, method, bridge string) {
	err := firewalld.CallWithContext(ctx, zoneCalls+method, 0, Zone, bridge).Err
	if err != nil && !strings.Contains(err.Error(), "ZONE_ALREADY_SET") && !strings.Contains(err.Error(), "UNKNOWN_INTERFACE") {
		k.Log.Warn("tell firewalld of a bridge", "call", method, "zone", Zone, "bridge", bridge, "err", err)
		return
	}
	k.Log.Info("told firewalld of a bridge", "call", method, "zone", Zone, "bridge", bridge)
}
