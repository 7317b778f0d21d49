// Package cluster is what a host does as a member of a cluster: it enters and joins it, announces that it is alive, and
// claims networks and addresses, in transactions on records in etcd.
//
// Other hosts write to etcd, so its contents are not trusted: package record accepts only valid records, and no field
// of them ever reaches a shell or a file name. Packets of running containers never wait for etcd: package mirror keeps
// the records it has seen while etcd is away.
package cluster

import (
	"errors"

	"netyard/cluster/etcd"
)

var (
	// ErrTaken says that another owner has the name, the address or the VNI.
	ErrTaken = errors.New("is taken")
	// ErrNotFound says that there is no such record.
	ErrNotFound = errors.New("is not in the cluster")
	// ErrForgotten says that an admin removed this host from the cluster.
	ErrForgotten = errors.New("this host was removed from the cluster")
	// ErrTwin says that another running machine has announced itself with this host's ID.
	ErrTwin = errors.New("another running machine has this host's ID")
)

// A Client is a host's access to its cluster.
type Client struct{ *etcd.Client }

// Open checks a configuration and the files it names, and makes a Client of it.
func Open(c etcd.Config) (*Client, error) {
	conn, err := etcd.Open(c)
	if err != nil {
		return nil, err
	}
	return &Client{conn}, nil
}
