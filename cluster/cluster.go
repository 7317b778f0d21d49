// Package cluster holds what the hosts of an overlay know of each other: typed records in etcd, which hosts claim,
// publish and watch.
//
// Other hosts write to etcd, so its contents are not trusted. Decode accepts a record only if its kind is known, its
// fields are within bounds and it agrees with its key; no field ever reaches a shell or a file name. Packets of running
// containers never wait for etcd: a Mirror keeps the records it has seen while etcd is away, and saves a copy of them
// in the host's database for a boot without etcd.
package cluster

import "errors"

// Schema is the version of the records that this program writes. A host refuses to enter a cluster with a newer one.
const Schema = 1

var (
	// ErrUnreachable says that etcd did not answer in time.
	ErrUnreachable = errors.New("etcd is unreachable")
	// ErrTaken says that another owner has the name, the address or the VNI.
	ErrTaken = errors.New("is taken")
	// ErrNotFound says that there is no such record.
	ErrNotFound = errors.New("is not in the cluster")
	// ErrInUse says that hosts still use the network.
	ErrInUse = errors.New("is in use")
	// ErrOther says that etcd holds another cluster than the one this host belongs to, or no longer holds any.
	ErrOther = errors.New("etcd does not hold this host's cluster")
	// ErrNotYet says that this process has not entered its cluster yet.
	ErrNotYet = errors.New("etcd was not contacted yet")
	// ErrForgotten says that an admin removed this host from the cluster.
	ErrForgotten = errors.New("this host was removed from the cluster")
	// ErrTwin says that another running machine has announced itself with this host's ID.
	ErrTwin = errors.New("another running machine has this host's ID")
	// ErrInvalid is wrapped by every error that rejects a record.
	ErrInvalid = errors.New("invalid record")
)
