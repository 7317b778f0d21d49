package daemon

import (
	"fmt"

	"netyard/cni"
	"netyard/yard/book"
)

// deletedConflists finds the CNI configurations of netyard's networks that another program has deleted.
func deletedConflists(dir string) (out []book.Finding, err error) {
	gone, err := cni.Deleted(dir)
	for _, i := range gone {
		again := "netyard cni install " + i.Network
		if i.Name != i.Network {
			again = "netyard cni install --default " + i.Network
		}
		out = append(out, book.Finding{
			Kind: book.Fault, Network: i.Network,
			Text: fmt.Sprintf("the CNI configuration %s was deleted, as podman network rm and prune do; "+
				"install it again with %s, or give it up with netyard cni uninstall %s", i.Path, again, i.Network),
		})
	}
	return out, err
}
