// Package bench measures netyard on hosts of package lab beside what a user would otherwise have: Docker's own
// networks, Debian's CNI plugins, the kernel alone. scripts/bench runs it.
package bench

import (
	"os"
	"strings"
	"testing"

	"netyard/integration/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }

// engine is the engine that is measured.
const engine = lab.Engine285

// yard boots a host with the engine and netyard as it is shipped.
func yard(b *testing.B, opts ...lab.Option) *lab.Host {
	b.Helper()
	h := lab.New(b, engine, append(opts, lab.Name("netyard"))...)
	h.Netyard.Program = lab.BuildShipped(b)
	h.Netyard.Start()
	return h
}

// without boots a host with the engine alone.
func without(b *testing.B, opts ...lab.Option) *lab.Host {
	b.Helper()
	return lab.New(b, engine, append(opts, lab.Name("docker"), lab.DockerdArgs("--userland-proxy=false"))...)
}

// knows says whether netyard on this host has an option.
func knows(h *lab.Host, mode, option string) bool {
	return strings.Contains(h.Sh("netyard options", mode), option)
}
