// Package firewalld keeps netyard's bridges in a zone of firewalld that lets containers out. firewalld's own table
// rejects forwarded traffic of interfaces that are in no such zone, and an accept in another table does not override
// that. It changes only firewalld's runtime configuration, never the admin's permanent one: a reload of firewalld drops
// the change, and netyard makes it again.
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
	// name, path and the interfaces are those of firewalld.dbus(5).
	name      = "org.fedoraproject.FirewallD1"
	path      = dbus.ObjectPath("/org/fedoraproject/FirewallD1")
	zoneCalls = name + ".zone."

	// Zone is the zone for the bridges: a predefined one that lets its interfaces reach the host and other networks, as
	// Docker's zone does. netyard's rules still decide who reaches the containers.
	Zone = "trusted"

	// callTimeout bounds all D-Bus calls of one synchronization.
	callTimeout = 10 * time.Second
	// retryInterval is the time between two attempts to find a bus, or two synchronizations without a signal.
	retryInterval = 30 * time.Second
	// changeDelay is the time from a change of a network to the next synchronization, by when the change is recorded.
	changeDelay = 200 * time.Millisecond
)

// A Syncer keeps bridges in the zone.
type Syncer struct {
	Log *slog.Logger
	// Bridges returns the bridges that belong in the zone.
	Bridges func() []string
	// Ours reports whether an interface can only be netyard's.
	Ours func(string) bool
	// Changes signals that the bridges may have changed.
	Changes <-chan struct{}
}

// Run keeps the bridges in the zone until ctx ends. On a host without a system bus or firewalld it changes nothing.
func (k *Syncer) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := k.follow(ctx); err != nil && ctx.Err() == nil {
			k.Log.Debug("firewalld not reachable", "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(retryInterval):
		}
	}
	return nil
}

// follow connects to the bus and synchronizes the zone whenever the bridges or firewalld change, until the connection
// breaks.
func (k *Syncer) follow(ctx context.Context) error {
	conn, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return fmt.Errorf("connect to the system bus: %w", err)
	}
	defer conn.Close() //nolint:errcheck // no call is in progress
	reloaded := []dbus.MatchOption{dbus.WithMatchInterface(name), dbus.WithMatchMember("Reloaded")}
	started := []dbus.MatchOption{
		dbus.WithMatchInterface("org.freedesktop.DBus"), dbus.WithMatchMember("NameOwnerChanged"),
		dbus.WithMatchArg(0, name),
	}
	for _, match := range [][]dbus.MatchOption{reloaded, started} {
		if err := conn.AddMatchSignalContext(ctx, match...); err != nil {
			return fmt.Errorf("subscribe to firewalld's signals: %w", err)
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
				return errors.New("the system bus closed the connection")
			}
		case <-k.Changes:
			time.Sleep(changeDelay)
		case <-time.After(retryInterval):
		}
	}
}

// sync adds bridges to the zone that belong there and removes netyard's interfaces that do not. It leaves bridges that
// the admin has put into another zone where they are.
func (k *Syncer) sync(ctx context.Context, conn *dbus.Conn) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var runs bool
	err := conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.NameHasOwner", 0, name).Store(&runs)
	if err != nil || !runs {
		return
	}
	firewalld := conn.Object(name, path)
	var have []string
	if err := firewalld.CallWithContext(ctx, zoneCalls+"getInterfaces", 0, Zone).Store(&have); err != nil {
		k.Log.Warn("firewalld zone not read", "zone", Zone, "err", err)
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

// call calls addInterface or removeInterface for a bridge. An error that the zone has the wanted state already is none.
func (k *Syncer) call(ctx context.Context, firewalld dbus.BusObject, method, bridge string) {
	err := firewalld.CallWithContext(ctx, zoneCalls+method, 0, Zone, bridge).Err
	done := err == nil ||
		strings.Contains(err.Error(), "ZONE_ALREADY_SET") || strings.Contains(err.Error(), "UNKNOWN_INTERFACE")
	if !done {
		k.Log.Warn("firewalld zone not changed", "call", method, "zone", Zone, "bridge", bridge, "err", err)
		return
	}
	k.Log.Info("firewalld zone changed", "call", method, "zone", Zone, "bridge", bridge)
}
