// Package cluster is what the hosts of an overlay know of each other: typed records in etcd, which they claim, publish
// and follow.
//
// What is in etcd was written by others. A record counts only if it is one of the known kinds, within bounds, and
// agrees with its key (Decode); nothing of it reaches a shell or the name of a file. The packets of running containers
// never wait for etcd: a Mirror keeps what it has seen while etcd is away, and a copy of it in the host's own file for
// a boot without etcd.
package cluster

import "errors"

// Schema is the version of the records this program writes. A cluster of a newer one is refused.
const Schema = 1

var (
	// ErrUnreachable says that etcd did not answer in time.
	ErrUnreachable = errors.New("etcd is unreachable")
	// ErrTaken says that somebody else has the name, the address or the number.
	ErrTaken = errors.New("is taken")
	// ErrNotFound says that there is no such record.
	ErrNotFound = errors.New("is not in the cluster")
	// ErrInUse says that something still needs it.
	ErrInUse = errors.New("is in use")
	// ErrOther says that etcd has another cluster than the one this host belongs to, or none any more.
	ErrOther = errors.New("etcd has another cluster")
	// ErrNotYet says that this host has not found its cluster in etcd yet, since it started.
	ErrNotYet = errors.New("etcd has not been asked yet")
	// ErrForgotten says that an administrator took this host out of the cluster.
	ErrForgotten = errors.New("this host was taken out of the cluster")
	// ErrTwin says that another machine is alive under this host's id.
	ErrTwin = errors.New("another machine is alive under this host's id")
	// ErrBad is at the root of every refusal of a record.
	ErrBad = errors.New("bad record")
)
